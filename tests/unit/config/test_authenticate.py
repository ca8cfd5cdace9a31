"""What would leave nobody able to call, and settings of `authenticate` that would have no effect."""

import pytest

from tollhouse.config.parse import LoadError, parse


def said(text: str) -> list[str]:
    try:
        parse(text, "t.yaml", {})
    except LoadError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


MCP = "mcp: {servers: {a: {command: a}}}\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("authenticate: {}\n", "authenticate: nobody could call"),
        ("authenticate: {mode: optional}\n", ""),
        ("authenticate: {issued: true}\n", "authenticate.issued: has no effect without `ledger`"),
        ("authenticate: {issued: true}\nledger: sqlite:x.db\n", ""),
        ("authenticate: {mtls: {}}\n", "authenticate.mtls: no listener asks for certificates"),
        ("authenticate: {mtls: {header: client-cert}}\n", "authenticate.mtls.header: is believed from trusted proxies"),
        ("authenticate: {mtls: {header: client-cert}}\nserver: {trusted_proxies: [10.0.0.1]}\n", ""),
        ("authenticate: {oidc: {issuer: 'https://x', client_id: y}}\n", "authenticate.oidc: has no effect without"),
        (
            "routes: [{name: r, path: /r, to: 'http://127.0.0.1:1', authenticate: {}}]\n",
            "routes[0].authenticate: nobody could call",
        ),
        (
            "server: {listen: '0.0.0.0:1'}\nauthenticate: {introspection: {url: 'https://x', client_id: a, "
            "client_secret: b}}\n" + MCP,
            "server.public_url: required",
        ),
    ],
)
def test_what_is_told(text: str, expected: str) -> None:
    found = said(text)
    assert len(found) == (1 if expected else 0), found
    assert not expected or found[0].startswith(expected)
