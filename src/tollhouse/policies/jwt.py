"""JSON Web Tokens from configured issuers (RFC 7519, RFC 9068), and who they speak for.

Rule: a token is checked once and then remembered by its SHA-256 digest, until it expires or for five minutes, so that
a key that its issuer withdraws stops working soon. What costs little comes first: form, issuer, claims; the signature
last. Tokens that fail are not remembered.
"""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from itertools import islice
from time import time
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import Discriminator, Field, Tag, field_validator

from tollhouse.core.call import Principal
from tollhouse.core.spec import Duration, File, Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.jwks import KeySource, from_file, from_url
from tollhouse.wire.jose import DEFAULT_ALGORITHMS, Flaw, Keys, Token, check_claims, parse, verify

__all__ = ["ClaimsSpec", "Issuers", "JwtSpec"]

_REMEMBERED = 10_000
_LONGEST = 300.0
"""Seconds a verdict is trusted at most."""

_LONGEST_CLAIM = 256
_LARGEST = 10**_LONGEST_CLAIM  # of a number that names somebody; writing out longer ones fails

Algorithm = Literal["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA", "Ed25519"]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "inline"
    return "url" if isinstance(value, str) and value.startswith(("http://", "https://")) else "file"


Jwks = Annotated[
    Annotated[str, Tag("url")] | Annotated[File, Tag("file")] | Annotated[dict[str, Any], Tag("inline")],
    Discriminator(_kind),
]
Claim = str | tuple[str, ...]


class ClaimsSpec(Spec):
    """Which claims say what. A name, or several of which the first that is there counts; `a.b` is b in a."""

    user: Claim = Field(default="sub")
    org: Claim = Field(default=("org", "org_id", "tid"))
    agent: Claim = Field(default=("act.sub", "client_id", "azp"), description="the program that acts for the user")
    email: Claim = Field(default="email")
    groups: Claim = Field(default=("groups", "roles"))


class JwtSpec(Spec):
    """An issuer whose tokens are accepted."""

    issuer: str = Field(min_length=1, max_length=2048, description="as in the tokens' claim iss, letter by letter")
    audiences: tuple[str, ...] = Field(min_length=1, description="the tokens' claim aud must have one of these")
    jwks: Jwks = Field(description="the issuer's public keys: a URL, a file, or a JWK Set written here")
    algorithms: tuple[Algorithm, ...] = Field(
        default=("ES256", "RS256", "EdDSA"), min_length=1, description="of signatures; only asymmetric ones exist here"
    )
    leeway: Duration = Field(default=60.0, ge=0.0, le=600.0, description="how far clocks may differ")
    typ: tuple[str, ...] | None = Field(
        default=None, description="the tokens' header typ; default: JWT, at+jwt, or none at all"
    )
    claims: ClaimsSpec = Field(default=ClaimsSpec(), description="which claims say who it is")
    refresh: Duration = Field(default=300.0, ge=10.0, description="how often the keys are read again")

    @field_validator("jwks")
    @classmethod
    def _jwks(cls, value: Any) -> Any:
        if isinstance(value, dict):
            Keys.parse(msgspec.json.encode(value))
        elif _kind(value) == "url" and "@" in urlsplit(value).netloc:
            raise ValueError("a URL of keys has no user and password; keys are public")
        return value


assert set(DEFAULT_ALGORITHMS) == set(JwtSpec.model_fields["algorithms"].default)


class _Issuer:
    """One issuer: its Spec and its keys."""

    __slots__ = ("audiences", "keys", "spec", "types")

    def __init__(self, spec: JwtSpec, keys: Callable[[Token], Awaitable[Keys]]) -> None:
        self.spec = spec
        self.keys = keys
        self.audiences = frozenset(spec.audiences)
        self.types = None if spec.typ is None else frozenset(_typ(value) for value in spec.typ)


class Issuers:
    """All issuers of one policy, and the tokens seen. Raises ValueError when two are the same, or when a file holds no
    key set."""

    __slots__ = ("_issuers", "_now", "_seen")

    def __init__(self, specs: Sequence[JwtSpec], parts: Parts, now: Callable[[], float] = time) -> None:
        self._issuers: dict[str, _Issuer] = {}
        self._now = now
        documents: list[str] = []
        for spec in specs:
            if spec.issuer in self._issuers:
                raise ValueError(f"the issuer {spec.issuer!r} is named twice; put its audiences in one entry")
            source, document = _source(spec, parts)
            self._issuers[spec.issuer] = _Issuer(spec, source)
            documents.append(document)
        # The key is the whole configuration: a token accepted under another one is not accepted for that.
        identity = (*(spec.fingerprint() for spec in specs), *documents)
        self._seen: dict[bytes, tuple[float, Principal]] = parts.shared(("verified tokens", identity), _no_tokens)

    def __len__(self) -> int:
        return len(self._issuers)

    def remembered(self, digest: bytes) -> Principal | None:
        """Whom the token with this SHA-256 digest speaks for, if it was verified lately and has not expired."""
        seen = self._seen.get(digest)
        if seen is None or seen[0] <= self._now():
            return None
        return seen[1]

    async def verify(self, token: bytes, digest: bytes) -> Principal | Flaw:
        """Check a token and remember whom it speaks for. Raises Failure 503 when its issuer's keys cannot be had."""
        parsed = parse(token)
        if isinstance(parsed, Flaw):
            return parsed
        named = parsed.claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            return Flaw.ISSUER
        spec, now = issuer.spec, self._now()
        flaw = check_claims(
            parsed, issuer=spec.issuer, audiences=issuer.audiences, now=now, leeway=spec.leeway, types=issuer.types
        )
        if flaw is not None:
            return flaw
        if parsed.algorithm not in spec.algorithms:
            return Flaw.ALGORITHM  # before its keys are asked for
        flaw = verify(parsed, await issuer.keys(parsed), spec.algorithms)
        if flaw is not None:
            return flaw
        principal = _principal(spec, parsed.claims)
        if not isinstance(principal, Flaw):
            self._remember(digest, min(principal.expires, now + _LONGEST), principal)
        return principal

    def _remember(self, digest: bytes, until: float, principal: Principal) -> None:
        seen = self._seen
        if len(seen) >= _REMEMBERED:
            # The oldest tenth, at once: popping them one by one would walk over the holes of all before.
            for old in list(islice(seen, _REMEMBERED // 10)):
                del seen[old]
        seen.pop(digest, None)
        seen[digest] = (until, principal)


def _no_tokens() -> dict[bytes, tuple[float, Principal]]:
    return {}


def _typ(value: str) -> str:
    return value.lower().removeprefix("application/")


def _source(spec: JwtSpec, parts: Parts) -> tuple[Callable[[Token], Awaitable[Keys]], str]:
    """Where the keys come from, and the digest of the file they were in: another content is another source."""
    jwks, digest = spec.jwks, ""
    if isinstance(jwks, dict):
        fixed = Keys.parse(msgspec.json.encode(jwks))

        async def same(token: Token) -> Keys:
            return fixed

        return same, digest
    if _kind(jwks) == "url":
        load, keys = from_url(parts.client, jwks), None
    else:
        try:
            with open(jwks, "rb") as file:  # noqa: PTH123 - the configuration is being built
                document = file.read(1 << 20)
            keys, digest = Keys.parse(document), sha256(document).hexdigest()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot use the keys in {jwks!r}: {error}") from None
        load = from_file(jwks)
    source: KeySource = parts.shared(
        ("keys", jwks, spec.refresh, digest), lambda: KeySource(load, jwks, spec.refresh, keys), KeySource.close
    )
    return source.keys, digest


def _principal(spec: JwtSpec, claims: dict[str, Any]) -> Principal | Flaw:
    """Whom verified claims speak for."""
    names = spec.claims
    user, subject = _text(claims, names.user), claims.get("sub")
    if not isinstance(subject, str | None) or not (subject or user):
        return Flaw.SUBJECT  # somebody nobody could name in a log or a limit
    name = subject or user
    if len(name) > _LONGEST_CLAIM or len(user) > _LONGEST_CLAIM:
        return Flaw.SUBJECT  # cut, it would be somebody else's as well
    return Principal(
        f"jwt:{spec.issuer}|{name}",
        source="jwt",
        user=user,
        org=_text(claims, names.org)[:_LONGEST_CLAIM],
        agent=_text(claims, names.agent)[:_LONGEST_CLAIM],
        email=_text(claims, names.email)[:_LONGEST_CLAIM],
        groups=_texts(claims, names.groups),
        claims=claims,
        expires=claims["exp"] + spec.leeway,
    )


def _find(claims: dict[str, Any], names: Claim) -> Any:
    for name in (names,) if isinstance(names, str) else names:
        if name in claims:  # names may be URLs, with dots of their own
            return claims[name]
        value: Any = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _text(claims: dict[str, Any], names: Claim) -> str:
    value = _find(claims, names)
    if isinstance(value, str):
        return value
    number = isinstance(value, int) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    return str(value) if number else ""


def _texts(claims: dict[str, Any], names: Claim) -> tuple[str, ...]:
    value = _find(claims, names)
    if isinstance(value, str):
        return (value,)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()
