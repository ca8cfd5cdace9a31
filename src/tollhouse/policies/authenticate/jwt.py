"""JSON Web Tokens from configured issuers (RFC 7519, RFC 9068).

Rule: a token is checked once, and then remembered by its digest (`remembered`). What costs little comes first: form,
issuer, claims; the signature last. `iss` is read before the signature only to choose among the issuers that are
configured, and is checked on the same parsed claims. A token is good for the endpoints that its `aud` names, and for no
other.
"""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from time import time
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import msgspec
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.spec import Duration, File, Spec
from tollhouse.net.issuer_metadata import Metadata, from_metadata
from tollhouse.net.jwks import FixedKeys, KeySource, Load, from_file, from_url
from tollhouse.policies.authenticate.claims import ClaimsSpec, Unfit, principal_of
from tollhouse.policies.authenticate.idp import IdpKind, audiences_of, issuers_of, names_of
from tollhouse.policies.authenticate.remembered import LONGEST, Entry, Refusals, Remembered, Version
from tollhouse.policies.base import OwnIssuer, Parts
from tollhouse.wire.jose import DEFAULT_ALGORITHMS, Flaw, Keys, Token, check_claims, parse, verify

__all__ = ["Issuers", "JwtSpec"]

OUR_LEEWAY = 5.0
"""Seconds that the clocks of gateway and own issuer may differ."""

Algorithm = Literal["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA", "Ed25519"]

_LASTING = frozenset((Flaw.SIGNATURE, Flaw.SUBJECT, Unfit.ACTORS, Unfit.CONFIRMATION, Unfit.NAME))
"""What will be wrong with a token as long as its issuer's keys are the same, and cost a signature check to find out."""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "inline"
    return "url" if isinstance(value, str) and value.startswith(("http://", "https://")) else "file"


Jwks = Annotated[
    Annotated[str, Tag("url")] | Annotated[File, Tag("file")] | Annotated[dict[str, Any], Tag("inline")],
    Discriminator(_kind),
]


class JwtSpec(Spec):
    """An issuer whose tokens are accepted."""

    issuer: str = Field(min_length=1, max_length=2048, description="as in the tokens' claim iss, letter by letter")
    kind: IdpKind = Field(
        default="generic",
        description="the identity provider, where it has ways of its own: entra, okta, auth0, keycloak",
    )
    audiences: tuple[str, ...] = Field(
        default=(),
        description="the tokens' claim aud must have one of these; absent: the URI of the MCP endpoint that is called, "
        "elsewhere the gateway's `public_url`",
    )
    jwks: Jwks | None = Field(
        default=None, description="the issuer's public keys: a URL, a file, or a JWK Set written here"
    )
    discovery: bool = Field(
        default=False, description="find the keys by the issuer's metadata document (RFC 8414, OpenID Connect)"
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("ES256", "RS256", "EdDSA"), min_length=1, description="of signatures; only asymmetric ones exist here"
    )
    leeway: Duration = Field(default=30.0, ge=0.0, le=600.0, description="how far clocks may differ")
    typ: tuple[str, ...] | None = Field(
        default=None, description="the tokens' header typ; default: JWT, at+jwt, or none at all"
    )
    claims: ClaimsSpec = Field(
        default=ClaimsSpec(), description="which claims say who it is; default: as `kind` has it"
    )
    refresh: Duration | None = Field(
        default=None,
        ge=10.0,
        description="how often the keys are read again; default: as their answer says, 5m where it does not",
    )

    @field_validator("jwks")
    @classmethod
    def _jwks(cls, value: Any) -> Any:
        if isinstance(value, dict):
            Keys.parse(msgspec.json.encode(value))
        elif value is not None and _kind(value) == "url" and "@" in urlsplit(value).netloc:
            raise ValueError("a URL of keys has no user and password; keys are public")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks is None) != self.discovery:
            raise ValueError("give either `jwks` or `discovery: true`")
        if self.discovery and not self.issuer.startswith(("https://", "http://")):
            raise ValueError("`discovery` needs an issuer that is a URL; give `jwks` instead")
        if "audiences" in self.model_fields_set and not self.audiences:
            raise ValueError("an empty `audiences` would accept no token; name some, or leave it out")
        if self.refresh is not None and isinstance(self.jwks, dict):
            raise ValueError("`refresh` has no effect on keys that are written here; leave it out")
        return self


assert set(DEFAULT_ALGORITHMS) == set(JwtSpec.model_fields["algorithms"].default)


class _Own:
    """The keys of the issuer in this process, as they are now."""

    __slots__ = ("_keys", "keys")

    def __init__(self, own: OwnIssuer) -> None:
        self._keys = own.keys
        self.keys = own.find

    @property
    def current(self) -> Keys:
        return self._keys()


class _Issuer:
    """One issuer. name: as it stands in a Principal's id. audiences: that every endpoint accepts; none: each endpoint
    its own URI."""

    __slots__ = ("algorithms", "audiences", "keys", "leeway", "name", "names", "types", "version")

    def __init__(
        self,
        name: str,
        version: Version,
        keys: Callable[[Token], Awaitable[Keys]],
        *,
        audiences: frozenset[str],
        algorithms: frozenset[str],
        leeway: float,
        types: frozenset[str] | None,
        names: ClaimsSpec,
    ) -> None:
        self.name = name
        self.version = version
        self.keys = keys
        self.audiences = audiences
        self.algorithms = algorithms
        self.leeway = leeway
        self.types = types
        self.names = names


class Issuers:
    """All issuers of one policy, and the tokens seen. own: of this process, None for none. Raises ValueError when two
    are the same, or when a file holds no key set."""

    __slots__ = ("_endpoint", "_here", "_issuers", "_now", "_refused", "_revocations", "_seen", "find")

    def __init__(
        self, specs: Sequence[JwtSpec], parts: Parts, now: Callable[[], float] = time, own: OwnIssuer | None = None
    ) -> None:
        self._issuers: dict[str, _Issuer] = {}
        self._now = now
        self._revocations = parts.revocations
        self._endpoint = parts.resource or parts.public_url
        self._here = frozenset((self._endpoint,))
        if not self._endpoint and (own is not None or not all(spec.audiences for spec in specs)):
            raise ValueError("`audiences` is needed: nothing here has a URI that could be the audience")
        documents: list[str] = []
        if own is not None:
            source = _Own(own)
            self._issuers[own.url] = _Issuer(
                own.url,
                source,
                source.keys,
                audiences=frozenset(),
                algorithms=frozenset(own.algorithms),
                leeway=OUR_LEEWAY,
                types=frozenset(("at+jwt",)),
                names=ClaimsSpec(),
            )
            documents.append(own.url)
        for spec in specs:
            issuer, document = _issuer(spec, parts)
            for name in issuers_of(spec.kind, spec.issuer):
                if own is not None and name == own.url:
                    raise ValueError(f"the issuer {name!r} is the gateway's own, whose tokens are accepted already")
                if name in self._issuers:
                    raise ValueError(f"the issuer {name!r} is named twice; put its audiences in one entry")
                self._issuers[name] = issuer
            documents.append(document)
        # The key is the whole configuration: a token accepted under another one is not accepted for that.
        identity = (*(spec.fingerprint() for spec in specs), *documents)
        self._seen: Remembered = parts.shared(
            ("verified tokens", identity), lambda: Remembered(parts.revocations, self._now)
        )
        self.find = self._seen.finder(self._endpoint)
        """Whom the token with a SHA-256 digest speaks for, if it was verified lately, is still good, and was shown at
        this endpoint before."""
        self._refused: Refusals = parts.shared(("refused tokens", identity), lambda: Refusals(self._now))

    def __len__(self) -> int:
        return len(self._issuers)

    def speaks_for(self, token: bytes) -> bool:
        """Whether one of these issuers is named as the token's."""
        parsed = parse(token)
        return not isinstance(parsed, Flaw) and parsed.claims.get("iss") in self._issuers

    async def verify(self, token: bytes, digest: bytes) -> Principal | Flaw | Unfit:
        """Check a token and remember whom it speaks for. Raises Failure 503 when its issuer's keys cannot be had."""
        known = self._seen.entry(digest)
        if known is not None and known.until > self._now() and known.version.current is known.seen:
            return self._at_this_endpoint(known)
        parsed = parse(token)
        if isinstance(parsed, Flaw):
            return parsed
        named = parsed.claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            return Flaw.ISSUER
        now = self._now()
        flaw = check_claims(
            parsed,
            issuer=str(named),
            audiences=issuer.audiences or self._here,
            now=now,
            leeway=issuer.leeway,
            types=issuer.types,
        )
        if flaw is not None:
            return flaw
        if parsed.algorithm not in issuer.algorithms:
            return Flaw.ALGORITHM  # before its keys are asked for
        before = self._refused.find(digest, issuer.version.current)
        if isinstance(before, Flaw | Unfit):
            return before
        keys = await issuer.keys(parsed)
        epoch = self._revocations.epoch if self._revocations is not None else 0
        found = verify(parsed, keys, issuer.algorithms) or self._speaks(issuer, parsed, token)
        if not isinstance(found, Principal):
            if found in _LASTING:
                self._refused.put(digest, keys, found)
            return found
        if self._revocations is not None and self._revocations.revoked(found):
            return Unfit.REVOKED
        entry = Entry(
            found,
            min(found.expires, now + LONGEST),
            issuer.version,
            keys,
            epoch,
            _audiences(parsed.claims),
            issuer.name,
        )
        entry.admitted.add(self._endpoint)
        self._seen.put(digest, entry)
        return found

    def _at_this_endpoint(self, entry: Entry) -> Principal | Flaw:
        """A token that is good, shown here for the first time."""
        issuer = next(issuer for issuer in self._issuers.values() if issuer.name == entry.issuer)
        if entry.audiences.isdisjoint(issuer.audiences or self._here):
            return Flaw.AUDIENCE
        entry.admitted.add(self._endpoint)
        return entry.principal

    @staticmethod
    def _speaks(issuer: _Issuer, parsed: Token, token: bytes) -> Principal | Flaw | Unfit:
        return principal_of(
            parsed.claims, issuer.names, issuer=issuer.name, source="jwt", token=token, leeway=issuer.leeway
        )


def _audiences(claims: dict[str, Any]) -> frozenset[str]:
    named = claims.get("aud")
    return frozenset((named,) if isinstance(named, str) else named or ())


def _issuer(spec: JwtSpec, parts: Parts) -> tuple[_Issuer, str]:
    """The issuer, and the digest of the file that its keys were in: another content is another source."""
    source, document = _source(spec, parts)
    issuer = _Issuer(
        spec.issuer,
        source,
        source.keys,
        audiences=audiences_of(spec.kind, spec.audiences),
        algorithms=frozenset(spec.algorithms),
        leeway=spec.leeway,
        types=None if spec.typ is None else frozenset(_typ(value) for value in spec.typ),
        names=names_of(spec.kind, spec.claims),
    )
    return issuer, document


def _typ(value: str) -> str:
    return value.lower().removeprefix("application/")


def _source(spec: JwtSpec, parts: Parts) -> tuple[KeySource | FixedKeys, str]:
    jwks, digest = spec.jwks, ""
    if isinstance(jwks, dict):
        fixed: FixedKeys = parts.shared(
            ("written keys", spec.fingerprint()), lambda: FixedKeys(Keys.parse(msgspec.json.encode(jwks)))
        )
        return fixed, digest
    keys: Keys | None = None
    load: Load
    if jwks is None:
        where = spec.issuer
        load = from_metadata(parts.client, Metadata(parts.client, spec.issuer))
    elif _kind(jwks) == "url":
        where, load = jwks, from_url(parts.client, jwks)
    else:
        where, load = jwks, from_file(jwks)
        try:
            with open(jwks, "rb") as file:  # noqa: PTH123 - the configuration is being built
                document = file.read(1 << 20)
            keys, digest = Keys.parse(document), sha256(document).hexdigest()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot use the keys in {jwks!r}: {error}") from None
    source: KeySource = parts.shared(
        ("keys", where, spec.discovery, spec.refresh, digest),
        lambda: KeySource(load, where, spec.refresh, keys, told=parts.keys_read),
        KeySource.close,
    )
    return source, digest
