"""Settings of servers that are HTTP APIs: which kind one is, and what is refused where."""

import json
from pathlib import Path

import pytest
from tests.unit.config.test_parse import problems

from tollhouse.config.parse import parse
from tollhouse.config.spec import OpenApiServer, RestServer

TOOL = "{name: t, description: d, path: /x}"


def test_the_keys_say_which_kind_a_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = {
        "openapi": "3.1.0",
        "servers": [{"url": "http://a.test"}],
        "paths": {"/a": {"get": {"operationId": "a"}}},
    }
    (tmp_path / "api.json").write_text(json.dumps(document))
    text = f"mcp:\n  servers:\n    a: {{openapi: api.json}}\n    b: {{base_url: 'http://a.test', rest: [{TOOL}]}}\n"
    loaded = parse(text, "t.yaml", {})
    mcp = loaded.config.mcp
    assert mcp is not None
    assert isinstance(mcp.servers["a"], OpenApiServer)
    assert isinstance(mcp.servers["b"], RestServer)
    # The document is followed like the configuration itself.
    assert str(tmp_path / "api.json") in loaded.files
    assert parse(text, "t.yaml", {}).config == loaded.config
    document["paths"]["/b"] = {"get": {"operationId": "b"}}  # type: ignore[index]
    (tmp_path / "api.json").write_text(json.dumps(document))
    assert parse(text, "t.yaml", {}).config != loaded.config


@pytest.mark.parametrize(
    "written,said",
    [
        ("{base_url: 'http://a.test'}", "needs `command` (a program to start), `url`"),
        (f"{{rest: [{TOOL}]}}", "mcp.servers.shop.base_url: required, but not there"),
        ("{base_url: 'http://a.test', rest: []}", "rest"),
        (f"{{base_url: 'http://a.test', rest: [{TOOL}], session: shared}}", "session"),
        (f"{{base_url: 'http://a.test', rest: [{TOOL}], bridge: off}}", "bridge"),
        (f"{{base_url: 'a.test', rest: [{TOOL}]}}", "is not a URL like"),
        ("{base_url: 'http://a.test', rest: [{name: t, description: d, path: '/{a}'}]}", "{a} is no argument"),
        ("{openapi: nope.yaml}", "there is no file"),
    ],
)
def test_what_is_no_server(written: str, said: str) -> None:
    found = problems(f"mcp:\n  servers:\n    shop: {written}\n")
    assert found
    assert said in found[0]
    assert found[0].startswith("t.yaml:3:")


@pytest.mark.parametrize(
    "written,said",
    [
        ("order", "write it as server__tool"),
        ("__order", "write it as server__tool"),
        ("shap__order", "there is no MCP server `shap`; did you mean `shop`?"),
        ("shop__order", "is the tool itself"),
    ],
)
def test_what_is_no_alternate(written: str, said: str) -> None:
    (problem,) = problems(
        "mcp:\n  servers:\n    shop:\n      url: http://127.0.0.1:1/mcp\n"
        f"      tools: {{order: {{alternate: {written}}}}}\n    files: {{command: x}}\n"
    )
    assert said in problem
    assert problem.startswith("t.yaml:5:")


@pytest.mark.parametrize(
    "written,said",
    [("/mcp", "is the path of `mcp.path` already"), ("tools", "must begin with a slash"), ("/x/", "")],
)
def test_where_tools_are_rest(written: str, said: str) -> None:
    (problem,) = problems(f"mcp:\n  rest: {written}\n  servers: {{a: {{command: x}}}}\n")
    assert said in problem
    assert problem.startswith("t.yaml:2:")


def test_two_things_at_one_path() -> None:
    (problem,) = problems(
        "mcp:\n  rest: true\n  servers: {a: {command: x}}\n  endpoints: [{path: /tools, servers: [a]}]\n"
    )
    assert "is the path of `mcp.rest` already" in problem
