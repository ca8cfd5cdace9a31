"""The headers of the stateless era: round trips, agreement with the body, and schemas that annotate badly."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared import inbound

from tollhouse.wire.mcp import headers


@given(st.text())
def test_values_come_back(value: str) -> None:
    raw = headers.encode_value(value)
    assert headers.decode_value(raw) == value
    assert all(0x20 <= byte < 0x7F for byte in raw)


@given(st.text())
def test_values_are_written_as_the_sdk_writes_them(value: str) -> None:
    if not any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        assert headers.encode_value(value).decode() == inbound.encode_header_value(value)


@pytest.mark.parametrize("raw", [b"=?base64?!!?=", b"=?base64?YQ?=", b"=?base64?YR==?=", b"=?base64?/w==?=", b"\xe9"])
def test_broken_values(raw: bytes) -> None:
    assert headers.decode_value(raw) is None


V, M, N = b"mcp-protocol-version", b"mcp-method", b"mcp-name"
GOOD = [(V, b"2026-07-28"), (M, b"tools/call"), (N, b"echo")]


@pytest.mark.parametrize(
    ("given_headers", "method", "version", "named", "at"),
    [
        (GOOD, "tools/call", "2026-07-28", "echo", None),
        (GOOD[:2], "tools/call", "2026-07-28", "echo", "Mcp-Name"),
        (GOOD[1:], "tools/call", "2026-07-28", "echo", "MCP-Protocol-Version"),
        ([GOOD[0], GOOD[2]], "tools/call", "2026-07-28", "echo", "Mcp-Method"),
        (GOOD, "prompts/get", "2026-07-28", "echo", "Mcp-Method"),
        (GOOD, "tools/call", "2026-07-28", "Echo", "Mcp-Name"),
        (GOOD, "tools/call", "2025-11-25", "echo", "MCP-Protocol-Version"),
        (GOOD, "tools/call", None, "echo", "MCP-Protocol-Version"),
        ([*GOOD, (N, b"echo")], "tools/call", "2026-07-28", "echo", "Mcp-Name"),
        ([*GOOD, (M, b"tools/call")], "tools/call", "2026-07-28", "echo", "Mcp-Method"),
        ([*GOOD[:2], (N, b"=?base64?w6k=?=")], "tools/call", "2026-07-28", "é", None),
        ([*GOOD[:2], (N, b"\xc3\xa9")], "tools/call", "2026-07-28", "é", "Mcp-Name"),
        (GOOD[:2], "tools/call", "2026-07-28", None, None),
        ([GOOD[0], (M, b"tools/list")], "tools/list", "2026-07-28", None, None),
    ],
)
def test_headers_against_the_body(given_headers: Any, method: str, version: Any, named: Any, at: str | None) -> None:
    fault = headers.request_fault(given_headers, method, version, named)
    assert (fault[0] if fault else None) == at


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REGION = {"type": "string", "x-mcp-header": "Region"}
BAD: list[Any] = [
    {"x-mcp-header": "A", "type": "string"},
    schema(a={"type": "string", "x-mcp-header": 7}),
    schema(a={"type": "string", "x-mcp-header": "no spaces"}),
    schema(a={"type": "string", "x-mcp-header": ""}),
    schema(a={"type": "number", "x-mcp-header": "A"}),
    schema(a={"type": ["string"], "x-mcp-header": "A"}),
    schema(a={"x-mcp-header": "A"}),
    schema(a=REGION, b={"type": "string", "x-mcp-header": "region"}),
    schema(a={"type": "array", "items": REGION}),
    {"anyOf": [schema(a=REGION)]},
    {"$defs": {"x": REGION}},
    schema(a={"type": "object", "additionalProperties": REGION}),
]
FINE: list[Any] = [
    None,
    7,
    schema(),
    schema(a=REGION),
    schema(a=schema(b=REGION)),
    schema(a={"type": "object", "default": {"x-mcp-header": "no annotation"}}),
    schema(a={"$ref": "#/$defs/x"}),
]


@pytest.mark.parametrize("candidate", BAD)
def test_bad_annotations(candidate: Any) -> None:
    assert headers.invalid_annotation(candidate)
    assert inbound.find_invalid_x_mcp_header(candidate)


@pytest.mark.parametrize("candidate", FINE)
def test_good_annotations(candidate: Any) -> None:
    assert headers.invalid_annotation(candidate) is None
    assert inbound.find_invalid_x_mcp_header(candidate) is None


SCHEMA = schema(
    region=REGION,
    n={"type": "integer", "x-mcp-header": "N"},
    deep=schema(flag={"type": "boolean", "x-mcp-header": "Flag"}),
)
FOUND = headers.annotations(SCHEMA)


@pytest.mark.parametrize(
    "arguments", [{}, {"region": "eu"}, {"region": "é", "n": 42}, {"deep": {"flag": True}}, {"region": None, "n": 0}]
)
def test_params_agree_with_themselves(arguments: Any) -> None:
    made = headers.params_for(FOUND, arguments)
    assert headers.param_mismatch(FOUND, arguments, made) is None
    theirs = inbound.mcp_param_headers(inbound.x_mcp_header_map(SCHEMA), arguments)
    assert {name.decode(): value.decode() for name, value in made} == {k.lower(): v for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("arguments", "given_headers", "fine"),
    [
        ({"n": 42}, [(b"mcp-param-n", b"42.0")], True),
        ({"n": 42.0}, [(b"mcp-param-n", b"42")], True),
        ({"n": 42}, [(b"mcp-param-n", b"4.2e1")], False),
        ({"n": 42}, [(b"mcp-param-n", b"42.5")], False),
        ({"n": True}, [(b"mcp-param-n", b"1")], False),
        ({"region": "eu"}, [], False),
        ({}, [(b"mcp-param-region", b"eu")], False),
        ({"region": None}, [(b"mcp-param-region", b"eu")], False),
        ({"region": "eu"}, [(b"mcp-param-region", b"EU")], False),
        ({"region": "eu"}, [(b"mcp-param-region", b"eu"), (b"mcp-param-region", b"eu")], False),
        ({"region": "eu"}, [(b"mcp-param-region", b"=?base64?!?=")], False),
        ({}, [(b"mcp-param-other", b"x")], True),
        ({"region": ["eu"]}, [], True),
        ("no object", [], True),
    ],
)
def test_params_against_the_body(arguments: Any, given_headers: Any, fine: bool) -> None:
    assert (headers.param_mismatch(FOUND, arguments, given_headers) is None) == fine
