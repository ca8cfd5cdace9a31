"""Making signed tokens (JWS compact form, RFC 7515 section 7.1; JWT, RFC 7519).

Rule: what is the same in all tokens of a kind is encoded once: the header with the key, the first claims with whom and
what they are for. A token then costs its signature and little more. Private keys are shown to nobody: not in repr, not
in errors. They are made in the process that signs, never before a fork.
"""

import os
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from hashlib import sha256, sha384, sha512
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from tollhouse.wire.jose import PublicKey

__all__ = [
    "SIGNING",
    "Ids",
    "Minter",
    "Signer",
    "generate",
    "half_hash",
    "jwk_of",
    "signer_of",
    "thumbprint",
    "to_base64url",
]

SIGNING = ("ES256", "RS256", "EdDSA")
"""Algorithms that tokens are signed with here."""

_RSA_BITS = 2048
_URL = bytes.maketrans(b"+/", b"-_")
_HASHES = {"256": sha256, "384": sha384}
_POOL = 256
"""Ids made of one reading of the system's random numbers: 4 KiB."""

_encode = msgspec.json.Encoder().encode

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey


def to_base64url(content: bytes) -> bytes:
    """base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(content, newline=False).translate(_URL).rstrip(b"=")


def generate(algorithm: str) -> bytes:
    """A new private key for one of SIGNING, as PKCS #8 in DER. RSA takes some tenths of a second."""
    key: PrivateKey
    if algorithm == "ES256":
        key = generate_ec(SECP256R1())
    elif algorithm == "EdDSA":
        key = Ed25519PrivateKey.generate()
    elif algorithm == "RS256":
        key = generate_rsa(65537, _RSA_BITS)
    else:
        raise ValueError(f"tokens are signed with {', '.join(SIGNING)}")
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def jwk_of(key: PublicKey) -> dict[str, str]:
    """The members of a JWK that are the key itself (RFC 7518 section 6, RFC 8037 section 2), in the order of their
    names. Curves: P-256, P-384, P-521, Ed25519."""
    if isinstance(key, EllipticCurvePublicKey):
        point = key.public_numbers()
        size = (key.curve.key_size + 7) // 8
        return {"crv": f"P-{key.curve.key_size}", "kty": "EC", "x": _number(point.x, size), "y": _number(point.y, size)}
    if isinstance(key, Ed25519PublicKey):
        return {"crv": "Ed25519", "kty": "OKP", "x": to_base64url(key.public_bytes_raw()).decode()}
    numbers = key.public_numbers()
    return {"e": _number(numbers.e), "kty": "RSA", "n": _number(numbers.n)}


def _number(value: int, size: int = 0) -> str:
    return to_base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big")).decode()


def thumbprint(key: PublicKey) -> str:
    """SHA-256 of the key, in base64url (RFC 7638)."""
    return to_base64url(sha256(_encode(jwk_of(key))).digest()).decode()


class Ids:
    """Random names of 128 bits, as 22 characters of base64url: for `jti`. Made in store; a child process that was
    forked makes its own."""

    __slots__ = ("_pid", "_ready")

    def __init__(self) -> None:
        self._ready: list[str] = []
        self._pid = 0

    def __call__(self) -> str:
        if not self._ready or self._pid != os.getpid():
            random = os.urandom(16 * _POOL)
            self._ready = [to_base64url(random[at : at + 16]).decode() for at in range(0, 16 * _POOL, 16)]
            self._pid = os.getpid()
        return self._ready.pop()


class Signer:
    """One private key, and the name it is published under. private: PKCS #8 in DER. kid: default, the first 16
    characters of the key's thumbprint, so that one key has one name everywhere. Raises ValueError when the key does
    not fit the algorithm."""

    __slots__ = ("_key", "_segments", "alg", "kid", "public", "sign")

    def __init__(self, alg: str, private: bytes, kid: str = "") -> None:
        key = load_der_private_key(private, None)
        self.sign: Callable[[bytes], bytes]
        """The signature of some bytes, in the form that a JWS has it in."""
        if alg == "ES256" and isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
            self.sign = _es256(key)
        elif alg == "RS256" and isinstance(key, RSAPrivateKey):
            self.sign = _rs256(key)
        elif alg == "EdDSA" and isinstance(key, Ed25519PrivateKey):
            self.sign = key.sign
        else:
            raise ValueError(f"the key does not fit the algorithm {alg!r}")
        self.public: PublicKey = key.public_key()
        self.alg = alg
        self.kid = kid or thumbprint(self.public)[:16]
        self._segments: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"<Signer {self.alg} {self.kid}>"

    @property
    def jwk(self) -> dict[str, str]:
        """The public key as it is published."""
        return {**jwk_of(self.public), "alg": self.alg, "kid": self.kid, "use": "sig"}

    def header(self, typ: str) -> bytes:
        """The first segment of its tokens of one type, with the dot behind it."""
        segment = self._segments.get(typ)
        if segment is None:
            made = to_base64url(_encode({"alg": self.alg, "typ": typ, "kid": self.kid})) + b"."
            if len(self._segments) >= 16:  # types are constants of ours; whoever passes others pays for it
                return made
            segment = self._segments[typ] = made
        return segment

    def token(self, typ: str, payload: bytes) -> bytes:
        """The token of some claims, which are JSON already."""
        signed = self.header(typ) + b2a_base64(payload, newline=False).translate(_URL).rstrip(b"=")
        return signed + b"." + b2a_base64(self.sign(signed), newline=False).translate(_URL).rstrip(b"=")


def signer_of(pem: bytes, kid: str = "") -> Signer:
    """The Signer of a private key in PEM: ES256 for P-256, RS256 for RSA, EdDSA for Ed25519. Raises ValueError for
    another key, one with a password, or none; its text holds nothing of it."""
    wrong = "not a private key in PEM that tokens are signed with here: P-256, RSA or Ed25519, without a password"
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(wrong) from None
    algorithms = ((EllipticCurvePrivateKey, "ES256"), (RSAPrivateKey, "RS256"), (Ed25519PrivateKey, "EdDSA"))
    alg = next((name for kind, name in algorithms if isinstance(key, kind)), "")
    try:
        return Signer(alg, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), kid)
    except ValueError:
        raise ValueError(wrong) from None


def _es256(key: EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    make, algorithm = key.sign, ECDSA(SHA256())

    def sign(signed: bytes) -> bytes:
        der = make(signed, algorithm)  # SEQUENCE of the INTEGERs R and S, each with its length in one byte
        s = 4 + der[3]
        return der[4:s][-32:].rjust(32, b"\0") + der[s + 2 :][-32:].rjust(32, b"\0")

    return sign


def _rs256(key: RSAPrivateKey) -> Callable[[bytes], bytes]:
    make, padding, algorithm = key.sign, PKCS1v15(), SHA256()

    def sign(signed: bytes) -> bytes:
        return make(signed, padding, algorithm)

    return sign


class Minter:
    """Tokens of one type that differ in nothing but their times and their names. claims: the others, in the order they
    stand in. Raises ValueError for a claim that cannot stand in JSON."""

    __slots__ = ("_prefix", "_typ")

    def __init__(self, typ: str, claims: Mapping[str, Any]) -> None:
        self._typ = typ
        try:
            encoded = _encode(dict(claims))
        except (TypeError, ValueError, RecursionError, msgspec.EncodeError):
            raise ValueError("a claim has a value that cannot stand in a token") from None
        self._prefix = encoded[:-1] + (b"," if len(encoded) > 2 else b"")

    @property
    def size(self) -> int:
        """Bytes of the claims."""
        return len(self._prefix)

    def mint(self, signer: Signer, iat: int, exp: int, jti: str) -> bytes:
        """The token. iat, exp: unix seconds. jti: characters of base64url."""
        return signer.token(self._typ, b'%b"iat":%d,"exp":%d,"jti":"%b"}' % (self._prefix, iat, exp, jti.encode()))


def half_hash(alg: str, value: bytes) -> str:
    """`at_hash` and `c_hash` (OpenID Connect Core section 3.1.3.6): the left half of a token's or code's hash, by the
    hash of the id_token's algorithm, which may be any that is verified."""
    digest = _HASHES.get(alg[2:], sha512)(value).digest()
    return to_base64url(digest[: len(digest) // 2]).decode()
