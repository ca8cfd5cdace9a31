"""Passthrough: a server gets the caller's own token, where its operator and ours have agreed on that.

Rule: only a token whose issuer has made it for that server too goes there; no other, and none that is bound to a key,
which we do not have.
"""

from typing import NamedTuple

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import Target

__all__ = ["Passthrough"]


class _Own(NamedTuple):
    """As `core.identity.Minted`."""

    token: bytes
    jti: str
    expires: float


class Passthrough:
    """`core.identity.Exchanger`."""

    version = 0

    def exchanged(self, principal: Principal, target: Target) -> _Own:
        """Raises Failure 403."""
        if not principal.token or principal.proof:
            raise _refused("this server needs a bearer token that was made for it, and none was sent")
        said = principal.claims.get("aud")
        audiences = said if isinstance(said, list) else [said]
        if target.audience not in audiences:
            raise _refused("the token that was sent was not made for this server")
        return _Own(principal.token, principal.jti, principal.expires)


def _refused(message: str) -> Failure:
    return Failure(403, Reason.AUTHORIZATION, message, code="access_denied")
