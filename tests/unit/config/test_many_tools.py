"""`search` and `code_mode` as they may be written, and what is wrong with other ways."""

import sys
from typing import Any

import pytest

from tollhouse.config.parse import parse
from tollhouse.config.spec import McpSpec
from tollhouse.core.errors import ConfigError

SERVERS = "mcp:\n  servers:\n    shop: {command: x}\n"


def read(written: str) -> McpSpec:
    mcp = parse(f"{SERVERS}  {written}\n", "t.yaml", {}).config.mcp
    assert mcp is not None
    return mcp


def test_without_them_nothing_changes() -> None:
    mcp = read("prefix: auto")
    assert mcp.search.mode == "off"
    assert mcp.code_mode is None


@pytest.mark.parametrize(
    "written, expected",
    [
        ("auto", ("auto", 60, 8000, None)),
        ("on", ("on", 60, 8000, None)),
        ("off", ("off", 60, 8000, None)),
        ("{}", ("auto", 60, 8000, None)),
        ("{tools: 5, tokens: null}", ("auto", 5, None, None)),
        ("{mode: on, embeddings: m}", ("on", 60, 8000, "m")),
    ],
)
def test_search(written: str, expected: Any) -> None:
    search = read(f"search: {written}").search
    assert (search.mode, search.tools, search.tokens, search.embeddings) == expected


@pytest.mark.parametrize(
    "written, said",
    [
        ("search: true", "mcp.search"),
        ("search: sometimes", "not a way to search"),
        ("search: {mode: never}", "mcp.search.mode"),
        ("search: {tools: 0}", "mcp.search.tools"),
        ("search: {mode: on, tools: 5}", "`tools` has no effect with `mode: on`"),
        ("search: {mode: off, embeddings: m}", "`embeddings` has no effect with `mode: off`"),
        ("search: {tools: null, tokens: null}", "nothing is ever too much"),
        ("search: {tool: 5}", "mcp.search.tool"),
        ("code_mode: 7", "mcp.code_mode"),
        ("code_mode: {cpu: 5}", "mcp.code_mode.cpu"),
        ("code_mode: {cpu: 2m}", "mcp.code_mode.cpu"),
        ("code_mode: {wall: 1h}", "mcp.code_mode.wall"),
        ("code_mode: {memory: 1KiB}", "mcp.code_mode.memory"),
        ("code_mode: {output: 1GiB}", "mcp.code_mode.output"),
        ("code_mode: {calls: 0}", "mcp.code_mode.calls"),
    ],
)
def test_mistakes(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as failed:
        read(written)
    (problem,) = failed.value.problems
    assert said in str(problem)
    assert str(problem).startswith("t.yaml:4:")


def test_code_mode() -> None:
    pytest.importorskip("pydantic_monty", reason="the extra `code` is not installed")
    assert read("code_mode: false").code_mode is None
    usual = read("code_mode: true").code_mode
    assert usual is not None
    assert usual.model_dump() == {"cpu": 5.0, "wall": 30.0, "memory": 64 << 20, "output": 32 << 10, "calls": 50}
    own = read("code_mode: {cpu: 2s, wall: 1m, memory: 8MiB, output: 1KiB, calls: 3}").code_mode
    assert own is not None
    assert own.model_dump() == {"cpu": 2.0, "wall": 60.0, "memory": 8 << 20, "output": 1024, "calls": 3}


def test_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(ConfigError, match=r"needs the extra `code`: pip install 'tollhouse\[code\]'"):
        read("code_mode: true")
    assert read("code_mode: false").code_mode is None


def test_endpoints_say_otherwise() -> None:
    mcp = read("search: on\n  endpoints: [{path: /a, servers: [shop]}, {path: /b, servers: [shop], search: off}]")
    first, second = mcp.endpoints
    assert first.search is None
    assert second.search is not None
    assert second.search.mode == "off"
    assert "code_mode" not in first.model_fields_set
