"""Tokens that are bound to a key (`cnf`): whether whoever shows one has the key.

Rule: a bound token is never taken as a bearer token, and an unbound one never with a proof. By DPoP the caller signs
each request (RFC 9449 section 7), and no signature counts twice: this worker remembers those it has seen, and the state
tells the others. By mutual TLS the connection's certificate is the proof (RFC 8705 section 3).
"""

import hmac
import logging
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from time import monotonic, time
from typing import Literal, NamedTuple

from pydantic import Field

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.base import Parts
from tollhouse.store.base import State
from tollhouse.wire.dpop import DpopFlaw, Nonces, read_proof
from tollhouse.wire.oauth import certificate_thumbprint

__all__ = ["DpopSpec", "Proofs", "Refusal", "Replays"]

log = logging.getLogger("tollhouse.policies")

Algorithm = Literal["ES256", "ES384", "EdDSA", "Ed25519", "RS256", "PS256"]

_MOST = 200_000
_QUIET = 60.0  # seconds between two complaints
_DOWN = 5.0  # seconds for which a state that failed is not asked


class DpopSpec(Spec):
    """Tokens that are bound to a key of their client by DPoP. They are always checked; this is what is asked beyond."""

    required: bool = Field(default=False, description="take no tokens but those that are bound to a key")
    nonce: bool = Field(default=False, description="proofs must have a nonce of ours, so that none is made in advance")
    algorithms: tuple[Algorithm, ...] = Field(
        default=("ES256", "EdDSA", "RS256"), min_length=1, description="of the proofs' signatures"
    )
    max_age: Duration = Field(default=60.0, ge=5.0, le=300.0, description="how old a proof may be")

    @property
    def advertised(self) -> bool:
        """Whether callers are told of it without asking."""
        return bool(self.model_fields_set)


class Refusal(NamedTuple):
    """Why a proof is none. error: RFC 9449 section 7.1. headers: to come along (a nonce)."""

    message: str
    error: str = "invalid_token"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Replays:
    """Proofs that were seen. down: whether the state that others share did not answer a moment ago. now: seconds."""

    def __init__(self, state: State | None, now: Callable[[], float] = monotonic, most: int = _MOST) -> None:
        self._values = state.values if state is not None and state.shared else None
        self._now = now
        self._most = most
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # a dict would be walked over what went before its first
        self._down_until = -1e18
        self._complained = -1e18

    @property
    def down(self) -> bool:
        return self._now() < self._down_until

    async def is_new(self, proof_id: str, life: float) -> bool:
        """Whether this proof was not seen yet, here or anywhere; then it is from now on, for `life` seconds. Raises
        Failure 503 when there is no room to remember it."""
        now, digest = self._now(), sha256(proof_id.encode("utf-8", "surrogatepass")).digest()
        seen = self._seen
        while seen:
            oldest = next(iter(seen))
            if seen[oldest] > now:
                break
            del seen[oldest]
        if digest in seen:
            return False
        if len(seen) >= self._most:
            raise Failure(503, Reason.OVERLOADED, "too many proofs at once; try again in a minute", retry_after=60.0)
        seen[digest] = now + life  # before the question: whoever comes meanwhile finds it
        if self._values is None or self.down:
            return True
        try:
            return await self._values.add(f"dpop:{digest.hex()}", b"1", life)
        except Failure as failure:
            self._down_until = now + _DOWN
            if now - self._complained >= _QUIET:
                self._complained = now
                log.error(
                    "proofs cannot be shared with other workers, and need nonces until they can: %s", failure.detail
                )
            return True


class Proofs:
    """Checks the binding of tokens. certificate: of whoever sends a request, in DER. now: unix seconds."""

    def __init__(
        self, spec: DpopSpec, parts: Parts, certificate: Callable[[Request], bytes], now: Callable[[], float] = time
    ) -> None:
        self._spec = spec
        self._certificate = certificate
        self._url = parts.public_url
        self._now = now
        state = parts.state
        keys = tuple(hmac.digest(key, b"tollhouse dpop nonces", "sha256") for key in state.keys) if state else ()
        self._nonces = Nonces(lambda: keys, now) if keys else None
        self._replayed = parts.families.replays.child("dpop")
        self._replays: Replays = parts.shared(("dpop replays",), lambda: Replays(state))

    async def check(self, request: Request, principal: Principal, token: bytes, *, dpop: bool) -> Refusal | None:
        """Whether the request proves the key that its token is bound to; None when it does. dpop: the scheme it was
        shown in. Raises Failure 503."""
        confirmation = principal.claims.get("cnf")
        by_certificate = isinstance(confirmation, dict) and "x5t#S256" in confirmation
        if not principal.proof:
            if not dpop:
                return Refusal("only tokens that are bound to a key are taken here")
            return Refusal("the token is not bound to a key: it is a bearer token")
        if by_certificate:
            der = self._certificate(request)
            if dpop or not der or not hmac.compare_digest(certificate_thumbprint(der), principal.proof):
                return Refusal("the token is bound to a client certificate that this connection has not shown")
            return None
        if not dpop:
            return Refusal("the token is bound to a key: send it as `Authorization: DPoP` with a proof")
        return await self._by_dpop(request, principal, token)

    async def _by_dpop(self, request: Request, principal: Principal, token: bytes) -> Refusal | None:
        shown = [value for name, value in request.headers if name == b"dpop"]
        if len(shown) != 1:
            return Refusal("there must be exactly one field `DPoP` with a proof", "invalid_dpop_proof")
        nonces = self._nonces
        must = nonces is not None and (self._spec.nonce or self._replays.down)
        path = request.target.partition(b"?")[0].decode("latin-1")
        proof = read_proof(
            shown[0],
            method=request.method.decode("latin-1"),
            url=f"{self._url}{path}",
            now=self._now(),
            access_token=token,
            bound_to=principal.proof,
            nonces=nonces,
            must_have_nonce=must,
            algorithms=self._spec.algorithms,
            window=self._spec.max_age,
        )
        if isinstance(proof, DpopFlaw):
            return self._refused(proof)
        # One from the future is good until its time has come and gone.
        if not await self._replays.is_new(proof.proof_id, 2 * self._spec.max_age):
            self._replayed.inc()
            return self._refused(DpopFlaw.REPLAYED)
        if nonces is not None and self._replays.down and not proof.nonce:
            return self._refused(DpopFlaw.NONCE)
        return None

    def _refused(self, flaw: DpopFlaw) -> Refusal:
        if flaw is not DpopFlaw.NONCE or self._nonces is None:
            return Refusal(flaw.value, "invalid_dpop_proof")
        return Refusal(flaw.value, "use_dpop_nonce", ((b"dpop-nonce", self._nonces.current().encode()),))
