"""Signing keys on several nodes: whatever their clocks, restarts and connections do, no token fails within its life."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.fixtures.line import Line

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.records import KeySet
from tollhouse.issuer.spec import KeysSpec
from tollhouse.store.crypt import SealedValues
from tollhouse.store.memory import MemoryState, MemoryValues
from tollhouse.store.revocation import Revocations
from tollhouse.store.table import Table
from tollhouse.wire.jose import Keys, Token, parse, verify
from tollhouse.wire.jwt import Minter

pytestmark = pytest.mark.anyio

DAY = 86400.0
NOW = 1_800_000_000.0
MINTER = Minter("at+jwt", {"sub": "ada"})


class Moment:
    """A clock that is set. ahead: seconds by which it is wrong."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.now = NOW
        self.ahead = ahead

    def __call__(self) -> float:
        return self.now + self.ahead


def keys_over(values: Any, now: Callable[[], float], spec: KeysSpec | None = None, **more: Any) -> SigningKeys:
    return SigningKeys(values, spec or KeysSpec(), now, **more)


@pytest.fixture
async def values() -> AsyncIterator[MemoryValues]:
    made = MemoryValues(Clock())
    yield made
    made.close()


def token_of(keys: SigningKeys, now: float = NOW) -> Token:
    parsed = parse(MINTER.mint(keys.signer(), int(now), int(now) + 600, "j"))
    assert isinstance(parsed, Token)
    return parsed


def kids(keys: SigningKeys) -> list[str]:
    return [kid for kid, *_ in keys.described()]


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
async def test_the_first_start_makes_keys(values: MemoryValues, algorithm: Any) -> None:
    keys = keys_over(values, Moment(), KeysSpec(algorithm=algorithm))
    await keys.load()
    assert [state for _, _, state, _ in keys.described()] == ["active", "next"]
    assert keys.signer().alg == algorithm
    assert keys.signer().kid == keys.described()[0][0]
    assert verify(token_of(keys), keys.verifying(), [algorithm]) is None
    assert verify(token_of(keys), Keys.parse(keys.public()), [algorithm]) is None


async def test_only_public_parts_are_published(values: MemoryValues) -> None:
    keys = keys_over(values, Moment(), KeysSpec(algorithm="RS256"))
    await keys.load()
    published = msgspec.json.decode(keys.public())["keys"]
    assert [set(key) for key in published] == [{"kty", "kid", "alg", "use", "n", "e"}] * 2


async def test_nodes_that_start_together_have_the_same_keys(values: MemoryValues) -> None:
    nodes = [keys_over(values, Moment()) for _ in range(8)]
    await asyncio.gather(*(node.load() for node in nodes))
    assert len({tuple(kids(node)) for node in nodes}) == 1
    token = token_of(nodes[3])
    assert all(verify(token, node.verifying()) is None for node in nodes)
    assert len({node.secrets("refresh")[0] for node in nodes}) == 1


async def test_a_restart_finds_the_keys(values: MemoryValues) -> None:
    first = keys_over(values, Moment())
    await first.load()
    token, version = token_of(first), first.version
    again = keys_over(values, Moment())
    await again.load()
    assert verify(token, again.verifying()) is None
    assert again.version == version
    assert again.secrets("refresh") == first.secrets("refresh")


async def test_an_encryption_key_that_was_rotated_is_not_needed_for_long(values: MemoryValues) -> None:
    old, new = b"o" * 32, b"n" * 32
    first = keys_over(SealedValues(values, (old,)), Moment())
    await first.load()
    await keys_over(SealedValues(values, (new, old)), Moment()).load()
    again = keys_over(SealedValues(values, (new,)), Moment())
    await again.load()
    assert kids(again) == kids(first)


async def test_secrets_are_of_one_purpose(values: MemoryValues) -> None:
    moment = Moment()
    keys = keys_over(values, moment)
    await keys.load()
    [refresh] = keys.secrets("refresh")
    assert len(refresh) == 32
    assert keys.secrets("dpop nonce") != (refresh,)
    await keys.rotate_secret()
    assert keys.secrets("refresh")[0] == refresh  # others may not have the new one yet
    assert len(keys.secrets("refresh")) == 2
    moment.now += DAY + 1
    assert keys.secrets("refresh")[1] == refresh


async def test_a_key_that_a_node_does_not_know_is_asked_for(values: MemoryValues) -> None:
    here, there = Moment(), Moment()
    one, other = keys_over(values, here), keys_over(values, there)
    await one.load()
    await other.load()
    here.now = there.now = NOW + 10 * DAY
    await one.rotate()  # makes a third key
    here.now = there.now = NOW + 50 * DAY
    token = token_of(one, here.now)
    assert not other.verifying().knows(token)
    found = await asyncio.gather(*(other.keys(token) for _ in range(20)))
    assert all(verify(token, keys) is None for keys in found)


async def test_an_unknown_key_is_asked_for_once_a_second(values: MemoryValues) -> None:
    moment = Moment()
    line = Line(values)
    keys = keys_over(line, moment)
    await keys.load()
    for is_cut in (False, True):  # nor oftener while the store does not answer
        line.asked, line.is_cut = 0, is_cut
        moment.now += 5
        for number in range(200):
            await keys.keys(Token("ES256", f"unknown-{number}", "JWT", {}, b"", b""))
        assert line.asked == 1
    await keys.close()


async def test_without_the_store_the_schedule_goes_on(values: MemoryValues, caplog: pytest.LogCaptureFixture) -> None:
    moment = Moment()
    line = Line(values)
    keys = keys_over(line, moment)
    with pytest.raises(Failure) as failure:
        keys.signer()
    assert failure.value.status == 503
    await keys.load()
    first = keys.signer().kid
    line.is_cut = True
    moment.now = NOW + 31 * DAY
    second = keys.signer().kid
    assert second != first
    assert verify(token_of(keys), keys.verifying()) is None
    with pytest.raises(Failure):
        await keys.refresh()
    assert await keys.keys(Token("ES256", "unknown", "JWT", {}, b"", b"")) is keys.verifying()
    assert "those that are known go on" in caplog.text
    moment.now = NOW + 70 * DAY  # nothing is left that may sign
    for ask in (keys.signer, keys.verifying, keys.public):
        with pytest.raises(Failure) as failure:
            ask()
        assert failure.value.code == "temporarily_unavailable"
    line.is_cut = False
    await keys.refresh()
    assert keys.signer().kid not in (first, second)


async def test_without_the_store_there_is_no_first_key(values: MemoryValues) -> None:
    line = Line(values)
    line.is_cut = True
    with pytest.raises(Failure):
        await keys_over(line, Moment()).load()


async def test_what_cannot_be_read_is_not_written_over(values: MemoryValues) -> None:
    await values.put("iss:keys", b"sealed with another key", 60.0)
    with pytest.raises(Failure) as failure:
        await keys_over(values, Moment()).load()
    assert "cannot be read" in failure.value.detail
    assert await values.get("iss:keys") == b"sealed with another key"


async def test_what_the_store_has_lost_is_written_again(values: MemoryValues) -> None:
    keys = keys_over(values, Moment())
    await keys.load()
    old = await values.get("iss:keys")
    assert old is not None
    await keys.drop(keys.signer().kid)
    known = kids(keys)
    for lost in (None, old):
        await values.remove("iss:keys")
        if lost is not None:
            await values.put("iss:keys", lost, 60.0)
        await keys.refresh()
        assert kids(keys) == known
        held = await Table(values, "iss:", KeySet).get("keys")
        assert held is not None
        assert {key.kid for key in held.value.keys} == set(known)


async def test_rotation_by_hand(values: MemoryValues) -> None:
    moment = Moment()
    keys = keys_over(values, moment)
    await keys.load()
    first, token = keys.signer().kid, token_of(keys)
    assert await keys.rotate() == NOW + DAY
    assert keys.signer().kid == first
    moment.now = NOW + DAY
    assert keys.signer().kid != first
    assert verify(token, keys.verifying()) is None


async def test_a_key_verifies_as_long_as_its_tokens_live(values: MemoryValues) -> None:
    moment = Moment()
    keys = keys_over(values, moment, KeysSpec(retired=600.0), longest=3600.0)
    await keys.load()
    moment.now = NOW + 30 * DAY - 1
    token = token_of(keys, moment.now)
    moment.now += 3601
    await keys.refresh()
    assert keys.signer().kid != token.kid
    assert verify(token, keys.verifying()) is None


async def test_a_dropped_key_is_gone_on_all_nodes() -> None:
    clock = Clock()
    state = MemoryState(clock)
    moment = Moment()
    nodes = []
    for _ in range(2):
        revocations = Revocations(state, clock, moment)
        keys = keys_over(state.values, moment, revocations=revocations)
        await keys.load()
        nodes.append((keys, revocations))
    (one, _), (other, theirs) = nodes
    lost, successor = kids(one)
    token = token_of(other)
    assert await one.drop(lost)
    assert one.signer().kid == successor
    assert verify(token, one.verifying()) is not None
    await theirs.load()  # in production: the push, or the log
    assert other.signer().kid == successor
    assert verify(token, other.verifying()) is not None
    assert theirs.has("kid", lost)
    await other.refresh()
    assert kids(one) == kids(other)
    assert not await one.drop("never was")
    for keys, _ in nodes:
        await keys.close()
    await state.close()


async def test_the_refreshing_task_ends_with_its_owner(values: MemoryValues) -> None:
    keys = keys_over(values, Moment())
    await keys.load()
    keys.start()
    await asyncio.sleep(0)
    await keys.close()
    assert [task for task in asyncio.all_tasks() if "SigningKeys" in repr(task)] == []


# ---- all of it at once

ACCESS = 600.0  # seconds that a token lives
SKEW = 60.0


class Nodes(RuleBasedStateMachine):
    """Three nodes, their clocks up to a minute apart, with a store that each of them may lose for hours: shorter than a
    key is published before it signs. Foreign verifiers read the published keys when theirs are five minutes old."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.time = NOW
        self.clock = Clock(source=lambda: self.time)
        self.values = MemoryValues(self.clock)
        self.lines = [Line(self.values) for _ in range(3)]
        self.moments = [Moment() for _ in range(3)]
        self.nodes: list[SigningKeys] = []
        self.cut_at: list[float | None] = [None, None, None]
        self.tokens: list[tuple[float, Token]] = []
        self.foreign: tuple[float, Keys] | None = None
        self.first: str = ""
        self.published: dict[str, float] = {}

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(skews=st.tuples(*[st.floats(-SKEW / 2, SKEW / 2)] * 3), active=st.sampled_from([2 * DAY, 30 * DAY]))
    def begin(self, skews: tuple[float, ...], active: float) -> None:
        for moment, skew in zip(self.moments, skews, strict=True):
            moment.ahead = skew
        self.spec = KeysSpec(active=active, next=DAY, retired=7200.0)
        self.nodes = [keys_over(line, moment, self.spec) for line, moment in zip(self.lines, self.moments, strict=True)]
        for node in self.nodes:
            self.run(node.load())
        self.first = self.nodes[0].signer().kid
        self.look()

    def look(self) -> None:
        """What has just been published; and a foreign verifier whose keys are old reads them."""
        for node in self.nodes:
            for kid, *_ in node.described():
                self.published.setdefault(kid, self.time)
        if self.foreign is None or self.time - self.foreign[0] >= 300.0:
            reachable = [n for n, cut in zip(self.nodes, self.cut_at, strict=True) if cut is None] or self.nodes
            self.foreign = self.time, Keys.parse(reachable[0].public())

    def step(self, seconds: float) -> None:
        self.time += seconds
        self.clock.turn()
        for number, moment in enumerate(self.moments):
            moment.now = self.time
            cut_at = self.cut_at[number]
            if cut_at is not None and self.time - cut_at > 12 * 3600.0:
                self.mend(number)
            elif cut_at is None:
                self.run(self.nodes[number].refresh())
        self.look()

    @rule(seconds=st.sampled_from([1.0, 29.0, 120.0, 300.0]), times=st.integers(1, 12))
    def wait(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.step(seconds)
            self.check()

    @rule(hours=st.integers(1, 40))
    def wait_long(self, hours: int) -> None:
        for _ in range(hours):
            self.step(3600.0)

    @rule(before=st.sampled_from([1.0, 90.0, 500.0]), number=st.integers(0, 2))
    def sign_before_the_change(self, before: float, number: int) -> None:
        """The moments that matter: a token is made, and then its key is no longer the active one."""
        ends = min(end for _, _, state, end in self.nodes[number].described() if state == "active")
        while ends - before - self.time > 0:
            self.step(min(3600.0, ends - before - self.time))
        self.sign(number)
        for _ in range(4):
            self.step(140.0)
            self.check()

    @rule(number=st.integers(0, 2))
    def sign(self, number: int) -> None:
        signer = self.nodes[number].signer()
        if signer.kid != self.first:
            assert self.time - self.published[signer.kid] >= 300.0 + 30.0, "it signs before verifiers have it"
        parsed = parse(MINTER.mint(signer, int(self.time), int(self.time + ACCESS), "j"))
        assert isinstance(parsed, Token)
        self.tokens = [*self.tokens[-5:], (self.time + ACCESS, parsed)]

    @rule(number=st.integers(0, 2))
    def cut(self, number: int) -> None:
        if self.cut_at[number] is None:
            self.cut_at[number] = self.time
            self.lines[number].is_cut = True

    @rule(number=st.integers(0, 2))
    def mend(self, number: int) -> None:
        self.cut_at[number] = None
        self.lines[number].is_cut = False
        self.run(self.nodes[number].refresh())

    @rule(number=st.integers(0, 2))
    @precondition(lambda self: bool(self.nodes))
    def restart(self, number: int) -> None:
        if self.cut_at[number] is None:
            self.nodes[number] = keys_over(self.lines[number], self.moments[number], self.spec)
            self.run(self.nodes[number].load())

    @rule(number=st.integers(0, 2))
    def rotate(self, number: int) -> None:
        if self.cut_at[number] is None:
            self.run(self.nodes[number].rotate())
            self.look()

    @invariant()
    def check(self) -> None:
        self.tokens = [(until, token) for until, token in self.tokens if until > self.time]
        for _, token in self.tokens:
            for node in self.nodes:
                assert verify(token, node.verifying()) is None
            assert self.foreign is not None
            assert verify(token, self.foreign[1]) is None

    def teardown(self) -> None:
        self.values.close()
        self.loop.close()


TestNodes = Nodes.TestCase
TestNodes.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


async def test_another_algorithm_signs_as_soon_as_it_has_a_key_and_the_old_one_until_then(values: MemoryValues) -> None:
    moment = Moment()
    keys = keys_over(values, moment)
    await keys.load()
    old = keys.signer()
    keys.follow(KeysSpec(algorithm="EdDSA"))
    assert keys.signer() is old
    with pytest.raises(Failure):
        keys.signer("EdDSA")
    await keys.load()
    assert keys.signer().alg == "EdDSA"
    assert keys.signer("ES256").kid == old.kid
    token = parse(MINTER.mint(old, int(NOW), int(NOW) + 60, "j"))
    assert isinstance(token, Token)
    assert verify(token, keys.verifying(), ("ES256", "EdDSA")) is None


async def test_a_key_verifies_longer_when_tokens_live_longer_than_when_it_was_made(values: MemoryValues) -> None:
    moment = Moment()
    keys = keys_over(values, moment)
    await keys.load()
    signer = keys.signer()
    (until,) = (end for _, _, what, end in keys.described() if what == "active")
    keys.follow(KeysSpec(), longest=DAY)
    await keys.load()
    moment.now = until - 1.0
    assert keys.signer() is signer
    token = parse(MINTER.mint(signer, int(moment.now), int(moment.now + DAY), "j"))
    moment.now += DAY - 1.0
    await keys.refresh()
    assert isinstance(token, Token)
    assert verify(token, keys.verifying(), ("ES256",)) is None
