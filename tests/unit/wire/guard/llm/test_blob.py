"""wire.guard.llm.blob: files that are texts are texts, wherever an API has files."""

import json
from base64 import b64decode, b64encode, encodebytes, urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.llm import request_texts
from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.forms import Look, New

KEY = "ghp_Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4zAb3d"
TEXT = f"name;key\ncafé;{KEY}\n" * 20


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def looked(source: str) -> tuple[list[str], dict[str, int]]:
    look = Look()
    Blob("file").look(msgspec.Raw(json.dumps(source).encode()), (), look)
    return [spot.text for spot in look.spots], look.opaque


def asking(api: str, file: str) -> dict[str, Any]:
    """A request with a file, as each API has one."""
    if api == "chat":
        return {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": file}}]}]}
    if api == "responses":
        return {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": file}]}]}
    if api == "messages":
        source = {"type": "base64", "media_type": "text/plain", "data": file}
        return {"messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}
    if api == "generate":
        return {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "text/csv", "data": file}}]}]}
    document = {"name": "n", "format": "csv", "source": {"bytes": file}}
    return {"messages": [{"role": "user", "content": [{"document": document}]}]}


@pytest.mark.parametrize("api", ["chat", "responses", "messages", "generate", "converse"])
@pytest.mark.parametrize("head", ["", "data:text/csv;charset=utf-8;base64,"])
def test_every_api(api: str, head: str) -> None:
    fields = {
        name: msgspec.Raw(json.dumps(value).encode()) for name, value in asking(api, head + encoded(TEXT)).items()
    }
    texts = request_texts(api, fields)
    [piece] = [piece for piece in texts.pieces if KEY in piece.text]
    assert piece.text == TEXT
    assert texts.opaque == {}
    told = texts.replaced({piece.key: TEXT.replace(KEY, "[GITHUB]")})
    expected = asking(api, head + encoded(TEXT.replace(KEY, "[GITHUB]")))
    assert {name: json.loads(bytes(value)) for name, value in told.items()} == expected


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_however_it_is_written(text: str) -> None:
    plain = encoded(text)
    assert looked(plain) == ([text], {})
    for source in (
        urlsafe_b64encode(text.encode()).decode(),
        plain.rstrip("="),
        encodebytes(text.encode()).decode(),
        f"data:text/plain;base64,{plain}",
    ):
        assert looked(source) == ([text], {}), source


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" * 40, b"\x89PNG\r\n\x1a\n", b"a\0b", b"\xff" * 999]
)
def test_what_is_no_text_is_told(content: bytes) -> None:
    assert looked(b64encode(content).decode()) == ([], {"file": 1})


@pytest.mark.parametrize("api", ["chat", "responses", "messages", "generate", "converse"])
def test_where_files_are_what_is_no_clean_base64_may_still_be_one(api: str) -> None:
    plain = b64encode("\ufeffmy card is 4111 1111 1111 1111".encode("utf-16-le")).decode()
    lines = encodebytes(b64decode(plain)).decode()
    for file in (plain.rstrip("="), lines, plain.translate(str.maketrans("+/", "-_")), "!" + plain * 9):
        fields = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in asking(api, file).items()}
        assert list(request_texts(api, fields).opaque.values()) == [1], file


def test_what_begins_as_a_text_and_is_none() -> None:
    assert looked(b64encode(b"x" * 500 + b"\0").decode()) == ([], {"file": 1})


def test_a_letter_that_is_cut_where_it_is_first_looked_at() -> None:
    for shift in range(4):
        text = "a" * shift + "\U0001f600" * 200
        assert looked(encoded(text)) == ([text], {})


@pytest.mark.parametrize("source", [f"it is {KEY}", KEY, "a_b", "caf\u00e9", "data:,plain%20words", "x" * 5])
def test_what_is_no_base64_is_a_text_itself(source: str) -> None:
    assert looked(source) == ([source], {})


def test_a_file_that_changes_keeps_its_head() -> None:
    source = f"data:text/plain;base64,{encoded('mine')}"
    told = Blob("file").put(msgspec.Raw(json.dumps(source).encode()), (), New({(): "yours"}))
    assert json.loads(bytes(told)) == f"data:text/plain;base64,{encoded('yours')}"
