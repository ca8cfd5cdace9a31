"""`exchange` in a configuration: where it is for, and what has no effect beside it."""

from typing import Any

import pytest
from tests.unit.config.told import problems_built as problems
from tests.unit.config.told import read

SECRET = "0123456789abcdef0123456789abcdef"
BASE = f"""
authenticate: {{keys: [{{name: ci, key: {SECRET}}}]}}
issuer: {{url: "https://auth.example.com", clients: [{{id: robot, secret: {SECRET}, grants: [client_credentials]}}]}}
"""
REWRITTEN = "{headers: {Authorization: x}}"
SHOP = "mcp: {servers: {shop: {url: 'https://shop.example.com/mcp'}}}\n"


def servers(**specs: str) -> str:
    return "mcp: {servers: {" + ", ".join(f"{name}: {spec}" for name, spec in specs.items()) + "}}\n"


@pytest.mark.parametrize(
    ("setting", "mode"), [("on", None), ("off", "off"), ("{}", None), ("{mode: impersonation}", "impersonation")]
)
def test_a_word_may_stand_for_it(setting: str, mode: Any) -> None:
    there = f"{{url: https://shop.example.com/mcp, exchange: {setting}}}"
    config = read(f"{BASE}exchange: on\n{servers(a='{url: https://a.example}', shop=there)}")
    assert config.mcp is not None
    server: Any = config.mcp.servers["shop"]
    assert server.exchange.mode == mode


def test_it_is_for_servers_over_http_and_asked_for_by_routes() -> None:
    route = "routes: [{name: a, path: /a, to: 'http://127.0.0.1:1', exchange: on}]\n"
    assert problems(f"{BASE}exchange: on\n{SHOP}") == []
    assert problems(f"{BASE}{route}") == []
    assert problems(f"{BASE}exchange: {{mode: off}}\n{servers(a='{url: https://a.example, exchange: on}')}") == []


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (f"{BASE}exchange: on", "exchange", "no MCP server over HTTP"),
        (f"{BASE}exchange: on\n{servers(a='{command: x}')}", "exchange", "no MCP server over HTTP"),
        (f"{BASE}{servers(a='{command: x, exchange: on}')}", "mcp.servers.a.exchange", "goes with `url`"),
        (f"{BASE}{servers(a='{url: https://a.example, exchange: off}')}", "mcp.servers.a.exchange", "nothing is"),
        (
            f"{BASE}{servers(a='{url: https://a.example, tools: {t: {exchange: {ttl: 9s}}}}')}",
            "mcp.servers.a.tools.t.exchange",
            "without tokens",
        ),
        (
            f"{BASE}exchange: on\n{servers(a='{url: https://a.example, headers: {authorization: x}}')}",
            "mcp.servers.a.headers",
            "no effect beside `exchange`",
        ),
        (
            f"{BASE}routes: [{{name: a, path: /a, to: 'http://127.0.0.1:1', exchange: off}}]",
            "routes[0].exchange",
            "unless it says so",
        ),
        (
            f"{BASE}routes: [{{name: a, path: /a, to: 'http://127.0.0.1:1', exchange: on, pass_credentials: true}}]",
            "routes[0].pass_credentials",
            "never sends",
        ),
        (
            f"{BASE}routes: [{{name: a, path: /a, to: ['http://127.0.0.1:1', 'http://127.0.0.1:2'], exchange: on}}]",
            "routes[0].exchange",
            "several upstreams",
        ),
        (
            f"{BASE}routes: [{{name: a, path: /a, to: 'http://127.0.0.1:1', exchange: {{audience: tool}}}}]",
            "routes[0].exchange",
            "is for MCP servers",
        ),
        (
            f"{BASE}routes: [{{name: a, path: /a, to: 'http://a.b', exchange: on, rewrite: {REWRITTEN}}}]",
            "routes[0].rewrite.headers",
            "no effect beside",
        ),
        (f"exchange: on\n{SHOP}", "exchange", "callers who are known"),
        (
            f"authenticate: {{keys: [{{name: ci, key: {SECRET}}}]}}\nexchange: on\n{SHOP}",
            "top: exchange",
            "there is no `issuer`",
        ),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_cannot_be(text: str, path: str, message: str) -> None:
    found = problems(text)
    assert any(one.startswith(f"{path}: ") and message in one for one in found), found


def test_an_issuer_elsewhere() -> None:
    there = f"{{issuer: 'https://idp.example.com', client_id: gateway, client_secret: {SECRET}}}"
    assert problems(f"authenticate: {{keys: [{{name: ci, key: {SECRET}}}]}}\nexchange: {there}\n{SHOP}") == []


ROUTE = "routes: [{name: a, path: /a, to: 'http://a.b'%s}]\n"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (f"{BASE}identity: on", "identity", "no MCP server over HTTP"),
        (f"{BASE}identity: on\n{servers(a='{command: x}')}", "identity", "no MCP server over HTTP"),
        (f"{BASE}{ROUTE % ', identity: off'}", "routes[0].identity", "nobody is told"),
        (
            f"{BASE}identity: {{header: X-Me}}\n{servers(a='{url: https://a.example, headers: {x-me: root}}')}",
            "mcp.servers.a.headers",
            "`x-me` is the header of `identity`",
        ),
        (
            f"{BASE}{ROUTE % ', identity: {header: x-me}, rewrite: {headers: {X-Me: root}}'}",
            "routes[0].rewrite",
            "`x-me` is the header of `identity`",
        ),
        (f"identity: on\n{SHOP}", "top: identity", "there is no `issuer`"),
    ],
)
def test_a_header_that_says_who_calls(text: str, path: str, message: str) -> None:
    found = problems(text)
    assert any(one.startswith(f"{path}: ") and message in one for one in found), found


def test_where_it_can_be() -> None:
    assert problems(f"{BASE}identity: on\n{SHOP}{ROUTE % ', identity: off'}") == []
    assert problems(f"{BASE}{ROUTE % ', identity: on'}") == []
