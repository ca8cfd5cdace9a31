"""ledger.postgres_keys: keys that several gateways follow, in a database that they share."""

import threading
from collections.abc import Iterator
from hashlib import sha256
from threading import Event

import pytest
from tests.fixtures.postgres import Postgres

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import KeyTaken, NewKey
from tollhouse.ledger.postgres_keys import PostgresKeys
from tollhouse.ledger.postgres_place import Place, place_of


@pytest.fixture
def place(server: Postgres) -> Place:
    return place_of(server.url(server.fresh()))


@pytest.fixture
def keys(place: Place) -> Iterator[PostgresKeys]:
    one = PostgresKeys(place)
    yield one
    one.close()


def test_a_key_is_kept_by_its_digest_with_all_that_was_said_of_it(server: Postgres, keys: PostgresKeys) -> None:
    new = NewKey(
        name="ci", user="ada\x00", org="o", agent="a", email="a@b.c", groups=("x", "y"), scopes=("s",),
        metadata={"team": {"n": [1, None]}}, models=("gpt-*",), tools=(), expires_at=2_000_000_000,
    )  # fmt: skip
    secret, key = keys.create(new)
    [kept] = keys.all()
    key.user = "ada␀"
    assert kept == key
    assert keys.find(key.id) == kept
    assert kept.digest == sha256(secret.encode()).digest()
    assert (kept.servers, kept.tools, kept.models) == (None, (), ("gpt-*",))


def test_names_and_ends(keys: PostgresKeys) -> None:
    with pytest.raises(ValueError, match="no name for a key"):
        keys.create(NewKey(name="a b"))
    one = keys.create(NewKey(name="ci", user="ada"))[1]
    two = keys.create(NewKey(name="ci", user="ada"))[1]
    with pytest.raises(KeyTaken):
        keys.create(NewKey(name="ci", user="eve"))
    assert len(keys.all()) == 2
    ended = keys.end(one.id)
    assert ended is not None
    assert ended[1]
    assert keys.end(one.id) == (ended[0], False)
    assert keys.end("nobody00") is None
    assert [key.id for key in keys.revoke("ci")] == [two.id]
    assert keys.revoke("ci") == []
    assert keys.create(NewKey(name="ci", user="eve"))[1].changed == 5


def test_pages_have_every_key_once(place: Place) -> None:
    moments = iter([3, 1, 2, 2, 2])
    keys = PostgresKeys(place, now=lambda: next(moments))
    for n in range(5):
        keys.create(NewKey(name=f"k{n}"))
    found, after = [], (-1, "")
    while page := keys.page(after, 2):
        found += page
        after = (page[-1].created_at, page[-1].id)
    assert found == keys.all()
    assert len(found) == 5


def test_who_follows_misses_none_of_what_many_make_at_once(place: Place, keys: PostgresKeys) -> None:
    follower = KeyFollower(PostgresKeys(place), every=0.005)
    follower.start()
    failures: list[Exception] = []

    def work(n: int) -> None:
        mine = PostgresKeys(place)
        try:
            for k in range(6):
                mine.end(mine.create(NewKey(name=f"k{n}.{k}"))[1].id)
        except LedgerError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        pause = Event()
        for _ in range(1000):
            if follower.version == 48:
                break
            pause.wait(0.01)
        made = keys.all()
        assert len(follower) == 24
        assert all(follower.find(key.digest) == key for key in made)
        assert all(follower.has_ended(f"thk_{key.id}") for key in made)
    finally:
        follower.stop()


def test_a_follower_keeps_what_it_knows_while_the_database_is_away(
    server: Postgres, place: Place, keys: PostgresKeys, caplog: pytest.LogCaptureFixture
) -> None:
    secret, _ = keys.create(NewKey(name="one"))
    caplog.set_level("INFO")
    follower = KeyFollower(PostgresKeys(place), every=0.01)
    follower.start()
    pause = Event()
    try:
        server.kill()
        with pytest.raises(LedgerError):
            keys.all()
        for _ in range(1000):
            if "keys cannot be followed" in caplog.text:
                break
            pause.wait(0.01)
        assert follower.find(sha256(secret.encode()).digest()) is not None
    finally:
        server.start()
    try:
        two, _ = keys.create(NewKey(name="two"))
        for _ in range(1000):
            if follower.find(sha256(two.encode()).digest()) is not None:
                break
            pause.wait(0.01)
        assert follower.find(sha256(two.encode()).digest()) is not None
        assert "keys are followed again" in caplog.text
    finally:
        follower.stop()
