"""The question whether a call may be made, to the user of the agent that makes it: an elicitation.

Rule: it is put as a server would put it, in the agent's own era, so that endpoints carry it as any other. To an agent
with a session it goes on the stream that answers the call, and the call follows on it; a stateless one gets it as the
result that its request is repeated for, and nothing waits here meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import End, Ending, Sink, Source, finish
from tollhouse.core.reply import Reply, Tap
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr
from tollhouse.wire.mcp.capabilities import allows
from tollhouse.wire.mcp.letters import visible

__all__ = ["Question", "can_ask", "cut", "question", "shown"]

log = logging.getLogger("tollhouse.policies.authorize")

_ASK = "elicitation/create"
_KEY = "approval"
_NUMBER = 1  # of our only message; 0 is what endpoints know their own answers by
_LONGEST = 1000  # characters of arguments that a person is shown
_JSON = (b"content-type", b"application/json")


def can_ask(call: ToolCall) -> bool:
    """Whether the agent that makes it can put a question to its user within it."""
    return call.method in mrtr.METHODS and allows(call.profile, _ASK)


def shown(call: ToolCall) -> str:
    """The arguments as people can read them: letters that cannot be seen are written out."""
    return cut(bytes(call.arguments).decode("utf-8", "replace"))


def cut(text: str) -> str:
    """As much of a text as people are shown, all of it visible."""
    text = visible(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _params(call: ToolCall) -> bytes:
    text = f"Allow the call of {visible(call.name)} at {call.server}?"
    arguments = shown(call)
    if arguments:
        text += f"\nArguments: {arguments}"
    return msgspec.json.encode({"message": text, "requestedSchema": {"type": "object", "properties": {}}})


class Question:
    """`core.call.Asks`, and the Source of the answer to an agent with a session: the question, then what `next`
    answers. Timed while it waits.

    approved: awaited once the user has agreed; refused: makes the Failure of what the user did instead (decline,
    cancel, or "" for nothing in time).
    """

    __slots__ = (
        "_approved", "_call", "_clock", "_ends", "_next", "_paused", "_refused", "_sink", "_taps", "_task",
        "_upstream", "carry", "deadline", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        call: ToolCall,
        next: Callable[[Any], Awaitable[Reply]],
        clock: Clock,
        timeout: float,
        *,
        approved: Callable[[], Awaitable[None]],
        refused: Callable[[str], Failure],
    ) -> None:
        self.timeout = timeout
        self.carry: Callable[[Reply], Reply] | None = None
        self.deadline = FOREVER
        self._call: ToolCall | None = call
        self._next = next
        self._clock = clock
        self._approved = approved
        self._refused = refused
        self._ends: list[End] = []
        self._sink: Sink | None = None
        self._taps: list[Tap] | None = None
        self._task: asyncio.Task[None] | None = None
        self._upstream: Source | None = None
        self._paused = False

    def reply(self) -> Reply:
        """The answer that begins with it."""
        return Reply(200, [_JSON], b"", self, taps=[])

    # ---- Source
    def start(self, sink: Sink) -> None:
        call = self._call
        if call is None:
            return
        self._sink = sink
        call.answer = self._answered
        self.deadline = self._clock.now + self.timeout
        self._clock.watch(self)
        if self.timeout < 2.0:
            self._clock.hurry(self)
        sink.send(jsonrpc.request(_NUMBER, _ASK, _params(call)))

    def pause(self) -> None:
        self._paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        self._paused = False
        if self._upstream is not None:
            self._upstream.resume()

    def close(self) -> None:
        self._sink = None
        self._over()

    def expire(self) -> None:
        """The user does not answer."""
        self._stop(self._refused(""))

    # ---- the answer, and what follows
    def _answered(self, data: bytes) -> None:
        """The agent's response."""
        call = self._call
        if call is None or self._task is not None:
            return
        try:
            message = jsonrpc.decode(data)
            fields = jsonrpc.decode_fields(message.result) if len(message.result) else {}
            action = jsonrpc.decode_string(fields.get("action")) or "cancel"
        except jsonrpc.Malformed:
            action = "cancel"
        self._quiet()
        call.answer = None
        if action != "accept":
            self._stop(self._refused(action))
            return
        self._task = asyncio.get_running_loop().create_task(self._go_on(call), name="approved call")

    async def _go_on(self, call: ToolCall) -> None:
        try:
            await self._approved()
            reply = await self._next(call)
            if self._sink is None:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
                return
            call.asks = None
            if self.carry is not None:
                reply = self.carry(reply)
            self._ends = reply.ends
            self._taps = reply.taps
            self._upstream = reply.source
            if reply.first:
                self.send(reply.first)
            if reply.source is None:
                self._stop(None)
            elif self._sink is not None:
                reply.source.start(self)
                if self._paused:
                    reply.source.pause()
        except Failure as failure:
            self._stop(failure.copy())
        except Exception:  # the root of a task: the agent waits for what it says
            log.exception("mcp server %s: an approved call failed", call.server)
            self._stop(Failure(500, Reason.INTERNAL, "internal error"))

    # ---- Sink
    def send(self, data: bytes) -> None:
        sink = self._sink
        if sink is not None:
            for tap in self._taps or ():
                data = tap(data)
            sink.send(data)

    def end(self, failure: Failure | None = None) -> None:
        self._upstream = None
        self._stop(failure)

    # ---- the end
    def _quiet(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)

    def _stop(self, failure: Failure | None) -> None:
        sink, self._sink = self._sink, None
        self._over(failure)
        if sink is not None:
            sink.end(failure)

    def _over(self, failure: Failure | None = None) -> None:
        self._quiet()
        call, self._call = self._call, None
        if call is not None:
            call.asks = None
        self._taps = self.carry = None
        ends, self._ends = self._ends, []
        if ends:
            finish(ends, Ending(200 if failure is None else failure.status, Reason.UPSTREAM, 0, failure))
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()


class _Put:
    """`core.call.Asks` of a question that nothing waits for here."""

    __slots__ = ("carry", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.carry: Callable[[Reply], Reply] | None = None


def question(call: ToolCall, timeout: float) -> Reply:
    """The question to a stateless agent, whose request comes again with the answer (2026-07-28, Multi Round-Trip
    Requests)."""
    call.asks = _Put(timeout)
    asked = {_KEY: mrtr.InputRequest(_ASK, msgspec.Raw(_params(call)))}
    return Reply(200, [_JSON], jsonrpc.result(_NUMBER, mrtr.render(asked, _KEY)))
