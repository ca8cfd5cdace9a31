"""What an MCP server says within one call, whatever it comes over, and how the call goes on when the server is lost.

Rule: the answer begins with the first message and ends with the response. A slow reader pauses who sends; what nobody
wants is never held for it. A call that streams already and may be made again is, behind what has been said.
"""

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Any, Protocol

import msgspec

from tollhouse.backends.mcp.agent import Agent
from tollhouse.backends.mcp.heal import CALL_LOST
from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Sink, Source
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions

__all__ = ["ANSWER_HEADERS", "Messages", "Rescue", "Rescuer", "messages_of", "result_of"]

ANSWER_HEADERS: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]

_HELD = 256 << 10  # bytes of notifications and requests kept for a slow reader


class Rescuer(Protocol):
    """Who can make a call again (`backends.mcp.upstream.Upstream`)."""

    def rescue(self, call: ToolCall, rescue: "Rescue") -> "asyncio.Task[Any]":
        """Make `call` again and let `rescue` follow the answer. Raises Failure."""
        ...


class Messages:
    """What a server says within one call: raw JSON-RPC messages, one a `send`. Timed. An empty one, which only calls in
    an agent's session get, says that the server has hung up for a while, and is asked again for the rest.

    `first` waits for the earliest; then it is the Source of the rest. Subclasses know what `quit` means. logs and
    progress say whether the agent wants them: what nobody wants must not begin an answer. The call's Context is told
    when the server has said all. call: None for a request of our own. streams: `first` was given out with more to
    come, so that nobody but the owner can repeat the call when the server is lost.
    """

    __slots__ = (
        "_context", "_failure", "_held", "_paused", "_rescue", "_sink", "_size", "_waiter",
        "agent", "call", "deadline", "logs", "over", "progress", "streams",
    )  # fmt: skip

    def __init__(self, waiter: "asyncio.Future[None]", call: ToolCall | None) -> None:
        self.deadline = FOREVER
        self.over = False
        self.logs = call is not None and bool(call.level or call.session is not None)
        self.progress = call is not None and call.progress
        self.agent: Agent | None = call.session if call is not None else None
        self.call = call
        self.streams = False
        self._rescue: Rescue | None = None
        self._context = call.context if call is not None else None
        self._waiter: asyncio.Future[None] | None = waiter
        self._held: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._paused = False
        self._failure: Failure | None = None

    def quit(self, call: ToolCall | None) -> None:
        """It was given up before its end. call: what it answered."""
        raise NotImplementedError

    def expire(self) -> None:
        raise NotImplementedError

    def rearm(self, waiter: "asyncio.Future[None]") -> None:
        """Let `first` wait once more."""
        self._waiter = waiter

    async def first(self) -> bytes:
        """The earliest message. Raises the Failure when there is none."""
        waiter = self._waiter
        assert waiter is not None
        if not self._held and not self.over:
            try:
                await waiter
            except BaseException:
                self._waiter = None
                self.close()
                raise
        self._waiter = None
        if self._held:
            message = self._held.pop(0)
            self._size -= len(message)
            return message
        failure, self._failure = self._failure, None
        raise failure if failure is not None else Failure(502, Reason.UPSTREAM_FAILURE, "the server said nothing")

    def reply(self, first: bytes) -> Reply:
        """`first` alone when it was all, else with this as the Source of the rest."""
        if not first:
            self._held.insert(0, first)  # nothing was said yet: who reads is told first that the server has hung up
        whole = self.over and not self._held and self._failure is None
        self.streams = not whole
        return Reply(200, ANSWER_HEADERS, first, None if whole else self)

    def lose(self, failure: Failure, owner: Rescuer) -> None:
        """The server was lost under it. One that streams already and may be repeated is, behind what has been said."""
        call = self.call
        if self.over or call is None or not self.streams or not call.idempotent or failure.code != CALL_LOST:
            self.finish(failure)
            return
        try:
            rescue = Rescue(self)
            rescue.task = owner.rescue(call, rescue)
        except Failure:
            self.finish(failure)
        else:
            self._rescue = rescue
            self.parted()

    def parted(self) -> None:
        """What it came from has nothing to do with it any more."""
        raise NotImplementedError

    # the producer's side
    def push(self, message: bytes, *, droppable: bool = False) -> None:
        if self.over:
            return
        if self._sink is not None and not self._paused:
            self._sink.send(message)
            return
        if droppable and self._size > _HELD:
            return
        self._held.append(message)
        self._size += len(message)
        self._wake()

    def ask(self, message: bytes) -> bool:
        """A request of the server. False: so much waits to be read that nobody is asked."""
        if self.over or self._size > _HELD:
            return False
        self.push(message)
        return True

    def finish(self, failure: Failure | None = None) -> None:
        """No more comes."""
        if self.over:
            return
        self._ended()
        self._failure = failure
        if self._sink is not None and not self._held:
            self._end()
        else:
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end(self) -> None:
        sink, self._sink = self._sink, None
        failure, self._failure = self._failure, None
        if sink is not None:
            sink.end(failure)

    def allow(self, seconds: float) -> None:
        """So many more seconds for the answer, because it is not the server that is slow; below 0 is taken back."""
        self.deadline += seconds
        source = self._rescue.source if self._rescue is not None else None
        if isinstance(source, Messages):
            source.allow(seconds)

    # Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self.resume()

    def pause(self) -> None:
        self._paused = True
        if self._rescue is not None and self._rescue.source is not None:
            self._rescue.source.pause()

    def resume(self) -> None:
        self._paused = False
        if self._rescue is not None and self._rescue.source is not None:
            self._rescue.source.resume()
        while self._held and self._sink is not None and not self._paused:
            message = self._held.pop(0)
            self._size -= len(message)
            self._sink.send(message)
        if self.over and not self._held:
            self._end()

    def close(self) -> None:
        self._sink = None
        self._held.clear()
        self._failure = None
        if not self.over:
            rescue, call = self._rescue, self.call
            self._ended()
            if rescue is None:
                self.quit(call)
            else:
                rescue.close()

    def _ended(self) -> None:
        self.over = True
        self.call = self._rescue = None
        self.deadline = FOREVER
        if self._context is not None:
            self._context.upstream_ended = monotonic()


class Rescue:
    """A call that is made again behind what it has said already: Sink of the second answer. task: makes it."""

    __slots__ = ("_messages", "source", "task")

    def __init__(self, messages: Messages) -> None:
        self._messages: Messages | None = messages
        self.source: Source | None = None
        self.task: asyncio.Task[Any] | None = None

    def follow(self, reply: Reply) -> None:
        """The second answer has begun."""
        messages = self._messages
        source, reply.source = reply.source, None
        if messages is None or messages.over:
            if source is not None:
                source.close()
            return
        messages.push(reply.first)
        if source is None:
            self.end()
        else:
            self.source = source
            source.start(self)

    def close(self) -> None:
        self._messages = None
        source, self.source = self.source, None
        if source is not None:
            source.close()
        elif self.task is not None:
            self.task.cancel()

    def send(self, data: bytes) -> None:
        if self._messages is not None:
            self._messages.push(data)

    def end(self, failure: Failure | None = None) -> None:
        messages, self._messages = self._messages, None
        self.source = self.task = None
        if messages is not None:
            messages.finish(failure)


def messages_of(data: bytes, revision: str) -> list[bytes]:
    """The messages of what a server sent: of 2025-03-26 it may be a batch. Raises Malformed."""
    if revision != revisions.BATCHING or data.lstrip()[:1] != b"[":
        return [data]
    try:
        return [bytes(item) for item in msgspec.json.decode(data, type=list[msgspec.Raw])]
    except msgspec.DecodeError:
        raise jsonrpc.Malformed(jsonrpc.PARSE_ERROR, "a batch that is not valid JSON") from None


def result_of(calls: Iterable[Messages], task: str) -> Messages | None:
    """Of `calls` the one that waits for the result of that task (2025-11-25); "": of any, where there is one alone."""
    found = [
        messages
        for messages in calls
        if (call := messages.call) is not None and call.method == "tasks/result" and task in ("", call.name)
    ]
    return found[0] if len(found) == 1 or (found and task) else None
