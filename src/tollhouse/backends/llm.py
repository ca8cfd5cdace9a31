"""One model at one provider: encode, send, return at the first event.

Rule: before the first event everything that goes wrong raises; afterwards it is the stream's end. Bytes are looked at
and not changed, in both directions: of the request only `model` and the wish for usage are ours, of a stream only the
usage event that nobody but us asked for is taken out.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Literal, Self

import msgspec
from pydantic import Field, field_validator, model_validator

from tollhouse.backends.credentials import (
    ApiKey,
    HeaderFields,
    UpstreamTLSSpec,
    api_key_line,
    bearer_line,
    header_lines,
)
from tollhouse.backends.events import Events, estimated
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.net.client import Client, Exchange, Origin, Pool, Until
from tollhouse.wire.llm import CHAT, EMBEDDINGS, MESSAGES
from tollhouse.wire.llm.dialect import Dialect

__all__ = [
    "AnthropicSpec",
    "HTTPProvider",
    "LLMBackend",
    "OpenAISpec",
    "Provider",
    "Timeouts",
    "anthropic_provider",
    "openai_provider",
    "retry_after",
]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_HEAD, _WHOLE = Until.HEAD, Until.WHOLE
_MAX_ERROR = 1 << 20  # bytes of an error's body
_MAX_REST = 86_400.0

_PASSED = frozenset((b"retry-after", b"retry-after-ms", b"x-should-retry"))
_PREFIXES = (b"openai-", b"anthropic-", b"x-ratelimit-")
_ACCOUNT = (b"openai-organization", b"openai-project", b"anthropic-organization-id", b"anthropic-workspace-id")
_CONTENT_TYPE = b"content-type"
_UNKNOWN = b""  # no name, to tell it from None
_RENAMED = {
    _CONTENT_TYPE: _CONTENT_TYPE,
    b"x-request-id": b"x-upstream-request-id",
    b"request-id": b"x-upstream-request-id",
}
_NAMES = 512
_TRACE = frozenset((b"traceparent", b"tracestate"))
_ANTHROPIC = frozenset((b"anthropic-version", b"anthropic-beta"))
_ANTHROPIC_VERSION = b"2023-06-01"
_FIXED_LINES = (
    b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
    b"accept-encoding: identity\r\nuser-agent: tollhouse\r\n"
)
_OPENAI_URL = "https://api.openai.com/v1"
_ANTHROPIC_URL = "https://api.anthropic.com"
_JSON = (b"content-type", b"application/json")


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. total: from the request's arrival to the last byte. first_event: to the first event of a stream.
    idle: between two pieces of an answer. connect: to open a connection."""

    total: float = 300.0
    first_event: float = 60.0
    idle: float = 60.0
    connect: float = 5.0


class Provider:
    """Where models are: one for each configured provider, shared by all its models.

    name: as configured. kind: "openai", "anthropic", "local"; `gen_ai_system` in metrics. speaks: the operations of
    the dialects it understands (`Dialect.operation`). asks_usage: it takes `stream_options`. settled: `pool` is
    there; else `ready` is awaited first. shown: the upstream's header names seen so far, and as what callers see them.
    """

    __slots__ = ("asks_usage", "clock", "kind", "name", "pool", "settled", "shown", "speaks")

    pool: Pool

    def __init__(self, name: str, kind: str, speaks: frozenset[str], clock: Clock, *, asks_usage: bool) -> None:
        self.name = name
        self.kind = kind
        self.speaks = speaks
        self.clock = clock
        self.asks_usage = asks_usage
        self.settled = True
        self.shown: dict[bytes, bytes | None] = {}

    async def ready(self, deadline: float) -> None:
        """Bring it up. deadline: monotonic. Raises Failure 503 or 504."""

    async def close(self) -> None:
        """Stop what only this provider uses. Calls fail afterwards, if it had anything."""

    def head(self, call: ModelCall, length: int) -> bytes:
        """The request head for a body of `length` bytes, with the blank line."""
        raise NotImplementedError


class HTTPProvider(Provider):
    """An API over HTTP. Its heads are rendered once; what of the caller's headers goes along is added."""

    __slots__ = ("_forwarded", "_heads", "_version")

    def __init__(
        self,
        name: str,
        kind: str,
        dialects: Iterable[Dialect],
        clock: Clock,
        *,
        pool: Pool,
        base: bytes,
        lines: bytes,
        asks_usage: bool,
        version: bytes = b"",
    ) -> None:
        """base: path that the dialects' paths follow. lines: header lines, credentials among them. version: the
        `anthropic-version` for a caller who sends none."""
        dialects = tuple(dialects)
        super().__init__(name, kind, frozenset(d.operation for d in dialects), clock, asks_usage=asks_usage)
        self.pool = pool
        self._version = b"anthropic-version: %b\r\n" % version if version else b""
        self._forwarded = _TRACE | _ANTHROPIC if version else _TRACE
        self._heads = {
            d.operation: b"POST %b%b HTTP/1.1\r\nhost: %b\r\n%b%b"
            % (base, d.path, pool.origin.authority, lines, _FIXED_LINES)
            for d in dialects
        }

    def head(self, call: ModelCall, length: int) -> bytes:
        extra = self._version
        forwarded = self._forwarded
        for name, value in call.request.headers:
            if name in forwarded:
                if name == b"anthropic-version":
                    extra = extra.replace(self._version, b"", 1)
                extra += b"%b: %b\r\n" % (name, value)
        return b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            self._heads[call.operation],
            extra,
            call.context.request_id.encode("latin-1", "replace"),
            length,
        )


class LLMBackend:
    """A model at a provider, as a call's last Handler.

    model: its name there; a `*` in it stands for what the `*` of `pattern` (the configured name) matched; None: the
    name that was asked.
    """

    __slots__ = ("_after", "_before", "_fixed", "_prefix", "_suffix", "label", "provider", "timeouts")

    def __init__(self, provider: Provider, model: str | None, timeouts: Timeouts, *, pattern: str = "") -> None:
        self.provider = provider
        self.timeouts = timeouts
        self.label = provider.name if model is None else f"{provider.name}/{model}"
        self._fixed = None if model is None or "*" in model else Raw(_encode(model))
        self._before, _, self._after = ("", "", "") if model is None else model.partition("*")
        prefix, star, suffix = pattern.partition("*") if model is not None else ("", "", "")
        self._prefix = len(prefix) if star else 0
        self._suffix = len(suffix) if star else 0

    def model(self, call: ModelCall) -> Raw:
        """The name to ask the provider for, JSON."""
        if self._fixed is not None:
            return self._fixed
        asked = call.model
        matched = asked[self._prefix : len(asked) - self._suffix]
        return Raw(_encode(self._before + matched + self._after))

    async def handle(self, call: ModelCall) -> Reply:
        """Ask. Raises Failure; with `retry` where another provider may do better."""
        context = call.context
        provider = self.provider
        timeouts = self.timeouts
        context.attempts += 1
        context.provider = provider.kind
        context.backend = provider.name
        context.upstream_ended = 0.0
        began = context.upstream_began = monotonic()
        deadline = (context.began or began) + timeouts.total
        if deadline < context.deadline:
            context.deadline = deadline  # also for who is asked after us
        else:
            deadline = context.deadline
        if not provider.settled:
            await provider.ready(deadline)
        fields = call.fields.copy()
        fixed = self._fixed
        fields["model"] = fixed if fixed is not None else self.model(call)
        strip = False
        until, first_byte, idle = _WHOLE, timeouts.total, timeouts.idle
        if call.stream:
            if provider.asks_usage:
                options = call.dialect.usage_options(fields)
                if options is not None:
                    fields["stream_options"] = options
                    strip = True
            # Some providers send the head at once and think then: that time is the first event's too.
            until, first_byte = _HEAD, timeouts.first_event
            if idle < first_byte:
                idle = first_byte
        body = _encode(fields)
        head = provider.head(call, len(body))
        exchange: Exchange | None = None
        try:
            begun = provider.pool.begin(head, body, until=until, deadline=deadline, first_byte=first_byte, idle=idle)
            if begun is not None:
                exchange, woken = begun
                await woken
            if exchange is None or exchange.status != 200 or exchange.failure is not None:
                exchange = await provider.pool.exchange(
                    head,
                    body,
                    method=b"POST",
                    until=until,
                    deadline=deadline,
                    first_byte=first_byte,
                    idle=idle,
                    connect=timeouts.connect,
                    begun=exchange,
                )
        except BaseException:
            if exchange is not None:
                exchange.close()
            raise
        finally:
            context.upstream_ended = monotonic()
        status = exchange.status
        if status == 200 and exchange.event_stream:
            return await self._stream(call, exchange, strip, began)
        if exchange.complete and not exchange.encoded:
            answer = exchange.take()
        else:
            answer = await exchange.read(_MAX_ERROR if status >= 400 else 32 << 20)
        if status != 200:
            return self._refused(status, exchange.headers, answer)
        usage, model = call.dialect.answer(answer)
        if usage is None:
            if answer[:1] != b"{" and answer.lstrip()[:1] != b"{":
                raise Failure(502, Reason.UPSTREAM_FAILURE, "the provider's answer is not JSON", retry=True, sent=True)
            usage = estimated(None, _prompt(call), 0 if call.operation == "embeddings" else len(answer))
        context.usage = usage
        context.model_answered = model
        return Reply(200, self._passed(exchange.headers, _JSON), answer)

    async def _stream(self, call: ModelCall, exchange: Exchange, strip: bool, began: float) -> Reply:
        context = call.context
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            exchange.close()
            message = "the provider compressed a stream that was asked for uncompressed"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, sent=True)
        timeouts = self.timeouts
        events = Events(
            exchange,
            call.dialect.reader(strip=strip),
            context,
            self.provider.clock,
            prompt=_prompt(call),
            idle=timeouts.idle if timeouts.idle < timeouts.first_event else 0.0,
        )
        try:
            first = await events.first(began + timeouts.first_event)
        except BaseException:
            events.close()
            raise
        context.first_event = monotonic()
        reply = Reply(200, self._passed(exchange.headers, None), first, events)
        reply.taps = events.taps
        reply.ends.append(events.settle)
        return reply

    def _passed(self, headers: Headers, content_type: tuple[bytes, bytes] | None) -> list[tuple[bytes, bytes]]:
        """What the caller may see of the upstream's headers; content-type is left out when `content_type` is None, and
        is that if there is none."""
        known = self.provider.shown
        passed = []
        for pair in headers:
            name = pair[0]
            shown = known.get(name, _UNKNOWN)
            if shown is None:
                continue
            if shown is _UNKNOWN:
                shown = _shown(name)
                if len(known) < _NAMES:
                    known[name] = shown
                if shown is None:
                    continue
            if shown is not _CONTENT_TYPE:
                passed.append((shown, pair[1]))
            elif content_type is not None:
                passed.append(pair)
                content_type = None
        if content_type is not None:
            passed.append(content_type)
        return passed

    def _refused(self, status: int, headers: Headers, body: bytes) -> Reply:
        """An answer that is not 200: the caller's to read when it is about the request, else a Failure."""
        detail = f"{self.label}: {status} {body[:500].decode('utf-8', 'replace')}"
        if status == 429:
            raise Failure(
                429,
                Reason.UPSTREAM,
                "the provider is limiting requests; try again later",
                code="rate_limit_exceeded",
                detail=detail,
                retry=True,
                retry_after=retry_after(headers),
            )
        if status in (401, 402, 403, 407):
            raise Failure(
                502,
                Reason.UPSTREAM_FAILURE,
                "the provider refused the gateway's own credentials; the operator must look at it",
                code="upstream_credentials",
                detail=detail,
                retry=True,
            )
        if status >= 500 or status == 408 or status < 200 or 300 <= status < 400:
            ours = 503 if status in (503, 529) else 504 if status in (408, 504) else 502
            raise Failure(
                ours,
                Reason.UPSTREAM_FAILURE,
                f"the provider answered {status}",
                detail=detail,
                retry=True,
                retry_after=retry_after(headers),
                sent=True,
            )
        if status >= 400 and body.lstrip()[:1] != b"{":
            # Not of the dialect: a proxy's page, or a base_url that leads nowhere.
            message = f"the provider refused the request with status {status}"
            raise Failure(status, Reason.UPSTREAM, message, detail=detail)
        return Reply(status, self._passed(headers, _JSON), body)


def retry_after(headers: Headers) -> float | None:
    """Seconds to wait, from `retry-after-ms` or Retry-After (RFC 9110 section 10.2.3), a day at most; None when it
    does not say."""
    value = headers.get(b"retry-after-ms")
    scale = 0.001
    if value is None:
        value, scale = headers.get(b"retry-after"), 1.0
    if value is None:
        return None
    try:
        seconds = float(value) * scale
    except ValueError:
        try:
            when = parsedate_to_datetime(value.decode("latin-1"))
        except (ValueError, IndexError, TypeError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _MAX_REST) if seconds == seconds else None


def _shown(name: bytes) -> bytes | None:
    renamed = _RENAMED.get(name)
    if renamed is not None:
        return renamed
    if name in _PASSED or (name.startswith(_PREFIXES) and not name.startswith(_ACCOUNT)):
        return name
    return None


def _prompt(call: ModelCall) -> int:
    """Input tokens as estimated when the call was decoded."""
    return max(call.estimate - int(call.dialect.output_bound(call.fields)), 0)


# ---- Specs


class _RemoteSpec(Spec):
    api_key: ApiKey | None = Field(default=None, description="sent instead of the caller's credentials")
    headers: HeaderFields = Field(default={}, description="further header fields of every request")
    tls: UpstreamTLSSpec | None = Field(default=None, description="for an https base_url")
    proxy: str | None = Field(default=None, description="an HTTP proxy that is asked to CONNECT: http://host:port")
    connections: int = Field(default=512, ge=1, description="open connections at most")

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _url(cls, value: str) -> str:
        _, path = Origin.of(value)
        if b"?" in path:
            raise ValueError("a base_url has no query; set `headers`, or name the path alone")
        return value.rstrip("/")

    def lines(self, key_line: bytes) -> bytes:
        return key_line + header_lines(self.headers)

    def _keyed(self, *names: str) -> bool:
        return self.api_key is not None or any(n.lower() in names for n in self.headers)

    def origin(self, url: str) -> tuple[Origin, bytes]:
        """Where it is, and the path that requests begin with."""
        origin, path = Origin.of(url, tls=None if self.tls is None else self.tls.value(), proxy=self.proxy)
        return origin, path.rstrip(b"/")


class OpenAISpec(_RemoteSpec):
    """OpenAI, or any server that speaks its API."""

    kind: Literal["openai"]
    base_url: str = Field(default=_OPENAI_URL, description="up to and with the version, like http://host:9000/v1")
    organization: str | None = Field(default=None, pattern=r"^[!-~]+$", description="for keys of several organisations")
    project: str | None = Field(default=None, pattern=r"^[!-~]+$", description="for keys of several projects")
    stream_usage: bool = Field(
        default=True, description="ask every stream for its usage; false for a server that refuses `stream_options`"
    )

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.base_url == _OPENAI_URL and not self._keyed("authorization"):
            raise ValueError("api_key is missing: api.openai.com answers nobody without one")
        return self


class AnthropicSpec(_RemoteSpec):
    """Anthropic, or any server that speaks its API."""

    kind: Literal["anthropic"]
    base_url: str = Field(default=_ANTHROPIC_URL, description="without the version: /v1/messages is added")

    @field_validator("base_url")
    @classmethod
    def _without_version(cls, value: str) -> str:
        if value.endswith("/v1"):
            raise ValueError("leave /v1 out: /v1/messages is added to it")
        return value

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.base_url == _ANTHROPIC_URL and not self._keyed("authorization", "x-api-key"):
            raise ValueError("api_key is missing: api.anthropic.com answers nobody without one")
        return self


def openai_provider(name: str, spec: OpenAISpec, client: Client, clock: Clock) -> HTTPProvider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    lines = spec.lines(b"" if spec.api_key is None else bearer_line(spec.api_key))
    for field, value in ((b"openai-organization", spec.organization), (b"openai-project", spec.project)):
        if value is not None:
            lines += b"%b: %b\r\n" % (field, value.encode("ascii"))
    return HTTPProvider(
        name,
        "openai",
        (CHAT, EMBEDDINGS),
        clock,
        pool=client.pool(origin, spec.connections),
        base=base,
        lines=lines,
        asks_usage=spec.stream_usage,
    )


def anthropic_provider(name: str, spec: AnthropicSpec, client: Client, clock: Clock) -> HTTPProvider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    return HTTPProvider(
        name,
        "anthropic",
        (MESSAGES,),
        clock,
        pool=client.pool(origin, spec.connections),
        base=base,
        lines=spec.lines(b"" if spec.api_key is None else api_key_line(spec.api_key)),
        asks_usage=False,
        version=_ANTHROPIC_VERSION,
    )
