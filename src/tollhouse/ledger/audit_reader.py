"""Reading the audit records in a ledger, whichever that is.

Rule: it changes nothing. A record comes as the bytes that were written; what finds it is not believed by whoever
verifies.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import msgspec

from tollhouse.ledger.audit import Anchor, AuditRecord
from tollhouse.ledger.records import AUDIT, identify

__all__ = ["TEXTS", "AuditReader", "Linked", "Placed", "Row", "place_in"]

TEXTS: Final = (
    "operation", "request_id", "principal", "source", "user", "org", "agent", "client", "key", "issuer", "jti",
    "minted", "session", "address", "route", "server", "target", "backend", "arguments_hash", "arguments", "decision",
    "rule", "approver", "outcome", "reason", "subject", "audience",
)  # fmt: skip
"""Members of a record that are text, by which it can be found."""

_OF_CHAIN = "SELECT n, at, body FROM audit WHERE journal = (SELECT number FROM journals WHERE journal = ?)"
_PAGE = 1000


class Linked(msgspec.Struct, gc=False):
    """What of a record finds it, and binds it to the one before."""

    n: int
    prev: str
    at: int
    hash: str


class Placed(Linked, gc=False):
    """What of a record says where it belongs."""

    operation: str = ""
    seal: str = ""
    anchors: tuple[Anchor, ...] = ()


place_in = msgspec.json.Decoder(Linked).decode
"""What a record's bytes say of its place. Raises ValueError."""


class Row(NamedTuple):
    """A record as it is stored."""

    n: int
    at: int
    body: bytes


class AuditReader(ABC):
    """Asks the tables `audit`, `audit_chains`, `journals` and `rejected`, which every ledger has alike. Every method
    raises LedgerError."""

    member: ClassVar[str]
    """SQL: the text member `{}` of the record `a.body`, null where it has none."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """The rows that answer a query, in which `?` stands for the next value. Raises LedgerError."""

    def chains(self) -> list[str]:
        """Those that have records here or are said to have had some, the oldest first."""
        found = self._ask(
            "SELECT j.journal FROM journals j WHERE j.number IN (SELECT journal FROM audit_chains) "
            "OR EXISTS (SELECT 1 FROM audit a WHERE a.journal = j.number) ORDER BY j.number"
        )
        return [row[0] for row in found]

    def strays(self) -> int:
        """Records whose chain has no name any more."""
        return int(self._ask("SELECT count(*) FROM audit WHERE journal NOT IN (SELECT number FROM journals)")[0][0])

    def heads(self, limit: int) -> list[Anchor]:
        """The last records of the chains that were written to last."""
        found = self._ask(
            "SELECT j.journal, c.n, c.hash FROM audit_chains c JOIN journals j ON j.number = c.journal "
            "ORDER BY c.at DESC LIMIT ?",
            limit,
        )
        return [Anchor(*row) for row in found]

    def head(self, chain: str) -> Anchor | None:
        """The last record of a chain, as was noted when it was put away."""
        found = self._ask(
            "SELECT c.n, c.hash FROM audit_chains c JOIN journals j ON j.number = c.journal WHERE j.journal = ?", chain
        )
        return Anchor(chain, *found[0]) if found else None

    def rows(self, chain: str, after: int = 0) -> Iterator[Row]:
        """The records of a chain, by number."""
        while True:  # by the page: no transaction is held open that would keep the file's log from being cut
            page = self._ask(f"{_OF_CHAIN} AND n > ? ORDER BY n LIMIT ?", chain, after, _PAGE)
            yield from map(_row, page)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def at(self, chain: str, n: int) -> Row | None:
        """One record."""
        found = self._ask(f"{_OF_CHAIN} AND n = ?", chain, n)
        return _row(found[0]) if found else None

    def rejected(self) -> int:
        """Records that could not be put away, and lie among the rejected."""
        return int(self._ask("SELECT count(*) FROM rejected WHERE kind = ?", AUDIT)[0][0])

    def newest(self, since: int, *, limit: int, where: Sequence[tuple[str, str]] = ()) -> list[AuditRecord]:
        """The newest records since then (unix seconds), the oldest of them first. where: members and what they are."""
        for name, _ in where:
            if name not in TEXTS:
                raise ValueError(f"records cannot be found by {name!r}")
        asked = "".join(f" AND {self.member.format(name)} = ?" for name, _ in where)
        found = self._ask(
            "SELECT j.journal, a.body FROM audit a CROSS JOIN journals j "  # noqa: S608
            f"WHERE j.number = a.journal AND a.at >= ?{asked} ORDER BY a.at DESC, a.journal, a.n DESC LIMIT ?",
            since * 1_000_000,
            *(value for _, value in where),
            limit,
        )
        records = []
        for chain, body in reversed(found):
            try:
                record = msgspec.json.decode(body, type=AuditRecord)
            except (msgspec.MsgspecError, TypeError):
                continue  # `verify` says which one that is
            record.chain = chain
            record.id = identify(record.chain, record.n, record.at)
            records.append(record)
        return records


def _row(found: tuple[Any, ...]) -> Row:
    n, at, body = found
    return Row(n, at, body.encode() if isinstance(body, str) else b"")
