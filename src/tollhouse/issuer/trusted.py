"""Other issuers whose tokens are taken: to be exchanged (RFC 8693), or as a grant (RFC 7523, ID-JAG).

Rule: a token is taken only from an issuer that the operator lists, for what it is listed for, from a client that may
show it. `iss` is looked at only to choose among those, and compared letter by letter.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from tollhouse.core.call import Principal
from tollhouse.issuer.counts import Counts
from tollhouse.issuer.mint import actors_of
from tollhouse.issuer.records import Replay
from tollhouse.issuer.spec import TrustedIssuerSpec
from tollhouse.net.client import Client as Fetcher
from tollhouse.net.jwks import key_source
from tollhouse.store.table import Table
from tollhouse.wire.jose import Token, check_claims, parse, verify

__all__ = ["ID_JAG", "TrustedIssuers"]

ID_JAG: Final = "oauth-id-jag+jwt"
_LONGEST: Final = 600.0
_JTI: Final = re.compile(r"[!-~]{1,256}")


class TrustedIssuers:
    """own: our issuer, which tokens that are grants are for. now: unix seconds."""

    __slots__ = ("_counts", "_issuers", "_now", "_own", "_replays")

    def __init__(
        self,
        specs: tuple[TrustedIssuerSpec, ...],
        fetcher: Fetcher,
        replays: Table[Replay],
        now: Callable[[], float],
        *,
        own: str,
        counts: Counts = Counts(),  # noqa: B008 - a value
    ) -> None:
        self._counts = counts
        self._issuers = {
            spec.issuer: (spec, key_source(spec.jwks, fetcher, now, guarded=False, told=counts.keys_read))
            for spec in specs
        }
        self._replays = replays
        self._now = now
        self._own = own

    def takes(self, what: str) -> bool:
        """Whether anybody is listed for that."""
        return any(what in spec.grants for spec, _ in self._issuers.values())

    async def close(self) -> None:
        for _, keys in self._issuers.values():
            await keys.close()

    async def subject(self, token: bytes, client_id: str) -> Principal | None:
        """Whom an access token of another issuer speaks for; None for one that is not taken. Raises Failure 503."""
        parsed = parse(token)
        if not isinstance(parsed, Token):
            return None
        spec = await self._verified(parsed, client_id, "token_exchange")
        if spec is None:
            return None
        claims = parsed.claims
        if "nonce" in claims or "at_hash" in claims:
            return None  # an id_token: it tells its client who has logged in, and lets nobody do anything
        sub, agent = claims.get("sub"), claims.get(spec.agent_claim, "")
        may_act = claims.get("may_act")
        if may_act is not None and not (spec.trust_may_act and isinstance(may_act, dict) and "iss" in may_act):
            return None
        try:
            actors = actors_of(claims)
        except ValueError:
            return None
        if not isinstance(sub, str) or not 0 < len(sub) <= 256 or not isinstance(agent, str):
            return None
        return Principal(
            f"jwt:{spec.issuer}|{sub}",
            source="jwt",
            user=sub,
            agent=agent,
            claims=claims,
            expires=float(claims["exp"]),
            issuer=spec.issuer,
            subject=sub,
            client=agent,
            scopes=_scopes(claims),
            actors=actors,
            token=token,
            jti=claims["jti"] if isinstance(claims.get("jti"), str) else "",
            issued=float(claims.get("iat", 0)),
            proof=_proof(claims),
        )

    async def assertion(self, token: bytes, client_id: str) -> tuple[str, dict[str, Any]] | None:
        """What a token says that is a grant: its type ("id_jag" or "jwt_bearer") and claims. For us alone, for ten
        minutes at most, and once: it is used up. None for any other. Raises Failure 503."""
        parsed = parse(token)
        if not isinstance(parsed, Token):
            return None
        typ = (parsed.typ or "jwt").lower().removeprefix("application/")
        what = {ID_JAG: "id_jag", "jwt": "jwt_bearer"}.get(typ)
        if what is None:
            return None
        spec = await self._verified(parsed, client_id, what, (typ,) if parsed.typ is not None else None)
        if spec is None:
            return None
        claims, now = parsed.claims, self._now()
        if claims.get("aud") not in (self._own, [self._own]):
            return None
        exp, jti = float(claims["exp"]), claims.get("jti")
        if exp > now + _LONGEST + spec.leeway or not isinstance(jti, str) or _JTI.fullmatch(jti) is None:
            return None
        if not await self._replays.add(f"{spec.issuer}\0{jti}", Replay(), max(1.0, exp - now + 2 * spec.leeway)):
            self._counts.replayed("assertion")
            return None
        return what, claims

    async def _verified(
        self, parsed: Token, client_id: str, what: str, types: tuple[str, ...] | None = None
    ) -> TrustedIssuerSpec | None:
        """The issuer that a token is of, if it is good. types: None for an access token."""
        issuer = parsed.claims.get("iss")
        found = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if found is None or what not in found[0].grants:
            return None
        spec, source = found
        if spec.clients is not None and client_id not in spec.clients:
            return None
        if what == "token_exchange" and spec.typ is not None:
            types = tuple(value.lower().removeprefix("application/") for value in spec.typ)
        flaw = check_claims(parsed, issuer=spec.issuer, audiences=(), now=self._now(), leeway=spec.leeway, types=types)
        if flaw is not None:
            return None
        if verify(parsed, await source.keys(parsed), spec.algorithms) is not None:
            return None
        return spec


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """`scope`, or `scp` as some issuers call it, text or list."""
    value = claims.get("scope", claims.get("scp", ""))
    if isinstance(value, str):
        return frozenset(value.split())
    return frozenset(v for v in value if isinstance(v, str)) if isinstance(value, list) else frozenset()


def _proof(claims: dict[str, Any]) -> str:
    cnf = claims.get("cnf")
    if not isinstance(cnf, dict):
        return ""
    value = cnf.get("jkt") or cnf.get("x5t#S256") or "?"  # bound to something we do not know: nobody can show it
    return value if isinstance(value, str) else "?"
