"""Virtual keys: their form, their rows, and how changes are found."""

import sqlite3
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import KeyLedger, KeyTaken, NewKey, is_whole
from tollhouse.ledger.keys_sqlite import SqliteKeys
from tollhouse.ledger.sqlite_tables import MIGRATIONS


@pytest.fixture
def ledger(tmp_path: Path) -> KeyLedger:
    return SqliteKeys(tmp_path / "ledger.db")


def test_a_key_is_shown_once_and_kept_as_its_digest(ledger: KeyLedger, tmp_path: Path) -> None:
    new = NewKey(
        name="ci", user="bob", org="o", agent="a", email="e", groups=("g",), scopes=("s",), metadata={"n": 1},
        models=("m*",), servers=(), tools=None, routes=("r",), expires_at=5_000_000_000,
    )  # fmt: skip
    secret, key = ledger.create(new)
    assert is_whole(secret)
    assert len(secret) == 62
    assert secret.startswith(f"thk_{key.id}_")
    assert key.digest == sha256(secret.encode()).digest()
    [found] = ledger.all()
    assert found == key
    assert {name: getattr(found, name) for name in NewKey.__struct_fields__} == {
        name: getattr(new, name) for name in NewKey.__struct_fields__
    }
    for file in tmp_path.iterdir():
        assert secret[13:56].encode() not in file.read_bytes()


@given(st.integers(4, 61), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_typing_error_shows(at: int, letter: str) -> None:
    secret = "thk_jdWLv2sN_atpxULeTMxMFtUui98Nu80Gjy9ONtozcCKy5qfSirE945NM0b"
    assert is_whole(secret)
    typed = secret[:at] + letter + secret[at + 1 :]
    assert is_whole(typed) is (typed == secret)


@pytest.mark.parametrize("text", ["", "thk_", "sk-1", "thk_" + "x" * 58, "thk_ä" + "x" * 57])
def test_other_texts_are_no_keys(text: str) -> None:
    assert not is_whole(text)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 65, "a\nb"])
def test_a_name_is_one(ledger: KeyLedger, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a key"):
        ledger.create(NewKey(name=name))


def test_a_name_is_one_caller(ledger: KeyLedger) -> None:
    ledger.create(NewKey(name="ci", user="bob"))
    ledger.create(NewKey(name="ci", user="bob"))  # to change it without a gap
    with pytest.raises(KeyTaken, match="in use for bob"):
        ledger.create(NewKey(name="ci", user="eve"))
    assert len(ledger.revoke("ci")) == 2
    ledger.create(NewKey(name="ci", user="eve"))


def test_one_of_two_keys_ends_by_its_id(ledger: KeyLedger) -> None:
    _, one = ledger.create(NewKey(name="ci"))
    _, two = ledger.create(NewKey(name="ci"))
    assert [key.id for key in ledger.revoke(one.id)] == [one.id]
    assert ledger.revoke(one.id) == []
    assert ledger.revoke("nobody") == []
    assert {key.id: key.is_good(0) for key in ledger.all()} == {one.id: False, two.id: True}


def test_followers_read_what_is_new_and_nothing_else(ledger: KeyLedger, tmp_path: Path) -> None:
    reader = SqliteKeys(tmp_path / "ledger.db")
    assert reader.changes(0) == []
    assert reader.changes(0) is None  # nobody has written
    _, one = ledger.create(NewKey(name="one"))
    assert [key.name for key in reader.changes(0) or ()] == ["one"]
    assert reader.changes(one.changed) is None
    _, two = ledger.create(NewKey(name="two"))
    [ended] = ledger.revoke("one")
    assert [(key.name, key.changed) for key in reader.changes(one.changed) or ()] == [
        ("two", two.changed),
        ("one", ended.changed),
    ]
    reader.close()


def test_a_follower_knows_a_key_within_a_second(ledger: KeyLedger, tmp_path: Path) -> None:
    follower = KeyFollower(SqliteKeys(tmp_path / "ledger.db"), every=0.02)
    follower.start()
    follower.start()
    try:
        secret, _ = ledger.create(NewKey(name="one"))
        digest, waited = sha256(secret.encode()).digest(), Event()
        for _ in range(500):
            if follower.find(digest) is not None:
                break
            waited.wait(0.01)
        key = follower.find(digest)
        assert key is not None
        assert key.is_good(key.created_at)
        version = follower.version
        ledger.revoke("one")
        for _ in range(500):
            if follower.version != version:
                break
            waited.wait(0.01)
        ended = follower.find(digest)
        assert ended is not None
        assert not ended.is_good(key.created_at)
    finally:
        follower.stop()


def test_a_ledger_that_cannot_be_read_leaves_keys_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, and long enough to be looked at as one" * 100)
    follower = KeyFollower(SqliteKeys(path))
    with pytest.raises(LedgerError):
        follower.look()
    follower.start()
    follower.stop()
    assert "keys cannot be followed" in caplog.text
    assert len(follower) == 0


def test_the_tables_of_before_get_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as db:
        db.executescript(MIGRATIONS[0])
        db.execute("CREATE TABLE migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
        db.execute("INSERT INTO migrations VALUES (1, 0)")
    db.close()
    SqliteKeys(path).create(NewKey(name="ci"))
    assert [key.name for key in SqliteKeys(path).all()] == ["ci"]


def test_one_key_is_found_and_ended_by_its_id_alone(ledger: KeyLedger) -> None:
    first = ledger.create(NewKey(name="ci", user="bob"))[1]
    named = ledger.create(NewKey(name=first.id, user="eve"))[1]
    assert ledger.find(first.id) == first
    assert ledger.find("ci") is None
    ended = ledger.end(first.id)
    assert ended is not None
    assert (ended[0].id, ended[0].revoked_at is not None, ended[1]) == (first.id, True, True)
    assert ledger.end(first.id) == (ended[0], False)
    assert ledger.find(named.id) == named
    assert ledger.end("ci") is None
    assert ledger.changes(named.changed) == [ended[0]]


def test_pages_have_every_key_once(tmp_path: Path) -> None:
    moments = iter([3, 1, 2, 2, 2])
    ledger = SqliteKeys(tmp_path / "ledger.db", now=lambda: next(moments))
    for n in range(5):
        ledger.create(NewKey(name=f"k{n}"))
    found, after = [], (-1, "")
    while page := ledger.page(after, 2):
        found += page
        after = (page[-1].created_at, page[-1].id)
    assert found == ledger.all()
    assert len(found) == 5


def test_a_follower_says_which_have_ended_also_those_of_before(ledger: KeyLedger) -> None:
    before = ledger.create(NewKey(name="before"))[1]
    good = ledger.create(NewKey(name="good"))[1]
    ledger.end(before.id)
    follower = KeyFollower(ledger)
    told: list[int] = []
    follower.on_ended(lambda: told.append(follower.version))
    follower.look()
    assert follower.has_ended(f"thk_{before.id}")
    assert not follower.has_ended(f"thk_{good.id}")
    ledger.create(NewKey(name="another"))
    follower.look()
    assert len(told) == 1  # of what is made nobody need be told
    ended = ledger.end(good.id)
    follower.look()
    assert ended is not None
    assert told[1:] == [ended[0].changed]
    assert follower.has_ended(f"thk_{good.id}")
    follower.on_ended(None)
    follower.stop()
