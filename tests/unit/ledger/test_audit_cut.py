"""ledger.audit_cut: old records go, what is left can be verified, and what was taken away besides shows."""

import sqlite3
from pathlib import Path

import pytest

from tollhouse.ledger.audit import Chain, Seal
from tollhouse.ledger.audit_sqlite import SqliteAudit
from tollhouse.ledger.audit_verify import Verdict, verify
from tollhouse.ledger.base import Entry
from tollhouse.ledger.records import AUDIT, Anchor
from tollhouse.ledger.sqlite import SqliteLedger

SEAL = Seal(b"0123456789abcdef0123456789abcdef")
GUESSED = Seal(b"fedcba9876543210fedcba9876543210")


class Lines:
    """In the place of a journal: what is written goes to the ledger at once."""

    def __init__(self, id: str, ledger: SqliteLedger) -> None:
        self.id = id
        self.full = False
        self.seq = 0
        self._ledger = ledger

    def write(self, body: bytes, kind: int) -> int:
        assert kind == AUDIT
        self.seq += 1
        self._ledger.ship(self.id, [Entry(self.seq, kind, body)])
        return self.seq


class House:
    """A ledger with chains that write at times of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = SqliteLedger(path)
        self.ledger.open()
        self.now = 0.0

    def chain(self, id: str, anchors: tuple[Anchor, ...] = ()) -> Chain:
        return Chain(Lines(id * 16, self.ledger), anchors, now=lambda: self.now)  # type: ignore[arg-type]

    def write(self, chain: Chain, *times: float) -> None:
        for self.now in times:
            chain.append(SEAL, b',"operation":"tools/call"')

    def cut(self, before: float, by: Chain, *, most: int = 1000, steps: int = 1000, seal: Seal = SEAL) -> int:
        anchors = self.ledger.audit_before(int(before * 1e6))
        if not anchors:
            return 0
        by.cut(seal, anchors)
        gone = 0
        for _ in range(steps):
            some = self.ledger.cut_audit(anchors, most)
            gone += some
            if not some:
                break
        return gone

    def verified(self, known: tuple[Anchor, ...] = ()) -> Verdict:
        reader = SqliteAudit(self.path)
        try:
            return verify(reader, [SEAL], known)
        finally:
            reader.close()

    def breaks(self, known: tuple[Anchor, ...] = ()) -> list[str]:
        return [found.why for found in self.verified(known).breaks]

    def change(self, statement: str) -> None:
        db = sqlite3.connect(self.path)
        db.execute(statement)
        db.commit()
        db.close()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "l.db")


def test_what_is_old_goes_and_the_rest_holds(house: House) -> None:
    old, living = house.chain("ab"), house.chain("cd")
    house.write(old, *range(1, 11))
    old.end()
    house.write(living, *range(5, 31))
    house.ledger.forget("ab" * 16)  # its journal is closed
    heads = tuple(house.verified().heads)
    assert house.cut(20.5, living) == 12 + 17  # the first chain with its begin and end, of the second what is before
    assert house.breaks() == []
    assert house.breaks(heads) == []  # noted before the cut
    assert house.verified().records == 10 + 1  # and the one that says so
    house.write(living, 31, 32)
    assert house.breaks() == []


def test_nothing_to_be_cut(house: House) -> None:
    chain = house.chain("ab")
    house.write(chain, 10, 11)
    assert house.ledger.audit_before(9_000_000) == []
    assert house.ledger.audit_before(10_000_000) == []


def test_again_and_again(house: House) -> None:
    """Cuts go with their records, and the next one says anew what still needs saying."""
    quiet, busy = house.chain("ab"), house.chain("cd")
    house.write(quiet, 1, 2, 50)
    for day in range(1, 60):
        house.write(busy, day + 0.5)
        house.now = day + 0.6
        house.cut(day - 7.0, busy)
        assert house.breaks() == [], day
    assert house.verified().records < 20


def test_a_chain_that_is_silent_for_long_and_goes_on(house: House) -> None:
    """The record of its cut is itself cut meanwhile."""
    quiet, busy = house.chain("ab"), house.chain("cd")
    house.write(quiet, 1, 2)
    for day in range(1, 30):
        house.write(busy, day + 0.5)
        house.now = day + 0.6
        house.cut(day - 3.0, busy)
    assert house.breaks() == []
    house.write(quiet, 31, 32)
    assert house.breaks() == []
    house.now = 50.0
    house.cut(40, busy)
    assert house.breaks() == []


def test_a_cut_that_is_not_finished(house: House) -> None:
    """It was said up to where: whoever dies then has taken nothing away."""
    chain = house.chain("ab")
    house.write(chain, *range(1, 31))
    for steps in range(4):
        house.cut(20.5, chain, most=3, steps=steps)
        assert house.breaks() == []
    house.cut(20.5, chain)
    assert house.breaks() == []


def test_a_step_is_small(house: House) -> None:
    chain = house.chain("ab")
    house.write(chain, *range(1, 31))
    anchors = house.ledger.audit_before(20_500_000)
    assert [house.ledger.cut_audit(anchors, 8) for _ in range(4)] == [8, 8, 5, 0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DELETE FROM audit WHERE n = 22", "are gone"),  # one more than was said, at the beginning that is left
        ("DELETE FROM audit WHERE n = 26", "is gone"),
        ("UPDATE audit SET body = replace(body, 'tools/call', 'tools/list') WHERE n = 22", "changed"),
        ("DELETE FROM audit WHERE body LIKE '%audit.cut%'", "are gone"),
    ],
)
def test_what_is_taken_besides_shows(change: str, why: str, house: House) -> None:
    chain = house.chain("ab")
    house.write(chain, *range(1, 31))
    house.cut(20.5, chain)
    house.write(chain, 31)
    assert house.breaks() == []
    house.change(change)
    assert any(why in found for found in house.breaks())


def test_who_has_not_the_key_cannot_say_that_it_was_cut(house: House) -> None:
    chain, forger = house.chain("ab"), house.chain("ef")
    house.write(chain, *range(1, 31))
    house.cut(20.5, forger, seal=GUESSED)
    breaks = house.breaks()
    assert any("records 1 to 21 of the chain are gone" in found for found in breaks)
    assert any("sealed with a key that is not given here" in found for found in breaks)


def test_another_record_in_the_place_of_the_one_it_was_cut_at(house: House) -> None:
    """The rest must follow the very record that the cut names."""
    chain = house.chain("ab")
    house.write(chain, *range(1, 31))
    (anchor,) = house.ledger.audit_before(20_500_000)
    chain.cut(SEAL, [anchor._replace(hash="0" * 64)])
    house.ledger.cut_audit([anchor])
    assert "it does not follow the record up to which its chain was cut" in house.breaks()


def test_a_chain_that_cannot_be_read_stays(house: House) -> None:
    chain, other = house.chain("ab"), house.chain("cd")
    house.write(chain, *range(1, 11))
    house.write(other, *range(1, 31))
    house.ledger.forget("ab" * 16)
    house.change("UPDATE audit SET body = 'x' WHERE n = 11 AND journal = 1")
    assert [anchor.chain for anchor in house.ledger.audit_before(20_500_000)] == ["cd" * 16]


def test_a_clock_that_was_set_back(house: House) -> None:
    """What stands behind a young record stays, although it says that it is old."""
    chain = house.chain("ab")
    house.write(chain, 1, 2, 100, 3, 4)
    house.cut(50, chain)
    assert house.breaks() == []
    assert house.verified().records == 3 + 1
