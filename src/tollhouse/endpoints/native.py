"""The endpoint of a provider's own paths: the stair from a request of any method to a call whose answer is not read.

Rule: rules, limits and records see a call of the provider, and the operation and model where the path is one of an API
that is known and the body says it. Streams come back as they come; a request's body is read whole.
"""

from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.llm import Begun, tapped
from tollhouse.wire.llm.dialect import Asked, Dialect

__all__ = ["NativeEndpoint"]

_METHODS = frozenset((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"))


class NativeEndpoint:
    """Answers requests below `prefix`. label: of the calls, for metrics and records. known: APIs by their path below
    the prefix. unread: for every other path."""

    __slots__ = ("_handler", "_known", "_label", "_max_body", "_prefix", "_unread", "render")

    def __init__(
        self,
        prefix: bytes,
        label: str,
        handler: Handler[ModelCall, Reply],
        known: Mapping[bytes, Dialect],
        unread: Dialect,
        *,
        max_body: int = 10 << 20,
    ) -> None:
        self._prefix = prefix
        self._label = label
        self._handler = handler
        self._known = known
        self._unread = unread
        self._max_body = max_body
        self.render: Callable[[Failure, Request], Response] = unread.render

    async def handle(self, request: Request) -> Response:
        """Raises Failure: 405, 413, 400 for what cannot be read of an API that is known, and what the chain raises."""
        if request.method not in _METHODS:
            raise Failure(405, Reason.INVALID_REQUEST, f"{request.method.decode('latin-1')} is not passed on")
        body = await request.read(self._max_body)
        dialect, asked = self._read(request, body)
        context = request.context
        context.dialect = dialect.family
        context.operation = dialect.operation
        context.bytes_in = len(body)
        context.stream = asked.stream
        context.model_asked = asked.model
        reply = await self._handler(
            ModelCall(
                request,
                context,
                dialect=dialect,
                operation=dialect.operation,
                model=asked.model,
                label=self._label,
                stream=asked.stream,
                fields=asked.fields,
                body=body,
                content_type=asked.content_type,
            )
        )
        first = tapped(reply)
        headers = reply.headers
        if reply.source is None:
            return Response(reply.status, headers, first, reason=Reason.UPSTREAM, ends=reply.ends)
        reply.source = Begun(first, reply.source) if first else reply.source
        response = Response(reply.status, headers, source=reply.source, reason=Reason.UPSTREAM, ends=reply.ends)
        if asked.stream:
            request_id = context.request_id
            response.last_words = lambda failure: dialect.last_words(failure, request_id)
        return response

    def _read(self, request: Request, body: bytes) -> tuple[Dialect, Asked]:
        """Which API is asked, and for what. Raises Failure 400 for a body of a known API that cannot be read: rules
        would not know of the model that a provider finds in it."""
        dialect = self._known.get(_plain(request.path[len(self._prefix) :]))
        if dialect is None or request.method != b"POST":
            return self._unread, Asked(self._label, {}, False)
        asked = dialect.decode(body)
        request.context.model_sent = asked.model
        asked.model = f"{self._label}/{asked.model}"
        return dialect, asked


def _plain(path: bytes) -> bytes:
    """A path without what a provider may overlook in it: it is read as the API that it may be taken for."""
    return unquote_to_bytes(path).partition(b";")[0].rstrip(b"/").lower()
