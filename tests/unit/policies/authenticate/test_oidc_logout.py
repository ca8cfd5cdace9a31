"""Logging out: of the gateway's pages and of the provider, begun here or there; and what logs nobody out."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest
from tests.unit.policies.authenticate.door import NEXT, token
from tests.unit.policies.authenticate.test_oidc import GATEWAY, PAGE, Provider, provider
from tests.unit.policies.floor import request

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.policies.authenticate import AuthenticateSpec
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio

OUT = b"/.login/logout"
EVENT: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}


@asynccontextmanager
async def opened(**spec: Any) -> AsyncIterator[Provider]:
    """A provider where people can log out, and a gateway that can end logins."""
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    more = {"state": state, "revocations": revocations, "revoke": revocations.revoke}
    async with provider(spec=spec, **more) as it:
        it.it.documents["/.well-known/openid-configuration"]["end_session_endpoint"] = f"{it.it.url}/end?tenant=1"
        yield it


def cookies_of(response: Response) -> dict[bytes, bytes]:
    pairs = (value.partition(b";")[0].partition(b"=") for name, value in response.headers if name == b"set-cookie")
    return {name: value for name, _, value in pairs}


async def logged_in(it: Provider, **claims: Any) -> dict[bytes, bytes]:
    """The cookies that a browser has then."""
    it.claims = claims
    fields, cookie = await it.begin()
    found = cookies_of(await it.back(f"code=good&state={fields['state']}", cookie))
    return {name: value for name, value in found.items() if value}


def shown(cookies: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    return b"cookie", b"; ".join(name + b"=" + value for name, value in cookies.items())


async def leave(it: Provider, cookies: dict[bytes, bytes], *headers: tuple[bytes, bytes], query: str = "") -> Response:
    target = OUT + (b"?" + query.encode() if query else b"")
    return await it.door.send(request(b"GET", target, *PAGE, shown(cookies), *headers))


def asked(response: Response) -> dict[str, str]:
    where = urlsplit(dict(response.headers)[b"location"].decode())
    return {name: values[0] for name, values in parse_qs(where.query).items()}


async def test_here_and_at_the_provider_and_back() -> None:
    async with opened(post_logout_redirect_uri="/bye") as it:
        cookies = await logged_in(it)
        name = b"__Host-tollhouse_login"
        assert (await it.door.enter(shown(cookies))).user == "ada@example.com"
        response = await leave(it, cookies, (b"sec-fetch-site", b"same-origin"))
        assert response.status == 303
        assert dict(response.headers)[b"location"].startswith(f"{it.it.url}/end?tenant=1&".encode())
        query = asked(response)
        assert query["client_id"] == "gate"
        assert query["post_logout_redirect_uri"] == f"{GATEWAY}/bye"
        assert query["id_token_hint"].count(".") == 2
        gone = cookies_of(response)
        assert (gone[name], gone[b"__Secure-tollhouse_login_hint"]) == (b"", b"")
        # No copy of the cookie counts any more.
        assert (await it.door.refused(shown(cookies))).status == 401
        state = {key: value for key, value in gone.items() if value}
        assert list(state.values()) == [query["state"].encode()]


async def test_it_comes_back_here_where_that_is_registered() -> None:
    async with opened(post_logout_redirect_uri=OUT.decode()) as it:
        response = await leave(it, await logged_in(it))
        state = asked(response)["state"]
        kept = {name: value for name, value in cookies_of(response).items() if value}
        page = await leave(it, kept, (b"sec-fetch-site", b"cross-site"), query=f"state={state}")
        assert (page.status, b"You are logged out" in page.body) == (200, True)
        assert cookies_of(page) == dict.fromkeys(kept, b"")
        other = await leave(it, kept, query="state=another")
        assert (other.status, cookies_of(other)) == (200, {})


@pytest.mark.parametrize(
    "head",
    [
        [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")],
        [(b"sec-fetch-site", b"same-site"), (b"sec-fetch-mode", b"navigate")],
        [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-mode", b"no-cors")],  # a picture
        [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-mode", b"navigate"), (b"sec-purpose", b"prefetch")],
    ],
)
async def test_who_did_not_mean_to_is_not_logged_out(head: list[tuple[bytes, bytes]]) -> None:
    async with opened() as it:
        cookies = await logged_in(it)
        page = await it.door.send(request(b"GET", OUT, shown(cookies), *head))
        assert page.status == 200
        assert b'<a href="/.login/logout">' in page.body
        assert cookies_of(page) == {}
        policy = dict(page.headers)[b"content-security-policy"]
        assert b"frame-ancestors 'none'" in policy
        assert b"default-src 'none'" in policy
        assert (await it.door.enter(shown(cookies))).user == "ada@example.com"


async def test_another_login_of_the_same_person_goes_on() -> None:
    async with opened() as it:
        one, two = await logged_in(it, sid="s"), await logged_in(it, sid="s")
        await leave(it, one)
        assert (await it.door.refused(shown(one))).status == 401
        assert (await it.door.enter(shown(two))).user == "ada@example.com"


async def test_the_hint_is_of_this_login_or_there_is_none() -> None:
    async with opened() as it:
        one, two = await logged_in(it), await logged_in(it)
        hint = b"__Secure-tollhouse_login_hint"
        assert "id_token_hint" not in asked(await leave(it, one | {hint: two[hint]}))
        assert "id_token_hint" not in asked(await leave(it, {name: v for name, v in two.items() if name != hint}))
        large = await logged_in(it, more="x" * 4000)
        assert hint not in large  # it would fit into no cookie
        assert "id_token_hint" not in asked(await leave(it, large))


@pytest.mark.parametrize(
    ("onward", "where"),
    [(None, None), ("/bye", f"{GATEWAY}/bye"), ("https://www.example.com/bye?x=1", "https://www.example.com/bye?x=1")],
)
async def test_a_provider_where_nobody_logs_out(onward: str | None, where: str | None) -> None:
    async with provider(spec={"post_logout_redirect_uri": onward} if onward else {}) as it:
        cookies = await logged_in(it)
        response = await leave(it, cookies)
        assert dict(response.headers).get(b"location") == (where.encode() if where else None)
        assert response.status == (303 if where else 200)
        assert cookies_of(response)[b"__Host-tollhouse_login"] == b""


async def test_nobody_is_logged_in() -> None:
    async with opened(post_logout_redirect_uri="/bye") as it:
        response = await leave(
            it, {b"__Host-tollhouse_login": b"x"}, query="post_logout_redirect_uri=https://evil.test"
        )
        assert (response.status, b"You are logged out" in response.body) == (200, True)
        assert b"evil" not in response.body
        assert (await it.door.refused(*PAGE, method=b"POST", target=OUT)).status == 401


@pytest.mark.parametrize(
    ("callback", "beside"),
    [("/.login/callback", "/.login"), ("/.login/two", "/.login/two"), ("/two/callback", "/two"), ("/callback", "")],
)
def test_where_the_provider_finds_us(callback: str, beside: str) -> None:
    spec = AuthenticateSpec.model_validate({"oidc": {"issuer": "https://i", "client_id": "x", "callback": callback}})
    assert spec.oidc is not None
    assert spec.oidc.places == (callback, f"{beside}/logout", f"{beside}/backchannel")


@pytest.mark.parametrize(
    "spec",
    [
        {"logout": "/.login/callback"}, {"backchannel_logout": "/.login/callback"}, {"logout": "/a b"},
        {"logout": "//evil"}, {"logout": '/"><script>'}, {"logout": "/x; Domain=example.com"},
        {"post_logout_redirect_uri": "javascript:x"}, {"post_logout_redirect_uri": "https://x/#y"},
        {"post_logout_redirect_uri": "//evil"},
    ],
)  # fmt: skip
def test_bad_settings(spec: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="path"):
        AuthenticateSpec.model_validate({"oidc": {"issuer": "https://i.example.com", "client_id": "x"} | spec})


# ---- the provider tells


def logout_token(it: Provider, key: Any = None, header: dict[str, Any] | None = None, **changed: Any) -> bytes:
    now = int(time())
    said = {
        "iss": it.it.url, "aud": "gate", "iat": now, "exp": now + 120, "jti": secrets.token_urlsafe(8),
        "events": EVENT, "sub": "ada", **changed,
    }  # fmt: skip
    return token(key or it.key, {"typ": "logout+jwt"} | (header or {}), **said)


async def tell(it: Provider, said: bytes) -> tuple[int, Any]:
    fields = Headers([(b"content-type", b"application/x-www-form-urlencoded")])
    made = Request(b"POST", b"/.login/backchannel", fields, urlencode({"logout_token": said}).encode())
    response = await it.door.send(made)
    assert dict(response.headers)[b"cache-control"] == b"no-store"
    return response.status, msgspec.json.decode(response.body) if response.body else None


async def is_in(it: Provider, cookies: dict[bytes, bytes]) -> bool:
    try:
        await it.door.enter(shown(cookies))
    except Failure:
        return False
    return True


async def test_a_session_that_ended_at_the_provider_ends_here() -> None:
    async with opened() as it:
        one, two = await logged_in(it, sid="one"), await logged_in(it, sid="two")
        other = await logged_in(it, sid="three", sub="bob")
        assert await tell(it, logout_token(it, sid="one")) == (200, None)
        assert [await is_in(it, cookies) for cookies in (one, two, other)] == [False, True, True]
        assert await tell(it, logout_token(it, header={"typ": "JWT"})) == (200, None)  # all of the user's
        assert [await is_in(it, cookies) for cookies in (one, two, other)] == [False, False, True]
        again = await logged_in(it, sid="four", iat=int(time()) + 1)
        assert await is_in(it, again)


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example.com"}, {"aud": "another"}, {"exp": 5}, {"exp": lambda: int(time()) + 86_400},
        {"exp": None}, {"iat": None}, {"iat": lambda: int(time()) + 900}, {"jti": None}, {"jti": 5}, {"events": None},
        {"events": {}}, {"events": []}, {"events": {"http://schemas.openid.net/event/backchannel-logout": 1}},
        {"nonce": "n"}, {"sub": None}, {"sub": 5}, {"sid": ["one"]}, {"header": {"typ": "at+jwt"}},
        {"header": {"typ": "secevent+jwt"}}, {"key": NEXT},
    ],
)  # fmt: skip
async def test_what_is_no_logout_token_ends_nothing(changed: dict[str, Any]) -> None:
    async with opened() as it:
        cookies = await logged_in(it, sid="one")
        of_now = {name: value() if callable(value) else value for name, value in changed.items()}
        status, answer = await tell(it, logout_token(it, **of_now))
        assert (status, answer["error"]) == (400, "invalid_request")
        assert await is_in(it, cookies)


async def test_an_id_token_is_none_and_no_token_is_none() -> None:
    async with opened() as it:
        cookies = await logged_in(it)
        good = logout_token(it)
        unsigned = good.rpartition(b".")[0] + b"."
        for said in (token(it.key, iss=it.it.url, aud="gate", nonce="x"), b"", b"a.b.c", b"\xff", unsigned):
            assert (await tell(it, said))[0] == 400
        assert await is_in(it, cookies)


async def test_a_logout_token_counts_once() -> None:
    async with opened() as it:
        said = logout_token(it)
        assert (await tell(it, said))[0] == 200
        status, answer = await tell(it, said)
        assert (status, answer["error_description"]) == (400, "the logout token was used before")
        assert it.door.parts.families.replays.child("logout_token").value == 1
