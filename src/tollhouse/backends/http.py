"""Plain HTTP services behind the gateway: a reverse proxy as a Handler.

Rule: the answer's head is the commit point. Before it, another attempt or another upstream may help: with a method
that may be repeated, or when nothing was sent. After it bytes flow by callback from the upstream's connection to the
client's, and a failure cuts the client off, so that it sees the loss.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tollhouse.backends.header_fields import UpstreamTLSSpec
from tollhouse.backends.health import Balancer, Checker, Health, HealthSpec, Member, answers
from tollhouse.backends.rewrite import Rewrite, RewriteSpec
from tollhouse.core.backoff import Backoff, RetryBudget
from tollhouse.core.call import Context
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.http import Ending, Request, Response
from tollhouse.core.match import Predicate, PredicateSpec
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.client import Client, Exchange, Origin, Pool, Until

__all__ = [
    "CREDENTIALS",
    "HttpBackend",
    "HttpRouteSpec",
    "HttpTargetSpec",
    "RouteRetrySpec",
    "RouteTimeoutSpec",
]

CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))
"""Header fields that may carry the credential a caller shows to the gateway."""

_BUFFERED = 65_536  # bytes: a request body up to this is read whole, and can then be sent again
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_BODY_METHODS = frozenset((b"POST", b"PUT", b"PATCH"))
_GATEWAY_ERRORS = frozenset((502, 503, 504))
_FAULTS = frozenset((Reason.UPSTREAM_FAILURE, Reason.TIMEOUT))


class HttpTargetSpec(Spec):
    """One of several upstreams."""

    url: str = Field(description="http://host:port or https://host; a path in it comes before the request's path")
    weight: int = Field(default=1, ge=1, le=1000, description="its share of the requests")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        _, path = Origin.of(value)
        if b"?" in path or "#" in value:
            raise ValueError("an upstream's URL has no query and no fragment; use rewrite.query")
        return value


class RouteTimeoutSpec(Spec):
    """How long an upstream may take. There is no total unless given: downloads and streams have no natural one."""

    connect: Duration = Field(default=5.0, gt=0.0, description="until the connection is there")
    first_byte: Duration = Field(default=60.0, gt=0.0, description="from the end of the request to the answer's head")
    idle: Duration = Field(default=60.0, gt=0.0, description="between two pieces of the answer")
    total: Duration | None = Field(default=None, gt=0.0, description="for everything, retries included")
    tunnel: Duration = Field(default=3600.0, gt=0.0, description="a WebSocket without a byte either way")


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Retried = Annotated[
    Literal["connect", "reset", "timeout", "429", "5xx", "500", "502", "503", "504"], BeforeValidator(_text)
]
"""connect: not reached, nothing was sent. reset: died before it answered. timeout: a time has passed."""


class RouteRetrySpec(Spec):
    """When to ask again: GET, HEAD, OPTIONS, PUT and DELETE with a body of at most 64 KiB, before the first byte of an
    answer; any other method only where nothing was sent. All retries of a route share one budget: a fifth of its
    requests, and ten a second."""

    attempts: int = Field(default=2, ge=1, le=10, description="in all, the first one included")
    on: list[Retried] = Field(default=["connect", "reset", "502", "503", "504"], description="what is tried again")
    backoff: Duration = Field(
        default=0.025, gt=0.0, description="wait up to this before the same upstream is asked again; doubled each time"
    )


def _targets(value: object) -> object:
    several = value if isinstance(value, list) else [value]
    return [{"url": one} if isinstance(one, str) else one for one in several]


class HttpRouteSpec(PredicateSpec):
    """A route to plain HTTP services: which requests, where to, and what changes on the way."""

    name: str = Field(min_length=1, max_length=128, description="in logs and metrics")
    to: Annotated[list[HttpTargetSpec], BeforeValidator(_targets)] = Field(
        min_length=1, description="one URL or several; an entry may be {url, weight}"
    )
    strip_prefix: bool = Field(default=False, description="take the matched prefix off; the upstream sees the rest")
    rewrite: RewriteSpec = Field(default=RewriteSpec(), description="what the upstream gets instead")
    preserve_host: bool = Field(default=False, description="send the client's Host instead of the upstream's")
    pass_credentials: bool = Field(default=False, description="send the gateway's own credential on to the upstream")
    websocket: bool = Field(default=True, description="let WebSocket connections through")
    timeout: RouteTimeoutSpec = Field(default=RouteTimeoutSpec(), description="how long an upstream may take")
    retry: RouteRetrySpec = Field(default=RouteRetrySpec(), description="when to ask again")
    health: HealthSpec = Field(default=HealthSpec(), description="when an upstream counts as bad")
    tls: UpstreamTLSSpec | None = Field(default=None, description="for https upstreams")
    connections: int = Field(default=512, ge=1, le=65_536, description="open at once to each upstream")

    @model_validator(mode="after")
    def _route(self) -> Self:
        rewrite = self.rewrite
        if self.strip_prefix and (rewrite.prefix is not None or rewrite.path is not None):
            raise ValueError("strip_prefix has no effect beside rewrite.prefix or rewrite.path; give one of them")
        if self.exact is not None and (self.strip_prefix or rewrite.prefix is not None):
            raise ValueError("`exact` matches no prefix; use rewrite.path to change the path")
        if self.preserve_host and rewrite.host is not None:
            raise ValueError("preserve_host and rewrite.host exclude each other")
        if self.tls is not None and not any(t.url.lower().startswith("https:") for t in self.to):
            raise ValueError("tls has no effect: no upstream has an https URL")
        return self


class _Upstream(Member):
    """One upstream, ready to be asked."""

    __slots__ = ("authority", "base", "label", "pool", "root")

    def __init__(self, spec: HttpTargetSpec, route: HttpRouteSpec, client: Client) -> None:
        super().__init__(spec.weight, Health(route.health))
        origin, path = Origin.of(spec.url, tls=route.tls.value() if route.tls is not None else None)
        self.base = path.rstrip(b"/")
        self.authority = origin.authority
        self.root = str(origin).encode("ascii")
        self.label = self.authority.decode("ascii")
        self.pool: Pool = client.pool(origin, route.connections)


class HttpBackend:
    """The Handler of one route. Made with a Snapshot; `start` and `close` bracket its active checks.

    predicate: of the route, for the prefix that is taken off. retried(context, why) is told of each further attempt.
    Raises OriginError (a ValueError) when the route's TLS files cannot be used.
    """

    def __init__(
        self,
        spec: HttpRouteSpec,
        predicate: Predicate,
        client: Client,
        clock: Clock,
        *,
        forwarding: Forwarding | None = None,
        credentials: frozenset[bytes] = CREDENTIALS,
        retried: Callable[[Context, str], None] | None = None,
    ) -> None:
        self._clock = clock
        self._rewrite = Rewrite(
            spec.rewrite,
            predicate,
            forwarding if forwarding is not None else Forwarding(),
            strip_prefix=spec.strip_prefix,
            preserve_host=spec.preserve_host,
            credentials=frozenset() if spec.pass_credentials else credentials,
        )
        self._balancer = Balancer([_Upstream(target, spec, client) for target in spec.to])
        self._timeout = spec.timeout
        self._attempts = spec.retry.attempts
        self._backoff = Backoff(spec.retry.backoff)
        self._on = frozenset(spec.retry.on)
        self._again = frozenset(s for s in range(429, 600) if str(s) in self._on or (s >= 500 and "5xx" in self._on))
        self._budget = RetryBudget()
        self._websocket = spec.websocket
        self._retried = retried
        check = spec.health.check
        self._check = check
        self._checker = Checker(check, self._balancer.members, self._ask) if check is not None else None

    def start(self) -> None:
        """Begin the active checks, if there are any."""
        if self._checker is not None:
            self._checker.start()

    async def close(self) -> None:
        """End the checks, and the connections when they are free."""
        if self._checker is not None:
            await self._checker.close()
        for upstream in self._balancer.members:
            upstream.pool.retire()

    # ---- the Handler
    async def handle(self, request: Request) -> Response:
        """Raises Failure: 405 for TRACE and CONNECT, 503 NoHealthyBackend, 502 and 504 from the upstream, and what
        reading the request's body raises."""
        context = request.context
        context.operation = "http"
        method = request.method
        extra = b""
        if method in _SPECIAL:
            if method != b"OPTIONS":
                raise Failure(405, Reason.INVALID_REQUEST, f"{method.decode('ascii')} is not passed on")
            hops = request.header(b"max-forwards")  # RFC 9110 section 7.6.2
            if hops is not None and hops.isdigit():
                if int(hops) == 0:
                    return Response(204, [])
                extra = b"max-forwards: %d\r\n" % (int(hops) - 1)
        upgrade = request.upgrade and self._websocket
        body, framing, chunked = await self._body(request)
        if context.credential:
            extra += b"authorization: %b\r\n" % context.credential
        extra += context.identity
        fields = extra + self._rewrite.fields(request, upgrade=upgrade) + framing + b"\r\n"
        timeout = self._timeout
        deadline = context.deadline
        if timeout.total is not None:
            deadline = min(deadline, monotonic() + timeout.total)
        repeatable = method in _IDEMPOTENT and type(body) is bytes and len(body) <= _BUFFERED and not upgrade
        self._budget.request()
        tried: list[_Upstream] = []
        while True:
            upstream = self._balancer.pick(self._clock.now, tried)
            if upstream is None:
                raise self._nobody()
            if upstream in tried and not await self._wait(len(tried), deadline):
                raise Failure(504, Reason.TIMEOUT, "the upstream did not answer in time")
            tried.append(upstream)
            more = len(tried) < self._attempts
            context.attempts += 1
            context.backend = upstream.label
            context.upstream_began = monotonic()
            head = self._head(request, upstream, fields)
            health = upstream.health
            health.began(self._clock.now)
            try:
                exchange = await upstream.pool.exchange(
                    head,
                    body,
                    method=method,
                    until=Until.HEAD,
                    deadline=FOREVER if upgrade else deadline,
                    first_byte=min(timeout.first_byte, max(deadline - monotonic(), 0.001)),
                    idle=timeout.tunnel if upgrade else timeout.idle,
                    chunked=chunked,
                    connect=timeout.connect,
                    resend=repeatable,
                )
            except Failure as failure:
                context.upstream_ended = monotonic()
                why = _why(failure)
                if why and failure.code != "pool_exhausted":  # that is our own bound
                    health.failed(self._clock.now)
                else:
                    health.left(self._clock.now)
                if more and failure.retry and self._may_repeat(why, repeatable, failure.sent) and self._budget.retry():
                    self._tell(context, why)
                    continue
                raise
            except BaseException:
                health.left(self._clock.now)
                raise
            if more and repeatable and exchange.status in self._again and self._budget.retry():
                self._verdict(health, exchange.status)
                exchange.close()
                self._tell(context, str(exchange.status))
                continue
            return self._answer(request, upstream, exchange, upgrade)

    # ---- there
    async def _body(self, request: Request) -> tuple[bytes | Request, bytes, bool]:
        """The body to send, whole or as a Source; its framing fields; whether it is chunked."""
        request.check_length()  # before an upstream is asked for what will be refused
        announced = request.header(b"content-length")
        if request.complete or (announced is not None and int(announced) <= _BUFFERED):
            whole = await request.read(max(request.body_size, _BUFFERED))
            if whole or announced is not None or request.method in _BODY_METHODS:
                return whole, b"content-length: %d\r\n" % len(whole), False
            return whole, b"", False
        if announced is not None:
            return request, b"content-length: %b\r\n" % announced, False
        if request.header(b"transfer-encoding") is None:
            return b"", b"", False
        return request, b"transfer-encoding: chunked\r\n", True

    def _head(self, request: Request, upstream: _Upstream, fields: bytes) -> bytes:
        rewrite = self._rewrite
        host = rewrite.host
        if host is None:
            host = (request.header(b"host") or upstream.authority) if rewrite.preserve_host else upstream.authority
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (
            request.method, rewrite.target(request, upstream.base), host, fields,
        )  # fmt: skip

    def _may_repeat(self, why: str, repeatable: bool, sent: bool) -> bool:
        return why in self._on and (repeatable or not sent)

    async def _wait(self, attempt: int, deadline: float) -> bool:
        """Before the same upstream is asked again. False when no time is left for that."""
        pause = self._backoff.delay(attempt)
        if monotonic() + pause >= deadline:
            return False
        await asyncio.sleep(pause)
        return True

    def _tell(self, context: Context, why: str) -> None:
        if self._retried is not None:
            self._retried(context, why)

    def _nobody(self) -> Failure:
        after = self._check.interval if self._check is not None else None
        message = "no upstream of this route is well; try again later"
        return Failure(503, Reason.NO_HEALTHY_BACKEND, message, retry_after=after)

    # ---- and back
    def _answer(self, request: Request, upstream: _Upstream, exchange: Exchange, upgrade: bool) -> Response:
        context = request.context
        context.first_event = now = monotonic()
        status = exchange.status
        headers = self._rewrite.answer(exchange.headers, request, upstream.root, upstream.base)
        health = upstream.health
        if status == 101:
            if not upgrade or (exchange.headers.get(b"upgrade") or b"").lower() != b"websocket":
                exchange.close()
                health.left(self._clock.now)
                message = "the upstream switched to a protocol nobody asked for"
                raise Failure(502, Reason.UPSTREAM_FAILURE, message, sent=True)
            headers.append((b"upgrade", b"websocket"))
            response = Response(101, headers, tunnel=exchange, reason=Reason.UPSTREAM)
        elif exchange.complete:
            context.upstream_ended = now
            self._verdict(health, status)
            length = exchange.length if request.method == b"HEAD" else None
            return Response(status, headers, exchange.take(), length=length, reason=Reason.UPSTREAM)
        else:
            response = Response(status, headers, source=exchange, length=exchange.length, reason=Reason.UPSTREAM)
        clock = self._clock

        def ended(ending: Ending) -> None:
            context.upstream_ended = monotonic()
            if ending.failure is not None and _why(ending.failure):
                health.failed(clock.now)

        self._verdict(health, status)
        response.ends = [ended]
        return response

    def _verdict(self, health: Health, status: int) -> None:
        if status in _GATEWAY_ERRORS:
            health.failed(self._clock.now)
        else:
            health.succeeded()

    # ---- active checks
    async def _ask(self, upstream: _Upstream) -> bool:
        check = self._check
        assert check is not None
        host = self._rewrite.host or upstream.authority
        path = upstream.base + check.path.encode("ascii")
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\nuser-agent: tollhouse-health\r\n\r\n" % (path, host)
        return await answers(upstream.pool, head, check.timeout)


_SPECIAL = frozenset((b"TRACE", b"CONNECT", b"OPTIONS"))


def _why(failure: Failure) -> str:
    """What went wrong with the upstream, in the words of `retry.on`; empty when it is not the upstream's fault."""
    if failure.reason not in _FAULTS or failure.status not in _GATEWAY_ERRORS:
        return ""
    if not failure.sent:
        return "connect"
    return "timeout" if failure.reason == Reason.TIMEOUT else "reset"
