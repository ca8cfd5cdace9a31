"""The LLM endpoint: the stair from the request floor to the call floor.

Rule: it reads the body in its bound, finds the model and makes the call; what the call means to anybody else is in the
model's chain. The Reply becomes a Response without a look at what is in it.
"""

from collections.abc import Callable

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Request, Response, Sink, Source
from tollhouse.core.reply import Reply, Tap
from tollhouse.endpoints.models import Models, Permitted, unknown_model
from tollhouse.wire.llm.dialect import Dialect

__all__ = ["LLMEndpoint"]

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies of nginx's kind would hold events back
)


class LLMEndpoint:
    """Answers requests in one dialect. `handle` is the Handler; `render` is for the route, so that what fails before
    and after it fails in the dialect too.

    permitted: which names this principal may be told of when it asks for one that is not there.
    """

    __slots__ = ("_dialect", "_max_body", "_models", "_permitted", "render")

    def __init__(self, dialect: Dialect, models: Models, permitted: Permitted, *, max_body: int = 10 << 20) -> None:
        self._dialect = dialect
        self._models = models
        self._permitted = permitted
        self._max_body = max_body
        self.render: Callable[[Failure, Request], Response] = dialect.render

    async def handle(self, request: Request) -> Response:
        """Raises Failure: 405, 413, 400 for a body that cannot be read, 404 for an unknown model, and what the model's
        chain raises."""
        dialect = self._dialect
        context = request.context
        context.dialect = dialect.family
        context.operation = dialect.operation
        if request.method != b"POST":
            headers = ((b"allow", b"POST"),)
            raise Failure(405, Reason.INVALID_REQUEST, "models are asked with POST", headers=headers)
        body = request.whole(self._max_body)
        if body is None:
            body = await request.read(self._max_body)
        asked = dialect.decode(body)
        context.bytes_in = len(body)
        context.stream = asked.stream
        name = context.model_asked = asked.model
        model = self._models.find(name)
        if model is None:
            principal = context.principal
            raise unknown_model(self._models, name, lambda n: self._permitted(principal, n))
        reply = await model.handler(
            ModelCall(
                request,
                context,
                dialect=dialect,
                operation=dialect.operation,
                model=name,
                label=model.name,
                stream=asked.stream,
                fields=asked.fields,
                body=body,
            )
        )
        first = reply.first
        if reply.taps:
            first = _tapped(reply, reply.taps, first)
        if dialect.id_header is not None and context.request_id:
            reply.headers.append((dialect.id_header, context.request_id.encode("latin-1", "replace")))
        source = reply.source
        if source is None:
            return Response(reply.status, reply.headers, first, reason=Reason.UPSTREAM, ends=reply.ends)
        request_id = context.request_id
        return Response(
            reply.status,
            [*_STREAM_HEADERS, *reply.headers],
            source=_Begun(first, source),
            reason=Reason.UPSTREAM,
            ends=reply.ends,
            last_words=lambda failure: dialect.last_words(failure, request_id),
        )


def _tapped(reply: Reply, taps: list[Tap], first: bytes) -> bytes:
    try:
        for tap in taps:
            first = tap(first)
    except Failure as failure:
        reply.close(Ending(failure.status, failure.reason, 0, failure))
        raise
    return first


class _Begun:
    """A Source of what has come already, then of the rest."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: bytes, rest: Source) -> None:
        self._first = first
        self._rest = rest

    def start(self, sink: Sink) -> None:
        first, self._first = self._first, b""
        if first:
            sink.send(first)
        self._rest.start(sink)

    def pause(self) -> None:
        self._rest.pause()

    def resume(self) -> None:
        self._rest.resume()

    def close(self) -> None:
        self._rest.close()
