"""Settings of MCP tools and of endpoints beside the main one: what is right, and what is refused where."""

from pathlib import Path

import pytest
from tests.unit.config.test_parse import problems

from tollhouse.config.parse import parse

SERVERS = "mcp:\n  servers:\n    shop: {url: http://127.0.0.1:1/mcp}\n    files: {command: x}\n"


def test_what_is_right() -> None:
    endpoint = "  endpoints: [{path: /mcp/support, servers: [shop], tools: {allow: [a], deny: ['*b*']}}]\n"
    mcp = parse(SERVERS + endpoint, "t.yaml", {}).config.mcp
    assert mcp is not None
    assert (mcp.endpoints[0].path, mcp.endpoints[0].servers) == ("/mcp/support", ("shop",))
    tool = "    own: {command: x, bridge: off, tools: {t: {name: n, arguments: {a: {hidden: true, default: [1]}}}}}\n"
    mcp = parse(SERVERS + tool, "t.yaml", {}).config.mcp
    assert mcp is not None
    own = mcp.servers["own"]
    assert not own.bridge
    assert own.tools["t"].arguments["a"].default == [1]


@pytest.mark.parametrize(
    "written,said",
    [
        ("{path: /mcp, servers: [shop]}", "is the path of `mcp.path` already"),
        ("{path: /mcp/shop, servers: [shop]}", "is the path of the server `shop` alone already"),
        ("{path: mcp, servers: [shop]}", "must begin with a slash"),
        ("{path: /x, servers: [shop, shop]}", "`shop` stands here twice"),
        ("{path: /x, servers: [shap]}", "there is no MCP server `shap`; did you mean `shop`?"),
        ("{path: /x, servers: []}", "should not be empty"),
        ("{path: /x, servers: [shop], tools: {deny: []}}", "neither `allow` nor `deny` says anything"),
        ("{path: /x, servers: [shop], search: sometimes}", "not a way to search"),
        ("{path: /x, servers: [shop]}, {path: /x, servers: [files]}", "is the path of `mcp.endpoints[0]` already"),
    ],
)
def test_what_is_no_endpoint(written: str, said: str) -> None:
    (problem,) = problems(f"{SERVERS}  endpoints: [{written}]\n")
    assert said in problem
    assert problem.startswith("t.yaml:5:")


@pytest.mark.parametrize(
    "written,said",
    [
        ("t: {name: 'a b'}", "name"),
        ("t: {arguments: {a: {}}}", "nothing is set here"),
        ("t: {arguments: {a: {hidden: true, rename: b}}}", "no effect with `hidden`"),
        ("t: {arguments: {a: {rename: c}, b: {rename: c}}}", "two arguments have the same `rename`"),
        ("t: {name: n}, u: {name: n}", "two tools have the name 'n'"),
    ],
)
def test_what_is_no_override(written: str, said: str) -> None:
    (problem,) = problems(f"mcp:\n  servers:\n    shop: {{command: x, tools: {{{written}}}}}\n")
    assert said in problem


def test_the_golden_file_has_them() -> None:
    text = (Path(__file__).parents[2] / "golden/config/every-key.yaml").read_text(encoding="utf-8")
    for key in ("input_timeout", "endpoints", "bridge", "rename", "hidden"):
        assert key in text


def test_what_an_endpoint_says_alone_counts() -> None:
    """Where it stands in no other place: rules to approve have the time of `approvals`, limits and budgets a state."""
    approving = "{path: /x, servers: [shop], authorize: {rules: [{approve: 'true'}]}}"
    top = "authorize: {rules: [{allow: 'true'}], approvals: {timeout: 10s}}\n"
    parse(f"{SERVERS}  endpoints: [{approving}]\n{top}", "t.yaml", {})
    (problem,) = problems(SERVERS + top)
    assert "authorize.approvals: has no effect: no rule says `approve`" in problem
    limits, budgets = "[{per: user, calls: 5, window: 1m}]", "[{per: user, calls: 5, window: day}]"
    counting = f"{{path: /x, servers: [shop], limits: {limits}, budgets: {budgets}}}"
    told = problems(f"{SERVERS}  endpoints: [{counting}]\nserver: {{workers: 2}}\nledger: sqlite:a.db\n")
    assert any("limits are counts" in one and "`mcp.endpoints[0].limits`" in one for one in told)
    assert any("budgets are counts" in one and "`mcp.endpoints[0].budgets`" in one for one in told)


def test_a_setting_of_an_endpoint_that_has_no_effect() -> None:
    limit = "{per: user, calls: 5, window: 1m, on_store_failure: allow}"
    (problem,) = problems(f"{SERVERS}  endpoints: [{{path: /x, servers: [shop], limits: [{limit}]}}]\n")
    assert "mcp.endpoints[0].limits[0].on_store_failure: has no effect with `state: memory`" in problem
