"""What every grant is given, and what it gives back. `token` checks before and mints after."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from tollhouse.core.http import Request
from tollhouse.issuer.clients import Client
from tollhouse.issuer.mint import Minted
from tollhouse.issuer.records import UserInfo
from tollhouse.wire.oauth import Form

__all__ = ["ACCESS_TOKEN", "JWT", "Asked", "Grant", "Granted", "Proof"]

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"


class Proof(NamedTuple):
    """The key that tokens are bound to: its thumbprint. jkt: of a DPoP key. x5t: of a certificate (`x5t#S256`)."""

    jkt: str = ""
    x5t: str = ""

    @property
    def thumbprint(self) -> str:
        return self.jkt or self.x5t

    @property
    def cnf(self) -> dict[str, str] | None:
        """The claim (RFC 7800)."""
        if self.jkt:
            return {"jkt": self.jkt}
        return {"x5t#S256": self.x5t} if self.x5t else None


class Asked(NamedTuple):
    """A token request whose client has proved who it is."""

    request: Request
    form: Form
    client: Client
    proof: Proof


class Granted(msgspec.Struct, kw_only=True):
    """sub, audience, scopes: of the access token. user: who stands behind it, None for none. gid: the family.
    openid: an id_token goes with it. minted: the token, where the grant has made it. issued_token_type: where the
    answer names one (RFC 8693)."""

    sub: str
    audience: str
    scopes: tuple[str, ...]
    user: UserInfo | None = None
    auth_time: int = 0
    acr: str = ""
    amr: tuple[str, ...] = ()
    sid: str = ""
    gid: str = ""
    nonce: str = ""
    minted: Minted | None = None
    refresh_token: str = ""
    openid: bool = False
    issued_token_type: str = ""


Grant = Callable[[Asked], Awaitable[Granted]]
"""Raises OAuthError, Failure 503."""
