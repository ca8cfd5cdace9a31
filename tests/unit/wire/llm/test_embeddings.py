"""OpenAI embeddings."""

from pathlib import Path

from tollhouse.core.call import Usage
from tollhouse.wire.llm import EMBEDDINGS

GOLDEN = Path(__file__).parent / "golden"


def test_answer() -> None:
    body = (GOLDEN / "openai_embeddings.json").read_bytes()
    assert EMBEDDINGS.answer(body) == (Usage(8, 0), "text-embedding-3-small")


def test_nothing_is_reserved_for_output_and_nothing_streams() -> None:
    body = b'{"model":"e","input":["a"],"stream":true,"max_tokens":9}'
    asked = EMBEDDINGS.decode(body)
    assert EMBEDDINGS.estimate(body, asked.fields) == len(body) // 4
    assert not asked.stream
