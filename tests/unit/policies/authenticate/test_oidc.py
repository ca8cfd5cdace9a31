"""People in browsers: the way to the provider and back, and what makes a login none."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from time import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.unit.policies.authenticate.door import KEY, NEXT, Door, Idp, idp, jwks, token
from tests.unit.policies.floor import request

from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.http import Response
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio

GATEWAY = "https://gw.example.com"
PAGE = ((b"accept", b"text/html,*/*"), (b"sec-fetch-mode", b"navigate"))
BACK = b"/.login/callback"


class Provider:
    """An OpenID provider, and the gateway's page that it is for. claims: of the next ID token."""

    def __init__(self, it: Idp, spec: dict[str, Any], **more: Any) -> None:
        self.it = it
        self.claims: dict[str, Any] = {}
        self.key = KEY
        self.nonce = ""
        self.challenge = ""
        login = {"issuer": it.url, "client_id": "gate", "client_secret": "s:x", "claims": {"user": "email"}} | spec
        more.setdefault("state", MemoryState(Clock()))
        self.door = Door({"oidc": login}, public_url=GATEWAY, **more)
        it.documents = {
            "/.well-known/openid-configuration": {
                "issuer": it.url,
                "authorization_endpoint": f"{it.url}/authorize?tenant=1",
                "token_endpoint": f"{it.url}/token",
                "jwks_uri": f"{it.url}/keys",
            },
            "/keys": jwks(KEY),
            "/token": self.give,
        }

    def give(self, head: bytes, body: bytes) -> Any:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        assert form["grant_type"] == "authorization_code"
        assert form["redirect_uri"] == f"{GATEWAY}/.login/callback"
        assert (
            urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode() == self.challenge
        )
        if form["code"] != "good":
            return 400, "", b'{"error":"invalid_grant"}'
        usual = {"iss": self.it.url, "aud": "gate", "nonce": self.nonce, "email": "ada@example.com", "iat": int(time())}
        said = usual | self.claims
        return {"id_token": token(self.key, **said).decode(), "token_type": "Bearer"}

    async def begin(self, target: bytes = b"/reports?a=b") -> tuple[dict[str, str], bytes]:
        """The parameters of the redirect, and the cookie that came with it."""
        response = await self.door.send(request(b"GET", target, *PAGE))
        headers = dict(response.headers)
        assert response.status == 303
        assert headers[b"cache-control"] == b"no-store"
        where = urlsplit(headers[b"location"].decode())
        assert f"{where.scheme}://{where.netloc}{where.path}" == f"{self.it.url}/authorize"
        fields = {name: values[0] for name, values in parse_qs(where.query).items()}
        self.nonce, self.challenge = fields["nonce"], fields["code_challenge"]
        return fields, headers[b"set-cookie"]

    async def back(self, query: str, *cookies: bytes) -> Response:
        pairs = b"; ".join(cookie.partition(b";")[0] for cookie in cookies)
        headers = ((b"cookie", pairs),) if cookies else ()
        return await self.door.send(request(b"GET", BACK + b"?" + query.encode(), *PAGE, *headers))


@asynccontextmanager
async def provider(**more: Any) -> AsyncIterator[Provider]:
    async with idp() as (it, _):
        spec = more.pop("spec", {})
        made = Provider(it, spec, **more)
        yield made
        await made.door.close()


async def test_the_way_there_and_back() -> None:
    async with provider() as it:
        fields, cookie = await it.begin()
        assert fields["client_id"] == "gate"
        assert fields["response_type"] == "code"
        assert fields["redirect_uri"] == f"{GATEWAY}/.login/callback"
        assert fields["scope"] == "openid profile email"
        assert fields["code_challenge_method"] == "S256"
        assert fields["tenant"] == "1"
        assert b"; HttpOnly; SameSite=Lax; Secure" in cookie
        assert b"Domain" not in cookie
        assert cookie.startswith(b"__Host-tollhouse_login_")  # no neighbour can plant one
        response = await it.back(f"code=good&state={fields['state']}&iss={it.it.url}", cookie)
        assert response.status == 303
        assert dict(response.headers)[b"location"] == b"/reports?a=b"
        session, ended, hint = (value for name, value in response.headers if name == b"set-cookie")
        assert hint.startswith(b"__Secure-tollhouse_login_hint=hint1.")
        assert b"; Path=/.login/logout; HttpOnly; SameSite=Lax; Secure" in hint
        assert session.startswith(b"__Host-tollhouse_login=")
        assert b"Max-Age=0" in ended
        assert b64encode(b"gate:s%3Ax") in next(head for target, head, _ in it.it.requests if target == "/token")
        shown = (b"cookie", b"other=1; " + session.partition(b";")[0])
        ada = await it.door.enter(shown, method=b"GET", target=b"/reports")
        assert (ada.source, ada.user, ada.subject, ada.client) == ("oidc", "ada@example.com", "ada", "gate")
        assert ada.id == f"oidc:{it.it.url}|ada"
        assert await it.door.enter(shown, target=b"/other") is ada
        asked = request(b"GET", b"/reports", shown)
        await it.door.send(asked)
        assert list(asked.headers) == [(b"cookie", b"other=1")]  # a service gets its own cookies, and not ours
        asked = request(b"GET", b"/reports", (b"cookie", session.partition(b";")[0]))
        await it.door.send(asked)
        assert list(asked.headers) == []


@pytest.mark.parametrize(
    "headers, method",
    [((), b"GET"), (PAGE, b"POST"), (((b"accept", b"application/json"),), b"GET"),
     ((*PAGE[:1], (b"sec-fetch-mode", b"cors")), b"GET")],
)  # fmt: skip
async def test_programs_are_not_sent_anywhere(headers: Any, method: bytes) -> None:
    async with provider() as it:
        failure = await it.door.refused(*headers, method=method, target=b"/reports")
        assert failure.status == 401


@pytest.mark.parametrize(
    "target, back",
    [
        (b"/a/b?c=d", b"/a/b?c=d"),
        (b"//evil.example.com/x", b"/"),
        (b"/\\evil.example.com", b"/"),
        (b"/" + b"x" * 2000, b"/"),
        (b"/\xff", b"/"),
    ],
)
async def test_the_way_back_stays_here(target: bytes, back: bytes) -> None:
    async with provider() as it:
        fields, cookie = await it.begin(target)
        response = await it.back(f"code=good&state={fields['state']}", cookie)
        assert dict(response.headers)[b"location"] == back


async def test_a_login_is_finished_by_the_browser_that_began_it() -> None:
    async with provider() as it:
        fields, cookie = await it.begin()
        other, others = await it.begin()
        for query, cookies in (
            (f"code=good&state={fields['state']}", ()),
            (f"code=good&state={fields['state']}", (others,)),
            (f"code=good&state={other['state'][::-1]}", (cookie, others)),
            ("code=good", (cookie,)),
            (f"code=good&state={fields['state']}&state=x", (cookie,)),
            (f"state={other['state']}", (others,)),
            (f"code=good&state={other['state']}&iss=https://evil.example.com", (others,)),
        ):
            with pytest.raises(Failure) as caught:
                await it.back(query, *cookies)
            assert caught.value.status == 400, query
        assert not any(target == "/token" for target, _, _ in it.it.requests)


async def test_a_refusal_of_the_provider_is_one_here() -> None:
    async with provider() as it:
        fields, cookie = await it.begin()
        with pytest.raises(Failure) as caught:
            await it.back(f"error=access_denied&state={fields['state']}", cookie)
        assert (caught.value.status, caught.value.detail) == (403, "access_denied")


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "other"},
        {"nonce": None},
        {"aud": "another"},
        {"iss": "https://evil.example.com"},
        {"azp": "another"},
        {"aud": ["gate", "another"]},
        {"iat": None},
        {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
        {"exp": 5},
        {"sub": None, "email": None},
    ],
)
async def test_an_id_token_of_something_else(change: dict[str, Any]) -> None:
    async with provider() as it:
        fields, cookie = await it.begin()
        it.claims = change
        with pytest.raises(Failure) as caught:
            await it.back(f"code=good&state={fields['state']}", cookie)
        assert caught.value.status == 502
        assert "id_token" not in caught.value.message


async def test_an_id_token_of_another_key_and_a_code_that_is_none() -> None:
    async with provider() as it:
        it.key = NEXT
        fields, cookie = await it.begin()
        for code in ("good", "bad"):
            with pytest.raises(Failure) as caught:
                await it.back(f"code={code}&state={fields['state']}", cookie)
            assert caught.value.status == 502


async def logged_in(it: Provider) -> tuple[bytes, bytes]:
    fields, cookie = await it.begin()
    response = await it.back(f"code=good&state={fields['state']}", cookie)
    session = next(value for name, value in response.headers if name == b"set-cookie")
    return b"cookie", session.partition(b";")[0]


async def test_a_session_of_another_gateway_or_of_other_settings_is_none() -> None:
    async with provider() as it:
        session = await logged_in(it)
        state = it.door.parts.state
        assert (await it.door.enter(session)).user == "ada@example.com"
        async with provider() as other:
            assert (await other.door.refused(session)).status == 401
        async with provider(spec={"client_id": "another"}, state=state) as changed:
            assert (await changed.door.refused(session)).status == 401
        name, value = session
        for bad in (value[:-4] + b"AAAA", b"__Host-tollhouse_login=", b"__Host-tollhouse_login=login1.x", b"x" + value):
            assert (await it.door.refused((name, bad))).status == 401


async def test_a_session_ends() -> None:
    clock = Clock()
    revocations = Revocations(MemoryState(clock), clock)
    await revocations.load()
    async with provider(revocations=revocations) as it:
        session = await logged_in(it)
        assert (await it.door.enter(session)).user == "ada@example.com"
        await revocations.revoke("sub", "ada", time() + 600, it.it.url)
        assert (await it.door.refused(session)).status == 401
    async with provider(spec={"session": "1s"}) as it:
        session = await logged_in(it)
        found = await it.door.enter(session)
        assert found.expires <= time() + 1


async def test_a_provider_that_is_gone() -> None:
    door = Door({"oidc": {"issuer": "http://127.0.0.1:1", "client_id": "x"}}, public_url=GATEWAY)
    with pytest.raises(Failure) as caught:
        await door.send(request(b"GET", b"/x", *PAGE))
    assert caught.value.status == 503
    await door.close()


async def test_only_before_plain_routes_and_with_openid() -> None:
    door = Door({"oidc": {"issuer": "http://127.0.0.1:1", "client_id": "x"}}, public_url=GATEWAY, entrance="llm")
    assert (await door.refused(*PAGE, method=b"GET")).status == 401
    with pytest.raises(ConfigError, match="`openid`"):
        Door({"oidc": {"issuer": "http://x", "client_id": "x", "scopes": ["email"]}}, public_url=GATEWAY)
