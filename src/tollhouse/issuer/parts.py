"""What the handlers of the auth provider share: its settings, its tables, its keys, and who issues what.

Rule: made once by `provider`; a handler is given it and takes what it needs. Nothing in it changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tollhouse.core.clock import Clock
from tollhouse.issuer.backchannel import BackchannelLogout
from tollhouse.issuer.clients import Clients
from tollhouse.issuer.counts import Counts
from tollhouse.issuer.families import Families
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.records import Code, Consent, Device, Interaction, Pushed, Replay, Session
from tollhouse.issuer.resources import Resources
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.net.client import Client as Fetcher
from tollhouse.store.base import KeyValue, State
from tollhouse.store.revocation import Revocations
from tollhouse.store.table import Table

__all__ = ["Parts", "Tables"]


class Tables:
    """Records in the state (design: one key an operation). devices: by user code, as it is kept: without its dash."""

    __slots__ = ("codes", "consents", "devices", "interactions", "pushed", "replays", "sessions")

    def __init__(self, values: KeyValue) -> None:
        self.codes = Table(values, "iss:c:", Code, hashed=True)
        self.sessions = Table(values, "iss:s:", Session, hashed=True)
        self.interactions = Table(values, "iss:ix:", Interaction, hashed=True)
        self.consents = Table(values, "iss:co:", Consent, hashed=True)
        self.pushed = Table(values, "iss:par:", Pushed, hashed=True)
        self.devices = Table(values, "iss:uc:", Device, hashed=True)
        self.replays = Table(values, "iss:rp:", Replay, hashed=True)


@dataclass(frozen=True, slots=True)
class Parts:
    """url: the issuer. base: the path of that, "" or "/tenant". now: unix seconds. fetcher: for documents from
    outside."""

    spec: IssuerSpec
    url: str
    base: str
    state: State
    clock: Clock
    now: Callable[[], float]
    fetcher: Fetcher
    resources: Resources
    tables: Tables
    keys: SigningKeys
    mint: Mint
    clients: Clients
    families: Families
    revocations: Revocations
    counts: Counts = field(default_factory=Counts)
    backchannel: BackchannelLogout | None = None

    def at(self, name: str) -> str:
        """The URL of an endpoint: `token`, `authorize`."""
        return f"{self.url}/oauth/{name}"

    def path(self, name: str) -> str:
        """Its path, as `Served` has it."""
        return f"{self.base}/oauth/{name}"
