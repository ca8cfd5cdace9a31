"""Deleting audit records that have been kept for as long as they have to be.

Rule: a chain is deleted from its beginning, never in its middle, and only up to where a record that stays says so
(`audit.Chain.cut`), with the hash of the last one that goes: so the rest still holds, and what was deleted without that
shows. Nothing here knows a database: in queries `?` stands for the next value.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tollhouse.ledger.audit_reader import place_in
from tollhouse.ledger.records import Anchor

__all__ = ["Ask", "Run", "cut", "ends_before"]

Ask = Callable[..., list[tuple[Any, ...]]]
"""The rows that answer a query with these values."""

Run = Callable[..., int]
"""How many rows a statement with these values has changed."""

_THERE = "SELECT body FROM audit WHERE journal = ? AND n = ?"
_CHAINS = (
    "SELECT j.number, j.journal, j.seq, (SELECT min(n) FROM audit a WHERE a.journal = j.number), "
    "(SELECT max(n) FROM audit a WHERE a.journal = j.number) FROM journals j"
)


def ends_before(ask: Ask, before_us: int) -> list[Anchor]:
    """See `base.Ledger.audit_before`. A chain whose record cannot be read stays: `verify` has to say so. Of one whose
    journal lives the last record stays, so that where it was cut is said for as long as it may go on."""
    old = {row[0] for row in ask("SELECT DISTINCT journal FROM audit WHERE at < ?", before_us)}
    found: list[Anchor] = []
    goes = False
    for number, chain, position, first, newest in ask(_CHAINS) if old else ():
        if first is None:
            continue
        last = _last_before(ask, number, before_us) if number in old else None
        if last is not None and last == newest and position:
            last -= 1
        try:
            if last is not None and last >= first:
                found.append(Anchor(chain, last, place_in(_body(ask, number, last)).hash))
                goes = True
            elif first > 1:
                found.append(Anchor(chain, first - 1, place_in(_body(ask, number, first)).prev))
        except ValueError:
            continue
    return found if goes else []


def cut(ask: Ask, run: Run, anchors: Sequence[Anchor], most: int) -> int:
    """See `base.Ledger.cut_audit`; within the transaction that is open."""
    gone = 0
    for chain, n, _ in anchors:
        for (number,) in ask("SELECT number FROM journals WHERE journal = ?", chain):
            ((first,),) = ask("SELECT min(n) FROM audit WHERE journal = ?", number)
            if first is None or first > n:
                continue
            stop = min(n, first + most - gone - 1)
            gone += run("DELETE FROM audit WHERE journal = ? AND n <= ?", number, stop)
            if not ask("SELECT 1 FROM audit WHERE journal = ? LIMIT 1", number):
                run("DELETE FROM audit_chains WHERE journal = ?", number)  # it is no more expected to be here
        if gone >= most:
            break
    return gone


def _last_before(ask: Ask, journal: int, before_us: int) -> int | None:
    """The last record of a chain's beginning that is older throughout: a clock may have been set back."""
    kept = ask("SELECT n FROM audit WHERE journal = ? AND at >= ? ORDER BY n LIMIT 1", journal, before_us)
    if kept:
        found = ask("SELECT max(n) FROM audit WHERE journal = ? AND n < ?", journal, kept[0][0])
    else:
        found = ask("SELECT max(n) FROM audit WHERE journal = ?", journal)
    return None if found[0][0] is None else int(found[0][0])


def _body(ask: Ask, journal: int, n: int) -> bytes:
    ((body,),) = ask(_THERE, journal, n)
    return body.encode() if isinstance(body, str) else bytes(body)
