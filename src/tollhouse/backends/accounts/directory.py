"""All servers of a configuration at which users have accounts.

Rule: a server is found by its name in the configuration, and a link by the one server that it is for.
"""

from collections.abc import Iterable
from typing import Any

from tollhouse.backends.accounts.records import Opened
from tollhouse.backends.accounts.third_party import ThirdParty

__all__ = ["Directory"]


class Directory:
    """parties: in the order of the configuration. document: URL of our client id metadata document, "" for none."""

    __slots__ = ("_document", "_parties")

    def __init__(self, parties: Iterable[ThirdParty], document: str = "") -> None:
        self._parties = {party.server: party for party in parties}
        self._document = document

    def find(self, server: str) -> ThirdParty | None:
        return self._parties.get(server)

    def all(self) -> tuple[ThirdParty, ...]:
        return tuple(self._parties.values())

    def opened(self, token: str) -> tuple[ThirdParty, Opened] | None:
        """Whose link it is, and what it says; None for anything that is no link of ours, or not any more."""
        for party in self._parties.values():
            found = party.opened(token)
            if found is not None:
                return party, found
        return None

    def client_metadata(self) -> dict[str, Any] | None:
        """Our client id metadata document, for issuers that fetch it; None where there is none."""
        parties = self.all()
        if not self._document or not parties:
            return None
        return parties[0].client_metadata(tuple(party.ours.callback for party in parties))
