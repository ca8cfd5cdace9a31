"""Proofs that whoever sends a token has its key (DPoP, RFC 9449): read, checked, and the nonces that make them fresh.

Rule: section 4.3, point by point; what is wrong is a value (`DpopFlaw`). A proof does not say who somebody is, and the
key in it nothing about whose it is: it counts only together with a token that names its thumbprint (`cnf.jkt`).
Whether a proof was seen before is for a store to say: `proof_id` is what it must remember.
"""

import hmac
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from tollhouse.core.depth import decode
from tollhouse.wire.jose import ALGORITHMS, Check, checker, from_base64url, public_key
from tollhouse.wire.jwt import thumbprint, to_base64url

__all__ = ["DPOP_ALGORITHMS", "DpopFlaw", "Nonces", "Proof", "access_token_hash", "read_proof", "target_of"]

DPOP_ALGORITHMS = ("ES256", "EdDSA", "Ed25519", "RS256", "PS256", "ES384")
"""For `dpop_signing_alg_values_supported`."""

MAX_PROOF = 4096
_MAX_JTI = 256
_REMEMBERED = 512
_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
_PORTS = {"http": 80, "https": 443}


class DpopFlaw(Enum):
    """What is wrong with a proof; the value may be shown to whoever presented it."""

    MALFORMED = "the DPoP proof is no signed JSON Web Token of at most 4 KiB"
    TYPE = "the DPoP proof's header `typ` is not dpop+jwt"
    ALGORITHM = "the DPoP proof is signed with an algorithm that is not accepted here"
    KEY = "the DPoP proof's header must have the public key it is signed with (`jwk`), and no other"
    SIGNATURE = "the DPoP proof's signature is not valid"
    CLAIMS = "the DPoP proof must have the claims `jti`, `htm`, `htu` and `iat`"
    METHOD = "the DPoP proof is for another method (`htm`)"
    TARGET = "the DPoP proof is for another URL (`htu`)"
    TIME = "the DPoP proof is too old, or from the future (`iat`)"
    TOKEN = "the DPoP proof is not for the token that was sent (`ath`)"
    NONCE = "the DPoP proof needs the nonce that this answer gives"
    BINDING = "the DPoP proof is signed with another key than the token is bound to"
    REPLAYED = "the DPoP proof was used before"


class Proof(NamedTuple):
    """A proof that holds. jkt: thumbprint of its key (RFC 7638). iat: unix seconds. nonce: "" where it has none."""

    jkt: str
    jti: str
    iat: float
    nonce: str

    @property
    def proof_id(self) -> str:
        """What must not come twice."""
        return f"{self.jkt}:{self.jti}"


class _Header(msgspec.Struct):
    alg: str
    typ: str
    jwk: dict[str, Any]
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET
    jku: Any = msgspec.UNSET
    x5u: Any = msgspec.UNSET
    x5c: Any = msgspec.UNSET


class _Claims(msgspec.Struct):
    jti: str
    htm: str
    htu: str
    iat: float
    ath: str = ""
    nonce: str = ""


class _Key(NamedTuple):
    alg: str
    jkt: str
    check: Check


def read_proof(
    proof: bytes,
    *,
    method: str,
    url: str,
    now: float,
    access_token: bytes = b"",
    bound_to: str = "",
    nonces: "Nonces | None" = None,
    must_have_nonce: bool = False,
    algorithms: Collection[str] = DPOP_ALGORITHMS,
    window: float = 60.0,
) -> Proof | DpopFlaw:
    """Check a proof (RFC 9449 section 4.3). The caller has made sure that there is exactly one field `DPoP`, and asks
    its store afterwards whether the `proof_id` is new.

    method, url: of the request as the client made it, where `url` may have a query, which does not count. now: unix
    seconds. access_token: that came with it, at a resource. bound_to: the thumbprint that the token names. nonces:
    whose nonces count; with must_have_nonce none is not enough. window: seconds that its clock may differ.
    """
    if len(proof) > MAX_PROOF:
        return DpopFlaw.MALFORMED
    parts = proof.split(b".")
    if len(parts) != 3:
        return DpopFlaw.MALFORMED
    key = _key_of(parts[0])
    if isinstance(key, DpopFlaw):
        return key
    if key.alg not in algorithms:
        return DpopFlaw.ALGORITHM
    try:
        claims = decode(from_base64url(parts[1]))
        signature = from_base64url(parts[2])
    except (ValueError, RecursionError):
        return DpopFlaw.MALFORMED
    try:
        said = msgspec.convert(claims, _Claims)
    except (msgspec.ValidationError, ValueError, OverflowError):
        return DpopFlaw.CLAIMS
    if not 0 < len(said.jti) <= _MAX_JTI:
        return DpopFlaw.CLAIMS
    if said.htm != method:
        return DpopFlaw.METHOD
    target = target_of(said.htu)
    if not target or target != target_of(url):
        return DpopFlaw.TARGET
    if not -window <= said.iat - now <= window:  # false for what is no number, too
        return DpopFlaw.TIME
    if not key.check(signature, proof[: -len(parts[2]) - 1]):  # what costs least comes first
        return DpopFlaw.SIGNATURE
    if access_token and not hmac.compare_digest(said.ath.encode(), access_token_hash(access_token).encode()):
        return DpopFlaw.TOKEN
    if bound_to and not hmac.compare_digest(key.jkt.encode(), bound_to.encode()):
        return DpopFlaw.BINDING
    if (said.nonce or must_have_nonce) and nonces is not None and not nonces.accepts(said.nonce):
        return DpopFlaw.NONCE
    return Proof(key.jkt, said.jti, said.iat, said.nonce)


@lru_cache(_REMEMBERED)
def _key_of(segment: bytes) -> _Key | DpopFlaw:
    """The key in a proof's header. A client's proofs all have the same header, so it is remembered; what stands in it
    alone decides."""
    try:
        document = decode(from_base64url(segment), 8)
    except (ValueError, RecursionError):
        return DpopFlaw.MALFORMED
    try:
        header = msgspec.convert(document, _Header)
    except (msgspec.ValidationError, ValueError, RecursionError):
        is_without_key = isinstance(document, dict) and not isinstance(document.get("jwk"), dict)
        return DpopFlaw.KEY if is_without_key else DpopFlaw.MALFORMED
    if header.typ.lower().removeprefix("application/") != "dpop+jwt":
        return DpopFlaw.TYPE
    if header.alg not in ALGORITHMS:
        return DpopFlaw.ALGORITHM
    if not (header.crit is header.b64 is header.jku is header.x5u is header.x5c is msgspec.UNSET):
        return DpopFlaw.KEY
    if _PRIVATE & header.jwk.keys():
        return DpopFlaw.KEY
    made = public_key(header.jwk)
    if made is None or made[0] != ALGORITHMS[header.alg]:
        return DpopFlaw.KEY
    return _Key(header.alg, thumbprint(made[1]), checker(header.alg, made[1]))


def access_token_hash(token: bytes) -> str:
    """`ath`: SHA-256 of an access token as it is sent."""
    return to_base64url(sha256(token).digest()).decode()


def target_of(url: str) -> str:
    """A URL without query and fragment, in the normal form of RFC 3986 section 6.2 as far as scheme, host, port and an
    empty path go; "" for what is no http URL. What is in a path is compared letter by letter."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    host = parts.hostname
    if parts.scheme not in _PORTS or not host or "@" in parts.netloc:
        return ""
    if ":" in host:
        host = f"[{host}]"
    shown = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}{parts.path or '/'}"


class Nonces:
    """Nonces that nobody has to remember (RFC 9449 section 8): a code of the time slot that they were made in, which is
    good in that slot and the next. secrets: what the nodes share, asked for each time; the first makes, all verify.
    now: unix seconds. slot: seconds."""

    __slots__ = ("_now", "_secrets", "_slot")

    def __init__(self, secrets: Callable[[], Sequence[bytes]], now: Callable[[], float], slot: float = 30.0) -> None:
        self._secrets = secrets
        self._now = now
        self._slot = slot

    def current(self) -> str:
        """One to give out now (`DPoP-Nonce`)."""
        return self._made(self._secrets()[0], int(self._now() // self._slot))

    def accepts(self, nonce: str) -> bool:
        """Whether it was given out in this slot or the one before; the next counts too, since clocks differ."""
        given = nonce.encode("utf-8", "surrogatepass")
        slot = int(self._now() // self._slot)
        fits = False
        for secret in self._secrets():
            for one in (slot, slot - 1, slot + 1):
                fits |= hmac.compare_digest(self._made(secret, one).encode(), given)
        return fits

    def _made(self, secret: bytes, slot: int) -> str:
        code = hmac.digest(secret, b"dpop nonce %d" % slot, "sha256")
        return to_base64url(code[:18]).decode()
