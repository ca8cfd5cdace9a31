"""What the layers ask of each other about identity: a token for a target, and whether a caller is still good.

Rule: who verifies, who mints and who calls do not know each other; the gateway joins them by these faces.
"""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure

__all__ = ["ACCOUNT_NEEDED", "CONNECT", "Accounts", "Event", "Exchanger", "Minted", "RevocationView", "Target"]

ACCOUNT_NEEDED: Final = "account_needed"
"""Code of a Failure 403: the user has to connect an account of his at the server first (`Accounts`)."""

CONNECT: Final = "connect"
"""Name of the tool of ours that such a server shows to a user without an account (`core.call.ToolCall.connects`)."""


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


class Accounts(Exchanger, Protocol):
    """The accounts that users have connected at one server of somebody else's, whose OAuth client we are. `exchanged`
    gives a token of the caller's own account; where he has none it raises Failure 403 `account_needed`.

    host: where people agree to it, as they know it. changed: set by the gateway; called at every worker, soon after a
    user has connected or disconnected an account at any of them, with what says of a principal whether he is that
    user.
    """

    changed: Callable[[Callable[[Principal], bool]], None] | None

    @property
    def host(self) -> str: ...

    def link(self, principal: Principal) -> str:
        """URL of the page on which this caller's user, and nobody else, connects an account; good for minutes. Raises
        Failure 403 for a caller behind whom there is no user who can log in here."""
        ...

    async def connected(self, principal: Principal, timeout: float) -> bool:
        """Whether there is an account, now or within so many seconds. Raises Failure 503."""
        ...

    def refused(self, principal: Principal, token: bytes) -> None:
        """The server does not take this token: the next one is another."""
        ...

    async def lacks(self, principal: Principal, scopes: tuple[str, ...]) -> Failure | None:
        """The server wants a token with these scopes besides. The Failure 403 `account_needed` for the caller, whose
        user is to agree to them; None where that would not help. Raises Failure 503."""
        ...


class RevocationView(Protocol):
    """What has been revoked, as this worker knows it. epoch: moves with each change, so that what is remembered can
    tell that it must ask again."""

    @property
    def epoch(self) -> int: ...

    def revoked(self, principal: Principal) -> bool: ...

    def stopped(self, run: str) -> bool:
        """Whether the agent run of that full name was stopped."""
        ...
