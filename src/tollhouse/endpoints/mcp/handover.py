"""A held call whose agent comes back to another worker: the answers go to the worker that holds it, over the bus, and
what the server then says comes back.

Rule: the worker that the agent came to has judged the request; the one that holds the call only carries it on. Frames
are numbered, so that one that was lost is noticed: the agent is told that the call is lost, and never half an answer.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Sink, Source
from tollhouse.core.reply import Reply
from tollhouse.core.stand_in import StandIn
from tollhouse.endpoints.mcp.request import JSON
from tollhouse.store.base import Bus

__all__ = ["Distant", "Gone", "HandOver", "Refusal", "Rescue", "Resume"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_ACK = 1.0  # seconds for the other worker to say that it is there, before it is asked again
_ASKS = 16
_PART = 256 << 10  # bytes of one frame
_WAITING = 4 << 20  # bytes not yet published above which the server is made to wait
_SILENCE = 10.0  # seconds without a frame after which the other worker is taken for dead
_SIGN = 2.0  # seconds after which it says that it lives
_ORDER = 16 << 20  # bytes of answers of one order, and of all that are not whole yet
_ORDERS = 16  # orders that are not whole yet
_LARGE = 1 << 20  # bytes of an order above which it goes in pieces
_FAREWELL = 2.0  # seconds for the last words of a worker that leaves

_CALL, _CANCEL, _PIECE = 0, 1, 2
_TAKEN, _SOME, _LAST, _END, _FAILED, _REFUSED, _GONE, _ALIVE, _LEFT = range(9)


class _Order(msgspec.Struct, array_like=True):
    """number, data: of a piece of what is too large for one message; the last piece is numbered `round`."""

    kind: int
    reply: str
    call: str = ""
    round: int = 0
    nonce: str = ""
    answers: dict[str, bytes] = {}
    number: int = 0
    data: bytes = b""


class _Frame(msgspec.Struct, array_like=True):
    """status, code: of a failure."""

    number: int
    kind: int
    data: bytes = b""
    status: int = 0
    code: str | None = None


_orders = msgspec.msgpack.Decoder(_Order)
_frames = msgspec.msgpack.Decoder(_Frame)
_encode = msgspec.msgpack.Encoder().encode

Resume = Callable[[str, int, str, dict[str, msgspec.Raw]], Awaitable[Reply | None]]
"""Carry on a call that is held here: (its id, round, nonce, answers). None when it is not held; raises Refusal when it
is, but not for this round, and Failure when its server has given it up."""

Rescue = Callable[[Failure], Awaitable[Reply]]
"""Go on with a call whose worker is lost, or leaves. Raises the given Failure, or another one, when nobody can."""


class Refusal(Exception):
    """The round was used before."""


class Gone(Exception):
    """The other worker lives, and has no such call (any more)."""


class HandOver:
    """What one worker does for the others. node: its own; resume: its held calls."""

    def __init__(self, bus: Bus, node: str, clock: Clock, resume: Resume) -> None:
        self._bus = bus
        self._clock = clock
        self._resume = resume
        self._carrying: dict[str, _Carrier] = {}
        self._pieces: dict[str, list[bytes]] = {}
        self._size = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop: Callable[[], None] | None = bus.subscribe(_topic(node), self._ordered)

    @property
    def busy(self) -> bool:
        """Something is carried on for another worker."""
        return bool(self._tasks)

    def leave(self) -> None:
        """Take no more orders, and tell whoever waits that this worker leaves."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        self._pieces.clear()
        for carrier in list(self._carrying.values()):
            carrier.leave()

    async def closed(self) -> None:
        """`leave`, and return when the others have been told, or cannot be."""
        self.leave()
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=_FAREWELL)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    # ---- for others
    def _ordered(self, data: bytes) -> None:
        try:
            order = _orders.decode(data)
        except msgspec.DecodeError:
            log.warning("mcp: another worker sent what cannot be read")
            return
        if order.kind == _PIECE:
            whole = self._piece(order)
            if whole is not None:
                self._ordered(whole)
            return
        known = self._carrying.get(order.reply)
        if order.kind == _CANCEL:
            if known is not None:
                known.drop()
        elif known is None:
            carrier = self._carrying[order.reply] = _Carrier(self._bus, order.reply, self._clock)
            task = asyncio.get_running_loop().create_task(self._carry(carrier, order), name="mcp hand-over")
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._ended(task, order.reply))
        # else it was asked twice, and will hear

    def _piece(self, order: _Order) -> bytes | None:
        """The order that this piece completes. One that comes twice, or after one that was lost, begins anew."""
        pieces = self._pieces.pop(order.reply, [])
        self._size -= sum(map(len, pieces))
        if order.number != len(pieces):
            pieces = []
        if order.number != len(pieces) or self._size + sum(map(len, pieces)) + len(order.data) > _ORDER:
            return None
        pieces.append(order.data)
        if order.number == order.round:
            return b"".join(pieces)
        while len(self._pieces) >= _ORDERS:
            self._size -= sum(map(len, self._pieces.pop(next(iter(self._pieces)))))
        self._pieces[order.reply] = pieces
        self._size += sum(map(len, pieces))
        return None

    async def _carry(self, carrier: "_Carrier", order: _Order) -> None:
        answers = {key: msgspec.Raw(value) for key, value in order.answers.items()}
        try:
            reply = await self._resume(order.call, order.round, order.nonce, answers)
        except Refusal:
            carrier.close_with(_REFUSED)
        except Failure as failure:
            carrier.frame(_TAKEN)
            carrier.end(failure)
        else:
            if reply is None:
                carrier.close_with(_GONE)
            else:
                carrier.frame(_TAKEN)
                if reply.source is None:
                    carrier.send(reply.first)
                    carrier.end()
                else:
                    carrier.follow(reply.source)
        await carrier.run()

    def _ended(self, task: "asyncio.Task[None]", reply: str) -> None:
        self._tasks.discard(task)
        carrier = self._carrying.pop(reply, None)
        if carrier is not None:
            carrier.drop()
        if not task.cancelled() and task.exception() is not None:
            log.error("mcp: a call could not be handed over", exc_info=task.exception())

    # ---- from others
    async def ask(
        self,
        owner: str,
        call: str,
        round: int,
        nonce: str,
        answers: dict[str, msgspec.Raw],
        lives: Callable[[str], Awaitable[bool]],
        rescue: Rescue,
    ) -> "Distant | None":
        """The call as `owner` carries it on; None when that is gone. lives: whether it has given a sign of life lately.
        rescue: what to do when it is lost under way. Raises Refusal, Gone, and Failure 503 when nobody can be asked."""
        distant = Distant(self._bus, owner, self._clock, rescue)
        told = {key: bytes(value) for key, value in answers.items()}
        order = _encode(_Order(_CALL, distant.topic, call, round, nonce, told))
        if len(order) > _ORDER:
            distant.close()
            raise Failure(413, Reason.INVALID_REQUEST, f"the answers have more than {_ORDER >> 20} MiB together")
        try:
            for asked in range(1, _ASKS + 1):
                for message in _pieces(distant.topic, order):
                    await self._bus.publish(_topic(owner), message)
                if await distant.taken(_ACK):
                    return distant
                if distant.refused:
                    raise Refusal
                if distant.gone:
                    raise Gone
                if asked > 1 and not await lives(owner):
                    distant.close()
                    return None
            why = "the worker that holds the call does not answer; try again"
            raise Failure(503, Reason.OVERLOADED, why, code="state_unavailable", retry_after=1.0)
        except BaseException:
            distant.close()
            raise


def _topic(node: str) -> str:
    return f"mcp.h.{node}"


def _pieces(reply: str, order: bytes) -> list[bytes]:
    """The messages of an order: a store takes none that is very large."""
    if len(order) <= _LARGE:
        return [order]
    last = (len(order) - 1) // _LARGE
    return [
        _encode(_Order(_PIECE, reply, round=last, number=n, data=order[n * _LARGE : (n + 1) * _LARGE]))
        for n in range(last + 1)
    ]


class _Carrier:
    """Sink of a call that is carried on for another worker: publishes what comes. Timed: it says that it lives."""

    __slots__ = (
        "_bus", "_clock", "_done", "_frames", "_number", "_paused", "_size", "_source", "_topic", "_wake", "deadline",
    )  # fmt: skip

    def __init__(self, bus: Bus, topic: str, clock: Clock) -> None:
        self._bus = bus
        self._topic = topic
        self._clock = clock
        self._frames: deque[_Frame] = deque()
        self._size = 0
        self._number = 0
        self._source: Source | None = None
        self._paused = False
        self._done = False
        self._wake = asyncio.Event()
        self.deadline = FOREVER

    async def run(self) -> None:
        """Publish frame after frame, to the end."""
        self.deadline = self._clock.now + _SIGN
        self._clock.watch(self)
        try:
            while True:
                while self._frames:
                    frame = self._frames.popleft()
                    self._size -= len(frame.data)
                    await self._bus.publish(self._topic, _encode(frame))
                    if self._paused and self._size < _WAITING and self._source is not None:
                        self._paused = False
                        self._source.resume()
                if self._done:
                    return
                self._wake.clear()
                await self._wake.wait()
        except Failure as failure:
            log.info("mcp: the bus is not there: %s", failure.detail)
        finally:
            self.deadline = FOREVER
            self._clock.drop(self)
            source, self._source = self._source, None
            if source is not None:
                source.close()

    def expire(self) -> None:
        self.deadline = self._clock.now + _SIGN
        self.frame(_ALIVE)

    def frame(self, kind: int, data: bytes = b"", failure: Failure | None = None) -> None:
        made = _Frame(self._number, kind, data)
        if failure is not None:
            made.status, made.code = failure.status, failure.code
        self._number += 1
        self._frames.append(made)
        self._size += len(data)
        self._wake.set()

    def close_with(self, kind: int) -> None:
        self.frame(kind)
        self._source = None
        self._done = True

    def follow(self, source: Source) -> None:
        self._source = source
        source.start(self)

    def send(self, data: bytes) -> None:
        for at in range(0, max(1, len(data)), _PART):
            self.frame(_LAST if at + _PART >= len(data) else _SOME, data[at : at + _PART])
        if self._size > _WAITING and self._source is not None and not self._paused:
            self._paused = True
            self._source.pause()

    def end(self, failure: Failure | None = None) -> None:
        if failure is None:
            self.frame(_END)
        else:
            self.frame(_FAILED, failure.message.encode(), failure)
        self._source = None
        self._done = True

    def leave(self) -> None:
        """This worker leaves: whoever waits may go on with the call itself."""
        if not self._done:
            self.frame(_LEFT)
            self.drop()

    def drop(self) -> None:
        """Nobody waits for it any more."""
        source, self._source = self._source, None
        self._done = True
        self._wake.set()
        if source is not None:
            source.close()


class Distant(StandIn):
    """A call that another worker carries on: Source of its messages here, and Sink of what goes on in the place of a
    worker that is lost. Timed: that worker may die. refused: its round was used before; gone: it is not held there.
    """

    __slots__ = (
        "_bus", "_clock", "_ended", "_failure", "_kept", "_next", "_owner", "_parts", "_rescue", "_stop", "_task",
        "_waiter", "deadline", "gone", "refused", "topic",
    )  # fmt: skip

    def __init__(self, bus: Bus, owner: str, clock: Clock, rescue: Rescue) -> None:
        super().__init__()
        self.topic = f"mcp.r.{secrets.token_urlsafe(12)}"
        self.refused = False
        self.gone = False
        self.deadline = FOREVER
        self._bus = bus
        self._owner = owner
        self._clock = clock
        self._next = 0
        self._parts: list[bytes] = []
        self._kept: list[bytes] = []
        self._rescue: Rescue | None = rescue
        self._ended = False
        self._failure: Failure | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stop: Callable[[], None] | None = bus.subscribe(self.topic, self._came, self._gap)

    async def taken(self, timeout: float) -> bool:
        """Whether the other worker has taken it over, within `timeout` seconds."""
        await asyncio.wait((self._waiter,), timeout=timeout)
        return self._waiter.done() and not (self.refused or self.gone)

    def reply(self) -> Reply:
        self.deadline = self._clock.now + _SILENCE
        self._clock.watch(self)
        return Reply(200, [JSON], b"", self)

    # ---- what comes
    def _came(self, data: bytes) -> None:
        try:
            frame = _frames.decode(data)
        except msgspec.DecodeError:
            self._gap()
            return
        if self._stop is None:
            return
        if frame.kind in (_REFUSED, _GONE):
            self.refused, self.gone = frame.kind == _REFUSED, frame.kind == _GONE
        elif frame.number != self._next:
            self._gap()
            return
        self._next += 1
        if not self._waiter.done():
            self._waiter.set_result(None)
        if self.deadline != FOREVER:
            self.deadline = self._clock.now + _SILENCE
        if frame.kind in (_SOME, _LAST):
            self._parts.append(frame.data)
            if frame.kind == _LAST:
                message = b"".join(self._parts)
                self._parts.clear()
                self._pass(message)
        elif frame.kind == _END:
            self._end(None)
        elif frame.kind == _FAILED:
            text = frame.data.decode(errors="replace")
            self._end(Failure(frame.status, Reason.UPSTREAM_FAILURE, text, code=frame.code, sent=True))
        elif frame.kind == _LEFT:
            self._lose(_lost("the worker that carried it has left"))

    def _gap(self) -> None:
        if not self._ended and self._waiter.done():
            self._order_off()
            self._end(_lost("a part of its answer was lost on the way from another worker"))

    def expire(self) -> None:
        self._lose(_lost("the worker that carried it does not answer any more"))

    def _lose(self, failure: Failure) -> None:
        """Somebody else must go on with it."""
        rescue, self._rescue = self._rescue, None
        if rescue is None or self._ended:
            self._end(failure)
            return
        self._leave()
        self._parts.clear()
        self._task = asyncio.get_running_loop().create_task(self._rescued(rescue, failure), name="mcp hand-over")

    async def _rescued(self, rescue: Rescue, failure: Failure) -> None:
        try:
            reply = await rescue(failure)
        except Failure as problem:
            self._end(problem.copy())
        except Exception:  # a task's root: the agent waits for what it says
            log.exception("mcp: a call of a worker that was lost cannot be carried on")
            self._end(failure)
        else:
            if self._ended:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            elif reply.source is None:
                self._pass(reply.first)
                self._end(None)
            else:
                self._source = reply.source
                if reply.first:
                    self._pass(reply.first)
                self._start_behind()

    def _pass(self, message: bytes) -> None:
        if self._sink is not None:
            self._sink.send(message)
        elif not self._ended:
            self._kept.append(message)

    def _end(self, failure: Failure | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._source = None
        self._leave()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(failure)
        else:
            self._failure = failure

    def _leave(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    # ---- Sink
    def send(self, data: bytes) -> None:
        if self._source is not None:
            self._pass(data)

    def end(self, failure: Failure | None = None) -> None:
        if self._source is not None:
            self._end(failure)

    # ---- Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        kept, self._kept = self._kept, []
        for message in kept:
            sink.send(message)
        if self._ended:
            self._sink = None
            sink.end(self._failure)

    def pause(self) -> None:
        """What is on its way comes all the same: it is bounded by what the other worker lets wait."""
        super().pause()

    def close(self) -> None:
        self._sink = None
        self._kept.clear()
        task, self._task = self._task, None
        if not self._ended:
            self._ended = True
            if self._source is not None:
                self._close_behind()
            elif task is not None:
                task.cancel()
            else:
                self._order_off()
        self._leave()

    def _order_off(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._cancel(), name="mcp hand-over")

    async def _cancel(self) -> None:
        try:
            await self._bus.publish(_topic(self._owner), _encode(_Order(_CANCEL, self.topic)))
        except Failure as failure:
            log.info("mcp: another worker could not be told that nobody waits: %s", failure.detail)


def _lost(why: str) -> Failure:
    return Failure(503, Reason.MCP, f"the call is lost: {why}", code="call_lost", sent=True)
