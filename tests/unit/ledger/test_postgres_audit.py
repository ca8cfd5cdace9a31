"""ledger.postgres_audit: chains that hold, and what was done to them in the database."""

from pathlib import Path
from time import time

import pytest
from tests.fixtures.postgres import Postgres

from tollhouse.ledger.audit import Anchor, Chain, Seal
from tollhouse.ledger.audit_verify import Verdict, verify
from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.postgres import PostgresLedger
from tollhouse.ledger.postgres_audit import PostgresAudit
from tollhouse.ledger.postgres_place import Place, place_of
from tollhouse.ledger.records import AUDIT, UsageRecord
from tollhouse.ledger.segment import Reader
from tollhouse.ledger.ship import catch_up

SEAL = Seal(b"0123456789abcdef0123456789abcdef")
NUL = b',"operation":"tools/call","user":"a\\u0000b","target":"c:\\\\u0000 \\\\\\u0000\\u0000","decision":"allow"'


@pytest.fixture
def database(server: Postgres) -> str:
    return server.fresh()


@pytest.fixture
def place(server: Postgres, database: str) -> Place:
    return place_of(server.url(database))


def written(place: Place, where: Path, count: int, *, ended: bool = True, more: bytes = b"") -> str:
    """One process has been there: its chain."""
    anchors: list[Anchor] = []
    ledger = PostgresLedger(place)
    ledger.open()
    reader = PostgresAudit(place)
    anchors = reader.heads(64)
    reader.close()
    journal = Journal(where)
    journal.open()
    chain = Chain(journal, anchors)
    for n in range(count):
        chain.append(SEAL, more or b',"operation":"tools/call","user":"u%d","decision":"allow"' % n)
        journal.append(UsageRecord(admitted_at=10**15 + n, ended_at=10**15 + n + 1, outcome="ok"))
    if ended:
        chain.end()
    journal.close()
    assert catch_up(where, ledger) == 2 * count + 1 + ended
    assert ledger.rejected() == 0
    ledger.close()
    return journal.id


def verdict(place: Place, known: list[Anchor] | None = None) -> Verdict:
    reader = PostgresAudit(place)
    try:
        return verify(reader, [SEAL], known or [])
    finally:
        reader.close()


def test_records_of_both_kinds_find_their_tables(server: Postgres, database: str, place: Place, tmp_path: Path) -> None:
    chain = written(place, tmp_path, 5)
    found = verdict(place)
    assert (found.records, len(found.chains), found.breaks) == (7, 1, ())
    reader = PostgresAudit(place)
    newest = reader.newest(0, limit=3)
    assert [(one.n, one.user) for one in newest] == [(5, "u3"), (6, "u4"), (7, "")]
    assert {one.chain for one in newest} == {chain}
    assert [one.n for one in reader.newest(0, limit=9, where=[("user", "u2")])] == [4]
    assert reader.newest(int(newest[0].at / 1e6) + 60, limit=9) == []
    with pytest.raises(ValueError, match="cannot be found by 'body'"):
        reader.newest(0, limit=1, where=[("body", "")])
    reader.close()
    shown = server.do(database, 'SELECT chain, n, "user", decision, status, actors FROM audit_records WHERE n = 2')
    assert shown == [(chain, 2, "u0", "allow", 0, "[]")]
    assert server.do(database, "SELECT count(*) FROM usage") == [(5,)]


def test_a_nul_in_a_record_is_kept_and_shown(server: Postgres, database: str, place: Place, tmp_path: Path) -> None:
    written(place, tmp_path, 1, more=NUL)
    assert verdict(place).breaks == ()
    reader = PostgresAudit(place)
    [kept] = reader.newest(0, limit=9, where=[("user", "a␀b")])
    assert (kept.user, kept.target) == ("a\x00b", "c:\\u0000 \\\x00\x00")
    reader.close()
    assert server.do(database, 'SELECT "user", target FROM audit_records WHERE n = 2') == [("a␀b", "c:\\u0000 \\␀␀")]


def test_what_comes_twice_is_stored_once_and_what_has_anothers_place_is_kept_aside(
    server: Postgres, database: str, place: Place, tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    journal.open()
    chain = Chain(journal, [])
    for _ in range(4):
        chain.append(SEAL, b',"operation":"x"')
    journal.seal()
    reader = Reader(tmp_path, journal.id, 0, live=True)
    reader.end()
    entries = reader.read(100)
    reader.close()
    journal.close()
    ledger = PostgresLedger(place)
    ledger.open()
    assert ledger.ship(journal.id, entries) == 5
    assert ledger.ship(journal.id, entries) == 0
    ledger.forget(journal.id)
    assert ledger.ship(journal.id, entries) == 0
    again = [Entry(20 + n, AUDIT, one.body) for n, one in enumerate(entries[:2])]
    forged = [
        Entry(30, AUDIT, entries[1].body.replace(b'"x"', b'"y"')),
        Entry(31, AUDIT, b"no JSON"),
        Entry(32, AUDIT, b'{"n":"x"}'),
        Entry(33, AUDIT, entries[1].body.replace(b'"n":2', b'"n":%d' % (1 << 63))),
        Entry(34, AUDIT, entries[1].body.replace(b'"n":2', b'"n":9')),
    ]
    assert ledger.ship(journal.id, [*again, *forged]) == 1
    assert ledger.rejected() == 4
    ledger.close()
    assert server.do(database, "SELECT seq FROM rejected ORDER BY seq") == [(30,), (31,), (32,), (33,)]
    assert [one.why for one in verdict(place).breaks][-1].startswith("4 records could not be put away")


def test_what_was_changed_taken_or_cut_off_shows(server: Postgres, database: str, place: Place, tmp_path: Path) -> None:
    first = written(place, tmp_path, 5, ended=False)
    written(place, tmp_path, 2)
    heads = verdict(place).heads
    assert verdict(place, heads).breaks == ()
    number = server.do(database, "SELECT number FROM journals WHERE journal = %s", (first,))[0][0]
    server.do(database, "UPDATE audit SET body = replace(body, 'u1', 'u9') WHERE journal = %s AND n = 3", (number,))
    assert [(one.chain, one.n, one.why) for one in verdict(place).breaks] == [(first, 3, "it was changed")]
    server.do(database, "UPDATE audit SET body = replace(body, 'u9', 'u1') WHERE journal = %s AND n = 3", (number,))
    server.do(database, "DELETE FROM audit WHERE journal = %s AND n > 4", (number,))
    server.do(database, "UPDATE audit_chains SET n = 4 WHERE journal = %s", (number,))
    assert (first, 5) in {(one.chain, one.n) for one in verdict(place, heads).breaks}


def test_a_chain_is_cut_from_its_beginning_in_steps(
    server: Postgres, database: str, place: Place, tmp_path: Path
) -> None:
    chain, later = written(place, tmp_path, 5), written(place, tmp_path, 2)
    heads = {one.chain: one for one in verdict(place).heads}
    ledger = PostgresLedger(place)
    ledger.open()
    assert ledger.audit_before(10**15) == []
    anchors = [one for one in ledger.audit_before(int((time() + 60) * 1e6)) if one.chain == chain]
    assert anchors == [heads[chain]]
    steps = []
    while gone := ledger.cut_audit(anchors, 3):
        steps.append(gone)
    assert steps == [3, 3, 1]
    ledger.close()
    left = server.do(database, "SELECT DISTINCT chain FROM audit_records")
    assert left == [(later,)]


def test_there_is_no_ledger_yet(place: Place) -> None:
    reader = PostgresAudit(place)
    with pytest.raises(LedgerError, match="there is no ledger in its schema 'tollhouse' yet"):
        reader.heads(1)
    reader.close()
