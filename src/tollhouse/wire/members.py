"""Members of JSON objects that the gateway acts on, as whoever reads the object next may take them.

Rule: what is decided by is what is sent on. Some decoders (encoding/json of Go is one) find a member whatever the case
of its name, and take the last that fits: to them `{"name": "read", "Name": "delete"}` names `delete`. So a name that
differs only by case from one that is acted on is refused; among equal names the last counts here, and only it leaves.
"""

from collections.abc import Iterable, Mapping

__all__ = ["Names"]


class Names:
    """Names of members that are acted on. usual: others that requests often have, which are then passed at once."""

    __slots__ = ("_exact", "_folded", "_usual")

    def __init__(self, *names: str, usual: Iterable[str] = ()) -> None:
        self._exact = frozenset(names)
        self._folded = frozenset(name.casefold() for name in names)
        self._usual = self._exact.union(name for name in usual if name.casefold() not in self._folded).issuperset

    def misspelt(self, fields: Mapping[str, object]) -> str | None:
        """A member that is one of these but for its case (Unicode's: `\u212a` is a k), None when there is none."""
        if self._usual(fields):
            return None
        for name in fields:
            if name not in self._exact and name.casefold() in self._folded:
                return name
        return None
