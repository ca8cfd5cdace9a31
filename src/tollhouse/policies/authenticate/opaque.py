"""Tokens that cannot be read here: their issuer is asked what they are worth (RFC 7662).

Rule: a verdict is trusted for thirty seconds at most, and never beyond the token's expiry; one that was not active for
five. All who show the same token wait for one question. What is no token at all is not asked about, an answer that is
about one token alone leaves the others their answers, and no address can have so many questions on their way that none
is left for others. Who answers `active` has checked signature and time; audience and binding are checked here. Without
an answer there is no verdict: 503.
"""

import asyncio
import re
from collections.abc import Callable
from time import time
from typing import Annotated, Any, Self
from urllib.parse import urlencode, urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.places import Places
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.client import Client
from tollhouse.net.issuer_metadata import Metadata, same_origin
from tollhouse.policies.authenticate.claims import ClaimsSpec, Unfit, principal_of
from tollhouse.policies.authenticate.remembered import Entry, Refusals, Remembered
from tollhouse.policies.base import Parts
from tollhouse.wire.jose import Flaw
from tollhouse.wire.oauth import basic_credentials

__all__ = ["Introspection", "IntrospectionSpec"]

_INACTIVE = 5.0
_MAX_ANSWER = 64 << 10
_MOST_FLIGHTS, _FEW = 256, 16
_AGAIN = 5.0
_FAR = 1e15
_TOKEN = re.compile(rb"[!-~]{1,8192}")
_UNASKED = frozenset((401, 403, 404, 405, 408, 429))
"""What an issuer answers below 500 when it does not take questions of ours; the rest is about the token."""

_FORM = (b"content-type", b"application/x-www-form-urlencoded")
_JSON = (b"accept", b"application/json")


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("not a URL like https://idp.example.com/introspect; credentials are settings of their own")
    return value


class IntrospectionSpec(Spec):
    """Whom to ask about tokens that cannot be read."""

    url: Annotated[str, AfterValidator(_url)] | None = Field(
        default=None, description="the introspection endpoint; absent: as the metadata of `issuer` says"
    )
    issuer: str = Field(
        default="", max_length=2048, description="whose tokens they are; an answer with another `iss` is not believed"
    )
    client_id: str = Field(min_length=1, max_length=256, description="who asks, as the issuer knows the gateway")
    client_secret: SecretStr = Field(description="its secret: ${SECRET}")
    client_auth: str = Field(
        default="basic", pattern=r"^(basic|post)$", description="how the secret is sent: basic or post"
    )
    audiences: tuple[str, ...] = Field(
        default=(),
        description="`aud` must have one of these; absent: the URI of the MCP endpoint that is called, elsewhere the "
        "gateway's `public_url`",
    )
    without_audience: bool = Field(
        default=False, description="take tokens that name no audience; then any token of this issuer opens everything"
    )
    claims: ClaimsSpec = Field(
        default=ClaimsSpec(user=("username", "sub")), description="which members of the answer say who it is"
    )
    cache: Duration = Field(default=30.0, ge=0.0, le=30.0, description="how long a verdict is trusted")
    timeout: Duration = Field(
        default=2.0, gt=0.0, le=30.0, description="for an answer; without one the caller gets 503"
    )

    @model_validator(mode="after")
    def _place(self) -> Self:
        if self.url is None and not self.issuer.startswith(("https://", "http://")):
            raise ValueError("give `url`, or an `issuer` that is a URL, whose metadata names it")
        return self


class _Cache:
    """What is kept while the settings stay the same: verdicts, and questions on their way. current: see `Version`."""

    def __init__(self, parts: Parts, now: Callable[[], float]) -> None:
        self.current = object()
        self.seen = Remembered(parts.revocations, now)
        self.inactive = Refusals(now)
        self.flights: dict[bytes, asyncio.Task[dict[str, Any]]] = {}
        self.places = Places(_MOST_FLIGHTS, _FEW)  # by the address of who was first to show the token
        self.down_until = 0.0

    async def close(self) -> None:
        flights, self.flights = list(self.flights.values()), {}
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)


class Introspection:
    """Asks one issuer. now: unix seconds."""

    def __init__(self, spec: IntrospectionSpec, parts: Parts, now: Callable[[], float] = time) -> None:
        self._spec = spec
        self._now = now
        self._client: Client = parts.client
        self._revocations = parts.revocations
        self._endpoint = parts.resource or parts.public_url
        self._audiences = frozenset(spec.audiences or (self._endpoint,))
        self._metadata = Metadata(parts.client, spec.issuer) if spec.url is None else None
        self._name = spec.issuer or str(spec.url)
        self._cache: _Cache = parts.shared(
            ("introspection", spec.fingerprint()), lambda: _Cache(parts, now), _Cache.close
        )
        self.find = self._cache.seen.finder(self._endpoint)
        """Whom the token with a SHA-256 digest speaks for, if that was asked lately."""

    async def verify(self, token: bytes, digest: bytes, address: str = "") -> Principal | Flaw | Unfit:
        """Ask about a token, and remember the answer. address: who shows it, as limits know it. Raises Failure 503 when
        there is none."""
        cache = self._cache
        known = cache.seen.entry(digest)
        if known is not None and known.until > self._now():
            return self._at_this_endpoint(known)
        before = cache.inactive.find(digest, cache.current)
        if isinstance(before, Flaw | Unfit):
            return before
        if _TOKEN.fullmatch(token) is None:
            return Unfit.INACTIVE
        answer = await self._ask(token, digest, address)
        now = self._now()
        found = self._judged(answer, token, now)
        if not isinstance(found, Principal):
            if found is not Flaw.AUDIENCE:
                cache.inactive.put(digest, cache.current, found, _INACTIVE)
            return found
        epoch = self._revocations.epoch if self._revocations is not None else 0
        if self._revocations is not None and self._revocations.revoked(found):
            return Unfit.REVOKED
        if self._spec.cache:
            until = min(found.expires, now + self._spec.cache)
            entry = Entry(found, until, cache, cache.current, epoch, _audiences(answer), self._name)
            entry.admitted.add(self._endpoint)
            cache.seen.put(digest, entry)
        return found

    def _judged(self, answer: dict[str, Any], token: bytes, now: float) -> Principal | Flaw | Unfit:
        """What the answer means (RFC 7662 section 2.2)."""
        if answer.get("active") is not True:
            return Unfit.INACTIVE
        for name in ("exp", "nbf", "iat"):
            value = answer.get(name, 0)
            if not isinstance(value, int | float) or isinstance(value, bool) or not -_FAR < value < _FAR:
                return Flaw.CLAIM
        if "exp" in answer and answer["exp"] <= now:
            return Flaw.EXPIRED
        if self._spec.issuer and answer.get("iss", self._spec.issuer) != self._spec.issuer:
            return Flaw.ISSUER
        flaw = self._audience(_audiences(answer))
        if flaw is not None:
            return flaw
        found = principal_of(answer, self._spec.claims, issuer=self._name, source="opaque", token=token)
        if isinstance(found, Principal):
            found.issuer = self._name  # whom we have asked: who answers is nobody else's users
        return found

    def _audience(self, named: frozenset[str]) -> Flaw | None:
        if not named and self._spec.without_audience:
            return None
        return Flaw.AUDIENCE if named.isdisjoint(self._audiences) else None

    def _at_this_endpoint(self, entry: Entry) -> Principal | Flaw:
        flaw = self._audience(entry.audiences)
        if flaw is not None:
            return flaw
        entry.admitted.add(self._endpoint)
        return entry.principal

    async def _ask(self, token: bytes, digest: bytes, address: str) -> dict[str, Any]:
        cache = self._cache
        flight = cache.flights.get(digest)
        if flight is None:
            if self._now() < cache.down_until or not cache.places.take(address):
                raise self._unavailable("too many questions are on their way, or the last one failed")
            flight = asyncio.get_running_loop().create_task(self._fly(token))
            cache.flights[digest] = flight

            def landed(done: "asyncio.Task[dict[str, Any]]") -> None:
                cache.places.give(address)
                if cache.flights.get(digest) is done:
                    del cache.flights[digest]
                if not done.cancelled():
                    done.exception()  # those who wait have it, if there are any left

            flight.add_done_callback(landed)
        try:
            # Shielded: a client that leaves must not take the answer from the others who wait for it.
            return await asyncio.shield(flight)
        except Failure as failure:
            raise failure.copy() from None

    async def _fly(self, token: bytes) -> dict[str, Any]:
        spec = self._spec
        fields = {"token": token.decode("latin-1"), "token_type_hint": "access_token"}
        headers = [_FORM, _JSON]
        secret = spec.client_secret.get_secret_value()
        if spec.client_auth == "post":
            fields |= {"client_id": spec.client_id, "client_secret": secret}
        else:
            headers.append((b"authorization", basic_credentials(spec.client_id, secret)))
        is_about_it = False
        try:
            url, guarded = spec.url, False
            if url is None:
                assert self._metadata is not None
                url = await self._metadata.endpoint("introspection_endpoint")
                guarded = not same_origin(url, spec.issuer)
            fetched = await self._client.fetch(
                url,
                method="POST",
                headers=headers,
                body=urlencode(fields).encode("ascii"),
                timeout=spec.timeout,
                limit=_MAX_ANSWER,
                guarded=guarded,
                redirects=0,
            )
            is_about_it = 400 <= fetched.status < 500 and fetched.status not in _UNASKED
            if fetched.status != 200:
                raise ValueError(f"it answered {fetched.status}")
            answer = decode(fetched.body)
            if not isinstance(answer, dict):
                raise ValueError("its answer is not a JSON object")
        except (Failure, ValueError) as error:
            if not is_about_it:
                self._cache.down_until = self._now() + _AGAIN / 10
            detail = (error.detail or error.message) if isinstance(error, Failure) else str(error)
            raise self._unavailable(detail) from None
        return answer

    def _unavailable(self, detail: str) -> Failure:
        return Failure(
            503,
            Reason.JWT_AUTH,
            "the token cannot be checked: its issuer does not answer; try again later",
            detail=f"introspection at {self._name.partition('?')[0]}: {detail}",
            retry_after=_AGAIN,
        )


def _audiences(answer: dict[str, Any]) -> frozenset[str]:
    named = answer.get("aud")
    listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return frozenset(name for name in listed if isinstance(name, str))
