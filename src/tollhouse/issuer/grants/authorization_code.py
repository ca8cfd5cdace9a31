"""The code that an authorization ended with becomes tokens (RFC 6749 section 4.1.3, RFC 7636, OAuth 2.1).

Rule: a code is used once. It is marked when everything fits and before anything is given out; whoever comes with it
again ends what the first one got. A verifier or redirect that does not fit, from the right client, means that somebody
else's code was slipped in: it is taken away.
"""

import re
from collections.abc import Callable
from hmac import compare_digest
from typing import Final

import msgspec

from tollhouse.issuer.families import Families, new_family_id
from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.grants.by_user import by_user, one_resource
from tollhouse.issuer.records import Code
from tollhouse.issuer.resources import Resources
from tollhouse.store.table import Table
from tollhouse.wire.oauth import OAuthError, code_challenge

__all__ = ["AuthorizationCode"]

_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_TOMBSTONE: Final = 600.0


class AuthorizationCode:
    """A grant."""

    __slots__ = ("_codes", "_families", "_replayed", "_resources")

    def __init__(
        self,
        codes: Table[Code],
        families: Families,
        resources: Resources,
        replayed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._replayed = replayed
        self._codes = codes
        self._families = families
        self._resources = resources

    async def grant(self, asked: Asked) -> Granted:
        form, client = asked.form, asked.client
        presented = form.need("code")
        held = await self._codes.get(presented)
        if held is None:
            raise _bad()
        code = held.value
        if code.redeemed:
            await self._end(presented, code)
            raise _bad()
        if code.client_id != client.id:
            raise _bad()
        if not _fits(code, asked):
            await self._codes.remove(presented)
            raise _bad()
        audience = one_resource(self._resources, form.all("resource"), code.resources, code.scopes)
        client.must_target(audience)
        id = new_family_id()
        if not await self._codes.swap(held, msgspec.structs.replace(code, redeemed=id), _TOMBSTONE):
            # Somebody was faster with the same code: one of the two is not who it should be.
            other = await self._codes.get(presented)
            if other is not None:
                await self._end(presented, other.value)
            raise _bad()
        return await by_user(self._families, asked, code, audience, id)

    async def _end(self, presented: str, code: Code) -> None:
        """It came twice. Once that is dealt with, the code is forgotten: coming on and on costs nothing."""
        if code.redeemed:
            self._replayed("code")
            await self._families.revoke(code.redeemed)
            await self._codes.remove(presented)


def _fits(code: Code, asked: Asked) -> bool:
    form = asked.form
    # OAuth 2.1 no longer asks for it here, but what is said must be true.
    if "redirect_uri" in form and form.get("redirect_uri") != code.redirect_uri:
        return False
    verifier = form.get("code_verifier")
    if _VERIFIER.fullmatch(verifier) is None:
        return False
    if not compare_digest(code_challenge(verifier), code.challenge):
        return False
    return not code.dpop_jkt or compare_digest(code.dpop_jkt, asked.proof.jkt)


def _bad() -> OAuthError:
    return OAuthError("invalid_grant", "the code is not valid, was used, or is not for this client and verifier")
