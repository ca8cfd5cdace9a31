"""Writes what the codecs make of the corpus into expected/. Read the difference before it is committed:

python -m tests.golden.llm.write && git diff --stat tests/golden
"""

from collections.abc import Callable
from typing import Any

from tests.golden.llm.translations import EXPECTED, PAIRS, translated_answers, translated_requests, written


def write(kind: str, translate: Callable[[str, str], dict[str, Any]]) -> None:
    folder = EXPECTED / kind
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in PAIRS:
        path = folder / f"{source}_to_{target}.json"
        path.write_text(written(translate(source, target)) + "\n", "utf-8")


if __name__ == "__main__":
    write("requests", translated_requests)
    write("answers", translated_answers)
