"""Tokens that their issuer is asked about: what is believed, for how long, and who waits."""

import asyncio
import base64
from time import time
from typing import Any
from urllib.parse import parse_qs

import pytest
from tests.unit.policies.authenticate.door import KEY, Door, Idp, bearer, idp, issuer, token
from tests.unit.policies.floor import Shelf, parts, request

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.authenticate import AuthenticateSpec
from tollhouse.policies.authenticate.opaque import Introspection, IntrospectionSpec

pytestmark = pytest.mark.anyio

GOOD = {
    "active": True, "sub": "u1", "username": "ada", "scope": "read write", "client_id": "agent-1", "aud": "tollhouse",
    "iss": "https://idp.example.com", "jti": "j",
}  # fmt: skip


def spec(it: Idp, **more: Any) -> dict[str, Any]:
    asked = {
        "url": f"{it.url}/introspect",
        "client_id": "gate way",
        "client_secret": "s:cret",
        "audiences": ["tollhouse"],
    }
    return {"introspection": asked | more}


async def test_the_issuer_says_who_it_is_and_is_asked_once() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": GOOD | {"exp": int(time()) + 600}}
        door = Door(spec(it))
        ada = await door.enter(bearer(b"opaque-token"))
        assert (ada.source, ada.user, ada.subject, ada.client) == ("opaque", "ada", "u1", "agent-1")
        assert ada.scopes == {"read", "write"}
        assert ada.token == b"opaque-token"
        assert await door.enter(bearer(b"opaque-token")) is ada
        assert it.asked == 1
        _, head, body = it.requests[0]
        assert parse_qs(body.decode()) == {"token": ["opaque-token"], "token_type_hint": ["access_token"]}
        assert base64.b64encode(b"gate+way:s%3Acret") in head
        await door.close()


async def test_the_secret_may_be_in_the_form_and_the_address_in_the_metadata() -> None:
    async with idp() as (it, _):
        it.documents = {
            "/.well-known/openid-configuration": {"issuer": it.url, "introspection_endpoint": f"{it.url}/ask"},
            "/ask": GOOD | {"iss": it.url},
        }
        door = Door(spec(it, url=None, issuer=it.url, client_auth="post"))
        assert (await door.enter(bearer(b"opaque"))).id == f"opaque:{it.url}|u1"
        form = parse_qs(it.requests[-1][2].decode())
        assert (form["client_id"], form["client_secret"]) == (["gate way"], ["s:cret"])
        await door.close()


@pytest.mark.parametrize(
    "answer, said",
    [
        ({"active": False}, "not known to its issuer"),
        ({}, "not known to its issuer"),
        ({"active": "true"}, "not known to its issuer"),
        (GOOD | {"aud": "other"}, "another audience"),
        (GOOD | {"aud": None}, "another audience"),
        (GOOD | {"exp": 5}, "has expired"),
        (GOOD | {"exp": "soon"}, "is not a time"),
        (GOOD | {"sub": None, "username": None}, "whom it speaks for"),
        (GOOD | {"iss": "https://evil.example.com"}, "issuer is not accepted"),
        (GOOD | {"cnf": {"kid": "x"}}, "bound to a key"),
    ],
)
async def test_what_is_refused(answer: dict[str, Any], said: str) -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": answer}
        door = Door(spec(it, issuer="https://idp.example.com"))
        for _ in range(2):
            failure = await door.refused(bearer(b"opaque"))
            assert (failure.status, failure.reason) == (401, Reason.JWT_AUTH)
            assert said in failure.message
        assert it.asked == (2 if "audience" in said else 1)  # another endpoint may be meant
        await door.close()


async def test_tokens_without_audience_only_where_that_is_said() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": {name: value for name, value in GOOD.items() if name != "aud"}}
        door = Door(spec(it, without_audience=True))
        assert (await door.enter(bearer(b"opaque"))).user == "ada"
        await door.close()


@pytest.mark.parametrize("broken", [(500, "", b""), (200, "", b"no"), (200, "", b"[]"), (302, "location: /x\r\n", b"")])
async def test_without_an_answer_it_is_503_and_the_issuer_is_left_alone(broken: Any) -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": broken}
        door = Door(spec(it))
        for _ in range(3):
            failure = await door.refused(bearer(b"opaque"))
            assert (failure.status, failure.reason) == (503, Reason.JWT_AUTH)
            assert it.url not in failure.message
            assert "s:cret" not in failure.detail
        assert it.asked == 1
        await door.close()


async def test_all_who_show_one_token_wait_for_one_question() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": GOOD}
        it.gate.clear()
        door = Door(spec(it))
        waiting = [asyncio.ensure_future(door.enter(bearer(b"opaque"))) for _ in range(8)]
        while not it.asked:
            await asyncio.sleep(0)
        waiting[0].cancel()  # who leaves does not take it from the others
        it.gate.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(one, Principal) for one in done] == [False] + [True] * 7
        assert it.asked == 1
        await door.close()


async def test_a_verdict_is_trusted_for_half_a_minute_and_never_beyond_expiry() -> None:
    async with idp() as (it, _):
        now = [time()]
        it.documents = {"/introspect": lambda *_: GOOD | {"exp": int(now[0]) + 20}}
        shelf = Shelf()
        written = AuthenticateSpec.model_validate(spec(it)).introspection
        assert isinstance(written, IntrospectionSpec)
        asking = Introspection(written, parts(shared=shelf), lambda: now[0])
        assert isinstance(await asking.verify(b"t", b"digest"), Principal)
        now[0] += 19
        assert asking.find(b"digest") is not None
        now[0] += 2
        assert asking.find(b"digest") is None
        it.documents = {"/introspect": GOOD}
        assert isinstance(await asking.verify(b"t", b"digest"), Principal)
        now[0] += 29
        assert asking.find(b"digest") is not None
        now[0] += 2
        assert asking.find(b"digest") is None
        it.documents = {"/introspect": {"active": False}}
        for _ in range(2):
            assert not isinstance(await asking.verify(b"t", b"digest"), Principal)
        asked = it.asked
        now[0] += 6
        assert not isinstance(await asking.verify(b"t", b"digest"), Principal)
        assert it.asked == asked + 1
        await shelf.close()


async def test_tokens_that_can_be_read_are_read() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": GOOD}
        door = Door(spec(it) | {"jwt": [issuer()], "keys": [{"name": "ci", "key": "sk-0123456789"}]})
        assert (await door.enter(bearer(token()))).source == "jwt"
        assert (await door.enter(bearer(b"sk-0123456789"))).source == "key"
        assert it.asked == 0
        assert (await door.enter(bearer(b"opaque"))).source == "opaque"
        assert (await door.enter(bearer(token(KEY, iss="https://elsewhere.example.com")))).source == "opaque"
        assert (await door.refused(bearer(b"thk_x"))).reason == Reason.API_KEY_AUTH
        assert it.asked == 2
        await door.close()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"url": None}, "give `url`"),
        ({"url": "ftp://x"}, "not a URL"),
        ({"url": "https://a:b@x/"}, "not a URL"),
        ({"client_auth": "none"}, "pattern"),
        ({"cache": "5m"}, "less than or equal"),
    ],
)
def test_bad_settings(change: dict[str, Any], said: str) -> None:
    good = {"url": "https://x/y", "client_id": "a", "client_secret": "b"}
    with pytest.raises(ValueError, match=said):
        AuthenticateSpec.model_validate({"introspection": good | change})


async def test_nobody_takes_the_answers_from_the_others_by_what_he_shows() -> None:
    """An issuer that finds one token odd is not down."""
    async with idp() as (it, _):
        door = Door(spec(it))
        for odd in (b"a b", b"a\xe9", b"\x7f", b"x" * 9000):
            assert (await door.refused(bearer(odd))).status == 401
        assert it.asked == 0
        for status in (400, 413, 422):
            it.documents = {"/introspect": (status, "", b"")}
            assert (await door.refused(bearer(b"odd%d" % status))).status in (401, 503)
            it.documents = {"/introspect": GOOD}
            assert (await door.enter(bearer(b"good%d" % status))).user == "ada"
        await door.close()


async def test_who_answers_has_users_of_his_own_and_nobody_elses() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": GOOD | {"iss": "https://tollhouse.example.com"}}
        door = Door(spec(it))
        assert (await door.enter(bearer(b"opaque"))).issuer == f"{it.url}/introspect"
        await door.close()


async def test_one_address_leaves_others_their_questions() -> None:
    async with idp() as (it, _):
        it.documents = {"/introspect": GOOD}
        it.gate.clear()
        door = Door(spec(it))

        def ask(peer: str, n: int) -> asyncio.Future[Any]:
            asked = request(b"POST", b"/mcp", bearer(b"token-%d" % n))
            asked.peer = peer
            return asyncio.ensure_future(door.send(asked))

        flood = [ask(f"2001:db8::{n % 16:x}", n) for n in range(200)]
        for _ in range(10):
            await asyncio.sleep(0)
        waiting = [one for one in flood if not one.done()]
        assert len(waiting) == 128  # of 256; its /64 is one address
        failures = [one.exception() for one in flood if one.done()]
        assert {failure.status for failure in failures if isinstance(failure, Failure)} == {503}
        other = ask("2001:db8:1::1", 1000)
        it.gate.set()
        assert (await other).status == 200
        assert all(one.status == 200 for one in await asyncio.gather(*waiting))
        assert (await ask("2001:db8::1", 1001)).status == 200
        await door.close()
