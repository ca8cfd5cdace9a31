"""Places: how much of what is bounded one caller may hold, when what is done for callers takes a while.

Rule: half of the places are whoever comes first; the other half is for those who hold few. So a crowd behind one
address gets far, and one who would hold them all still leaves room for others. Who holds nothing is not remembered.
"""

__all__ = ["Places"]


class Places:
    """most: places in all. few: who holds fewer gets one of the second half, too."""

    __slots__ = ("_few", "_half", "_held", "_most", "taken")

    def __init__(self, most: int, few: int) -> None:
        self._most = most
        self._half = most // 2
        self._few = few
        self._held: dict[str, int] = {}
        self.taken = 0

    def take(self, who: str) -> bool:
        """Whether `who` has got a place; `give` gives it back. "" is whoever has shown already that he is meant well:
        the whole counts for him, and no share of it."""
        held = self._held.get(who, 0)
        if self.taken >= self._most or (who and self.taken >= self._half and held >= self._few):
            return False
        self.taken += 1
        self._held[who] = held + 1
        return True

    def give(self, who: str) -> None:
        """Give back one that `who` has taken."""
        self.taken -= 1
        held = self._held.pop(who) - 1
        if held:
            self._held[who] = held
