"""ledger.audit_verify and audit_sqlite: what was taken away, changed, put in or put elsewhere shows."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.ledger.audit import BEGIN, END, Anchor, Chain, Seal, first_of
from tollhouse.ledger.audit_reader import Placed, Row
from tollhouse.ledger.audit_sqlite import SqliteAudit
from tollhouse.ledger.audit_verify import Verdict, follow, verify
from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT, UsageRecord
from tollhouse.ledger.segment import Reader
from tollhouse.ledger.ship import catch_up
from tollhouse.ledger.sqlite import SqliteLedger

SEAL = Seal(b"0123456789abcdef0123456789abcdef")
OTHER = Seal(b"fedcba9876543210fedcba9876543210")
CHAIN = "ab" * 16


class Lines:
    """In the place of a journal: it keeps what is written."""

    def __init__(self, id: str = CHAIN) -> None:
        self.id = id
        self.full = False
        self.bodies: list[bytes] = []

    def write(self, body: bytes, kind: int) -> int:
        assert kind == AUDIT
        self.bodies.append(body)
        return len(self.bodies)

    @property
    def seq(self) -> int:
        return len(self.bodies)


def chained(count: int, id: str = CHAIN, *, ended: bool = False, seal: Seal = SEAL) -> list[Row]:
    lines = Lines(id)
    at = iter(range(1, 1000))
    chain = Chain(lines, now=lambda: float(next(at)))  # type: ignore[arg-type]
    for n in range(count):
        chain.append(seal, b',"operation":"tools/call","user":"u%d"' % n)
    if ended:
        chain.end()
    return [rows_of(body) for body in lines.bodies]


def rows_of(body: bytes) -> Row:
    placed = msgspec.json.decode(body, type=Placed)
    return Row(placed.n, placed.at, body)


def test_a_whole_chain() -> None:
    rows = chained(3, ended=True)
    found = follow(CHAIN, rows, [OTHER, SEAL])
    assert (found.records, found.ended, found.breaks) == (5, True, ())
    assert found.head is not None
    assert found.head.n == 5
    assert not follow(CHAIN, rows[:-1], [SEAL]).ended
    assert follow(CHAIN, [], [SEAL]).head is None


def test_a_chain_may_go_on_with_another_key() -> None:
    lines = Lines()
    chain = Chain(lines)  # type: ignore[arg-type]
    for seal in (SEAL, SEAL, OTHER):
        chain.append(seal, b',"operation":"x"')
    chain.end()
    rows = [rows_of(body) for body in lines.bodies]
    assert follow(CHAIN, rows, [OTHER, SEAL]).breaks == ()
    assert [one.n for one in follow(CHAIN, rows, [SEAL]).breaks] == [4, 5]


WHOLE = chained(8, ended=True)
FOREIGN = chained(8, "cd" * 16)
FORGED = chained(8, seal=Seal(b"guessed"))


@st.composite
def tampered(draw: st.DrawFn) -> list[Row]:
    """A chain after somebody has been there who has not the key. (That its end is gone, it cannot show.)"""
    rows = list(WHOLE)
    at = draw(st.integers(0, len(rows) - 1))
    what = draw(st.sampled_from(("remove", "change", "swap", "exchange", "foreign", "forge", "insert", "renumber")))
    row = rows[at]
    if what == "remove":
        del rows[min(at, len(rows) - 2)]
    elif what == "change":
        place = draw(st.integers(0, len(row.body) - 1))
        byte = draw(st.integers(0, 255).filter(lambda value: value != row.body[place]))
        rows[at] = Row(row.n, row.at, row.body[:place] + bytes((byte,)) + row.body[place + 1 :])
    elif what == "swap":  # bodies change places, numbers stay
        other = draw(st.integers(0, len(rows) - 1).filter(lambda value: value != at))
        rows[at], rows[other] = Row(row.n, row.at, rows[other].body), Row(rows[other].n, rows[other].at, row.body)
    elif what == "exchange":  # whole rows in another order
        other = draw(st.integers(0, len(rows) - 1).filter(lambda value: value != at))
        rows[at], rows[other] = rows[other], rows[at]
    elif what == "foreign":
        rows[at] = FOREIGN[min(at, len(FOREIGN) - 1)]
    elif what == "forge":
        rows[at] = FORGED[min(at, len(FORGED) - 1)]
    elif what == "insert":
        rows.insert(at, Row(row.n, row.at, row.body))
    else:
        rows = [*rows[:at], *(Row(one.n - 1, one.at, one.body) for one in rows[at + 1 :])]
        if at == len(WHOLE) - 1:
            rows[-1] = Row(rows[-1].n, rows[-1].at + 1, rows[-1].body)
    return rows


@settings(max_examples=300, deadline=None)
@given(tampered())
def test_whatever_is_done_to_a_chain_is_found(rows: list[Row]) -> None:
    if rows == WHOLE:
        return
    assert follow(CHAIN, rows, [SEAL]).breaks


@pytest.mark.parametrize(
    ("rows", "n", "why"),
    [
        ([*WHOLE[:3], *WHOLE[4:]], 4, "record 4 of the chain is gone"),
        ([*WHOLE[:3], *WHOLE[6:]], 4, "records 4 to 6 of the chain are gone"),
        (WHOLE[1:], 1, "record 1 of the chain is gone"),
        ([*WHOLE[:2], Row(3, WHOLE[2].at, WHOLE[2].body.replace(b'"u1"', b'"u9"')), *WHOLE[3:]], 3, "it was changed"),
        ([*WHOLE[:2], Row(3, WHOLE[2].at, b"{"), *WHOLE[3:]], 3, "it cannot be read"),
        ([*WHOLE[:2], FOREIGN[2], *WHOLE[3:]], 3, "it does not follow the record before it"),
        ([*WHOLE[:2], Row(3, 0, WHOLE[2].body), *WHOLE[3:]], 3, "it stands in a place that is not its own"),
        (FORGED, 1, "it is sealed with a key that is not given here"),
    ],
)
def test_where_and_why(rows: list[Row], n: int, why: str) -> None:
    first = follow(CHAIN, rows, [SEAL]).breaks[0]
    assert (first.chain, first.n) == (CHAIN, n)
    assert first.why.startswith(why)


def sealed(*operations: str) -> list[Row]:
    """Records at one moment by somebody who has the key, and does not do as a gateway does."""
    rows: list[Row] = []
    before = first_of(CHAIN)
    for n, operation in enumerate(operations, 1):
        data = b'{"n":%d,"prev":"%b","at":7%b,"operation":"%b"' % (n, before, SEAL.member, operation.encode())
        before = SEAL.of(data)
        rows.append(Row(n, 7, b'%b,"hash":"%b"}' % (data, before)))
    return rows


@pytest.mark.parametrize(
    ("rows", "breaks"),
    [
        (sealed(BEGIN, "x", END), []),
        (sealed("x", "y"), [(1, "it is not the beginning of a chain")]),
        (sealed(BEGIN, END, "x"), [(3, "the chain had ended before it")]),
        (
            [sealed(BEGIN, "x", "y")[0], Row(2, 7, sealed(BEGIN, "x", "y")[2].body), sealed(BEGIN, "x", "y")[2]],
            [(2, "it stands in a place that is not its own"), (3, "it does not follow the record before it")],
        ),
    ],
)
def test_what_the_key_does_not_excuse(rows: list[Row], breaks: list[tuple[int, str]]) -> None:
    assert [(one.n, one.why) for one in follow(CHAIN, rows, [SEAL]).breaks] == breaks


def test_not_every_break_of_a_chain_that_is_nothing_but_breaks_is_told() -> None:
    assert len(follow(CHAIN, [Row(n, 1, b"{") for n in range(1, 1000)], [SEAL]).breaks) == 20


# ---- in the ledger
def written(where: Path, count: int, *, ended: bool = True) -> str:
    """One process has been there: its chain."""
    path = where / "l.db"
    anchors: list[Anchor] = []
    if path.exists():
        reader = SqliteAudit(path)
        anchors = reader.heads(64)
        reader.close()
    journal = Journal(where / "l.db.journal")
    journal.open()
    chain = Chain(journal, anchors)
    for n in range(count):
        chain.append(SEAL, b',"operation":"tools/call","user":"u%d","decision":"allow"' % n)
        journal.append(UsageRecord(admitted_at=10**15 + n, ended_at=10**15 + n + 1, outcome="ok"))
    if ended:
        chain.end()
    journal.close()
    ledger = SqliteLedger(path)
    ledger.open()
    assert catch_up(where / "l.db.journal", ledger) == 2 * count + 1 + ended
    assert ledger.rejected() == 0
    ledger.close()
    return journal.id


def verdict(where: Path, known: list[Anchor] | None = None) -> Verdict:
    reader = SqliteAudit(where / "l.db")
    try:
        return verify(reader, [SEAL], known or [])
    finally:
        reader.close()


def change(where: Path, *statements: str) -> None:
    with sqlite3.connect(where / "l.db") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_records_of_both_kinds_find_their_tables(tmp_path: Path) -> None:
    chain = written(tmp_path, 5)
    found = verdict(tmp_path)
    assert (found.records, len(found.chains), found.breaks) == (7, 1, ())
    reader = SqliteAudit(tmp_path / "l.db")
    newest = reader.newest(0, limit=3)
    assert [(one.n, one.user) for one in newest] == [(5, "u3"), (6, "u4"), (7, "")]
    assert {one.chain for one in newest} == {chain}
    assert len({one.id for one in newest}) == 3
    assert [one.n for one in reader.newest(0, limit=9, where=[("user", "u2")])] == [4]
    assert reader.newest(int(newest[0].at / 1e6) + 60, limit=9) == []
    with pytest.raises(ValueError, match="cannot be found by 'body'"):
        reader.newest(0, limit=1, where=[("body", "")])
    reader.close()
    with sqlite3.connect(tmp_path / "l.db") as db:
        shown = db.execute("SELECT chain, n, user, decision, status FROM audit_records WHERE n = 2").fetchall()
        assert shown == [(chain, 2, "u0", "allow", 0)]
        assert db.execute("SELECT count(*) FROM usage").fetchone() == (5,)
    db.close()


def test_what_comes_twice_is_stored_once_and_what_has_anothers_place_is_kept_aside(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    bodies = [row.body for row in WHOLE]
    entries = [Entry(n, AUDIT, body) for n, body in enumerate(bodies, 1)]
    assert ledger.ship(CHAIN, entries) == len(entries)
    assert ledger.ship(CHAIN, entries) == 0
    again = [Entry(20 + n, AUDIT, body) for n, body in enumerate(bodies[:2])]
    forged = [Entry(30, AUDIT, FORGED[1].body), Entry(31, AUDIT, b"no JSON"), Entry(32, AUDIT, b'{"n":"x"}')]
    assert ledger.ship(CHAIN, [*again, *forged]) == 0
    assert ledger.rejected() == 3
    ledger.close()
    found = verdict(tmp_path)
    assert [one.why for one in found.breaks] == ["3 records could not be put away and lie in the table `rejected`"]


def test_a_chain_that_lost_its_end_is_known_to_those_after_it(tmp_path: Path) -> None:
    first = written(tmp_path, 5, ended=False)
    second = written(tmp_path, 2)
    assert verdict(tmp_path).breaks == ()
    number = f"(SELECT number FROM journals WHERE journal = '{first}')"
    change(tmp_path, f"DELETE FROM audit WHERE n > 4 AND journal = {number}", "DELETE FROM audit_chains")
    found = verdict(tmp_path).breaks
    assert [one[:2] for one in found] == [(first, 5)]
    assert found[0].why == f"the records from 5 on are gone: the chain {second} knows number 6"


def test_a_whole_chain_that_is_gone(tmp_path: Path) -> None:
    first = written(tmp_path, 5)
    written(tmp_path, 2)
    number = f"(SELECT number FROM journals WHERE journal = '{first}')"
    change(
        tmp_path,
        f"DELETE FROM audit WHERE journal = {number}",
        f"DELETE FROM audit_chains WHERE journal = {number}",
        f"DELETE FROM journals WHERE journal = '{first}'",
    )
    (found,) = verdict(tmp_path).breaks
    assert found[:2] == (first, 1)
    assert found.why.startswith("the whole chain is gone")


def test_the_last_chain_is_known_to_what_was_noted_before(tmp_path: Path) -> None:
    chain = written(tmp_path, 5)
    heads = verdict(tmp_path).heads
    assert [(one.chain, one.n) for one in heads] == [(chain, 7)]
    change(tmp_path, "DELETE FROM audit", "DELETE FROM audit_chains")
    assert verdict(tmp_path).breaks == ()  # of itself it does not show
    (found,) = verdict(tmp_path, heads).breaks
    assert found.why == "the whole chain is gone: what was noted before knows number 7"
    wrong = [Anchor(chain, 7, "0" * 64)]
    assert verdict(tmp_path, wrong).breaks


def test_a_chain_that_grows_while_it_is_verified(tmp_path: Path) -> None:
    entries = [Entry(row.n, AUDIT, row.body) for row in chained(9)]
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(CHAIN, entries[:4])

    class Meanwhile(SqliteAudit):
        def rows(self, chain: str, after: int = 0) -> Iterator[Row]:
            yield from super().rows(chain, after)
            ledger.ship(chain, entries)  # it was followed to its end

    reader = Meanwhile(tmp_path / "l.db")
    found = verify(reader, [SEAL])
    reader.close()
    ledger.close()
    assert (found.records, found.breaks) == (4, ())
    assert (verdict(tmp_path).records, verdict(tmp_path).breaks) == (10, ())


def test_a_chain_without_a_name(tmp_path: Path) -> None:
    written(tmp_path, 5)
    change(tmp_path, "DELETE FROM journals")
    assert [one.why for one in verdict(tmp_path).breaks] == ["7 records belong to a chain that has no name any more"]


def test_a_chain_is_read_by_the_page(tmp_path: Path) -> None:
    chain = written(tmp_path, 2500)
    reader = SqliteAudit(tmp_path / "l.db")
    assert [row.n for row in reader.rows(chain)] == list(range(1, 2503))
    row = reader.at(chain, 1234)
    assert row is not None
    assert row.n == 1234
    assert reader.at(chain, 9999) is None
    reader.close()


def test_a_file_that_is_not_there_or_has_no_such_tables(tmp_path: Path) -> None:
    with pytest.raises(LedgerError):
        SqliteAudit(tmp_path / "none.db").heads(1)
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(LedgerError, match="no such table"):
        SqliteAudit(tmp_path / "empty.db").heads(1)


def test_damage_of_the_journal_is_a_break(tmp_path: Path) -> None:
    """A record that the journal's reader could not give is missing in the chain."""
    journal = Journal(tmp_path / "l.db.journal")
    journal.open()
    chain = Chain(journal)
    for n in range(3):
        chain.append(SEAL, b',"operation":"x","user":"u%d"' % n)
    journal.close()
    (path,) = (tmp_path / "l.db.journal").glob("*.seg")
    reader = Reader(tmp_path / "l.db.journal", journal.id, 0, live=True)
    entries = reader.read(9)
    reader.close()
    assert len(entries) == 4
    path.unlink()
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(journal.id, [entries[0], entries[1], entries[3]])
    ledger.close()
    assert [(one.n, one.why) for one in verdict(tmp_path).breaks] == [(3, "record 3 of the chain is gone")]
