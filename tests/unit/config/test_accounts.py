"""`oauth` in a configuration: what it may say, what it needs, and what has no effect beside it."""

from typing import Any

import pytest
from tests.unit.config.told import problems_built as problems
from tests.unit.config.told import read

from tollhouse.gateway.accounts import ours_of, settings_of

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21l$AAAAAAAAAAAAAAAAAAAAAA"
SECRET = "0123456789abcdef0123456789abcdef"
ISSUER = f"issuer: {{url: 'https://gw.example.com', users: [{{name: ada, password_hash: '{HASH}'}}]}}\n"
BASE = f"authenticate: {{keys: [{{name: ci, key: {SECRET}}}]}}\n{ISSUER}"
URL = "url: 'https://files.example.com/mcp'"
AT = "mcp.servers.files"


def files(oauth: str = "on", more: str = "", place: str = URL) -> str:
    return f"mcp: {{servers: {{files: {{{place}, oauth: {oauth}{more}}}}}}}\n"


def server(oauth: str) -> Any:
    config = read(BASE + files(oauth))
    assert config.mcp is not None
    return config.mcp.servers["files"]


def test_a_word_is_enough() -> None:
    assert problems(BASE + files()) == []
    (found,) = settings_of(read(BASE + files()))
    assert (found.server, found.url, found.resource, found.scopes) == (
        "files", "https://files.example.com/mcp", "server", None,
    )  # fmt: skip
    assert (found.issuer, found.client_id, found.parameters, found.is_mcp) == ("", "", (), True)


def test_what_is_written_reaches_who_keeps_accounts() -> None:
    said = (
        "{issuer: 'https://login.example.com', authorization_endpoint: 'https://login.example.com/a', token_endpoint: "
        "'https://login.example.com/t', revocation_endpoint: 'https://login.example.com/r', client_id: us, "
        f"client_secret: {SECRET}, client_auth: post, scopes: [a, b], resource: 'https://files.example.com', "
        "parameters: {access_type: offline}}"
    )
    more = ", tls: {verify: false}, proxy: 'http://127.0.0.1:3128'"
    (found,) = settings_of(read(BASE + files(said, more)))
    assert found.issuer == "https://login.example.com"
    assert found.authorization_endpoint == "https://login.example.com/a"
    assert found.token_endpoint == "https://login.example.com/t"
    assert found.revocation_endpoint == "https://login.example.com/r"
    assert (found.client_id, found.client_secret, found.client_auth) == ("us", SECRET, "post")
    assert (found.scopes, found.resource) == (("a", "b"), "https://files.example.com")
    assert found.parameters == (("access_type", "offline"),)
    assert found.tls is not None
    assert not found.tls.verify
    assert found.proxy == "http://127.0.0.1:3128"
    assert SECRET not in repr(found)
    assert SECRET not in repr(server(said))


@pytest.mark.parametrize(
    "place",
    [
        "base_url: 'https://files.example.com', rest: [{name: a, description: b, path: /a}]",
        "openapi: 'https://files.example.com/api.json'",
    ],
)
def test_apis_over_http_may_have_accounts_too(place: str) -> None:
    assert problems(BASE + files(place=place)) == []
    (found,) = settings_of(read(BASE + files(place=place)))
    assert not found.is_mcp
    assert found.url.startswith("https://files.example.com")


def test_our_addresses_are_below_the_issuer() -> None:
    spec = read(BASE + files()).issuer
    assert spec is not None
    ours = ours_of(spec, "files")
    assert ours.start == "https://gw.example.com/oauth/upstream/start"
    assert ours.callback == "https://gw.example.com/oauth/upstream/callback/files"
    assert ours.document == "https://gw.example.com/oauth/upstream/client"
    here = read(BASE.replace("https://gw.example.com", "http://127.0.0.1:8080") + files()).issuer
    assert here is not None
    assert ours_of(here, "files").document == ""  # nobody elsewhere could read it


AUTH = "authenticate: {keys: [{name: ci, key: " + SECRET + "}]}\n"
NOBODY = (
    "issuer: {url: 'https://gw.example.com', clients: [{id: a, secret: "
    + SECRET
    + ", grants: [client_credentials]}]}\n"
)
MORE = [
    (AUTH + files(), f"{AT}.oauth", "needs an `issuer`"),
    (AUTH + NOBODY + files(), f"{AT}.oauth", "nobody can log in here"),
    (ISSUER + files(), f"{AT}.oauth", "needs callers who are known"),
    (BASE + files(more=", exchange: on"), f"{AT}.exchange", "no effect beside `oauth`"),
    (BASE + files(more=", headers: {authorization: x}"), f"{AT}.headers", "no effect beside `oauth`"),
    (
        BASE + files(place="base_url: 'https://a.example', rest: [{name: a, description: b, path: /a, headers: "
        "{Authorization: x}}]"),
        f"{AT}.rest[0].headers",
        "no effect beside `oauth`",
    ),
    (
        BASE + files(more=", credentials: {login: {token: x}}", place="openapi: 'https://a.example/a.json'"),
        f"{AT}.credentials.login",
        "no effect beside `oauth`",
    ),
    (BASE + files(more=", tools: {t: {exchange: {ttl: 9s}}}"), f"{AT}.tools.t.exchange", "without tokens"),
    (BASE + "exchange: on\n" + files(), "exchange", "no MCP server over HTTP takes the tokens"),
    (BASE + "mcp: {servers: {files: {command: x, oauth: on}}}", f"{AT}.oauth", "goes with `url`"),
    (BASE + files("off"), f"{AT}.oauth", "without accounts leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "message"), MORE)
def test_what_is_missing_or_has_no_effect_is_said(text: str, path: str, message: str) -> None:
    found = problems(text)
    assert any(one.startswith(f"{path}: ") and message in one for one in found), found


ISSUED = "issuer: 'https://login.example.com'"


@pytest.mark.parametrize(
    ("oauth", "message"),
    [
        ("{client_secret: x}", "no effect without `client_id`"),
        ("{client_auth: none}", "no effect without `client_id`"),
        ("{client_id: us, client_auth: basic}", "needs a `client_secret`"),
        ("{client_id: us, client_secret: x, client_auth: none}", "leave one of them out"),
        ("{token_endpoint: 'https://login.example.com/t'}", "needs `issuer`"),
        ("{issuer: 'http://login.example.com'}", "is https"),
        (f"{{{ISSUED}, token_endpoint: 'http://login.example.com/t'}}", "is https"),
        (f"{{{ISSUED}, token_endpoint: 'https://login.example.com/t#f'}}", "not a URL"),
        (f"{{{ISSUED}, token_endpoint: 'https://a:b@login.example.com/t'}}", "not a URL"),
        ("{resource: some thing}", "absolute URI"),
        ("{parameters: {state: x}}", "the gateway's own to set"),
        ("{parameters: {'a&b': x}}", "letters, digits"),
        ("{scopes: []}", "empty"),
        ("{scopes: ['a b']}", "scopes"),
        ("{client_id: us, client_secret: ''}", "empty"),
        ("{unknown: 1}", "unknown"),
        ("yes", "write on"),
    ],
)
def test_what_cannot_be_is_an_error(oauth: str, message: str) -> None:
    found = problems(BASE + files(oauth))
    assert len(found) == 1, found
    assert message in found[0]


def test_this_machine_needs_no_tls() -> None:
    assert problems(BASE + files("{issuer: 'http://127.0.0.1:9000'}")) == []


def test_an_exchange_that_is_off_may_stand_beside_it() -> None:
    assert problems(f"{BASE}exchange: on\nmcp: {{servers: {{files: {{{URL}, oauth: on, exchange: off}}, "
                    "a: {url: 'https://a.example'}}}\n") == []  # fmt: skip
