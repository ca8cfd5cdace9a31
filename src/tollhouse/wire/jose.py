"""Signed tokens (JWS RFC 7515, JWK RFC 7517, JWT RFC 7519), read strictly; signatures are joserfc's work.

Rule: the verifier chooses. The algorithm must be one of a list that was configured and must fit the key, the key must
come from a set that was configured, and nothing in the token says where to find another (`jku`, `jwk`, `x5u`, `x5c`
are not looked at). Only asymmetric algorithms exist here, so a public key can never serve as a shared secret. What is
wrong with a token is a value (`Flaw`), not an exception.
"""

import re
from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from tollhouse.core.depth import decode

__all__ = ["ALGORITHMS", "DEFAULT_ALGORITHMS", "Flaw", "Keys", "Token", "check_claims", "parse", "verify"]

MAX_TOKEN = 16 * 1024
MAX_KEYS = 100
MAX_TRIED = 4
"""Keys tried for one token, where several have its `kid` or it has none: each costs a signature check."""

ALGORITHMS: dict[str, tuple[str, str]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""What can be verified, with the type and curve of its keys (RFC 7518 section 3.1, RFC 8037, RFC 9864)."""

DEFAULT_ALGORITHMS = ("ES256", "RS256", "EdDSA")

MIN_RSA_BITS = 2048
_FAR = 1e15
"""Seconds; no time is further from 1970. JSON knows integers of any length, which no float holds."""
_COMPACT = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_KINDS: dict[str, type[RSAKey | ECKey | OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
_PUBLIC = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}


class Flaw(Enum):
    """What is wrong with a token; the value may be shown to whoever presented it."""

    TOO_LARGE = "the token is larger than 16 KiB"
    MALFORMED = "this is not a signed JSON Web Token in compact form"
    ALGORITHM = "the token is signed with an algorithm that is not accepted here"
    CRITICAL = "the token's header has critical extensions that are not understood here"
    TYPE = "the token's header `typ` names another kind of token"
    NO_KEY = "the token is signed with a key that its issuer does not publish"
    SIGNATURE = "the token's signature is not valid"
    ISSUER = "the token's issuer is not accepted here"
    AUDIENCE = "the token is meant for another audience"
    EXPIRED = "the token has expired"
    NOT_YET = "the token is not valid yet"
    CLAIM = "one of the token's claims `exp`, `nbf`, `iat` is missing or is not a time"
    SUBJECT = "the token must say whom it speaks for: `sub`, a text of at most 256 characters"


class Token(msgspec.Struct, frozen=True):
    """A token taken apart; nothing about it is proved until `verify` has said so."""

    algorithm: str
    kid: str | None
    typ: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Any = msgspec.UNSET


class _Published(msgspec.Struct, frozen=True):
    """A public key that may verify: kind and curve, and the algorithm it is bound to (`alg`), if any."""

    kid: str | None
    kind: tuple[str, str]
    algorithm: str | None
    key: Key


class Keys:
    """A key set: the keys of it that can verify signatures. `ignored` counts the others."""

    __slots__ = ("_all", "_by_kid", "ignored")

    def __init__(self, keys: Iterable[_Published], ignored: int = 0) -> None:
        self._all = tuple(keys)
        self._by_kid: dict[str, tuple[_Published, ...]] = {}
        for key in self._all:
            if key.kid is not None:
                self._by_kid[key.kid] = (*self._by_kid.get(key.kid, ()), key)
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self._all)

    @classmethod
    def parse(cls, document: bytes) -> "Keys":
        """A JWK Set (RFC 7517 section 5). As that section asks, keys of unknown type, with missing or bad members, for
        encryption, and symmetric ones are ignored; so are RSA keys under 2,048 bits. Of a private key only the
        public part is taken. Raises ValueError when it is no key set, has more than 100 keys, or none that can be used.
        """
        try:
            keys = decode(document)["keys"]
        except (ValueError, LookupError, TypeError):
            raise ValueError("not a JWK Set: it must be a JSON object with the member `keys`") from None
        if not isinstance(keys, list):
            raise ValueError("not a JWK Set: `keys` must be a list")
        if len(keys) > MAX_KEYS:
            raise ValueError(f"the key set has {len(keys)} keys; {MAX_KEYS} are allowed")
        usable = [key for key in map(_published, keys) if key is not None]
        if not usable:
            raise ValueError("the key set has no public key for signatures (RSA of 2,048 bits or more, EC or Ed25519)")
        return cls(usable, len(keys) - len(usable))

    def candidates(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed: with that `kid` if the token names one, of the algorithm's type and curve, and
        not bound to another algorithm; at most four."""
        kind = ALGORITHMS[algorithm]
        keys = self._all if kid is None else self._by_kid.get(kid, ())
        return [k.key for k in keys if k.kind == kind and k.algorithm in (None, algorithm)][:MAX_TRIED]

    def knows(self, token: "Token") -> bool:
        """Whether any of them may have signed `token`."""
        return token.algorithm in ALGORITHMS and bool(self.candidates(token.algorithm, token.kid))


def _published(jwk: Any) -> _Published | None:
    if not isinstance(jwk, dict):
        return None
    kty, kid, algorithm, use, operations = (jwk.get(name) for name in ("kty", "kid", "alg", "use", "key_ops"))
    if not isinstance(kty, str) or kty not in _KINDS or not isinstance(kid, str | None):
        return None
    if use not in (None, "sig"):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    if algorithm is not None and (not isinstance(algorithm, str) or algorithm not in ALGORITHMS):
        return None
    curve = jwk.get("crv", "") if kty != "RSA" else ""
    if (kty, curve) not in ALGORITHMS.values():
        return None
    members = {name: jwk[name] for name in _PUBLIC[kty] if name in jwk}
    if not all(isinstance(value, str) and len(value) <= MAX_TOKEN for value in members.values()):
        return None
    if kty == "RSA" and len(members.get("n", "")) * 6 < MIN_RSA_BITS:
        return None
    try:
        key = _KINDS[kty].import_key(members)
        raw: Any = key.raw_value  # made now, so that a bad key shows here and not at the first token
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    if kty == "RSA" and raw.key_size < MIN_RSA_BITS:
        return None
    return _Published(kid, (kty, curve), algorithm, key)


def parse(token: bytes) -> Token | Flaw:
    """Take a compact JWS apart. Neither signature nor claims are checked, except that the claims are a JSON object."""
    if len(token) > MAX_TOKEN:
        return Flaw.TOO_LARGE
    parts = _COMPACT.fullmatch(token)
    if parts is None:
        return Flaw.MALFORMED
    try:
        header = msgspec.json.decode(_base64(parts[1]), type=_Header)
        claims = decode(_base64(parts[2]))
        signature = _base64(parts[3])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Flaw.MALFORMED
    if not isinstance(claims, dict):
        return Flaw.MALFORMED
    if header.crit is not msgspec.UNSET:
        return Flaw.CRITICAL
    return Token(header.alg, header.kid, header.typ, claims, token[: parts.end(2)], signature)


def _base64(part: bytes) -> bytes:
    return urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def verify(token: Token, keys: Keys, algorithms: Collection[str] = DEFAULT_ALGORITHMS) -> Flaw | None:
    """Whether one of `keys` signed it with one of `algorithms`; None when so."""
    if token.algorithm not in algorithms or token.algorithm not in ALGORITHMS:
        return Flaw.ALGORITHM
    candidates = keys.candidates(token.algorithm, token.kid)
    if not candidates:
        return Flaw.NO_KEY
    # From the table itself: `get_alg` warns at each use of EdDSA, whose name RFC 9864 replaced, as IdPs do not yet.
    model = JWSRegistry.algorithms[token.algorithm]
    for key in candidates:
        try:
            model.check_key(key)
            if model.verify(token.signed, token.signature, key):
                return None
        except (JoseError, ValueError):  # a signature of impossible form
            continue
    return Flaw.SIGNATURE


def check_claims(
    token: Token,
    *,
    issuer: str,
    audiences: Collection[str],
    now: float,
    leeway: float = 60.0,
    types: Collection[str] | None = None,
) -> Flaw | None:
    """The registered claims (RFC 7519 section 4.1); None when all hold.

    iss must be `issuer`, letter by letter; aud must have one of `audiences`, unless there are none; exp must be there
    and in the future; nbf and iat, if there, must not be. now: unix seconds. leeway: seconds clocks may differ. types:
    values of the header's `typ`, lower case and without `application/`; None: JWT, at+jwt (RFC 9068) or nothing, since
    a token made for another purpose (a DPoP proof, a logout token, a grant) must not be taken for an access token.
    """
    claims = token.claims
    typ = None if token.typ is None else token.typ.lower().removeprefix("application/")
    if typ not in types if types is not None else typ not in (None, "jwt", "at+jwt"):
        return Flaw.TYPE
    if claims.get("iss") != issuer:
        return Flaw.ISSUER
    if audiences:
        audience = claims.get("aud")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            return Flaw.AUDIENCE
        if not any(name in audiences for name in named):
            return Flaw.AUDIENCE
    times = [claims.get("exp"), claims.get("nbf", 0), claims.get("iat", 0)]
    if not all(isinstance(time, int | float) and not isinstance(time, bool) and -_FAR < time < _FAR for time in times):
        return Flaw.CLAIM
    exp, nbf, iat = times
    if exp + leeway <= now:
        return Flaw.EXPIRED
    if nbf - leeway > now or iat - leeway > now:
        return Flaw.NOT_YET
    return None
