"""Whatever order clients, thieves and failing stores come in: one line of tokens, and none after it was broken."""

from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.issuer.families import Families, new_family_id
from tollhouse.issuer.records import Family, UserInfo
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations
from tollhouse.wire.oauth import OAuthError

GRANT = Family("app", "ada", UserInfo(), ("read",), ("https://api.example.com",), 1, 0)


class World:
    """later: seconds that have passed."""

    def __init__(self, **changed: Any) -> None:
        clock = Clock()
        self.state = MemoryState(clock)
        self.later = 1000.0
        self.secrets: list[bytes] = [b"s" * 32]
        self.reused = 0
        self.revocations = Revocations(self.state, clock, lambda: self.later)
        settings = {"idle": 1000.0, "life": 5000.0, "grace": 10.0, "longest": 600.0, **changed}
        self.families = Families(
            self.state.values,
            lambda: self.secrets,
            self.revocations,
            lambda: self.later,
            issuer="https://auth.example.com",
            reused=self._reused,
            **settings,
        )

    def _reused(self) -> None:
        self.reused += 1

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Nothing waits: the state is in memory."""
        try:
            work.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("it waits for something")

    def refresh(self, token: str, client: str = "app") -> str | None:
        try:
            return str(self.run(self.families.refresh(token, client, "")).token)
        except OAuthError:
            return None


class Machine(RuleBasedStateMachine):
    """A model of one family: the number that is good, and when it became so."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.id = new_family_id()
        self.tokens = [str(self.world.run(self.world.families.begin(self.id, GRANT)))]
        self.current = 0
        self.changed_at = -1e9
        self.used_at = self.began = self.world.later
        self.dead = False

    @rule(seconds=st.sampled_from([1.0, 9.0, 11.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.world.later += seconds

    @rule(back=st.integers(0, 3))
    def use(self, back: int) -> None:
        """The newest token that was given out, or one of those before it."""
        n = max(0, len(self.tokens) - 1 - back)
        got = self.world.refresh(self.tokens[n])
        now = self.world.later
        # The state in memory has a clock of its own, which stands still here: the family never lapses in it.
        is_over = now >= self.began + 5000.0
        if self.dead:
            assert got is None
        elif n == self.current and not is_over:
            assert got is not None
            self.tokens = [*self.tokens[: n + 1], got]
            self.current, self.changed_at = n + 1, now
        elif n == self.current - 1 and now < self.changed_at + 10.0:
            # The same number again, under the newest secret: nothing forks.
            assert got is not None
            assert got.rpartition(".")[0] == self.tokens[self.current].rpartition(".")[0]
        else:
            assert got is None
            self.dead = self.dead or n < self.current

    @rule()
    def forge(self) -> None:
        token = self.tokens[-1]
        assert self.world.refresh(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
        assert self.world.refresh(token, client="other") is None

    @precondition(lambda self: not self.dead)
    @rule()
    def make_another_secret(self) -> None:
        if len(self.world.secrets) < 3:
            self.world.secrets.insert(0, bytes([len(self.world.secrets)]) * 32)
            self.world.secrets = list(self.world.secrets)

    @invariant()
    def no_number_is_good_twice(self) -> None:
        assert len(set(self.tokens)) == len(self.tokens)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestFamily = Machine.TestCase


def test_a_write_that_the_store_has_lost_ends_nothing() -> None:
    """A replica took over, and has the record as it was before the last refreshes."""
    world = World()
    id = new_family_id()
    first = world.run(world.families.begin(id, GRANT))
    held = world.run(world.families.get(id))
    second = world.refresh(first)
    assert second is not None
    third = world.refresh(second)
    assert third is not None
    record = msgspec.msgpack.encode(held.value)
    world.run(world.state.values.put(f"iss:rf:{id}", record, 100.0))
    fourth = world.refresh(third)
    assert fourth is not None
    assert world.refresh(fourth) is not None
    assert world.reused == 0


def test_reuse_is_told() -> None:
    world = World(grace=0.0)
    first = world.run(world.families.begin(new_family_id(), GRANT))
    assert world.refresh(first) is not None
    assert world.refresh(first) is None
    assert world.reused == 1


def test_a_bound_token_needs_its_key() -> None:
    world = World()
    family = msgspec.structs.replace(GRANT, jkt="thumb")
    token = world.run(world.families.begin(new_family_id(), family))
    assert world.refresh(token) is None
    assert world.run(world.families.refresh(token, "app", "thumb")).token


def test_before_there_are_secrets_nobody_is_refused_for_good() -> None:
    world = World()
    token = world.run(world.families.begin(new_family_id(), GRANT))
    world.secrets = []
    with pytest.raises(Failure) as failure:
        world.run(world.families.refresh(token, "app", ""))
    assert failure.value.status == 503


def test_a_family_is_found_by_its_tokens_only() -> None:
    world = World()
    id = new_family_id()
    token = world.run(world.families.begin(id, GRANT))
    found = world.run(world.families.find(token))
    assert found is not None
    assert found[0] == id
    assert world.run(world.families.find(token[:-2] + ("BA" if token.endswith("AA") else "AA"))) is None
    assert world.run(world.families.find("thr_x")) is None
