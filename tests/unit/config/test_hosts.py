"""`server.hosts`: which names are taken, and where it would have no effect."""

import pytest

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError

MCP = "mcp: {servers: {s: {command: x}}}\n"
KEYS = "authenticate: {keys: [{name: ci, key: a-key-of-the-client}]}\n"
ROUTES = "routes: [{name: a, path: /a, to: 'http://127.0.0.1:1'}]\n"
HOSTS = "server: {hosts: [gateway.internal]}\n"


def problems(text: str) -> list[str]:
    try:
        parse(text, "t.yaml", {})
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "written,meant",
    [
        ("gateway.internal", "gateway.internal"),
        ("Gateway.Internal", "gateway.internal"),
        ("'*.dev.example.com'", "*.dev.example.com"),
        ("192.0.2.7", "192.0.2.7"),
        ("'[2001:db8::1]'", "[2001:db8::1]"),
    ],
)
def test_names(written: str, meant: str) -> None:
    assert parse(f"server: {{hosts: [{written}]}}\n{MCP}", "t.yaml", {}).config.server.hosts == (meant,)


@pytest.mark.parametrize("written", ["", "*", "*.", "a.*.b", "https://a", "a:8080", "a/b", "a b", "a..b", "[x]"])
def test_what_is_no_name(written: str) -> None:
    with pytest.raises(ValueError, match=r"not the name of a host; write it like gateway\.internal"):
        Config.model_validate({"server": {"hosts": [written]}})


@pytest.mark.parametrize("more,why", [(KEYS + MCP, "callers need a credential"), (ROUTES, "on `routes`")])
def test_where_it_has_no_effect(more: str, why: str) -> None:
    (only,) = problems(HOSTS + more)
    assert only.startswith("t.yaml:1:10: server.hosts: has no effect")
    assert why in only


def test_where_it_has() -> None:
    assert not problems(HOSTS + MCP)
    assert not problems(HOSTS + ROUTES + MCP)
    assert not problems(HOSTS + MCP + KEYS.replace("{keys", "{mode: optional, keys"))


def test_on_listeners_that_others_reach_it_has_none_either() -> None:
    optional = "authenticate: {mode: optional}\n" + MCP
    (only,) = problems("server: {hosts: [gateway.internal], listen: '0.0.0.0:8080'}\n" + optional)
    assert "no listener is of this machine alone" in only
    assert not problems("server: {hosts: [gateway.internal], listen: ['0.0.0.0:8080', '127.0.0.1:8081']}\n" + optional)
