"""What the layers ask of each other about identity: a token for a target, and whether a caller is still good.

Rule: who verifies, who mints and who calls do not know each other; the gateway joins them by these faces.
"""

from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from tollhouse.core.call import Principal

__all__ = ["Event", "Exchanger", "Minted", "RevocationView", "Target"]


class Target(NamedTuple):
    """What a token is for. audience: canonical URI of the server, that URI and `#tool`, or a fixed value. scopes: that
    it has, sorted. ttl: seconds, at most; never longer than the caller's own. delegation: it names the agent (`act`),
    else the user alone. tool: for audit and for rules by tool, "" where there is none."""

    audience: str
    scopes: tuple[str, ...]
    ttl: float
    delegation: bool
    tool: str = ""


class Event(NamedTuple):
    """What the auth provider has done, for the audit. operation: `issuer.token`, `issuer.login` ... client: id of the
    OAuth client; subject: who the token, session or consent is of; audience: what
    a token is for; jti, session: ids of what was made."""

    operation: str
    client: str = ""
    subject: str = ""
    scopes: tuple[str, ...] = ()
    audience: str = ""
    jti: str = ""
    session: str = ""


class Minted(Protocol):
    """A token that was made. jti: its id, "" where it is not known. expires: unix seconds."""

    @property
    def token(self) -> bytes: ...

    @property
    def jti(self) -> str: ...

    @property
    def expires(self) -> float: ...


class Exchanger(Protocol):
    """Gives a token that stands for a principal at a target (RFC 8693). version: moves when tokens that were made
    before are not to be used any more."""

    @property
    def version(self) -> int: ...

    def exchanged(self, principal: Principal, target: Target) -> Minted | Awaitable[Minted]:
        """The token, at once where nobody has to be asked. Raises Failure: 401 where the caller must get a new token
        first, 403 where the target's scopes are not his, 503 where the issuer cannot be reached."""
        ...


class RevocationView(Protocol):
    """What has been revoked, as this worker knows it. epoch: moves with each change, so that what is remembered can
    tell that it must ask again."""

    @property
    def epoch(self) -> int: ...

    def revoked(self, principal: Principal) -> bool: ...
