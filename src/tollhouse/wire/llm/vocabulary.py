"""Tokens of OpenAI's models, counted offline with OpenAI's own vocabularies: the extra `tokens`.

Rule: it counts where nobody else has, and never while a call is under way: loading takes half a second and 180 MB, and
a megabyte of text some 20 ms. Of a long text the beginning is counted and the rest put in proportion. What comes out is
an estimate all the same: what a provider adds around the texts is its own affair.
"""

from collections.abc import Callable
from typing import Any, Self

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.tokens import PICTURE

__all__ = ["Vocabularies"]

Count = Callable[[str], int]
"""Tokens of a text."""

_OLDER = ("gpt-4-", "gpt-3.5", "gpt-35", "text-embedding-")
_NEWER = ("gpt-", "chatgpt-", "o1", "o3", "o4", "codex-", "computer-use-")
_MESSAGE = 4  # tokens that a message's frame takes
_LOOK = 1 << 16  # characters of a request that are counted
_DEEPEST = 64
_SAID = ("messages", "input", "instructions", "system", "prompt", "tools", "functions", "response_format", "text")
_UNSAID = frozenset(("type", "id", "call_id", "tool_call_id", "file_id", "detail", "role", "status", "cache_control"))


class Vocabularies:
    """The vocabularies, loaded. older: of the models before gpt-4o; newer: of those since."""

    __slots__ = ("_newer", "_older")

    def __init__(self, *, older: Count, newer: Count) -> None:
        self._older = older
        self._newer = newer

    @classmethod
    def load(cls) -> Self | None:
        """None where the extra is not installed. Takes half a second."""
        try:
            import bpe_openai  # noqa: PLC0415 - an optional extra
        except ImportError:
            return None

        def counts(name: str) -> Count:
            encode: Callable[[str], list[int]] = bpe_openai.get_encoding(name).encode_ordinary
            return lambda text: len(encode(text.encode("utf-8", "replace").decode()))

        return cls(older=counts("cl100k_base"), newer=counts("o200k_base"))

    def of(self, model: str) -> Count | None:
        """What counts this model's tokens; None for a model that is not OpenAI's. A provider before the name
        (`openai/gpt-4o`) does not matter."""
        name = model.lower().rpartition("/")[2].removeprefix("ft:")
        if name == "gpt-4" or name.startswith(_OLDER):
            return self._older
        return self._newer if name.startswith(_NEWER) else None

    def of_request(self, model: str, body: bytes) -> int | None:
        """Input tokens of a request body of OpenAI's APIs; None for another model, and for a body that is no JSON."""
        count = self.of(model)
        if count is None:
            return None
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            said = {name: msgspec.json.decode(fields[name]) for name in _SAID if name in fields}
        except UNREADABLE:
            return None
        texts: list[str] = []
        pictures = _collect(said, texts)
        turns = said.get("messages", said.get("input"))
        frames = len(turns) if isinstance(turns, list) else 1
        whole = "\n".join(texts)
        looked = whole[:_LOOK]
        tokens = count(looked)
        if len(whole) > len(looked):
            tokens = tokens * len(whole) // len(looked)
        return tokens + frames * _MESSAGE + pictures * PICTURE


def _collect(value: Any, texts: list[str]) -> int:
    """The texts in it; how many pictures and the like there are."""
    pictures = 0
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for inner in level:
            if isinstance(inner, dict):
                if inner.get("type") in ("object", "function"):  # a schema: its words are its names
                    texts.append(msgspec.json.encode(inner).decode())
                    continue
                below += (v for name, v in inner.items() if name not in _UNSAID)
            elif isinstance(inner, list):
                below += inner
            elif isinstance(inner, str):
                if inner.startswith("data:") or (len(inner) > 2048 and " " not in inner[:2048]):
                    pictures += 1
                else:
                    texts.append(inner)
        if not below:
            break
        level = below
    return pictures
