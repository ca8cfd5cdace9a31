"""What servers say outside of calls, on its way to agents: what guards make of it.

Rule: it is asked anew for each message, so that a session which only listens has the guards of the configuration that
serves. Where a guard has to be asked first, an agent hears what follows after it, in the order in which it was said;
and what waits is bounded, for each agent and for all.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol, TypeVar

from tollhouse.core.errors import Failure
from tollhouse.wire import jsonrpc

__all__ = ["Answer", "Guards", "Outside", "Take", "Waiting"]

log = logging.getLogger("tollhouse.endpoints.mcp")

T = TypeVar("T")

_QUIET = 60.0  # seconds between lines of the log
_WAIT = 64  # messages for one agent
_ROOM = 32 << 20  # bytes of all that waits
_EACH = 4 << 10  # bytes that a message takes besides its own, about

Answer = Callable[[bytes], None]
"""Gets an agent's response to what a server has asked."""

Take = Callable[[jsonrpc.Message, Answer], bool]
"""Tells an agent of a message; False where it cannot be told. Raises Malformed."""


class Outside(Protocol):
    """What the guards of a server make of what it says outside of calls (`policies.guardrails.outside`): at once, or
    after somebody was asked."""

    def instructions(self, text: str) -> str | Coroutine[Any, Any, str]:
        """As agents get them; "" where they are refused."""
        ...

    def heard(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes | None] | None:
        """A notification or a request of the server, None where it is refused."""
        ...

    def told(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes]:
        """An agent's response to such a request."""
        ...

    def failed(self, failure: Failure) -> Failure:
        """Why something that is no call has failed."""
        ...


class Room:
    """What waits of all agents of a worker. held: bytes."""

    __slots__ = ("_quiet", "held", "most")

    def __init__(self, most: int = _ROOM) -> None:
        self.most = most
        self.held = 0
        self._quiet = -_QUIET

    def lose(self) -> None:
        """Something is left out for want of room."""
        now = monotonic()
        if now - self._quiet >= _QUIET:
            self._quiet = now
            log.warning("mcp: servers say more outside of calls than guards look at; it is left out")


class Guards:
    """Those of all endpoints, by path and server."""

    __slots__ = ("_of", "room")

    def __init__(self) -> None:
        self._of: Mapping[str, Mapping[str, Outside]] = {}
        self.room = Room()

    @property
    def look(self) -> bool:
        """Whether there are any."""
        return bool(self._of)

    def serve(self, guards: Mapping[str, Mapping[str, Outside]]) -> None:
        """These are in force now, and no others."""
        self._of = guards

    def hear(
        self,
        endpoint: str,
        server: str,
        data: bytes,
        message: jsonrpc.Message,
        answer: Answer,
        take: Take,
        waiting: "Waiting",
    ) -> bool:
        """Have an agent told of a message, now or when those before it were. data: the message, as it came. False: it
        will not be. Raises Malformed."""
        guard = self._of.get(endpoint, _NONE).get(server) if self._of else None
        heard: bytes | Coroutine[Any, Any, bytes | None] | None = data
        refuse = answer
        if guard is not None:
            if waiting.is_full:
                waiting.lose()
                return False
            heard = guard.heard(data, message.method)
            if message.is_request:
                answer = partial(waiting.answer, guard, message.method, answer)
        if isinstance(heard, Coroutine) or waiting.is_busy:
            return waiting.put(_Said(data, message, answer, refuse, take), heard)
        if heard is None:
            return False
        return take(message if heard is data else jsonrpc.decode(heard), answer)


_NONE: Mapping[str, Outside] = {}


class _Said(NamedTuple):
    """A message that waits. refuse: gets the answer to it, if that is ours."""

    data: bytes
    message: jsonrpc.Message
    answer: Answer
    refuse: Answer
    take: Take


class Waiting:
    """What one agent is to hear once guards were asked. room: for all that waits. lost: told where something was left
    out for want of room."""

    __slots__ = ("_answers", "_lost", "_queue", "_room")

    def __init__(self, room: Room, lost: Callable[[], None]) -> None:
        self._room = room
        self._lost = lost
        self._queue: deque[tuple[_Said, asyncio.Future[bytes | None]]] = deque()
        self._answers: set[asyncio.Task[bytes]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether something waits."""
        return bool(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether no more may."""
        return len(self._queue) >= _WAIT or self._room.held >= self._room.most

    def lose(self) -> None:
        """Something is left out."""
        self._room.lose()
        self._lost()

    def put(self, said: _Said, heard: bytes | Coroutine[Any, Any, bytes | None] | None) -> bool:
        """One more; False where there is no room for it. heard: what guards make of it."""
        loop = asyncio.get_running_loop()
        if self.is_full:
            if isinstance(heard, Coroutine):
                heard.close()
            self.lose()
            return False
        verdict: asyncio.Future[bytes | None]
        if isinstance(heard, Coroutine):
            verdict = loop.create_task(heard, name="guards of a message")
            verdict.add_done_callback(self._go_on)
        else:
            verdict = loop.create_future()
            verdict.set_result(heard)
        self._queue.append((said, verdict))
        self._room.held += _EACH + len(said.data)
        return True

    def _go_on(self, _: "asyncio.Future[bytes | None]") -> None:
        while self._queue and self._queue[0][1].done():
            said, verdict = self._queue.popleft()
            self._room.held -= _EACH + len(said.data)
            if not verdict.cancelled():
                self._tell(said, _result(verdict))

    def _tell(self, said: _Said, heard: bytes | None) -> None:
        why = "a guardrail of this gateway refuses this request"
        if heard is not None:
            try:
                if said.take(said.message if heard is said.data else jsonrpc.decode(heard), said.answer):
                    return
            except jsonrpc.Malformed:
                pass
            why = "nobody can be asked any more"
        if said.message.is_request:
            said.refuse(jsonrpc.error(bytes(said.message.id), jsonrpc.INTERNAL_ERROR, why))

    def answer(self, guard: Outside, method: str, answer: Answer, response: bytes) -> None:
        """What the agent answers to a request of that method."""
        told = guard.told(response, method)
        if not isinstance(told, Coroutine):
            answer(told)
            return
        if self._room.held >= self._room.most:
            told.close()
            self._room.lose()
            answer(_unlooked(response))
            return
        size = _EACH + len(response)
        self._room.held += size
        task = asyncio.get_running_loop().create_task(told, name="guards of an agent's answer")
        self._answers.add(task)

        def done(task: "asyncio.Task[bytes]") -> None:
            self._answers.discard(task)
            self._room.held -= size
            if not task.cancelled():
                answer(_result(task) or _unlooked(response))

        task.add_done_callback(done)

    def close(self) -> None:
        """The agent hears nothing any more."""
        queue, self._queue = self._queue, deque()
        for said, verdict in queue:
            self._room.held -= _EACH + len(said.data)
            verdict.cancel()
        for task in tuple(self._answers):
            task.cancel()


def _result(verdict: "asyncio.Future[T]") -> T | None:
    """None where a guard has failed otherwise than it may."""
    error = verdict.exception()
    if error is None:
        return verdict.result()
    log.error("mcp: guards failed on what is said outside of calls", exc_info=error)
    return None


def _unlooked(response: bytes) -> bytes:
    """An error in the place of an agent's answer that nobody has looked at."""
    why = "the answer could not be looked at"
    return jsonrpc.error(bytes(jsonrpc.decode(response).id), jsonrpc.INTERNAL_ERROR, why)
