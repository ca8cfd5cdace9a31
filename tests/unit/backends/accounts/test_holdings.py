"""Tokens of accounts: when they are renewed, by whom, and what ends an account."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.foreign_issuer import Asked
from tests.fixtures.third_party import TARGET, Side, Third, third_party, user
from tests.fixtures.valkey import Valkey, valkey

from tollhouse.backends.accounts import ThirdParty
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.store.base import State
from tollhouse.store.memory import MemoryState
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio


async def failed(side: Side, sub: str = "ada", party: ThirdParty | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        await side.token(sub, party)
    return caught.value


def refreshes(third: Third) -> list[str]:
    return [form["refresh_token"] for asked in third.to("/token") if "refresh_token" in (form := asked.form)]


# ---- when
async def test_a_token_is_renewed_a_minute_before_its_end() -> None:
    async with third_party() as side:
        await side.connect()
        side.now.value += 3539
        assert await side.token() == "access-1"
        version = side.party.version
        side.now.value += 2
        assert await side.token() == "access-2"
        assert side.party.version != version
        assert refreshes(side.third) == ["refresh-1"]
        [_, asked] = side.third.to("/token")
        assert asked.form["resource"] == f"{side.third.url}/mcp"
        side.now.value += 3541
        assert await side.token() == "access-3"
        assert refreshes(side.third) == ["refresh-1", "refresh-2"]
        assert side.counts == ["connected", "refreshed", "refreshed"]


async def test_a_short_life_is_used_for_three_quarters() -> None:
    async with third_party() as side:
        side.third.tokens = {"expires_in": 20}
        await side.connect()
        side.now.value += 14
        assert await side.token() == "access-1"
        side.now.value += 2
        assert await side.token() == "access-2"


async def test_a_token_whose_end_nobody_said_is_used_until_it_is_refused() -> None:
    async with third_party() as side:
        side.third.tokens = {"expires_in": None}
        await side.connect()
        side.now.value += 86400 * 30
        assert await side.token() == "access-1"
        side.party.refused(user(), b"access-1")
        assert await side.token() == "access-2"


async def test_without_a_refresh_token_an_account_lasts_as_long_as_its_token() -> None:
    async with third_party() as side:
        side.third.tokens = {"refresh_token": None}
        await side.connect()
        side.now.value += 3590
        assert await side.token() == "access-1"
        side.now.value += 11
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert await side.party.account("ada") is None
        assert [event.operation for event in side.events] == ["account.connected", "account.disconnected"]
        await side.connect()
        assert await side.token() == "access-2"


async def test_who_may_use_a_token_asks_again_within_a_minute() -> None:
    """So that a lost message between nodes does no lasting harm."""
    async with third_party() as side:
        await side.connect()
        made = side.party.exchanged(user(), TARGET)
        granted = made if isinstance(made, tuple) else await made
        assert granted.expires == side.now() + 60


# ---- refused by the server
async def test_what_the_server_refuses_is_renewed_once() -> None:
    async with third_party() as side:
        await side.connect()
        assert await side.token() == "access-1"
        for _ in range(3):  # several calls were under way with it
            side.party.refused(user(), b"access-1")
        assert await asyncio.gather(*(side.token() for _ in range(5))) == ["access-2"] * 5
        side.party.refused(user(), b"access-1")  # and one comes late
        assert await side.token() == "access-2"
        assert refreshes(side.third) == ["refresh-1"]


async def test_a_server_that_refuses_all_tokens_causes_no_storm() -> None:
    async with third_party() as side:
        await side.connect()
        for _ in range(20):
            side.party.refused(user(), (await side.token()).encode())
        assert refreshes(side.third) == ["refresh-1"]
        side.now.value += 11
        for _ in range(20):
            side.party.refused(user(), (await side.token()).encode())
        assert refreshes(side.third) == ["refresh-1", "refresh-2"]


async def test_a_refused_token_is_not_given_again_while_there_is_no_other() -> None:
    async with third_party() as side:
        side.third.tokens = {"expires_in": None}
        await side.connect()
        side.now.value += 11
        assert await side.token() == "access-1"
        side.party.refused(user(), b"access-1")
        side.third.says["/token"] = 503, {}, {}
        for _ in range(3):
            assert (await failed(side)).status == 503
        assert len(refreshes(side.third)) == 1


async def test_a_token_that_cannot_be_renewed_ends_with_its_refusal() -> None:
    async with third_party() as side:
        side.third.tokens = {"refresh_token": None, "expires_in": None}
        await side.connect()
        side.now.value += 11
        assert await side.token() == "access-1"
        side.party.refused(user(), b"access-1")
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert side.counts == ["connected", "refused"]


# ---- what a refresh answers
async def test_a_refresh_token_that_is_not_rotated_is_used_again() -> None:
    async with third_party() as side:
        side.third.rotates = False
        await side.connect()
        side.third.tokens = {"refresh_token": None}
        for n in (2, 3):
            side.now.value += 3600
            assert await side.token() == f"access-{n}"
        side.third.tokens = {"refresh_token": "refresh-1"}  # the old one, said again
        for n in (4, 5):
            side.now.value += 3600
            assert await side.token() == f"access-{n}"
        assert refreshes(side.third) == ["refresh-1"] * 4


async def test_scopes_of_a_refresh_are_those_of_the_account() -> None:
    async with third_party() as side:
        await side.connect()
        for said, has in (("read write", ("read", "write")), ("", ()), (None, ())):
            side.third.tokens = {"scope": said}
            side.now.value += 3600
            await side.token()
            account = await side.party.account("ada")
            assert account is not None
            assert account.scopes == has


@pytest.mark.parametrize("error", ["invalid_grant", "bad_refresh_token", "unauthorized_client"])
@pytest.mark.parametrize("status", [200, 400, 401])
async def test_an_account_that_its_issuer_has_ended_is_none(error: str, status: int) -> None:
    async with third_party() as side:
        await side.connect()
        side.now.value += 3600
        side.third.says["/token"] = status, {"error": error}, {}
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert len(refreshes(side.third)) == 1
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert len(refreshes(side.third)) == 1  # nobody asks on and on
        assert not await side.party.connected(user(), 0.0)
        del side.third.says["/token"]
        await side.connect()
        assert (await side.token()).startswith("access-")


@pytest.mark.parametrize(
    "says",
    [
        (500, {}, {}), (502, {"error": "invalid_grant"}, {}),
        (503, {"error": "temporarily_unavailable"}, {"retry-after": "7"}), (429, b"", {}),
        (400, {"error": "slow_down"}, {}), (404, b"gone fishing", {}), (200, b"garbled", {}),
        (302, b"", {"location": "/x"}),
        (200, {"access_token": "x\ny", "token_type": "bearer"}, {}), None,
    ],
)  # fmt: skip
async def test_an_issuer_that_does_not_answer_ends_no_account(says: Any) -> None:
    async with third_party() as side:
        await side.connect()
        side.third.says["/token"] = lambda asked: says
        side.now.value += 3550
        assert await side.token() == "access-1"  # it is good for 50 seconds more
        asked = len(refreshes(side.third))
        assert await side.token() == "access-1"
        assert len(refreshes(side.third)) == asked  # which is no reason to ask on and on
        side.now.value += 60
        failure = await failed(side)
        assert (failure.status, failure.code) == (503, "temporarily_unavailable")
        assert failure.retry_after is not None
        assert await side.party.account("ada") is not None
        assert (await failed(side)).status == 503
        side.now.value += 31
        del side.third.says["/token"]
        assert (await side.token()).startswith("access-")


async def test_a_client_that_is_not_known_any_more_is_registered_anew() -> None:
    async with third_party() as side:
        await side.connect()
        side.now.value += 3600
        side.third.says["/token"] = 401, {"error": "invalid_client"}, {}
        assert (await failed(side)).code == ACCOUNT_NEEDED
        del side.third.says["/token"]
        await side.connect()
        assert len(side.third.registered) == 2


async def test_a_mistake_of_the_operators_ends_no_account(caplog: pytest.LogCaptureFixture) -> None:
    async with third_party(client_id="us", client_secret="old") as side:
        await side.connect()
        side.now.value += 3600
        side.third.says["/token"] = 401, {"error": "invalid_client"}, {}
        assert (await failed(side)).status == 503
        assert "does not know the gateway" in caplog.text
        side.now.value += 31
        del side.third.says["/token"]
        assert await side.token() == "access-2"


# ---- at once, and lost
def slowly(side: Side) -> tuple[asyncio.Event, asyncio.Event]:
    """The issuer was asked for tokens; it may answer."""
    asked, going = asyncio.Event(), asyncio.Event()

    async def answer() -> Any:
        asked.set()
        await going.wait()
        return 200, side.third.fresh(), {}

    side.third.says["/token"] = lambda _: answer()
    return asked, going


async def test_a_refresh_is_asked_once_for_all_and_not_lost_with_who_began_it() -> None:
    async with third_party() as side:
        await side.connect()
        asked, going = slowly(side)
        side.now.value += 3600
        first = asyncio.create_task(side.token())
        await asked.wait()
        others = [asyncio.create_task(side.token()) for _ in range(4)]
        await asyncio.sleep(0)
        first.cancel()
        going.set()
        assert await asyncio.gather(*others) == ["access-2"] * 4
        assert len(refreshes(side.third)) == 1


async def test_closing_waits_for_a_refresh() -> None:
    """A reload must not lose a token that is used once."""
    async with third_party() as side:
        await side.connect()
        asked, going = slowly(side)
        side.now.value += 3600
        call = asyncio.create_task(side.token())
        await asked.wait()
        closing = asyncio.create_task(side.party.close())
        await asyncio.sleep(0)
        going.set()
        await closing
        await asyncio.wait((call,))
        assert await side.token(party=side.node()) == "access-2"


async def test_an_account_given_up_during_a_refresh_stays_given_up() -> None:
    async with third_party() as side:
        await side.connect()

        async def meanwhile() -> Any:
            assert await side.party.disconnect("ada")
            return 200, side.third.fresh(), {}

        side.third.says["/token"] = lambda asked: meanwhile()
        side.now.value += 3600
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert side.third.revoked == ["refresh-1", "access-1", "refresh-2", "access-2"]  # nothing is left there either


async def test_an_account_connected_anew_during_a_refresh_is_the_one_that_counts() -> None:
    async with third_party() as side:
        await side.connect()

        async def meanwhile(asked: Asked) -> Any:
            if "refresh_token" not in asked.form:
                return 200, side.third.fresh() | {"access_token": "anew"}, {}
            await side.connect()
            return 200, side.third.fresh(), {}

        side.third.says["/token"] = meanwhile
        side.now.value += 3600
        assert await side.token() == "anew"
        assert await side.token() == "anew"
        assert side.third.revoked == []  # some issuers would end the new one with the old


async def test_what_is_lost_between_the_answer_and_the_store_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The issuer has renewed it, and whoever asked is killed before it has kept that."""
    caplog.set_level(logging.WARNING)
    async with third_party() as side:
        await side.connect()

        def killed(asked: Asked) -> Any:
            side.third.grants.discard(asked.form["refresh_token"])
            return None

        side.third.says["/token"] = killed
        side.now.value += 3600
        assert (await failed(side)).status == 503
        del side.third.says["/token"]
        side.now.value += 40
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert "whose answer nobody has kept" in caplog.text


async def test_an_issuer_that_has_said_no_leaves_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    async with third_party() as side:
        await side.connect()
        side.third.says["/token"] = 503, {}, {}
        side.now.value += 3600
        assert (await failed(side)).status == 503
        side.third.says["/token"] = 400, {"error": "invalid_grant"}, {}
        side.now.value += 40
        assert (await failed(side)).code == ACCOUNT_NEEDED
        assert "whose answer nobody has kept" not in caplog.text


# ---- two nodes
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def two(server: Valkey, prefix: str) -> Any:
    spec = StateSpec.model_validate({"url": server.url, "prefix": prefix, "encryption_key": "k" * 32})

    def states(clock: Clock) -> list[State]:
        made: list[State] = [RedisState(spec, clock) for _ in range(2)]
        nodes.extend(made)
        return made

    nodes: list[State] = []
    states.nodes = nodes  # type: ignore[attr-defined]
    return states


async def test_two_nodes_renew_once(server: Valkey) -> None:
    states = two(server, "once:")
    async with third_party(states=states) as side:
        other = side.node(states.nodes[1])
        for state in states.nodes:
            await state.bus.ready()
        await side.connect()
        for party in (side.party, other):
            assert await side.token(party=party) == "access-1"
        side.now.value += 3600
        calls = [side.token(party=party) for party in (side.party, other) for _ in range(3)]
        assert set(await asyncio.gather(*calls)) == {"access-2"}
        assert refreshes(side.third) == ["refresh-1"]


async def test_an_account_that_ends_at_one_node_is_not_used_on_by_who_waited_for_it() -> None:
    async with third_party() as side:
        node = side.node()
        await side.connect()
        side.now.value += 3550  # its token would be good for a while
        side.third.says["/token"] = 400, {"error": "invalid_grant"}, {}
        found = await asyncio.gather(*(failed(side, party=party) for party in (side.party, node)))
        assert [failure.code for failure in found] == [ACCOUNT_NEEDED] * 2


async def test_a_node_that_dies_while_it_renews_holds_nobody_up_for_long(server: Valkey) -> None:
    states = two(server, "dies:")
    async with third_party(states=states) as side:
        await side.connect()
        side.now.value += 3600
        [key] = [key for key in await keys_of(server, "dies:") if ":up:a:" in f":{key}"]
        id = key.rpartition("up:a:")[2]
        await states.nodes[1].values.add(f"up:l:{id}", b"dead", 0.6)  # its lease, most of which is over
        assert await side.token() == "access-2"


async def test_what_happens_at_one_node_is_heard_at_the_other_within_a_second(server: Valkey) -> None:
    states = two(server, "heard:")
    async with third_party(states=states) as side:
        other = side.node(states.nodes[1])
        heard: list[Any] = []
        other.changed = heard.append
        for state in states.nodes:
            await state.bus.ready()
        async with asyncio.timeout(5):
            waiting = asyncio.create_task(other.connected(user(), 5.0))
            await asyncio.sleep(0)
            await side.connect()
            assert await waiting
            assert await side.token(party=other) == "access-1"
        await side.party.disconnect("ada")
        async with asyncio.timeout(1):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
        assert (await failed(side, party=other)).code == ACCOUNT_NEEDED


async def test_whoever_may_have_missed_something_looks_again(server: Valkey) -> None:
    states = two(server, "missed:")
    async with third_party(states=states) as side:
        other = side.node(states.nodes[1])
        await side.connect()
        assert await side.token(party=other) == "access-1"
        [key] = [key for key in await keys_of(server, "missed:") if "up:a:" in key]
        with server.client() as client:
            client.delete(key)  # at a moment when nobody is told
        version = other.version
        server.do("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            while other.version == version:
                await asyncio.sleep(0.02)
        assert (await failed(side, party=other)).code == ACCOUNT_NEEDED


async def test_an_account_lasts_as_long_as_it_is_used() -> None:
    day = 86400.0
    seconds = [0.0]
    clock = Clock(source=lambda: seconds[0])
    async with third_party(states=lambda _: [MemoryState(clock)]) as side:
        side.third.tokens = {"expires_in": None}
        await side.connect()
        for _ in range(3):
            seconds[0] += 300 * day
            side.now.value += 300 * day
            clock.turn()
            assert await side.token() == "access-1"
        seconds[0] += 400 * day
        side.now.value += 400 * day
        clock.turn()
        assert (await failed(side)).code == ACCOUNT_NEEDED


async def test_what_is_kept_says_nothing_to_who_reads_the_store(server: Valkey) -> None:
    states = two(server, "sealed:")
    async with third_party(states=states) as side:
        await side.connect("ada-of-the-store")
        await side.party.begin("ada-of-the-store", "", "b")
    with server.client() as client:
        found = {key: client.get(key) for key in client.keys("sealed:*") if client.type(key) == b"string"}
    assert {key.split(b"up:")[1][:2] for key in found if b"up:" in key} == {b"a:", b"p:", b"r:"}
    for key, value in found.items():
        for secret in (b"access-1", b"refresh-1", b"ada-of-the-store", b"secret of client"):
            assert secret not in key + (value or b"")


async def test_new_tokens_outlive_a_state_that_is_away(server: Valkey, tmp_path: Path) -> None:
    """They are kept in memory until it takes them."""
    with valkey(tmp_path) as own:
        spec = StateSpec.model_validate({"url": own.url, "timeout": "200ms"})
        async with third_party(states=lambda clock: [RedisState(spec, clock)]) as side:
            await side.connect()

            async def away() -> Any:
                own.pause()
                return 200, side.third.fresh(), {}

            side.third.says["/token"] = lambda asked: away()
            side.now.value += 3600
            try:
                assert await side.token() == "access-2"
                side.now.value += 301  # it would be read again
                assert await side.token() == "access-2"
            finally:
                own.go_on()
            async with asyncio.timeout(10):
                while not await answers(side.state):
                    await asyncio.sleep(0.02)
            side.now.value += 301  # it is read again, and kept first
            assert await side.token() == "access-2"
            assert await side.token(party=side.node()) == "access-2"


async def answers(state: State) -> bool:
    try:
        await state.values.get("anything")
    except Failure:
        return False
    return True


async def keys_of(server: Valkey, prefix: str) -> list[str]:
    with server.client() as client:
        return [key.decode() for key in client.keys(f"{prefix}*")]
