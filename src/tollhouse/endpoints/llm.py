"""The LLM endpoint: the stair from the request floor to the call floor.

Rule: it reads the body in its bound, finds the model and makes the call; what the call means to anybody else is in the
model's chain. The Reply becomes a Response without a look at what is in it.
"""

from collections.abc import Callable, Sequence

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Request, Response, Sink, Source
from tollhouse.core.reply import Reply
from tollhouse.endpoints.models import Admit, Models, Permitted, refusal_of
from tollhouse.wire.llm.dialect import Dialect

__all__ = ["Begun", "LLMEndpoint", "Locate", "PathEndpoint", "tapped"]

_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies of nginx's kind would hold events back
)


_UPSTREAM, _OURS = Reason.UPSTREAM, Reason.DIRECT_RESPONSE  # to ask an Enum for a member costs as much as a call

Locate = Callable[[bytes], "tuple[str, bool | None] | None"]
"""Model and whether to stream of a request's path; None in the pair where the body says it, None for another path."""


class LLMEndpoint:
    """Answers requests in one dialect. `handle` is the Handler; `render` is for the route, so that what fails before
    and after it fails in the dialect too.

    permitted: which names this principal may be told of when it asks for one that is not there. locate: reads the model
    and whether to stream from a path, where it says them (None: the body does). admit: awaited with a call of no model
    before an unknown name is told of: guessing is not free.
    """

    __slots__ = ("_admit", "_dialect", "_locate", "_max_body", "_models", "_permitted", "_stream_headers", "render")

    def __init__(
        self,
        dialect: Dialect,
        models: Models,
        permitted: Permitted,
        *,
        max_body: int = 10 << 20,
        locate: Locate | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._dialect = dialect
        self._admit = admit
        self._stream_headers = ((b"content-type", dialect.stream_type), *_STREAM_HEADERS)
        self._locate = locate
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
        if self._locate is None:
            asked = dialect.decode(body)
        else:
            place = self._locate(request.path)
            if place is None:
                raise Failure(404, Reason.NOT_FOUND, "this path is none of this API's")
            dialect.refuse(request)
            asked = dialect.decode(body, model=place[0], stream=place[1])
        context.bytes_in = len(body)
        context.stream = asked.stream
        name = context.model_asked = asked.model
        model = self._models.find(name)
        if model is None:
            raise await refusal_of(name, self._models, request, self._permitted, self._admit)
        if model.aliases:
            name = context.model_asked = self._models.own(name)
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
                content_type=asked.content_type,
            )
        )
        first = tapped(reply) if reply.taps else reply.first
        if dialect.id_header is not None and context.request_id:
            reply.headers.append((dialect.id_header, context.request_id.encode("latin-1", "replace")))
        source = reply.source
        reason = _OURS if context.cached else _UPSTREAM
        if source is None:
            return Response(reply.status, reply.headers, first, reason=reason, ends=reply.ends)
        request_id = context.request_id
        return Response(
            reply.status,
            [*self._stream_headers, *reply.headers],
            source=Begun(first, source),
            reason=reason,
            ends=reply.ends,
            last_words=lambda failure: dialect.last_words(failure, request_id),
        )


class PathEndpoint:
    """One of several endpoints below one prefix: the first whose `locate` knows the path. render: as LLMEndpoint's."""

    __slots__ = ("_endpoints", "render")

    def __init__(self, endpoints: Sequence[tuple[Locate, LLMEndpoint]]) -> None:
        self._endpoints = tuple(endpoints)
        self.render = endpoints[0][1].render

    async def handle(self, request: Request) -> Response:
        """Raises Failure 404 for a path that nobody knows, and what the endpoints raise."""
        for locate, endpoint in self._endpoints:
            if locate(request.path) is not None:
                request.render = endpoint.render
                return await endpoint.handle(request)
        raise Failure(404, Reason.NOT_FOUND, "this path names no model, or asks it for what the gateway does not know")


def tapped(reply: Reply) -> bytes:
    """What has come of a Reply, with its taps applied. Raises a tap's Failure; the Reply is closed then."""
    first = reply.first
    try:
        for tap in reply.taps or ():
            first = tap(first)
    except Failure as failure:
        reply.close(Ending(failure.status, failure.reason, 0, failure))
        raise
    return first


class Begun:
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
