"""A provider's own paths: the request as it came, with the gateway's credentials in place of the caller's.

Rule: nothing is translated and nothing is asked twice, but where the provider refused a credential and there is
another. Of an answer in an API that is known the usage is read; any other flows by, of any size.
"""

import re
from time import monotonic
from urllib.parse import unquote_to_bytes

from tollhouse.backends.credential import proven
from tollhouse.backends.events import Events
from tollhouse.backends.provider import Provider
from tollhouse.backends.rewrite import HOP_BY_HOP
from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.forwarded import is_provenance
from tollhouse.core.http import Ending, Headers
from tollhouse.core.reply import Reply
from tollhouse.net.client import Exchange, Until

__all__ = ["NativeBackend"]

_FIRST_BYTE, _IDLE = 300.0, 60.0
_MAX_ANSWER = 32 << 20  # of an answer whose usage is read
_QUERY = re.compile(rb"[\x00-\x20\x7f-\xff]")
_KEY = b"key"  # how a query carries a credential
_CONNECTION = HOP_BY_HOP | {b"content-length"}
_KEPT_HERE = _CONNECTION | {
    b"host", b"expect", b"max-forwards", b"cookie", b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key",
    b"x-request-id", b"origin", b"referer",
}  # fmt: skip
_NOT_SHOWN = _CONNECTION | {b"date", b"set-cookie", b"x-request-id", b"request-id", b"alt-svc"}
_BODIES = frozenset((b"POST", b"PUT", b"PATCH"))
_SAFE = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE"))


class NativeBackend:
    """One provider, as the last Handler of calls to `prefix` and below."""

    def __init__(self, provider: Provider, prefix: bytes) -> None:
        self._provider = provider
        self._face = next(iter(provider.faces.values()))
        self._prefix = prefix

    async def handle(self, call: ModelCall) -> Reply:
        """Raises Failure: 400 for a query that is malformed, 502 and 504 from the provider."""
        context = call.context
        provider = self._provider
        context.provider = provider.kind
        context.backend = provider.name
        context.upstream_began = monotonic()
        exchange = await self._exchange(call)
        status = exchange.status
        if status in (401, 407):
            exchange.close()
            message = "the provider refused the gateway's own credentials; the operator must look at it"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, code="upstream_credentials", detail=provider.name)
        headers = [pair for pair in exchange.headers if pair[0] not in _NOT_SHOWN]
        said = exchange.headers.get(b"x-request-id") or exchange.headers.get(b"request-id")
        if said is not None:
            headers.append((b"x-upstream-request-id", said))
        if status == 200 and call.operation != "native" and not exchange.encoded:
            kind = exchange.headers.get(b"content-type") or b""
            if exchange.event_stream:
                return await self._stream(call, exchange, headers)
            if kind.startswith(b"application/json"):
                answer = await exchange.read(_MAX_ANSWER)
                context.upstream_ended = monotonic()
                context.usage, context.model_answered = call.dialect.answer(answer)
                return Reply(200, headers, answer)
        context.first_event = monotonic()
        if exchange.complete:
            context.upstream_ended = monotonic()
            return Reply(status, headers, exchange.take())
        reply = Reply(status, headers, b"", exchange)

        def ended(_: Ending) -> None:
            context.upstream_ended = monotonic()

        reply.ends.append(ended)
        return reply

    async def _exchange(self, call: ModelCall) -> Exchange:
        face, request = self._face, call.request
        context = call.context
        lines = self._lines(request.headers, face.own)
        target = request.path[len(self._prefix) :] or b"/"
        query = _query(request.query)
        if query:
            target = b"%b?%b" % (target, query)
        if call.body or request.method in _BODIES:
            lines += b"content-length: %d\r\n" % len(call.body)
        if context.request_id:
            lines += b"x-request-id: %b\r\n" % context.request_id.encode("latin-1", "replace")

        async def ask(proof: bytes) -> Exchange:
            context.attempts += 1
            try:
                return await face.pool.exchange(
                    face.native(request.method, target, proof + lines),
                    call.body,
                    method=request.method,
                    until=Until.HEAD,
                    deadline=context.deadline,
                    first_byte=_FIRST_BYTE,
                    idle=_IDLE,
                    resend=request.method in _SAFE,
                )
            except Failure:
                context.upstream_ended = monotonic()
                raise

        return await proven(face.credential, context.deadline, ask)

    async def _stream(self, call: ModelCall, exchange: Exchange, headers: list[tuple[bytes, bytes]]) -> Reply:
        context = call.context
        dialect = call.dialect
        events = Events(
            exchange,
            dialect.reader(strip=False),
            context,
            self._provider.clock,
            framer=dialect.framer(),
            prompt=lambda: call.estimate - int(dialect.output_bound(call.fields)),
        )
        try:
            first = await events.first(min(monotonic() + _FIRST_BYTE, context.deadline))
        except BaseException:
            events.close()
            raise
        context.first_event = monotonic()
        reply = Reply(200, headers, first, events)
        reply.taps = events.taps
        reply.ends.append(events.settle)
        return reply

    @staticmethod
    def _lines(headers: Headers, own: frozenset[bytes]) -> bytes:
        """The caller's header lines that go along."""
        dropped = _KEPT_HERE | own
        named = headers.get(b"connection")
        if named is not None:
            dropped |= {part.strip() for part in named.lower().split(b",")}
        return b"".join(
            b"%b: %b\r\n" % pair for pair in headers if pair[0] not in dropped and not is_provenance(pair[0])
        )


def _query(query: bytes) -> bytes:
    """The query without a credential."""
    if _QUERY.search(query) is not None:
        raise Failure(400, Reason.INVALID_REQUEST, "the query has a character that must be percent-encoded")
    pairs = query.split(b"&")
    return b"&".join(pair for pair in pairs if pair and unquote_to_bytes(pair.partition(b"=")[0]) != _KEY)
