"""The realtime endpoint: the stair from a request that asks for a WebSocket to the call that opens a session.

Rule: until the answer 101 it is a call like any other: known, ruled, limited, recorded, and given to another target
where one fails. From then on it is a tunnel that is looked at (`realtime_session`).
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.holders import Holders
from tollhouse.core.http import CREDENTIALS, Duplex, Headers, Request, Response
from tollhouse.endpoints.llm import tapped
from tollhouse.endpoints.models import Admit, Models, Permitted, refusal_of
from tollhouse.endpoints.realtime_session import Begin, Session, Sums
from tollhouse.wire.llm.realtime import KEY_PROTOCOL, OWN_PROTOCOLS, Realtime
from tollhouse.wire.websocket import asked_key, protocols

__all__ = ["RealtimeEndpoint", "key_of_protocol"]

_PROTOCOL = b"sec-websocket-protocol"


def key_of_protocol(request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
    """A policy for before authentication: a key that is shown as a subprotocol, because a page can set no header, is
    shown as a header from here on. Where there is a credential in a header as well, that one counts. A subprotocol that
    says who the caller is goes no further."""
    offered = protocols(request.headers)
    secret = [each for each in offered if each.startswith(OWN_PROTOCOLS)]
    if secret:
        headers = Headers(request.headers)
        headers.drop((_PROTOCOL,))
        rest = [each for each in offered if each not in secret]
        if rest:
            headers.append((_PROTOCOL, b", ".join(rest)))
        key = _key(secret)
        if key and not any(name in CREDENTIALS and name != b"cookie" for name, _ in headers):
            headers.append((b"authorization", b"Bearer " + key))
        request.headers = headers
    return next(request)


class RealtimeEndpoint:
    """Answers `GET /v1/realtime?model=...` with an upgrade. begin: the chain that each answer of a session with that
    model passes, by the model's configured name. open: the sessions that are. named: whether a caller may use a model
    that his session names, configured or not. holders: where it is written down whose they are. The others as
    LLMEndpoint's."""

    __slots__ = (
        "_admit", "_begin", "_clock", "_dialect", "_holders", "_models", "_named", "_open", "_permitted", "render",
    )  # fmt: skip

    def __init__(
        self,
        dialect: Realtime,
        models: Models,
        permitted: Permitted,
        begin: Callable[[str], Begin],
        clock: Clock,
        open: set[Session],
        *,
        admit: Admit | None = None,
        named: Permitted | None = None,
        holders: Holders | None = None,
    ) -> None:
        self._holders = holders
        self._named = named if named is not None else permitted
        self._dialect = dialect
        self._models = models
        self._permitted = permitted
        self._begin = begin
        self._clock = clock
        self._open = open
        self._admit = admit
        self.render: Callable[[Failure, Request], Response] = dialect.render

    async def handle(self, request: Request) -> Response:
        """Raises Failure: 405, 426 for a request without an upgrade, 400 for a bad handshake or query, 404 for an
        unknown model, and what the model's chain raises."""
        dialect = self._dialect
        context = request.context
        context.dialect = dialect.family
        context.operation = dialect.operation
        if request.method != b"GET":
            allow = ((b"allow", b"GET"),)
            raise Failure(405, Reason.INVALID_REQUEST, "a WebSocket is asked for with GET", headers=allow)
        asked_key(request.headers, request.upgrade)
        name, transcribes = dialect.opening(request.query)
        context.model_asked = name
        model = self._models.find(name)
        if model is None:
            raise await refusal_of(name, self._models, request, self._permitted, self._admit)
        if model.aliases:
            name = context.model_asked = self._models.own(name)
        sums = Sums(context)
        request.ends.append(sums.tell)  # before the meter's, which runs earlier then
        call = ModelCall(
            request,
            context,
            dialect=dialect,
            operation=dialect.operation,
            model=name,
            label=model.name,
            stream=False,
            fields={},
            body=b"",
            reserve=0,
        )
        reply = await model.handler(call)
        if reply.status != 101 or reply.source is None:
            return Response(reply.status, reply.headers, tapped(reply), reason=Reason.UPSTREAM, ends=reply.ends)
        session = Session(
            call,
            dialect,
            cast(Duplex, reply.source),
            self._begin(model.name),
            sums,
            self._clock,
            self._open,
            transcribes=transcribes,
            permitted=partial(self._named, call.principal),
            holders=self._holders,
        )
        headers = [*reply.headers, (b"upgrade", b"websocket")]
        ends = [session.settle, *reply.ends]
        return Response(101, headers, tunnel=session, reason=Reason.UPSTREAM, ends=ends)


def _key(secret: list[bytes]) -> bytes:
    """The key among subprotocols; b"" where there is none."""
    return next((each[len(KEY_PROTOCOL) :] for each in secret if each.startswith(KEY_PROTOCOL)), b"")
