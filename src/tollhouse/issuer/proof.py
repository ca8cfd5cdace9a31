"""The key that tokens are bound to: one that a client proves to have (DPoP, RFC 9449), or its certificate's (RFC 8705
section 3).

Rule: a proof is for this very URL, for a short time, and good for once on all nodes. While nobody can say whether it
was used, it does not count.
"""

from collections.abc import Callable
from typing import Final

from tollhouse.core.call import Principal
from tollhouse.core.http import Request
from tollhouse.issuer.clients import Client
from tollhouse.issuer.grants.base import Proof
from tollhouse.issuer.records import Replay
from tollhouse.issuer.spec import TLS_METHODS
from tollhouse.store.table import Table
from tollhouse.wire.dpop import DpopFlaw, Nonces, read_proof
from tollhouse.wire.dpop import Proof as Shown
from tollhouse.wire.oauth import OAuthError, certificate_thumbprint, challenge

__all__ = ["Proofs"]

_WINDOW: Final = 60.0


class Proofs:
    """root: what stands before the path of the issuer's own URLs: https://host. certificate: what a client showed when
    it connected, in DER, or b"". replayed: told of proofs that came twice. now: unix seconds."""

    __slots__ = ("_certificate", "_nonces", "_now", "_replayed", "_replays", "_root")

    def __init__(
        self,
        replays: Table[Replay],
        nonces: Nonces,
        now: Callable[[], float],
        *,
        root: str,
        certificate: Callable[[Request], bytes],
        replayed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._replays = replays
        self._nonces = nonces
        self._now = now
        self._root = root
        self._certificate = certificate
        self._replayed = replayed

    async def of(self, request: Request, client: Client) -> Proof:
        """What the tokens that a client asks for shall be bound to. Raises OAuthError `invalid_dpop_proof`,
        `use_dpop_nonce`; Failure 503."""
        fields = request.headers.get_all(b"dpop")
        if fields:
            shown = await self._shown(request, fields)
            if isinstance(shown, DpopFlaw):
                raise self._bad(shown)
            return Proof(jkt=shown.jkt)
        if client.dpop_bound:
            raise OAuthError("invalid_dpop_proof", "this client's tokens are bound to a key: send a DPoP proof")
        if client.auth_method in TLS_METHODS:
            return Proof(x5t=certificate_thumbprint(self._certificate(request)))
        return Proof()

    async def prove(self, request: Request, principal: Principal) -> None:
        """Whether a request at a resource of ours has the key that its token is bound to. Raises OAuthError 401,
        Failure 503."""
        bound = principal.claims.get("cnf", {})
        if "jkt" in bound:
            fields = request.headers.get_all(b"dpop")
            shown = await self._shown(request, fields, principal)
            if isinstance(shown, DpopFlaw):
                value = challenge("DPoP", error="invalid_dpop_proof", error_description=shown.value)
                headers = ((b"www-authenticate", value), *self._nonce(shown))
                raise OAuthError("invalid_dpop_proof", shown.value, 401, headers)
        else:
            certificate = self._certificate(request)
            if not certificate or certificate_thumbprint(certificate) != principal.proof:
                value = challenge("Bearer", error="invalid_token", error_description="another certificate")
                headers = ((b"www-authenticate", value),)
                raise OAuthError("invalid_token", "the token is bound to another certificate", 401, headers)

    async def _shown(
        self, request: Request, fields: list[bytes], principal: Principal | None = None
    ) -> Shown | DpopFlaw:
        if len(fields) != 1:
            return DpopFlaw.MALFORMED
        proof = read_proof(
            fields[0],
            method=request.method.decode("latin-1"),
            url=self._root + request.path.decode("latin-1"),
            now=self._now(),
            access_token=principal.token if principal is not None else b"",
            bound_to=principal.proof if principal is not None else "",
            nonces=self._nonces,
            window=_WINDOW,
        )
        if isinstance(proof, DpopFlaw):
            return proof
        is_new = await self._replays.add(f"dpop\0{proof.proof_id}", Replay(), 2 * _WINDOW)
        if is_new:
            return proof
        self._replayed("dpop")
        return DpopFlaw.REPLAYED

    def _bad(self, flaw: DpopFlaw) -> OAuthError:
        code = "use_dpop_nonce" if flaw is DpopFlaw.NONCE else "invalid_dpop_proof"
        return OAuthError(code, flaw.value, 400, self._nonce(flaw))

    def _nonce(self, flaw: DpopFlaw) -> tuple[tuple[bytes, bytes], ...]:
        """For the next try. Nobody is asked for one, but who has one must have a good one."""
        return ((b"dpop-nonce", self._nonces.current().encode()),) if flaw is DpopFlaw.NONCE else ()
