"""On behalf of, at Microsoft Entra: its way before there was RFC 8693.

Rule: only a token that is for us can be exchanged, for the scopes of one resource. A token without a user stands for an
application, which nobody is asked on behalf of: then the gateway asks in its own name.
"""

from collections.abc import Collection
from typing import Final

from tollhouse.backends.exchange.asked import Subject, forbidden
from tollhouse.core.call import Principal
from tollhouse.core.identity import Target

__all__ = ["EntraObo"]

_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class EntraObo:
    """`backends.exchange.asked.Asking`. client_id: of the application that we are."""

    own_life = True
    typed = False

    def __init__(self, client_id: str) -> None:
        self._ours = frozenset((client_id, f"api://{client_id}"))

    def form(self, principal: Principal, target: Target, subject: Subject) -> dict[str, str]:
        audience = principal.claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._ours.isdisjoint(one for one in audiences if isinstance(one, str)):
            raise forbidden("the token that was sent is for another application, and cannot be exchanged")
        if principal.claims.get("idtyp") == "app":
            return {"grant_type": "client_credentials", "scope": f"{target.audience}/.default"}
        scopes = target.scopes or (".default",)
        return {
            "grant_type": _GRANT,
            "assertion": subject.token,
            "requested_token_use": "on_behalf_of",
            "scope": " ".join(f"{target.audience}/{scope}" for scope in scopes),
        }

    def scopes(self, target: Target) -> Collection[str]:
        if not target.scopes:
            return ()
        return {*target.scopes, *(f"{target.audience}/{scope}" for scope in target.scopes)}

    def audiences(self, target: Target) -> Collection[str]:
        return ()  # the id of the application where the URI was asked
