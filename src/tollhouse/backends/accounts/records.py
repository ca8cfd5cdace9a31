"""What is kept about accounts, and what is handed out about them.

Rule: nothing here shows a token, a secret or a verifier in its repr. A record holds all that its tokens were made for:
where they may be sent is never read anywhere else.
"""

from typing import NamedTuple

import msgspec

from tollhouse.wire.oauth_client import ClientAuth, ClientIdentity

__all__ = ["Account", "AccountRecord", "AccountRefused", "Granted", "Opened", "Pending", "Registration"]


class AccountRefused(Exception):
    """No account came of it. The text is for the log; said: what the person may read, in a sentence or two."""

    def __init__(self, detail: str, said: str) -> None:
        super().__init__(detail)
        self.said = said


class Account(NamedTuple):
    """What its user may see of it. host: of who gave it. scopes: that its tokens have, as far as that was said. since:
    unix seconds when it was connected. agent: that had asked for it, "" where nobody knows."""

    host: str
    scopes: tuple[str, ...]
    since: float
    agent: str = ""


class Opened(msgspec.Struct, frozen=True):
    """What a link of ours says. expires: unix seconds."""

    server: str
    sub: str
    agent: str
    expires: float


class Granted(NamedTuple):
    """As `core.identity.Minted`."""

    token: bytes
    jti: str
    expires: float

    def __repr__(self) -> str:
        return f"<Granted until {self.expires:.0f}>"


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """What an answer must fit: who was sent to the issuer, and with what. is_iss_sent: the issuer says in its metadata
    that its answers name it (RFC 9207)."""

    server: str
    sub: str
    agent: str
    binding: str
    verifier: str
    url: str
    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    resource: str
    scopes: tuple[str, ...]
    is_iss_sent: bool
    client_id: str
    secret: str
    method: ClientAuth
    registered: bool

    def __repr__(self) -> str:
        return f"<Pending at {self.server!r}>"

    @property
    def who(self) -> ClientIdentity:
        return ClientIdentity(self.client_id, self.secret, self.method)


class AccountRecord(msgspec.Struct, frozen=True, array_like=True):
    """One account, of the user `sub`. url: of the server that its tokens are sent to. access, refresh: the tokens; ""
    for no refresh. made: unix seconds when that access token came; expires: of it, 0.0 where that was not said. since:
    when the user connected it. secret: of a client that was registered for us, else "" (it is the configuration's).
    begun: unix seconds when an exchange of `refresh` began whose answer was not kept, 0.0 for none."""

    sub: str
    url: str
    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    resource: str
    client_id: str
    secret: str
    method: ClientAuth
    registered: bool
    access: str
    refresh: str
    made: float
    expires: float
    scopes: tuple[str, ...]
    since: float
    agent: str
    begun: float = 0.0

    def __repr__(self) -> str:
        return f"<AccountRecord at {self.issuer!r}>"

    @property
    def who(self) -> ClientIdentity:
        return ClientIdentity(self.client_id, self.secret, self.method)


class Registration(msgspec.Struct, frozen=True, array_like=True):
    """Who an issuer has made us (RFC 7591). expires: unix seconds of the secret, 0.0 for never."""

    client_id: str
    secret: str
    method: ClientAuth
    expires: float

    def __repr__(self) -> str:
        return f"<Registration {self.client_id!r}>"

    @property
    def who(self) -> ClientIdentity:
        return ClientIdentity(self.client_id, self.secret, self.method)
