"""Signed tokens (JWS RFC 7515, JWK RFC 7517, JWT RFC 7519), read strictly.

Rule: the verifier chooses. The algorithm must be one of a list that was configured and must fit the key, the key must
come from a set that was configured, and a token that brings a key along or says where to find one (`jwk`, `jku`,
`x5c`, `x5u`) is refused. Only asymmetric algorithms exist here, so a public key can never serve as a shared secret.
What is wrong with a token is a value (`Flaw`), not an exception. Checking a token costs little more than its signature:
headers that were seen are remembered, and each key is made ready for its algorithms when its set is read.
"""

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, AsymmetricPadding, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tollhouse.core.depth import decode

__all__ = [
    "ALGORITHMS",
    "DEFAULT_ALGORITHMS",
    "MAX_HEADER",
    "Flaw",
    "Header",
    "Keys",
    "PublicKey",
    "Token",
    "check_claims",
    "checker",
    "from_base64url",
    "header_of",
    "parse",
    "public_key",
    "verify",
]

MAX_TOKEN = 16 * 1024
MAX_HEADER = 1366
"""Characters of a token's first segment: 1 KiB of JSON."""

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
MAX_RSA_BITS = 8192
"""A larger key would make each check cost milliseconds."""

_REMEMBERED = 1024
_FAR = 1e15
"""Seconds; no time is further from 1970. JSON knows integers of any length, which no float holds."""

_KINDS: dict[str, type[RSAKey | ECKey | OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
_PUBLIC = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}
_HASHES: dict[str, type[HashAlgorithm]] = {"256": SHA256, "384": SHA384, "512": SHA512}
_COORDINATES = {"P-256": 32, "P-384": 48, "P-521": 66}
_STANDARD = bytes.maketrans(b"-_+/=\r\n", b"+/!!!!!")
"""From the alphabet of base64url to that of base64, where what is in no base64url becomes what is in no base64."""

_LAST: tuple[frozenset[int], ...] = (
    frozenset(range(256)),
    frozenset(),
    frozenset(b"AQgw"),
    frozenset(b"AEIMQUYcgkosw048"),
)
"""What the last character may be, by the length modulo 4: whose bits that stand for nothing are 0."""

_NAME = re.compile(r"[^\r\n\0]{0,512}")
"""A `kid`: any text that can stand in a line."""

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey

Check = Callable[[bytes, bytes], bool]
"""Whether a signature (first) is that of some bytes (second)."""


class Flaw(Enum):
    """What is wrong with a token; the value may be shown to whoever presented it."""

    TOO_LARGE = "the token is larger than 16 KiB"
    MALFORMED = "this is not a signed JSON Web Token in compact form"
    ALGORITHM = "the token is signed with an algorithm that is not accepted here"
    CRITICAL = "the token's header has critical extensions that are not understood here"
    KEY_BROUGHT = "the token's header brings a key along, or says where to find one; only the issuer's own are used"
    TYPE = "the token's header `typ` names another kind of token"
    NO_KEY = "the token is signed with a key that its issuer does not publish"
    SIGNATURE = "the token's signature is not valid"
    ISSUER = "the token's issuer is not accepted here"
    AUDIENCE = "the token is meant for another audience"
    EXPIRED = "the token has expired"
    NOT_YET = "the token is not valid yet"
    CLAIM = "one of the token's claims `exp`, `nbf`, `iat` is missing or is not a time"
    SUBJECT = "the token must say whom it speaks for: `sub`, a text of at most 256 characters"


class Header(msgspec.Struct, frozen=True, gc=False):
    """A JOSE header that has nothing forbidden in it. typ: as it is written."""

    alg: str
    kid: str | None = None
    typ: str | None = None


class Token(msgspec.Struct, frozen=True):
    """A token taken apart; nothing about it is proved until `verify` has said so."""

    algorithm: str
    kid: str | None
    typ: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class _Header(msgspec.Struct):
    """What is looked at in a header; of the last seven only whether they are there."""

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET
    jwk: Any = msgspec.UNSET
    jku: Any = msgspec.UNSET
    x5u: Any = msgspec.UNSET
    x5c: Any = msgspec.UNSET


class _Published(NamedTuple):
    """A public key that may verify: kind and curve, the algorithm it is bound to (`alg`), if any, and itself."""

    kid: str | None
    kind: tuple[str, str]
    algorithm: str | None
    key: PublicKey


class Keys:
    """A key set: the keys of it that can verify signatures. `ignored` counts the others."""

    __slots__ = ("_checks", "_size", "ignored")

    def __init__(self, keys: Iterable[_Published], ignored: int = 0) -> None:
        every = tuple(keys)
        checks: dict[tuple[str, str | None], list[Check]] = {}
        for key in every:
            for algorithm, kind in ALGORITHMS.items():
                if key.kind != kind or key.algorithm not in (None, algorithm):
                    continue
                check = checker(algorithm, key.key)
                checks.setdefault((algorithm, None), []).append(check)
                if key.kid is not None:
                    checks.setdefault((algorithm, key.kid), []).append(check)
        self._checks = {name: tuple(found[:MAX_TRIED]) for name, found in checks.items()}
        self._size = len(every)
        self.ignored = ignored

    def __len__(self) -> int:
        return self._size

    @classmethod
    def parse(cls, document: bytes) -> "Keys":
        """A JWK Set (RFC 7517 section 5). As that section asks, keys of unknown type, with missing or bad members, for
        encryption, and symmetric ones are ignored; so are RSA keys under 2,048 bits or over 8,192. Of a private key
        only the public part is taken. Raises ValueError when it is no key set, has more than 100 keys, or none that
        can be used.
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

    def candidates(self, algorithm: str, kid: str | None) -> Sequence[Check]:
        """The keys that may have signed: with that `kid` if the token names one, of the algorithm's type and curve, and
        not bound to another algorithm; at most four."""
        return self._checks.get((algorithm, kid), ())

    def knows(self, token: "Token") -> bool:
        """Whether any of them may have signed `token`."""
        return (token.algorithm, token.kid) in self._checks


def _published(jwk: Any) -> _Published | None:
    if not isinstance(jwk, dict):
        return None
    kid, algorithm, use, operations = (jwk.get(name) for name in ("kid", "alg", "use", "key_ops"))
    if not isinstance(kid, str | None) or use not in (None, "sig"):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    if algorithm is not None and (not isinstance(algorithm, str) or algorithm not in ALGORITHMS):
        return None
    made = public_key(jwk)
    if made is None:
        return None
    kind, key = made
    return _Published(kid, kind, algorithm, key)


def public_key(jwk: dict[str, Any]) -> tuple[tuple[str, str], PublicKey] | None:
    """The type and curve of a JWK, and its public part; None for one that can verify nothing here."""
    kty = jwk.get("kty")
    if not isinstance(kty, str) or kty not in _KINDS:
        return None
    curve = jwk.get("crv", "") if kty != "RSA" else ""
    if (kty, curve) not in ALGORITHMS.values():
        return None
    members = {name: jwk[name] for name in _PUBLIC[kty] if name in jwk}
    if not all(isinstance(value, str) and len(value) <= MAX_TOKEN for value in members.values()):
        return None
    if kty == "RSA" and not MIN_RSA_BITS <= len(members.get("n", "")) * 6 <= MAX_RSA_BITS + 18:
        return None
    try:
        # Made now, so that a bad key shows here and not at the first token.
        key: Any = _KINDS[kty].import_key(members).raw_value
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, PublicKey) or (
        isinstance(key, RSAPublicKey) and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
    ):
        return None
    return (kty, curve), key


# ---- signatures


def checker(algorithm: str, key: PublicKey) -> Check:
    """What checks the signatures of one key under one algorithm of ALGORITHMS, which the key's type fits."""
    if isinstance(key, EllipticCurvePublicKey):
        return _Ecdsa(algorithm, key)
    if isinstance(key, RSAPublicKey):
        return _Rsa(algorithm, key)
    return _Ed25519(key)


class _Ecdsa:
    """RFC 7518 section 3.4: the signature is R and S, each as long as the curve's coordinates."""

    __slots__ = ("_hash", "_size", "_verify")

    def __init__(self, algorithm: str, key: EllipticCurvePublicKey) -> None:
        self._verify = key.verify
        self._hash = ECDSA(_HASHES[algorithm[2:]]())
        self._size = _COORDINATES[ALGORITHMS[algorithm][1]]

    def __call__(self, signature: bytes, signed: bytes) -> bool:
        size = self._size
        if len(signature) != 2 * size:
            return False
        if size == 32:
            r = signature[:32].lstrip(b"\0")
            s = signature[32:].lstrip(b"\0")
            if not r or not s:
                return False
            if r[0] > 127:
                r = b"\0" + r
            if s[0] > 127:
                s = b"\0" + s
            # SEQUENCE of two INTEGERs, in DER; all three are shorter than 128 bytes
            der = b"0%c\2%c%b\2%c%b" % (len(r) + len(s) + 4, len(r), r, len(s), s)
        else:
            der = encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
        try:
            self._verify(der, signed, self._hash)
        except InvalidSignature:
            return False
        return True


class _Rsa:
    """RFC 7518 sections 3.3 and 3.5."""

    __slots__ = ("_hash", "_padding", "_size", "_verify")

    def __init__(self, algorithm: str, key: RSAPublicKey) -> None:
        self._verify = key.verify
        self._hash = _HASHES[algorithm[2:]]()
        salt = self._hash.digest_size
        self._padding: AsymmetricPadding = PKCS1v15() if algorithm[0] == "R" else PSS(MGF1(self._hash), salt)
        self._size = (key.key_size + 7) // 8

    def __call__(self, signature: bytes, signed: bytes) -> bool:
        if len(signature) != self._size:
            return False
        try:
            self._verify(signature, signed, self._padding, self._hash)
        except InvalidSignature:
            return False
        return True


class _Ed25519:
    """RFC 8037 section 3.1."""

    __slots__ = ("_verify",)

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._verify = key.verify

    def __call__(self, signature: bytes, signed: bytes) -> bool:
        try:
            self._verify(signature, signed)
        except InvalidSignature:
            return False
        return True


# ---- tokens


def parse(token: bytes) -> Token | Flaw:
    """Take a compact JWS apart. Neither signature nor claims are checked, except that the header has nothing that is
    forbidden, and that the claims are a JSON object."""
    if len(token) > MAX_TOKEN:
        return Flaw.TOO_LARGE
    parts = token.split(b".")
    if len(parts) != 3:
        return Flaw.MALFORMED
    header = header_of(parts[0])
    if isinstance(header, Flaw):
        return header
    try:
        claims = decode(from_base64url(parts[1]))
        signature = from_base64url(parts[2])
    except (ValueError, RecursionError):
        return Flaw.MALFORMED
    if type(claims) is not dict or not signature:
        return Flaw.MALFORMED
    return Token(header.alg, header.kid, header.typ, claims, token[: -len(parts[2]) - 1], signature)


def header_of(segment: bytes) -> Header | Flaw:
    """What a token's first segment says."""
    return _header(segment) if len(segment) <= MAX_HEADER else Flaw.MALFORMED


@lru_cache(_REMEMBERED)
def _header(segment: bytes) -> Header | Flaw:
    """An issuer's tokens all have the same few headers, so they are remembered: what stands in one alone decides."""
    try:
        header = msgspec.json.decode(from_base64url(segment), type=_Header)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Flaw.MALFORMED
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        return Flaw.CRITICAL
    if not (header.jwk is header.jku is header.x5u is header.x5c is msgspec.UNSET):
        return Flaw.KEY_BROUGHT
    if header.kid is not None and _NAME.fullmatch(header.kid) is None:
        return Flaw.MALFORMED
    return Header(header.alg, header.kid, header.typ)


def from_base64url(part: bytes) -> bytes:
    """The bytes that a text in base64url without padding stands for (RFC 7515 section 2). There is one text for them:
    others, with bits in the end that mean nothing, are refused (RFC 4648 section 3.5). Raises ValueError."""
    if part and part[-1] not in _LAST[len(part) & 3]:
        raise ValueError("not base64url")
    try:
        return a2b_base64(part.translate(_STANDARD) + b"==="[: -len(part) % 4], strict_mode=True)
    except NotBase64:
        raise ValueError("not base64url") from None


def verify(token: Token, keys: Keys, algorithms: Collection[str] = DEFAULT_ALGORITHMS) -> Flaw | None:
    """Whether one of `keys` signed it with one of `algorithms`; None when so."""
    if token.algorithm not in algorithms or token.algorithm not in ALGORITHMS:
        return Flaw.ALGORITHM
    candidates = keys.candidates(token.algorithm, token.kid)
    if not candidates:
        return Flaw.NO_KEY
    signature, signed = token.signature, token.signed
    for signs in candidates:
        if signs(signature, signed):
            return None
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
        if type(audience) is str:
            is_meant = audience in audiences
        elif isinstance(audience, list) and all(isinstance(name, str) for name in audience):
            is_meant = any(name in audiences for name in audience)
        else:
            is_meant = False
        if not is_meant:
            return Flaw.AUDIENCE
    exp, nbf, iat = claims.get("exp"), claims.get("nbf", 0), claims.get("iat", 0)
    if not (_is_time(exp) and _is_time(nbf) and _is_time(iat)):
        return Flaw.CLAIM
    if exp + leeway <= now:
        return Flaw.EXPIRED
    if nbf - leeway > now or iat - leeway > now:
        return Flaw.NOT_YET
    return None


def _is_time(value: object) -> TypeGuard[int | float]:
    kind = type(value)  # JSON has no subclasses, and true is no number
    return (kind is int or kind is float) and -_FAR < value < _FAR  # type: ignore[operator]
