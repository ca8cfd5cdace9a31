"""A realtime session under way: the tunnel between a client and a provider, and the answers that are seen in it.

Rule: bytes pass as they came, at once; the readers only look. Each answer is a call of its own: where it begins it
passes the model's limits, where it ends its usage is recorded, before its last event is passed on. What must not go on
ends with an `error` event and a Close frame, between two messages; where there is no such place the tunnel is cut.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from time import monotonic, time

from msgspec.structs import replace

from tollhouse.core.call import Context, ModelCall, Usage
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held, Holders
from tollhouse.core.http import Duplex, Ending, Feeder, Request, Sink, finish
from tollhouse.core.reply import Reply
from tollhouse.wire.llm.realtime import Kind, Realtime, RealtimeReader, Told
from tollhouse.wire.websocket import CLOSE, TEXT, FrameFailure, FrameReader, Message, close_frame, frame

__all__ = ["GRANTED", "Begin", "Session", "Sums"]

Begin = Callable[[ModelCall], Awaitable[Reply]]
"""A chain that an answer passes where it begins: it is metered, and limited. Its last handler gives `GRANTED`."""

_KEEP = 1 << 20  # bytes of one event
_GRACE = 2.0  # seconds that the other side has to close, too
_OK, _GOING_AWAY, _POLICY, _INTERNAL, _LATER, _BAD_GATEWAY = 1000, 1001, 1008, 1011, 1013, 1014
_CODES = {401: _POLICY, 403: _POLICY, 429: _POLICY, 502: _BAD_GATEWAY, 503: _LATER, 504: _GOING_AWAY}
_UPSTREAM = Reason.UPSTREAM
_LONGEST = 2048  # of what the log says went wrong


class _Granted:
    """What a chain gives that waited for nothing. Awaiting it waits for nothing, too."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, Reply]:
        yield from ()
        return Reply(200, [], b"")


GRANTED = _Granted()


class Sums:
    """What a session's answers came to. `tell` puts it into the context at the request's end, after the meter, which
    has recorded each of them."""

    __slots__ = ("_context", "cost", "usage")

    def __init__(self, context: Context) -> None:
        self._context = context
        self.usage: Usage | None = None
        self.cost: int | None = None

    def add(self, context: Context) -> None:
        """What one answer came to."""
        usage = context.usage
        if usage is not None:
            self.usage = replace(usage) if self.usage is None else _added(self.usage, usage)
        if context.cost_nano is not None:
            self.cost = context.cost_nano + (self.cost or 0)

    def tell(self, _: Ending) -> None:
        self._context.usage = self.usage
        self._context.cost_nano = self.cost


class _Turn:
    """One answer. granted: it has passed its chain. over: how it ended, where that was before."""

    __slots__ = ("call", "granted", "over")

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        self.granted = False
        self.over: Ending | None = None


class _Down:
    """The Sink of what the provider sends."""

    __slots__ = ("_session",)

    def __init__(self, session: "Session") -> None:
        self._session: Session | None = session

    def send(self, data: bytes) -> None:
        if self._session is not None:
            self._session.came(data)

    def end(self, failure: Failure | None = None) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.lost(failure)


class Session:
    """The tunnel, as the server holds it: a Source of what the provider sends, a Sink of what the client does.

    call: that opened it. exchange: to the provider. settle: goes into the Response's `ends`, first. among: where it is
    while it is open, for whoever wants to stop it. permitted: whether the caller may use a model, by its name: a
    session may name another one that transcribes. holders: where it is written down whose it is.
    """

    __slots__ = (
        "_among", "_begin", "_bytes_in", "_call", "_client_closed", "_clock", "_created", "_dialect", "_exchange",
        "_failure", "_from_client", "_from_provider", "_heard_by", "_held", "_holders", "_permitted",
        "_provider_closed", "_reader", "_refusal", "_sink", "_sums", "_tasks", "_transcribes", "_turns", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        call: ModelCall,
        dialect: Realtime,
        exchange: Duplex,
        begin: Begin,
        sums: Sums,
        clock: Clock,
        among: "set[Session]",
        *,
        transcribes: bool = False,
        permitted: Callable[[str], bool] = lambda model: True,
        holders: Holders | None = None,
    ) -> None:
        self._holders = holders
        self._held: Held | None = None
        self._permitted = permitted
        self._heard_by = ""  # the model that transcribes, once it was seen to be permitted
        self._call = call
        self._dialect = dialect
        self._exchange: Duplex | None = exchange
        self._begin = begin
        self._sums = sums
        self._clock = clock
        self._among = among
        self._transcribes = transcribes
        self._reader = RealtimeReader()
        self._from_client = FrameReader(client=True)
        self._from_provider = FrameReader(client=False, keep=_KEEP)
        self._client_closed = self._provider_closed = False  # with a Close frame
        self._sink: Sink | None = None
        self._created = False  # the provider has told what the session is
        self._turns: dict[str, _Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusal: Failure | None = None  # to be told between two messages
        self._failure: Failure | None = None
        self._bytes_in = 0
        self.deadline = FOREVER

    # ---- Source of what the provider sends
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._among.add(self)
        if self._holders is not None:
            self._held = self._holders.hold(self._call.principal, self, context=self._call.context)
        if self._exchange is not None:
            self._exchange.start(_Down(self))

    def pause(self) -> None:
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        if self._exchange is not None:
            self._exchange.resume()

    def close(self) -> None:
        self._sink = None
        self._drop()

    # ---- Sink of what the client sends
    def send(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._sink is None:
            return
        self._bytes_in += len(data)
        try:
            messages = self._from_client.feed(data)
        except FrameFailure as failure:
            self._stop(failure.with_traceback(None), told=False)
            return
        for message in messages:
            if message.opcode == CLOSE:
                self._client_closed = True
            elif message.opcode == TEXT:
                self._reader.sent(message.size)
        exchange.send(data)

    def end(self, failure: Failure | None = None) -> None:
        """The client is gone."""
        self._sink = None
        exchange = self._exchange
        if exchange is not None:
            self._part(exchange, _GOING_AWAY)

    def feed(self, feeder: Feeder) -> None:
        if self._exchange is not None:
            self._exchange.feed(feeder)

    # ---- what the provider sends
    def came(self, data: bytes) -> None:
        if self._sink is None:
            return
        here = self._from_provider.between_messages
        try:
            for message in self._from_provider.feed(data):
                if message.opcode == TEXT:
                    self._look(message)
                elif message.opcode == CLOSE:
                    self._provider_closed = True
                if self._refusal is not None:
                    self._give(data[: message.end if message.begin < 0 else message.begin])
                    self._refuse(here=True)
                    return
        except FrameFailure as failure:
            self._stop(failure.with_traceback(None), told=False, here=here)
            return
        self._give(data)

    def lost(self, failure: Failure | None) -> None:
        """The provider has ended the connection, or it was lost, or a time has passed."""
        self._exchange = None
        self._clock.drop(self)
        if self._sink is None:
            return
        if failure is None and not (self._provider_closed or self._client_closed):
            failure = Failure(502, Reason.UPSTREAM_FAILURE, "the provider cut the session", sent=True)
        if failure is None or self._provider_closed:
            sink, self._sink = self._sink, None
            sink.end()
        else:
            self._stop(failure, told=False)

    def _give(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.send(data)

    def _look(self, message: Message) -> None:
        """What an event means. What must not go on is in `_refusal` then."""
        try:
            told = self._reader.read(message.payload, message.whole)
            if told is not None:
                self._act(told)
        except Failure as failure:
            self._refusal = failure.with_traceback(None)

    def _act(self, told: Told) -> None:
        kind = told.kind
        if kind is Kind.SPOKE:
            turn = self._turns.get(told.response)
            if turn is not None:
                turn.call.context.first_event = monotonic()
        elif kind is Kind.BEGAN:
            self._began(told)
        elif kind is Kind.ENDED:
            usage = told.usage
            if usage is None and told.status != "failed":
                usage = self._reader.unfinished(told.response)
            self._reader.forget(told.response)
            turn = self._turns.pop(told.response, None) or self._turn("response", usage=usage)
            turn.call.context.usage = usage
            self._over(turn, _ending(told))
        elif kind is Kind.TRANSCRIBED:
            self._over(self._turn("transcription", usage=told.usage), Ending(200, _UPSTREAM))
        elif kind is Kind.SESSION:
            self._check()
        else:
            self._call.context.error = told.detail[:_LONGEST]

    def _check(self) -> None:
        """A session stays with the model that its rules were asked for. Raises Failure 403."""
        context = self._call.context
        first, self._created = not self._created, True
        if self._transcribes:
            model, asked = self._reader.transcription, context.model_sent
            if first:
                return  # until the client has named one, it is the provider's choice
        else:
            self._check_hearing(self._reader.transcription)
            model = self._reader.model
            asked = context.model_answered = context.model_answered or model
        if not model or model == asked:
            return
        message = f"the session has changed to the model {model!r}; open another session for that"
        raise Failure(403, Reason.AUTHORIZATION, message, code="model_changed", detail=f"it began with {asked!r}")

    def _check_hearing(self, model: str) -> None:
        """Whoever may speak to one model may not therefore have another one listen. Raises Failure 403."""
        if not model or model == self._heard_by:
            return
        if not self._permitted(model):
            message = f"the model {model!r}, which this session would have transcribe, is not permitted"
            raise Failure(403, Reason.AUTHORIZATION, message, code="model_not_permitted")
        self._heard_by = model

    # ---- answers
    def _began(self, told: Told) -> None:
        self._turns[told.response] = self._turn("response", told.output)

    def _turn(self, what: str, output: int = 0, usage: Usage | None = None) -> _Turn:
        """Begin an answer, or a transcription. output: the most tokens it may have. usage: where it is over already.
        Raises Failure: 401, and what its chain raises."""
        opened = self._call
        request, before = opened.request, opened.context
        reader = self._reader
        answers = what == "response"
        now = monotonic()
        context = Context(
            request_id=before.request_id,
            began=now,
            client=before.client,
            route=before.route,
            backend=before.backend,
            principal=opened.principal,
            dialect=before.dialect,
            operation=f"{before.operation}.{what}",
            provider=before.provider,
            model_asked=before.model_asked,
            model_answered=reader.model if answers else reader.transcription,
            stream=True,
            usage=usage,
            model_sent=before.model_sent if answers else "",
            upstream_began=now,
            attempts=1,
        )
        part = Request(request.method, request.target, request.headers, peer=request.peer)
        part.path, part.scheme, part.listener, part.context = request.path, request.scheme, request.listener, context
        turn = _Turn(
            ModelCall(
                part,
                context,
                dialect=self._dialect,
                operation=context.operation,
                model=opened.model,
                label=opened.label,
                stream=False,  # whoever awaits it gets no stream
                fields={},
                body=b"",
                reserve=reader.prompt().input + output if usage is None else usage.total,
            )
        )
        try:
            if opened.principal is not None and opened.principal.expires <= time():
                message = "the credential that this session was opened with has expired"
                raise Failure(401, Reason.JWT_AUTH, message, code="token_expired")
            waiting = self._begin(turn.call)
        except Failure as failure:
            self._denied(turn, failure.with_traceback(None))
            raise
        if waiting is GRANTED:
            turn.granted = True
        else:
            task = asyncio.ensure_future(self._grant(turn, waiting))
            self._tasks.add(task)
            task.add_done_callback(partial(self._asked, waiting))
        return turn

    async def _grant(self, turn: _Turn, waiting: Awaitable[Reply]) -> None:
        """Let an answer pass a chain that has to be waited for; meanwhile it goes on."""
        try:
            await waiting
        except Failure as failure:
            self._denied(turn, failure.with_traceback(None))
            self._refusal = failure
            self._refuse(here=False)
            return
        turn.granted = True
        if turn.over is not None:
            try:
                self._over(turn, turn.over)
            except Failure as failure:
                self._refusal = failure.with_traceback(None)
                self._refuse(here=False)

    def _asked(self, waiting: Awaitable[Reply], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if isinstance(waiting, Coroutine):
            waiting.close()  # it has ended, or was never begun

    def _denied(self, turn: _Turn, failure: Failure) -> None:
        """The chain has refused an answer that the provider is already at: it is recorded with what it costs so far."""
        for id, other in list(self._turns.items()):
            if other is turn:
                del self._turns[id]
        turn.granted = True
        context = turn.call.context
        context.usage = context.usage or self._reader.prompt()
        self._over(turn, Ending(failure.status, failure.reason, 0, failure))

    def _over(self, turn: _Turn, ending: Ending) -> None:
        """An answer has ended: run what is due. Raises Failure where it cannot be recorded."""
        if not turn.granted:
            turn.over = turn.over or ending
            return
        context = turn.call.context
        context.upstream_ended = monotonic()
        try:
            finish(turn.call.request.ends, ending)
        finally:
            self._sums.add(context)

    # ---- the end
    def leave(self) -> None:
        """The gateway is stopping: tell both sides, and end."""
        if self._sink is not None:
            self._call.context.error = "the gateway is stopping"
            self._tell(close_frame(_GOING_AWAY, "the gateway is stopping"))

    def lapse(self, failure: Failure) -> None:
        """Who opened it is no longer good: tell so between two messages, and end."""
        if self._sink is not None and self._refusal is None:
            self._refusal = failure
            self._refuse(here=False)

    def _refuse(self, *, here: bool) -> None:
        """Tell why it does not go on. here: the client is between two messages, wherever the reader is."""
        if self._refusal is not None and (here or self._from_provider.between_messages):
            failure, self._refusal = self._refusal, None
            self._stop(failure, told=True, here=here)

    def _stop(self, failure: Failure, *, told: bool, here: bool = False) -> None:
        """End because of a failure. told: as an event, too."""
        self._failure = failure
        code = _CODES.get(failure.status, _INTERNAL)
        if isinstance(failure, FrameFailure) and failure.reason is Reason.INVALID_REQUEST:
            code = failure.close  # the client's own
        words = close_frame(code, failure.message)
        if told:
            event = self._dialect.words(failure, self._call.context.request_id)
            words = frame(TEXT, event) + words
        self._tell(words, here=here)

    def _tell(self, words: bytes, *, here: bool = False) -> None:
        """Say the last words to the client, where there is a place for them, and end both directions."""
        sink, self._sink = self._sink, None
        exchange = self._exchange
        if exchange is not None:
            self._part(exchange, _OK)
        if sink is not None:
            if here or self._from_provider.between_messages:
                sink.send(words)
            sink.end()

    def _part(self, exchange: Duplex, code: int) -> None:
        """Close the provider's side, which may take a moment."""
        if not self._client_closed and self._from_client.between_frames:
            exchange.send(close_frame(code, key=os.urandom(4)))
        exchange.end()
        self.deadline = self._clock.now + _GRACE
        self._clock.watch(self)
        self._clock.hurry(self)

    def expire(self) -> None:
        """It did not close in time."""
        self.deadline = FOREVER
        self._drop()

    def _drop(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._clock.drop(self)
        if exchange is not None:
            exchange.close()

    def settle(self, ending: Ending) -> None:
        """Say how it ended to those after, and settle the answers that were under way. Raises Failure where one cannot
        be recorded."""
        self._among.discard(self)
        held, self._held = self._held, None
        if held is not None:
            held.release()
        context = self._call.context
        context.upstream_ended = monotonic()
        context.bytes_in = self._bytes_in
        if ending.failure is None:
            ending.failure = self._failure
        self._failure = None
        if ending.gone and (self._client_closed or self._provider_closed):
            ending.status, ending.reason, ending.gone = 101, _UPSTREAM, False
        failed: Failure | None = None
        turns, self._turns = self._turns, {}
        for id, turn in turns.items():
            turn.granted = True
            turn.call.context.usage = self._reader.unfinished(id)
            try:
                self._over(turn, _cut(ending))
            except Failure as failure:
                failed = failure.with_traceback(None)
        for task in tuple(self._tasks):
            task.cancel()
        if failed is not None:
            raise failed


def _ending(told: Told) -> Ending:
    """How an answer ended, as the provider says."""
    if told.status != "failed":
        return Ending(200, _UPSTREAM)
    failure = Failure(502, Reason.UPSTREAM_FAILURE, "the provider failed", detail=told.detail, sent=True)
    return Ending(502, failure.reason, 0, failure)


def _cut(ending: Ending) -> Ending:
    """How an answer ended that its session did not live to see."""
    failure = ending.failure
    if failure is not None:
        return Ending(200, failure.reason, 0, failure)
    return Ending(499, Reason.CLIENT_GONE, 0, None, True)


def _added(one: Usage, other: Usage) -> Usage:
    sums = {n: getattr(one, n) + getattr(other, n) for n in one.__struct_fields__ if n not in ("estimated", "tier")}
    return Usage(**sums, estimated=one.estimated or other.estimated)
