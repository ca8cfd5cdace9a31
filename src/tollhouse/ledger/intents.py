"""Calls that a journal says have been begun, and not yet how they ended.

Rule: before a call's upstream is asked, what is due if its worker dies is written down as an intent, a whole usage
record; the call's own record ends it, known by its hold. What a journal leaves open at its end is lost: each such
intent counts as a record of its journal, numbered behind its last one in the order of the intents. That follows from
the files alone, so whoever has to do it again gets the same records, and a ledger takes them once.
"""

from collections.abc import Mapping

from tollhouse.ledger.base import Entry
from tollhouse.ledger.records import INTENT, USAGE

__all__ = ["Begun", "hold_of", "lost"]

_HOLD = b'"hold":"'
"""Inside of a JSON string it cannot stand: a quote there has a backslash."""


def hold_of(body: bytes) -> str:
    """The hold that a usage record or an intent names; "" for none. Ids of holds need no escapes."""
    at = body.find(_HOLD)
    if at < 0:
        return ""
    at += len(_HOLD)
    return body[at : body.find(b'"', at)].decode()


def lost(open: Mapping[str, Entry], last: int) -> list[Entry]:
    """The records that are due for intents without an end. last: the journal's last seq."""
    left = sorted(open.values(), key=lambda entry: entry.seq)
    return [Entry(n, USAGE, entry.body) for n, entry in enumerate(left, last + 1)]


class Begun:
    """What a journal's frames, seen in the order of its files, leave open. last: the greatest seq seen."""

    def __init__(self) -> None:
        self.last = 0
        self._open: dict[str, Entry] = {}

    def see(self, seq: int, kind: int, body: bytes) -> None:
        if seq > self.last:
            self.last = seq
        if kind == INTENT:
            self._open[hold_of(body)] = Entry(seq, kind, body)
        elif self._open and kind == USAGE:
            self._open.pop(hold_of(body), None)

    def lost(self) -> list[Entry]:
        """What is due for those that never ended."""
        return lost(self._open, self.last)
