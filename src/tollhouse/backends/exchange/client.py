"""The client of an issuer elsewhere: it is asked once for what several want at the same time.

Rule: who asks first does not take the answer from the others by leaving, a failure is told to those who wait and is not
remembered, and an issuer that does not answer is left alone for a moment. What it is asked with goes to its token
endpoint and nowhere else.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal
from urllib.parse import urlencode

from tollhouse.backends.exchange.asked import (
    ACCESS_TOKEN,
    JWT,
    Asking,
    ExchangedToken,
    Subject,
    Unusable,
    forbidden,
    is_ours,
    read_answer,
    refusal,
)
from tollhouse.backends.exchange.entra_obo import EntraObo
from tollhouse.backends.exchange.keycloak import Keycloak
from tollhouse.backends.exchange.own_token import OwnToken
from tollhouse.backends.exchange.rfc8693 import Rfc8693
from tollhouse.backends.exchange.who import Proof, by_key, by_secret
from tollhouse.backends.retry_after import retry_after
from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.core.identity import Target
from tollhouse.net.client import TLS, Client, Origin, Pool, Until
from tollhouse.net.issuer_metadata import metadata_urls, read_metadata, usable_endpoint

__all__ = ["Elsewhere", "ElsewhereSettings"]

log = logging.getLogger("tollhouse.backends.exchange")

Kind = Literal["rfc8693", "keycloak", "entra_obo"]

_TIMEOUT = 2.0  # seconds for one exchange, what has to be found out first included
_PAUSE = 0.2  # seconds that an issuer is left alone after it has failed
_LONGEST_PAUSE = 30.0
_MOST_FLIGHTS = 1024
_EACH = 64  # of them, for one caller: who calls ever more tools leaves room for others
_MAX_ANSWER = 1 << 16
_METADATA_FOR = 3600.0
_QUIET = 60.0
_OF_ALL = frozenset((401, 408, 429))
"""Statuses that say nothing of the caller: our own credential, the issuer's load."""


@dataclass(frozen=True, slots=True)
class ElsewhereSettings:
    """issuer: its URL. token_endpoint: "" to find it by the issuer's metadata. basic: the secret goes in the
    Authorization header, else in the form. ca: PEM file of roots, "" for the system's. key, kid: in the place of a
    secret, a private key in PEM, and its name there. to_endpoint: what is signed with it is for the token endpoint and
    not for the issuer. actor: a token of our own from there says who acts (`actor_token`)."""

    issuer: str
    kind: Kind
    token_endpoint: str
    client_id: str
    client_secret: str = field(repr=False)
    basic: bool = True
    ca: str = ""
    key: bytes = field(default=b"", repr=False)
    kid: str = ""
    to_endpoint: bool = False
    actor: bool = False


class Elsewhere:
    """An issuer elsewhere (`core.identity.Exchanger`). vouch: a statement of ours (a JWT) about a caller who has shown
    no token, None where nobody can make one. now: unix seconds. Raises OriginError for what cannot be reached or a `ca`
    that cannot be used, ValueError for a key that cannot."""

    version = 0

    def __init__(
        self,
        settings: ElsewhereSettings,
        client: Client,
        vouch: Callable[[Principal], bytes] | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        self._settings = settings
        self._client = client
        self._vouch = vouch
        self._now = now
        self._tls = TLS(ca=settings.ca) if settings.ca else None
        if self._tls is not None:
            self._tls.context()  # a mistake shows when it is configured
        Origin.of(settings.issuer)
        self._asking = _asking(settings)
        self._proof = _proof(settings)
        self._actor = OwnToken(self._now) if settings.actor else None
        self._place: tuple[Pool, bytes] | None = None
        self._endpoint = settings.token_endpoint
        self._found_at = -1e18
        if settings.token_endpoint:
            self._place = self._placed(settings.token_endpoint)
            self._found_at = 1e18
        self._flights: dict[tuple[bytes | Principal, Target], asyncio.Task[ExchangedToken]] = {}
        self._each: dict[bytes | Principal, int] = {}
        self._not_before = 0.0
        self._told = -_QUIET
        self._is_down = False

    async def exchanged(self, principal: Principal, target: Target) -> ExchangedToken:
        """Raises Failure: 401, 403, 502 and 503."""
        claims = principal.claims if principal.source != "key" else ()  # of a key they are its metadata
        if not target.delegation and (principal.actors or "act" in claims or "may_act" in claims):
            raise forbidden("a token that names who acts for its user is not exchanged for one that does not")
        # Who shows no token is asked for by himself: an id does not say all that is vouched for.
        key = (principal.token or principal, target)
        flight = self._flights.get(key)
        if flight is None:
            wait, own = self._not_before - monotonic(), self._each.get(key[0], 0)
            if wait > 0.0 or len(self._flights) >= _MOST_FLIGHTS or own >= _EACH:
                raise _unavailable("it has failed a moment ago, or too much is asked of it", max(wait, _PAUSE))
            self._each[key[0]] = own + 1
            flight = self._flights[key] = asyncio.get_running_loop().create_task(self._fly(key, principal, target))
            flight.add_done_callback(_seen)
        await asyncio.wait((flight,))  # who leaves does not end it for the others
        if flight.cancelled():
            raise _unavailable("its configuration is not in use any more", _PAUSE)
        failure = flight.exception()
        if isinstance(failure, Failure):  # each waiter its own: a raised one refers back to who raises it
            raise failure.copy()
        return flight.result()

    async def close(self) -> None:
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)
        if self._place is not None:
            self._place[0].retire()

    async def _fly(self, key: tuple[bytes | Principal, Target], principal: Principal, target: Target) -> ExchangedToken:
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await self._ask(principal, target)
        except TimeoutError:
            raise self._down(f"no answer within {_TIMEOUT:g} seconds") from None
        except Unusable as why:
            raise self._down(f"its metadata cannot be used: {why}") from None
        except Failure as failure:
            if failure.reason in (Reason.UPSTREAM_FAILURE, Reason.TIMEOUT, Reason.NO_HEALTHY_BACKEND):
                raise self._down(f"{failure.message}: {failure.detail}", failure.retry_after) from None
            raise failure.with_traceback(None) from None
        finally:
            del self._flights[key]
            if self._each[key[0]] == 1:
                del self._each[key[0]]
            else:
                self._each[key[0]] -= 1

    async def _ask(self, principal: Principal, target: Target) -> ExchangedToken:
        subject = self._subject(principal)
        fields = self._asking.form(principal, target, subject)
        if self._actor is not None and target.delegation:
            fields |= {"actor_token": await self._own(self._actor), "actor_token_type": ACCESS_TOKEN}
        asked = self._now()
        status, answer, headers = await self._post(fields)
        if status == 200:
            try:
                token = read_answer(self._asking, principal, target, answer, asked)
            except Unusable as why:
                raise self._useless(f"its answer cannot be used: {why}") from None
            if self._is_down:
                self._is_down = False
                log.info("issuer %s: tokens come again", self._settings.issuer)
            return token
        if self._actor is not None:
            self._actor.forget()  # it may be that one which is not taken
        failure = refusal(answer, status) if 400 <= status < 500 and status != 429 else None
        if failure is not None:
            if log.isEnabledFor(logging.INFO):
                log.info("issuer %s: %s", self._settings.issuer, failure.detail)
            raise failure
        if 400 <= status < 500 and status not in _OF_ALL and not is_ours(answer):
            raise self._useless(f"it answered with status {status}")
        raise self._down(f"it answered with status {status}", retry_after(headers))

    async def _post(self, fields: dict[str, str]) -> tuple[int, bytes, Headers]:
        """Ask the token endpoint, as who we are: status, body and header fields. Raises Failure, Unusable."""
        place = self._place
        pool, head = place if place is not None and monotonic() < self._found_at else await self._find()
        lines, who = self._proof(self._endpoint, self._now())
        body = urlencode({**fields, **who}).encode("ascii")
        exchange = await pool.exchange(
            b"%b%bcontent-length: %d\r\n\r\n" % (head, lines, len(body)),
            body,
            method=b"POST",
            until=Until.WHOLE,
            deadline=monotonic() + _TIMEOUT,
            first_byte=_TIMEOUT,
            idle=_TIMEOUT,
            connect=_TIMEOUT / 2,
            limit=_MAX_ANSWER,
            resend=True,  # one token more does no harm
        )
        return exchange.status, await exchange.read(_MAX_ANSWER), exchange.headers

    async def _own(self, actor: OwnToken) -> str:
        """Our own token, got once for all who wait. Raises Failure 503."""
        async with actor.turn:
            if actor.current:
                return actor.current
            if self._not_before > monotonic():
                raise _unavailable("it has failed a moment ago", self._not_before - monotonic())
            asked = self._now()
            status, answer, headers = await self._post({"grant_type": "client_credentials"})
            if status != 200:
                raise self._down(f"we get no token of our own: it answered with status {status}", retry_after(headers))
            try:
                return actor.keep(answer, asked)
            except Unusable as why:
                raise self._down(f"we get no token of our own: {why}") from None

    def _subject(self, principal: Principal) -> Subject:
        if principal.token:
            return Subject(principal.token.decode("latin-1"), ACCESS_TOKEN)
        if self._vouch is None:
            raise forbidden("a caller without a token of his own gets none for this server")
        return Subject(self._vouch(principal).decode("ascii"), JWT)

    def _useless(self, why: str) -> Failure:
        """For this caller. Others may get an answer that can be used: what one of them can bring about keeps nobody
        else from asking."""
        now = monotonic()
        if now - self._told > _QUIET:
            self._told = now
            log.warning("issuer %s: %s; a caller gets no token from it", self._settings.issuer, why)
        return _unavailable(why, _PAUSE)

    def _down(self, why: str, wait: float | None = None) -> Failure:
        pause = min(max(wait or 0.0, _PAUSE), _LONGEST_PAUSE)
        self._not_before = monotonic() + pause
        if not self._is_down:
            self._is_down = True
            log.warning("issuer %s: %s; no tokens come from it", self._settings.issuer, why)
        return _unavailable(why, pause)

    # ---- where
    def _placed(self, url: str) -> tuple[Pool, bytes]:
        origin, path = Origin.of(url, tls=self._tls)
        head = (
            b"POST %b HTTP/1.1\r\nhost: %b\r\naccept: application/json\r\n"
            b"content-type: application/x-www-form-urlencoded\r\nuser-agent: tollhouse\r\n" % (path, origin.authority)
        )
        return self._client.pool(origin), head

    async def _find(self) -> tuple[Pool, bytes]:
        """The token endpoint, as the issuer's metadata says (RFC 8414 section 3, OpenID Connect Discovery), looked for
        again each hour. The last one stays where it does not say any more."""
        known = self._place
        try:
            endpoint = await self._discovered()
        except (Failure, Unusable):
            if known is None:
                raise
            self._found_at = monotonic() + _PAUSE
            return known
        self._found_at = monotonic() + _METADATA_FOR
        if known is not None and endpoint == self._endpoint:
            return known
        self._place, self._endpoint = self._placed(endpoint), endpoint
        if known is not None:
            known[0].retire()
        return self._place

    async def _discovered(self) -> str:
        issuer = self._settings.issuer
        urls = metadata_urls(issuer)
        try:
            fields = await read_metadata(self._client, issuer, urls, timeout=_TIMEOUT, tls=self._tls)
            endpoint = usable_endpoint(fields, issuer, "token_endpoint")
            Origin.of(endpoint)
            return endpoint
        except ValueError as error:
            raise Unusable(f"{error}; write its `token_endpoint`") from None


def _asking(settings: ElsewhereSettings) -> Asking:
    if settings.kind == "entra_obo":
        return EntraObo(settings.client_id)
    return Keycloak() if settings.kind == "keycloak" else Rfc8693()


def _proof(settings: ElsewhereSettings) -> Proof:
    if settings.key:
        audience = "" if settings.to_endpoint else settings.issuer
        return by_key(settings.client_id, settings.key, settings.kid, audience)
    return by_secret(settings.client_id, settings.client_secret, basic=settings.basic)


def _seen(flight: "asyncio.Task[ExchangedToken]") -> None:
    """Nobody may be left who waits for it."""
    if not flight.cancelled():
        flight.exception()


def _unavailable(detail: str, wait: float) -> Failure:
    return Failure(
        503,
        Reason.EXT_AUTH,
        "no token for this server can be had at the moment; try again in a moment",
        code="temporarily_unavailable",
        detail=detail,
        retry_after=max(wait, 1.0),
    )
