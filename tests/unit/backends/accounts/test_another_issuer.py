"""A server that goes over to another issuer while the old one still renews its tokens: the account ends, so that its
user is asked. Nothing less ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.foreign_issuer import Asked, foreign_issuer
from tests.fixtures.third_party import WELL_KNOWN, Side, third_party, user

from tollhouse.core.errors import Failure
from tollhouse.core.identity import ACCOUNT_NEEDED

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Side, str]]:
    """An account, and where another issuer listens."""
    async with (
        third_party(apart=True, allow=["127.0.0.0/8"]) as side,
        foreign_issuer(side.third) as other,
    ):
        side.third.tokens = {"expires_in": None}
        await side.connect()
        side.now.value += 60
        yield side, other.url


async def refuses(side: Side, *tokens: str) -> None:
    """The server takes neither what there is nor what comes instead of it."""
    for token in tokens:
        assert await side.token() == token
        side.party.refused(user(), token.encode())


async def ended(side: Side) -> bool:
    with pytest.raises(Failure) as caught:
        await side.token()
    return caught.value.code == ACCOUNT_NEEDED


def lookups(side: Side) -> int:
    return len(side.third.to(WELL_KNOWN))


async def test_an_account_ends_where_the_server_names_another_issuer() -> None:
    async with connected() as (side, other):
        side.third.login = other
        version = side.party.version
        await refuses(side, "access-1", "access-2")
        assert side.party.version > version + 1  # nobody goes on with what he remembers
        before = lookups(side)
        failed = await asyncio.gather(*(side.token() for _ in range(5)), return_exceptions=True)
        assert [one.code for one in failed if isinstance(one, Failure)] == [ACCOUNT_NEEDED] * 5
        assert lookups(side) == before + 1
        assert await side.party.account("ada") is None
        assert [event.operation for event in side.events] == ["account.connected", "account.disconnected"]
        assert side.counts == ["connected", "refreshed", "refused"]
        # The user is sent to the other, and all goes on.
        await side.connect()
        assert await side.token() == "access-3"
        assert [asked.headers["host"] for asked in side.third.to("/token")][-1] == other.partition("//")[2]
        await refuses(side, "access-3")
        assert await side.token() == "access-4"


async def test_it_ends_as_well_where_calls_are_rare() -> None:
    """What a call is refused with in the end, the next one may find hours later."""
    async with connected() as (side, other):
        side.third.login = other
        await refuses(side, "access-1")
        assert await side.token() == "access-2"
        side.now.value += 7200
        await refuses(side, "access-2")
        assert await ended(side)
        assert len(side.third.to("/token")) == 2


@pytest.mark.parametrize("moved", [True, False])
async def test_an_issuer_that_is_gone(moved: bool) -> None:
    async with connected() as (side, other):
        if moved:
            side.third.login = other
        side.third.says["/token"] = 503, {}, {}
        side.party.refused(user(), (await side.token()).encode())
        assert await ended(side) == moved
        assert (await side.party.account("ada") is None) == moved


async def test_a_server_that_stays_with_its_issuer_ends_nothing_and_is_seldom_asked() -> None:
    async with connected() as (side, _):
        before = lookups(side)
        await refuses(side, "access-1", *["access-2"] * 20)
        assert lookups(side) == before + 1
        side.now.value += 11
        await refuses(side, "access-2", *["access-3"] * 20)
        assert lookups(side) == before + 2
        assert await side.token() == "access-3"
        assert side.counts == ["connected", "refreshed", "refreshed"]


async def test_one_look_does_for_all_accounts() -> None:
    async with connected() as (side, _):
        await side.connect("bob")
        before = lookups(side)
        for sub, first, second in (("ada", "access-1", "access-3"), ("bob", "access-2", "access-4")):
            for token in (first, second):
                assert await side.token(sub) == token
                side.party.refused(user(sub), token.encode())
            assert await side.token(sub) == second
        assert lookups(side) == before + 1


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({WELL_KNOWN: (503, {}, {})}, id="the server says nothing"),
        pytest.param({WELL_KNOWN: (200, b"<html>", {})}, id="the server says nonsense"),
        pytest.param({"/.well-known/oauth-authorization-server": (503, {}, {})}, id="the other issuer says nothing"),
    ],
)
async def test_who_cannot_be_asked_ends_nothing(changed: dict[str, Any]) -> None:
    async with connected() as (side, other):
        side.third.login = other
        side.third.says |= changed
        await refuses(side, "access-1", "access-2")
        assert await side.token() == "access-2"
        # As soon as it can be, the account ends.
        for path in changed:
            del side.third.says[path]
        side.now.value += 11
        await refuses(side, "access-2")
        assert await ended(side)


async def test_an_issuer_that_is_still_named_is_none_that_was_left() -> None:
    async with connected() as (side, other):
        side.third.resource = {"authorization_servers": [other, f"{side.third.login}/"]}
        side.third.login = other
        await refuses(side, "access-1", "access-2")
        assert await side.token() == "access-2"


async def test_what_the_operator_has_written_is_not_looked_up() -> None:
    async with third_party() as side:
        side.party = side.node(issuer=side.third.login)
        side.third.tokens = {"expires_in": None}
        await side.connect()
        side.now.value += 60
        side.third.resource = {"authorization_servers": ["https://other.example.com"]}
        await refuses(side, "access-1", "access-2")
        assert await side.token() == "access-2"


async def test_an_account_that_was_connected_anew_meanwhile_stays() -> None:
    """The look takes its time, and its user, at another worker, is quicker."""
    async with connected() as (side, other):
        await refuses(side, "access-1", "access-2")
        side.third.login = other
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> Any:
            asked.set()
            await go_on.wait()
            return 200, {"resource": f"{side.third.url}/mcp", "authorization_servers": [other]}, {}

        def once(it: Asked) -> Any:
            del side.third.says[WELL_KNOWN]
            return slow()

        side.third.says[WELL_KNOWN] = once
        waiting = asyncio.create_task(side.token())
        await asked.wait()
        await side.connect(party=side.node())
        go_on.set()
        with pytest.raises(Failure) as caught:
            await waiting
        assert caught.value.status == 503
        assert await side.token() == "access-3"
