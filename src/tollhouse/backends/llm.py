"""One model at one provider: encode, send, return at the first event.

Rule: before the first event everything that goes wrong raises; afterwards it is the stream's end. A caller of the
provider's own API gets its bytes, looked at and not changed, in both directions: of the request only `model` and the
wish for usage are ours, of a stream only the usage event that nobody but us asked for is taken out. Any other caller
gets a translation, and what that would lose is refused, or told in `x-tollhouse-dropped`.
"""

import asyncio
from time import monotonic, time

import msgspec

from tollhouse.backends.credential import MOST_KEYS
from tollhouse.backends.events import Events, estimated
from tollhouse.backends.provider import Continuation, Face, Provider, Timeouts
from tollhouse.backends.retry_after import retry_after
from tollhouse.backends.upgrade import upgrade
from tollhouse.backends.withheld import withheld, withheld_stream
from tollhouse.core.call import ModelCall, Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers
from tollhouse.core.reply import Reply
from tollhouse.net.client import Exchange, Until
from tollhouse.wire.llm import CODECS
from tollhouse.wire.llm.dialect import Dialect, StreamReader
from tollhouse.wire.llm.realtime import Realtime
from tollhouse.wire.llm.translate import Translation
from tollhouse.wire.llm.usage import raw_usage

__all__ = ["MAX_OUTPUT", "REFUSALS", "LLMBackend", "Refused"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_ANSWERS = frozenset(("choices", "content", "output", "data", "candidates", "message", "results", "embeddings", "text"))
_COMPLAINT = frozenset(("message", "Message", "__type"))
"""All that an error of AWS's has."""

_NO_ERROR = (b"null", b"{}", b'""', b"[]", b"false")
_UNDER_WAY = (b'"queued"', b'"in_progress"')  # an answer that its provider works on by itself
_HEAD, _WHOLE = Until.HEAD, Until.WHOLE
_MAX_ERROR = 1 << 20  # bytes of an error's body
_MAX_ANSWER = 32 << 20
_LATE = frozenset((504, 524))  # a proxy's word for an answer that did not come in time
MAX_OUTPUT = 4096
"""Tokens, where an API wants a bound and the caller gave none."""

_PASSED = frozenset((b"retry-after", b"retry-after-ms", b"x-should-retry"))
_PREFIXES = (b"openai-", b"anthropic-", b"x-ratelimit-")
_ACCOUNT = (b"openai-organization", b"openai-project", b"anthropic-organization-id", b"anthropic-workspace-id")
_CONTENT_TYPE = b"content-type"
_RENAMED = {
    _CONTENT_TYPE: _CONTENT_TYPE,
    b"x-request-id": b"x-upstream-request-id",
    b"request-id": b"x-upstream-request-id",
    b"x-amzn-requestid": b"x-upstream-request-id",
}
_NAMES = 512

REFUSALS = frozenset(("context_length_exceeded", "content_policy"))
"""Codes of a Refused."""

_JSON = (b"content-type", b"application/json")
_HANDSHAKE = frozenset((b"sec-websocket-accept", b"sec-websocket-protocol"))


class Refused(Failure):
    """The provider refused the request itself, in a way that another model might not. reply: its own words, for the
    caller when there is no such model. code: "context_length_exceeded" or "content_policy"."""

    __slots__ = ("reply",)

    def __init__(self, reply: Reply, code: str, message: str, detail: str) -> None:
        super().__init__(reply.status, Reason.UPSTREAM, message, code=code, detail=detail)
        self.reply = reply


class LLMBackend:
    """A model at a provider, as a call's last Handler.

    model: its name there; a `*` in it stands for what the `*` of `pattern` (the configured name) matched; None: the
    name that was asked. lossy: what a translation cannot say is dropped, and the caller told. refusals: codes of a
    Refused that is raised, because somebody else may be asked; another refusal is an answer.
    """

    __slots__ = (
        "_after", "_before", "_filtered", "_fixed", "_fixed_raw", "_lossy", "_prefix", "_refusals", "_suffix", "label",
        "provider", "timeouts",
    )  # fmt: skip

    def __init__(
        self,
        provider: Provider,
        model: str | None,
        timeouts: Timeouts,
        *,
        pattern: str = "",
        lossy: bool = False,
        refusals: frozenset[str] = REFUSALS,
    ) -> None:
        self.provider = provider
        self.timeouts = timeouts
        self.label = provider.name if model is None else f"{provider.name}/{model}"
        self._lossy = lossy
        self._refusals = refusals
        self._filtered = "content_policy" in refusals
        self._fixed = "" if model is None or "*" in model else model
        self._fixed_raw = Raw(_encode(self._fixed))
        self._before, _, self._after = ("", "", "") if model is None else model.partition("*")
        prefix, star, suffix = pattern.partition("*") if model is not None else ("", "", "")
        self._prefix = len(prefix) if star else 0
        self._suffix = len(suffix) if star else 0

    @property
    def is_fixed(self) -> bool:
        """Whether it asks for one model, whatever its callers ask for."""
        return bool(self._fixed)

    def model(self, call: ModelCall) -> str:
        """The name to ask the provider for."""
        if self._fixed:
            return self._fixed
        asked = call.model
        return self._before + asked[self._prefix : len(asked) - self._suffix] + self._after

    def continues(self, call: ModelCall) -> Continuation | None:
        """How an answer goes on from an assistant's message at the end of a request (a call that is `continued`); None
        where it would be a new one."""
        return self.provider.face(call, self._fixed or self.model(call)).continues

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
            try:
                await provider.ready(deadline)
            except asyncio.CancelledError:
                if context.attempts == 1:
                    context.upstream_began = 0.0  # nobody was asked
                raise
        model = context.model_sent = self._fixed or self.model(call)
        face = provider.faces.get(call.operation)
        if face is None:
            face = provider.face(call, model)
        translation: Translation | None = None
        lost: list[str] = []
        strip = False
        if face.operation != call.operation:
            translation = _translation(call, face)
            body, lost = self._translated(call, face, translation, model)
        else:
            fields = call.fields.copy()
            if face.names_model:
                fields["model"] = self._fixed_raw if model is self._fixed else Raw(_encode(model))
            elif isinstance(face.dialect, Realtime):
                return await self._session(call, face, face.dialect, model)
            if face.adds is not None:
                fields = face.adds(fields)
            if call.continued and face.continues is not None:
                fields = face.continues.told(fields)
            if call.stream and face.asks_usage:
                options = call.dialect.usage_options(fields)
                if options is not None:
                    fields["stream_options"] = options
                    strip = True
            if call.bounded and face.codec is not None:
                fields = face.codec.bounded(fields)
            body = call.dialect.encode(fields, call.body)
        exchange = await self._exchange(call, face, model, body, deadline)
        status = exchange.status
        if status == 200 and (exchange.event_stream or (call.stream and face.dialect.streamed(exchange.headers))):
            reader = call.dialect.reader(strip=strip) if translation is None else translation.reader(face.dialect)
            reply = await self._stream(call, face, exchange, reader, began)
        else:
            here = exchange.complete and not exchange.encoded
            answer = told = exchange.body if here else await exchange.read(_MAX_ERROR if status >= 400 else _MAX_ANSWER)
            if status != 200:
                return self._refused(call, face.dialect, status, exchange.headers, answer, translation)
            if call.stream and call.operation in CODECS:
                raise _no_stream(face.dialect, answer)
            if translation is None:
                usage, context.model_answered = call.dialect.answer(answer)
                if not answer.isascii() and not call.dialect.opaque_answer:
                    _check_text(answer)
                passed = self._passed(exchange.headers)
            else:
                answer, usage, context.model_answered = translation.answer(answer)
                passed = self._passed(exchange.headers)
                passed[-1] = _JSON
            if usage is None or not (usage.output or usage.total or not call.estimate):
                context.raw_usage = raw_usage(told)
                usage = self._unsaid(call, usage, answer, passed[-1][1])
            context.usage = usage
            reply = Reply(200, passed, answer)
            if self._filtered and (codec := CODECS.get(call.operation)) is not None:
                why = withheld(codec, answer)
                if why is not None:
                    raise self._withheld(reply, why)
        if lost:
            reply.headers.append((b"x-tollhouse-dropped", _listed(lost)))
        return reply

    async def _exchange(self, call: ModelCall, face: Face, model: str, body: bytes, deadline: float) -> Exchange:
        """Send it, and wait for the answer or its head; with another credential where one is refused."""
        context = call.context
        timeouts = self.timeouts
        until, first_byte, idle = _WHOLE, timeouts.total, timeouts.idle
        if call.stream:
            # Some providers send the head at once and think then: that time is the first event's too.
            until, first_byte = _HEAD, timeouts.first_event
            if idle < first_byte:
                idle = first_byte
        tried = 0
        while True:
            tried += 1
            exchange: Exchange | None = None
            sent: list[Exchange] = []
            try:
                if not face.credential.settled:
                    await face.credential.ready(deadline)
                lines = face.credential.lines
                head = face.head(call, model, body)
                begun = face.pool.begin(head, body, until, deadline, first_byte, idle)
                if begun is not None:
                    exchange, woken = begun
                    await woken
                if exchange is None or exchange.status != 200 or exchange.failure is not None:
                    exchange = await face.pool.exchange(
                        head,
                        body,
                        method=b"POST",
                        until=until,
                        deadline=deadline,
                        first_byte=first_byte,
                        idle=idle,
                        connect=timeouts.connect,
                        begun=exchange,
                        resend=True,
                        written=sent.append,
                    )
            except BaseException as error:
                if exchange is not None or sent:
                    if isinstance(error, asyncio.CancelledError) or _too_late(error):
                        # Nobody waits for it any more; the provider works on, and counts it.
                        bound = 0 if call.stream else call.dialect.output_bound(call.fields)
                        context.usage = Usage(self.prompt(call), bound, estimated=True)
                elif isinstance(error, asyncio.CancelledError) and context.attempts == 1:
                    context.upstream_began = 0.0  # nobody was asked
                if exchange is not None:
                    exchange.close()
                raise
            finally:
                context.upstream_ended = monotonic()
            status = exchange.status
            if status not in (401, 403, 429) or tried == MOST_KEYS:
                return exchange
            if not face.credential.refused(lines, status, retry_after(exchange.headers)):
                return exchange
            exchange.close()
            await face.credential.ready(deadline)

    async def _session(self, call: ModelCall, face: Face, dialect: Realtime, model: str) -> Reply:
        """Open a WebSocket: the source of a Reply with status 101 is a Duplex."""
        context = call.context
        try:
            exchange = await upgrade(call, face, dialect, model, self.timeouts)
        except BaseException:
            context.upstream_ended = monotonic()
            raise
        status = exchange.status
        if status == 101:
            context.first_event = monotonic()
            return Reply(status, [pair for pair in exchange.headers if pair[0] in _HANDSHAKE], b"", exchange)
        answer = await exchange.read(_MAX_ERROR)
        context.upstream_ended = monotonic()
        if 200 <= status < 300:
            raise _not_an_answer("is no WebSocket", f"{self.label}: {status} {answer[:100]!r}")
        return self._refused(call, dialect, status, exchange.headers, answer, None)

    def _translated(self, call: ModelCall, face: Face, translation: Translation, model: str) -> tuple[bytes, list[str]]:
        fields, lost = translation.request(model=model, max_output=MAX_OUTPUT, lossy=self._lossy)
        if not face.asks_usage:
            fields.pop("stream_options", None)
        elif call.stream:
            options = face.dialect.usage_options(fields)
            if options is not None:
                fields["stream_options"] = options
        if face.adds is not None:
            fields = face.adds(fields)
        if call.continued and face.continues is not None:
            fields = face.continues.told(fields)
        return face.dialect.encode(fields, b""), lost

    async def _stream(
        self, call: ModelCall, face: Face, exchange: Exchange, reader: StreamReader, began: float
    ) -> Reply:
        context = call.context
        if exchange.encoded and (exchange.headers.get(b"content-encoding") or b"").lower() != b"identity":
            exchange.close()
            message = "the provider compressed a stream that was asked for uncompressed"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, sent=True)
        timeouts = self.timeouts
        context.reading = reader
        events = Events(
            exchange,
            reader,
            context,
            self.provider.clock,
            framer=face.dialect.framer(),
            prompt=lambda: self.prompt(call),
            idle=timeouts.idle if timeouts.idle < timeouts.first_event else 0.0,
            patient=self._filtered and call.operation in CODECS,
        )
        try:
            first = await events.first(began + timeouts.first_event)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or _too_late(error):
                context.usage = Usage(self.prompt(call), 0, estimated=True)
            events.close()
            raise
        if self._filtered and reader.finished and call.operation in CODECS:
            why = withheld_stream(CODECS[call.operation], call.dialect, first)
            if why is not None:
                events.close()
                events.settle(Ending(200, Reason.UPSTREAM))
                passed = [*self._passed(exchange.headers)[:-1], (_CONTENT_TYPE, call.dialect.stream_type)]
                raise self._withheld(Reply(200, passed, first), why)
        context.first_event = monotonic()
        reply = Reply(200, self._passed(exchange.headers)[:-1], first, events)  # the endpoint says what a stream is
        reply.taps = events.taps
        reply.ends.append(events.settle)
        return reply

    def _withheld(self, reply: Reply, why: str) -> Refused:
        detail = f"{self.label}: 200 {why or 'nothing but a filter'}"
        return Refused(reply, "content_policy", "the provider withheld its answer", detail)

    def _unsaid(self, call: ModelCall, told: Usage | None, answer: bytes, content_type: bytes) -> Usage:
        """Usage of an answer that does not tell it, or none. Raises Failure 502 for what is no answer at all."""
        if call.dialect.opaque_answer and not content_type.startswith(b"text/html"):
            return Usage(self.prompt(call), call.dialect.unsaid(call.fields, answer), estimated=True)
        try:
            fields = _members(answer)
        except UNREADABLE:
            shown = f"it is {content_type.decode('latin-1')[:100]}, and begins with {answer[:100]!r}"
            raise _not_an_answer("is not JSON, or no object", shown) from None
        told_error = "error" in fields and not _ANSWERS.intersection(fields) and bytes(fields["error"]) not in _NO_ERROR
        if told_error or fields.keys() <= _COMPLAINT:
            code, message = call.dialect.complaint(answer)
            raise _not_an_answer("is an error, though its status is 200", f"{code or 'error'}: {message}"[:500])
        if bytes(fields.get("status", b"")) in _UNDER_WAY:  # nobody will tell what it comes to
            return Usage(self.prompt(call), int(call.dialect.output_bound(call.fields)), estimated=True)
        return estimated(told, self.prompt(call), call.dialect.said(answer))

    def prompt(self, call: ModelCall) -> int:
        """Input tokens that nobody counted, as estimated."""
        vocabularies = self.provider.vocabularies
        if vocabularies is not None:
            counted = vocabularies.of_request(call.context.model_sent, call.body)
            if counted is not None:
                return counted
        return max(call.estimate - int(call.dialect.output_bound(call.fields)), 0)

    def _passed(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What the caller may see of the upstream's header fields. The last is the one content-type."""
        shown = self.provider.shown
        passed = []
        content_type = _JSON
        for pair in headers:
            try:
                name = shown[pair[0]]
            except KeyError:
                name = _seen_as(pair[0])
                if len(shown) < _NAMES:
                    shown[pair[0]] = name
            if name is None:
                continue
            if name is not _CONTENT_TYPE:
                passed.append((name, pair[1]))
            elif content_type is _JSON:
                content_type = pair
        passed.append(content_type)
        return passed

    def _refused(
        self,
        call: ModelCall,
        dialect: Dialect,
        status: int,
        headers: Headers,
        body: bytes,
        translation: Translation | None,
    ) -> Reply:
        """An answer that is not 200: the caller's to read when it is about the request, else a Failure. dialect: the
        provider's."""
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
                sent=True,
            )
        if status >= 500 or status == 408 or status < 400:  # also 201 and 204: only 200 is an answer
            ours = 503 if status in (503, 529) else 504 if status in (408, 504) else 502
            if status in _LATE:
                call.context.usage = Usage(self.prompt(call), 0, estimated=True)  # somebody behind it was at work
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
        code, message = dialect.complaint(body)
        if translation is None:
            reply = Reply(status, self._passed(headers), body)
        else:
            failure = Failure(status, Reason.UPSTREAM, message or f"the provider answered {status}", code=code or None)
            reply = Reply(status, [_JSON], call.dialect.error(failure, call.context.request_id))
        if code in self._refusals:
            raise Refused(reply, code, message, detail)
        return reply


def _too_late(error: BaseException) -> bool:
    """Whether a request has been sent and was not answered in time."""
    return isinstance(error, Failure) and error.status == 504 and error.sent


def _translation(call: ModelCall, face: Face) -> Translation:
    """The call's way to that API. Its meaning is read once, however many targets are asked."""
    asker = CODECS[call.operation]
    assert face.codec is not None
    chat = call.chat
    if chat is None:
        chat = call.chat = asker.decode(call.fields, model=call.model, stream=call.stream)
    return Translation(chat, asker, face.codec, int(time()), id=call.context.request_id)


def _listed(lost: list[str]) -> bytes:
    return "; ".join(lost).encode("ascii", "backslashreplace")[:2048]


def _no_stream(dialect: Dialect, answer: bytes) -> Failure:
    """The provider answered 200 without the stream that was asked for."""
    code, message = dialect.complaint(answer)
    said = f"{code or 'error'}: {message}" if code or message else repr(answer[:100])
    return _not_an_answer("is not the stream that was asked for", said[:500])


def _check_text(answer: bytes) -> None:
    """Raises Failure 502 for what is not UTF-8 (RFC 8259 section 8.1): the caller could not read it."""
    try:
        answer.decode()
    except UnicodeDecodeError as error:
        raise _not_an_answer("is not UTF-8", f"at byte {error.start}") from None


def _not_an_answer(what: str, detail: str) -> Failure:
    message = f"the provider's answer {what}"
    return Failure(502, Reason.UPSTREAM_FAILURE, message, detail=detail, retry=True, sent=True)


def _seen_as(name: bytes) -> bytes | None:
    """The name callers see a header field of the upstream by; None: not at all."""
    renamed = _RENAMED.get(name)
    if renamed is not None:
        return renamed
    return name if name in _PASSED or (name.startswith(_PREFIXES) and not name.startswith(_ACCOUNT)) else None
