"""A question of ours to the user of the agent that makes a call: an elicitation.

Rule: it is put as a server would put it, in the agent's own era, so that endpoints carry it as any other. To an agent
with a session it goes on the stream that answers the call, and the call follows on it; a stateless one gets it as the
result that its request is repeated for, and nothing waits here meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import End, Ending, Sink, finish
from tollhouse.core.reply import Reply, Tap
from tollhouse.core.stand_in import StandIn
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr, revisions
from tollhouse.wire.mcp.capabilities import allows

__all__ = ["GoOn", "Question", "can_ask", "put"]

log = logging.getLogger("tollhouse.policies")

_ASK = "elicitation/create"
_NUMBER = 1  # of our only request; 0 is what endpoints know their own answers by
_JSON = (b"content-type", b"application/json")


def can_ask(call: ToolCall, params: bytes = b"") -> bool:
    """Whether the agent that makes it can put this to its user within it. params: of the elicitation, as far as its
    mode; none for a form."""
    session = call.session
    if params and session is not None and not revisions.has_modes(session.revision):
        return False
    return call.method in mrtr.METHODS and allows(call.profile, _ASK, params)


class Question(StandIn):
    """`core.call.Asks`, and the Source of the answer to an agent with a session: the question, then what `go_on`
    answers. Timed until it is settled.

    params: of the elicitation, raw. go_on: awaited once the user has accepted, or, with `waits`, as soon as the
    question is put: for what is settled elsewhere, whatever the agent answers, unless it declines. refused: what
    becomes of the call where the user did something else (decline, cancel, "error" where the agent could not ask him,
    or "" for nothing in time); it may raise.
    """

    __slots__ = (
        "_call", "_clock", "_ends", "_go_on", "_open", "_params", "_refused", "_taps", "_task", "_waits", "about",
        "carry", "deadline", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        about: str,
        call: ToolCall,
        params: bytes,
        clock: Clock,
        timeout: float,
        *,
        go_on: "GoOn",
        refused: Callable[[ToolCall, str], Failure | Reply],
        waits: bool = False,
    ) -> None:
        super().__init__()
        self.about = about
        self.timeout = timeout
        self.carry: Callable[[Reply], Reply] | None = None
        self.deadline = FOREVER
        self._call: ToolCall | None = call
        self._params = params
        self._clock = clock
        self._go_on: GoOn | None = go_on
        self._refused: Callable[[ToolCall, str], Failure | Reply] | None = refused
        self._waits = waits
        self._open = False
        self._ends: list[End] = []
        self._taps: list[Tap] | None = None
        self._task: asyncio.Task[None] | None = None

    def reply(self) -> Reply:
        """The answer that begins with it."""
        call = self._call
        if call is not None:
            call.asks = self
        return Reply(200, [_JSON], b"", self, taps=[])

    # ---- Source
    def start(self, sink: Sink) -> None:
        call = self._call
        if call is None:
            return
        self._sink = sink
        self._open = True
        call.answer = self._answered
        self.deadline = self._clock.now + self.timeout
        self._clock.watch(self)
        if self.timeout < 2.0:
            self._clock.hurry(self)
        sink.send(jsonrpc.request(_NUMBER, _ASK, self._params))
        if self._waits and self._open:
            self._follow(call)

    def close(self) -> None:
        self._sink = None
        self._over()

    def expire(self) -> None:
        """The user does not answer."""
        self._not("")

    # ---- the answer, and what follows
    def _answered(self, data: bytes) -> None:
        """The agent's response."""
        call = self._call
        if call is None or not self._open:
            return
        try:
            message = jsonrpc.decode(data)
            action = "error"
            if len(message.result):
                action = jsonrpc.decode_string(jsonrpc.decode_fields(message.result).get("action")) or "cancel"
        except jsonrpc.Malformed:
            action = "cancel"
        if action != "accept":
            self._not(action)
        elif not self._waits:
            self.settle()
            self._follow(call)

    def settle(self) -> None:
        """What was asked is settled: an answer that is still to come says nothing."""
        call = self._call
        if self._open and call is not None:
            self._open = False
            self._quiet()
            call.answer = None

    def _not(self, action: str) -> None:
        """It comes to nothing."""
        call, refused = self._call, self._refused
        if call is None or refused is None:
            return
        self.settle()
        try:
            end = refused(call, action)
        except Failure as failure:
            end = failure.copy()
        if isinstance(end, Failure):
            self._stop(end)
        else:
            self.send(end.first)
            self._stop(None)

    def _follow(self, call: ToolCall) -> None:
        self._task = asyncio.get_running_loop().create_task(self._carry_on(call), name="call after a question")

    async def _carry_on(self, call: ToolCall) -> None:
        go_on = self._go_on
        assert go_on is not None
        try:
            reply = await go_on(self, call)
            self.settle()
            if self._sink is None:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
                return
            following = call.asks
            if following is not None and following is not self:
                following.carry, self.carry = self.carry, None  # another question, whose answer is the server's
            else:
                call.asks = None
                if self.carry is not None:
                    reply = self.carry(reply)
            self._ends = reply.ends
            self._taps = reply.taps
            self._source = reply.source
            if reply.first:
                self.send(reply.first)
            if reply.source is None:
                self._stop(None)
            elif self._sink is not None:
                self._start_behind()
        except Failure as failure:
            self._stop(failure.copy())
        except Exception:  # the root of a task: the agent waits for what it says
            log.exception("mcp server %s: a call failed whose agent's user was asked", call.server)
            self._stop(Failure(500, Reason.INTERNAL, "internal error"))

    # ---- Sink
    def send(self, data: bytes) -> None:
        sink = self._sink
        if sink is not None:
            for tap in self._taps or ():
                data = tap(data)
            sink.send(data)

    def end(self, failure: Failure | None = None) -> None:
        self._source = None
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
        self._open = False
        call, self._call = self._call, None
        if call is not None and call.asks is self:
            call.asks = None
        self._taps = self.carry = self._go_on = self._refused = None
        ends, self._ends = self._ends, []
        if ends:
            finish(ends, Ending(200 if failure is None else failure.status, Reason.UPSTREAM, 0, failure))
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._close_behind()


GoOn = Callable[[Question, ToolCall], Awaitable[Reply]]
"""What a call goes on with, whose question is given along: it may say more on the agent's stream (`send`)."""


class _Put:
    """`core.call.Asks` of a question that nothing waits for here."""

    __slots__ = ("about", "carry", "timeout")

    def __init__(self, about: str, timeout: float) -> None:
        self.about = about
        self.timeout = timeout
        self.carry: Callable[[Reply], Reply] | None = None


def put(about: str, call: ToolCall, params: bytes, timeout: float) -> Reply:
    """The question to a stateless agent, whose request comes again with the answer (2026-07-28, Multi Round-Trip
    Requests). params: of the elicitation, raw; b"" where nothing more is asked, and it is only to come again."""
    call.asks = _Put(about, timeout)
    asked = {about: mrtr.InputRequest(_ASK, msgspec.Raw(params))} if params else {}
    return Reply(200, [_JSON], jsonrpc.result(_NUMBER, mrtr.render(asked, about)))
