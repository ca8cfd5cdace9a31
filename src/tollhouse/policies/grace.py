"""Grace: what a worker may let pass of budgets on its own while the state that counts them cannot be asked.

Rule: what passes so is reckoned at what it may come to and never given back: so all that a worker lets pass between two
times that the state has answered for an account is within its grace, and W workers pass a budget by W graces at most.
What the calls come to is posted when the state is there again.
"""

from collections.abc import Sequence
from typing import Final

from tollhouse.store.base import Draw

__all__ = ["Grace", "within"]

_ACCOUNTS: Final = 10_000
_NOTHING: Final = (0, 0)


class Grace:
    """Of one budget, in one worker. most: units, for each account."""

    __slots__ = ("_forgotten", "_given", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._given: dict[str, tuple[int, int]] = {}  # and when the window ends
        self._forgotten = -1  # what is over before that

    def has(self, draw: Draw) -> bool:
        """Whether there is so much left of it."""
        given = self._given.get(draw.field)
        if given is None:
            if len(self._given) >= _ACCOUNTS and draw.window.start != self._forgotten:
                self._forget(draw.window.start)
            return draw.amount <= self.most and len(self._given) < _ACCOUNTS
        return given[0] + draw.amount <= self.most

    def give(self, draw: Draw) -> None:
        given = self._given.get(draw.field, _NOTHING)
        self._given[draw.field] = given[0] + draw.amount, draw.window.end

    def _forget(self, now: int) -> None:
        """What was given in windows that are over then: nobody comes again to have it ended."""
        self._forgotten = now
        for field in [field for field, (_, end) in self._given.items() if end <= now]:
            del self._given[field]

    def end(self, draw: Draw) -> None:
        """The state has answered for this account."""
        if self._given:
            self._given.pop(draw.field, None)


def within(graces: Sequence[tuple[Grace, Draw]]) -> bool:
    """Take it from all of them, or from none: whether there was so much left of each."""
    if not all(grace.has(draw) for grace, draw in graces):
        return False
    for grace, draw in graces:
        grace.give(draw)
    return True
