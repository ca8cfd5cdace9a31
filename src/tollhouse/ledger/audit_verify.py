"""Whether the audit records in a ledger are those that were written: all of them, unchanged, in their order.

Rule: nothing in the ledger is believed. Each chain is followed from its first record; a break is told once, where it
is; what is behind it is followed on from there, so that a second one shows as well. That a chain has lost its end shows
by what later chains know of it, and by what was noted outside of the ledger when it was verified before (`known`). What
is older than it has to be kept may be gone, if a record that holds says so: up to where, and with which hash (`CUT`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from tollhouse.ledger.audit import BEGIN, CUT, END, Anchor, Seal, first_of
from tollhouse.ledger.audit_reader import AuditReader, Placed, Row

__all__ = ["Break", "Followed", "Verdict", "follow", "verify"]

_MANY = 20  # breaks of one chain that are told


class Break(NamedTuple):
    """Where a chain does not hold, and why."""

    chain: str
    n: int
    why: str


class Followed(NamedTuple):
    """One chain. records: found. head: the last one, None where there is none. ended: in good order; else its process
    lives, or was killed. anchors: what it says of others. cuts: up to where it says that chains were deleted.

    start: the record before the first one that is there, where that is not the chain's first; gap: the one of `breaks`
    that this is, unless the chain was cut."""

    chain: str
    records: int
    head: Anchor | None
    ended: bool
    breaks: tuple[Break, ...]
    anchors: tuple[Anchor, ...]
    cuts: tuple[Anchor, ...] = ()
    start: Anchor | None = None
    gap: Break | None = None


class Verdict(NamedTuple):
    """Of a whole ledger."""

    chains: tuple[Followed, ...]
    breaks: tuple[Break, ...]

    @property
    def records(self) -> int:
        return sum(one.records for one in self.chains)

    @property
    def heads(self) -> list[Anchor]:
        """The last record of each chain, to be kept where whoever changes the ledger cannot."""
        return [one.head for one in self.chains if one.head is not None]


def follow(chain: str, rows: Iterable[Row], seals: Sequence[Seal]) -> Followed:
    """Follow one chain. rows: rising by number. seals: of every key that its records may be sealed with."""
    by_id = {seal.id: seal for seal in seals}
    expected, before = 1, first_of(chain).decode()
    count, ended, head = 0, False, None
    breaks: list[Break] = []
    anchors: list[Anchor] = []
    cuts: list[Anchor] = []
    start: Anchor | None = None
    gap: Break | None = None

    def broken(n: int, why: str) -> None:
        if len(breaks) < _MANY:
            breaks.append(Break(chain, n, why))

    for row in rows:
        count += 1
        n = row.n
        whole = n == expected
        if n > expected:
            gone = f"record {expected}" if n == expected + 1 else f"records {expected} to {n - 1}"
            broken(expected, f"{gone} of the chain {'is' if n == expected + 1 else 'are'} gone")
        elif n < expected:
            broken(n, "there is no such number in a chain")
        expected = n + 1
        if count == 1 and breaks and n > 1:
            gap = breaks[0]
        try:
            placed = msgspec.json.decode(row.body, type=Placed)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            broken(n, "it cannot be read")
            before = ""
            continue
        if gap is not None and count == 1:
            start = Anchor(chain, n - 1, placed.prev)
        seal = by_id.get(placed.seal)
        if seal is None:
            broken(n, f"it is sealed with a key that is not given here ({placed.seal[:16] or 'none'})")
        elif not seal.holds(row.body):
            broken(n, "it was changed")
        elif placed.n != n or placed.at != row.at:
            broken(n, "it stands in a place that is not its own")
        elif whole and before and placed.prev != before:
            broken(n, "it does not follow the record before it")
        elif ended:
            broken(n, "the chain had ended before it")
        elif n == 1 and placed.operation != BEGIN:
            broken(n, "it is not the beginning of a chain")
        else:
            ended = placed.operation == END
            if placed.operation == CUT:
                cuts += placed.anchors
            else:
                anchors += placed.anchors
        before = placed.hash
        head = Anchor(chain, n, placed.hash)
    return Followed(chain, count, head, ended, tuple(breaks), tuple(anchors), tuple(cuts), start, gap)


def verify(reader: AuditReader, seals: Sequence[Seal], known: Sequence[Anchor] = ()) -> Verdict:
    """Follow every chain in the ledger. known: records that were there at an earlier time. Raises LedgerError."""
    followed = tuple(follow(chain, reader.rows(chain), seals) for chain in reader.chains())
    cuts: dict[str, Anchor] = {}
    for cut in sorted((cut for one in followed for cut in one.cuts), key=lambda cut: cut.n):
        cuts[cut.chain] = cut
    breaks: list[Break] = []
    for one in followed:
        begin, end = one.start, cuts.get(one.chain)
        if begin is None or end is None or end.n < begin.n:
            breaks += one.breaks
            continue
        breaks += (found for found in one.breaks if found is not one.gap)
        if end.n == begin.n and end.hash != begin.hash:
            breaks.append(Break(one.chain, begin.n + 1, "it does not follow the record up to which its chain was cut"))
    last = {one.chain: one.head.n if one.head is not None else 0 for one in followed}
    told: set[tuple[str, int]] = set()

    def compare(anchor: Anchor, who: str) -> None:
        row = reader.at(anchor.chain, anchor.n)  # asked now: a chain that lives has grown since it was followed
        if row is None:
            cut = cuts.get(anchor.chain)
            if cut is not None and anchor.n <= cut.n:
                return  # older than it has to be kept
            have = last.get(anchor.chain, 0)
            place = (anchor.chain, have + 1)
            if have < anchor.n and place not in told:  # else it is missing between others, and that is told
                told.add(place)
                what = f"the records from {have + 1} on are" if have else "the whole chain is"
                breaks.append(Break(*place, f"{what} gone: {who} knows number {anchor.n}"))
        elif not row.body.endswith(anchor.hash.encode() + b'"}'):
            breaks.append(Break(anchor.chain, anchor.n, f"it is not the record that {who} knows"))

    for cut in cuts.values():
        compare(cut, "the record of the cut")  # while it is still there
    for one in followed:
        noted = reader.head(one.chain)
        if noted is not None:
            compare(noted, "the ledger")
        for anchor in one.anchors:
            compare(anchor, f"the chain {one.chain}")
    for anchor in known:
        compare(anchor, "what was noted before")
    strays = reader.strays()
    if strays:
        breaks.append(Break("", 0, f"{strays} records belong to a chain that has no name any more"))
    rejected = reader.rejected()
    if rejected:
        breaks.append(Break("", 0, f"{rejected} records could not be put away and lie in the table `rejected`"))
    return Verdict(followed, tuple(breaks))
