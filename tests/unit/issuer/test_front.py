"""Whatever comes to the addresses of the front gets an answer, and leads nobody astray."""

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.auth_provider import APP, MCP, Provider, providing
from tests.fixtures.services import Link, Two

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.issuer.provider import Address

PAGES = ("authorize", "par", "login", "consent", "grants", "logout", "verify", "userinfo", "login/idp", "callback/idp",
         "upstream/start", "upstream/client", "upstream/callback/files")  # fmt: skip
PARAMETERS = (
    "client_id", "redirect_uri", "response_type", "response_mode", "state", "scope", "resource", "code_challenge",
    "code_challenge_method", "prompt", "max_age", "nonce", "login_hint", "id_token_hint", "request_uri", "request",
    "i", "csrf", "do", "username", "password", "user_code", "post_logout_redirect_uri", "code", "iss", "error",
    "client_secret", "access_token", "switch", "again", "done", "l", "server", "connected", "disconnected",
)  # fmt: skip
VALUES = (
    "app", "native", "nobody", "https://app.example.com/cb", "https://evil.example/", "http://127.0.0.1:1/cb", "code",
    "query", "form_post", "S256", "a" * 43, MCP, "openid mcp", "none", "login consent", "0", "BCDF-GHJK", "allow",
    "a-link", "connect", "disconnect", "files", "find", "logout", "revoke",
    "urn:ietf:params:oauth:request_uri:x", str(APP["secret"]), "a.b", "..", "ada",
    '"><script>', "\u202e", "\r\nset-cookie: a=b", "\x00", "%00",
)  # fmt: skip


def services() -> Two:
    """With one link, which everybody has got."""
    made = Two()
    made.links["a-link"] = (made.files, Link("ada", "app"))
    return made


class Rig:
    """An auth provider that is asked without a socket."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        upstream = [{"issuer": "http://127.0.0.1:1", "client_id": "x", "name": "idp"}]
        self.opened = providing(upstream=upstream, services=services())
        self.provider: Provider = self.runner.run(self.opened.__aenter__())

    def close(self) -> None:
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()

    def ask(self, request: Request) -> Response:
        address = next(a for a in self.addresses if a.path.encode() == request.path)

        async def answer() -> Response:
            try:
                return await address.handler(request)
            except Failure as failure:
                return address.render(failure, request)

        return self.runner.run(answer())

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self.provider.addresses


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


parameters = st.lists(
    st.tuples(st.sampled_from(PARAMETERS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=40)),
    max_size=14,
)
headers = st.lists(
    st.sampled_from(
        (
            (b"cookie", b"tollhouse_session=" + b"A" * 43),
            (b"cookie", b"tollhouse_session_browser=" + b"B" * 43),
            (b"cookie", b"\xff=;;=; tollhouse_session"),
            (b"origin", b"https://evil.example"),
            (b"sec-fetch-site", b"cross-site"),
            (b"authorization", b"Bearer a.b.c"),
            (b"authorization", b"Basic " + b"!" * 9),
            (b"dpop", b"e30.e30.AA"),
        )
    ),
    max_size=4,
)


@settings(max_examples=300)
@given(st.sampled_from(PAGES), st.booleans(), parameters, headers, st.binary(max_size=20))
def test_whatever_is_asked_is_answered(
    rig: Rig, page: str, posted: bool, asked: list[tuple[str, str]], sent: list[tuple[bytes, bytes]], noise: bytes
) -> None:
    encoded = urlencode(asked, errors="surrogatepass").encode() + noise.replace(b" ", b"").replace(b"#", b"")
    target = f"/oauth/{page}".encode()
    if posted:
        fields = Headers([*sent, (b"content-type", b"application/x-www-form-urlencoded")])
        request = Request(b"POST", target, fields, encoded)
    else:
        request = Request(b"GET", target + b"?" + encoded, Headers(sent))
    response = rig.ask(request)
    assert response.status < 500 or response.status == 503
    for name, value in response.headers:
        assert b"\r" not in value
        assert b"\n" not in value
        if name == b"location":
            where = urlsplit(value.decode())
            assert where.netloc in ("", "app.example.com", "127.0.0.1:1"), asked
    assert b"<script>" not in response.body or b"script-src" in dict(response.headers)[b"content-security-policy"]


def test_the_front_serves_what_it_says(rig: Rig) -> None:
    paths: set[Any] = {address.path for address in rig.addresses}
    assert {f"/oauth/{quote_plus(page, safe='/')}" for page in PAGES} <= paths
