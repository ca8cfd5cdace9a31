"""A call of a stateless agent on a server that asks within it: it runs, is held while the agent finds answers, runs on.

Rule: what lives longer than a request is the server's side of the call. Each request of the agent has a Leg of it:
the call says what it says to the leg there is, and keeps a little while there is none. A leg that is closed ends the
call only if the call had not left it before.
"""

import asyncio
from time import monotonic
from typing import Protocol, runtime_checkable

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held
from tollhouse.core.http import Sink, Source
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.request import JSON
from tollhouse.endpoints.mcp.told import tell, unsupported
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, mrtr, revisions

__all__ = ["HeldCall", "Holder", "Leg"]

_GATHER = 0.02  # seconds in which questions that come together become one round
_LOGS = 64
_QUESTIONS = 64


@runtime_checkable
class Patient(Source, Protocol):
    """A server's side of a call that can be given time."""

    def allow(self, seconds: float) -> None:
        """So many more seconds; below 0 is taken back."""
        ...


class Holder(Protocol):
    """Where held calls are found again (`bridge.Bridge`)."""

    def hold(self, held: "HeldCall") -> bytes | None:
        """The `input_required` result of the call's open questions, under a new round. None: no room for it."""
        ...

    def let_go(self, held: "HeldCall") -> None:
        """It has ended."""
        ...


class HeldCall:
    """Sink of the server's messages; Timed while it is held.

    principal: who may go on with it. bound: what was asked. round, nonce: of the request that may. open: questions by
    key, with the server's id. known: answers by the digest of their question, for a call that may be repeated. failure:
    why the server will not answer, once that is so while it is held. bridged: False where a question ends the call.
    who, owned: whose it is, and where that is written down.
    """

    __slots__ = (
        "_allowed", "_attempts", "_bridged", "_call", "_final", "_fresh", "_holder", "_keys", "_leg", "_logs",
        "_progress", "_stale", "_timer", "_upstream",
        "bound", "deadline", "endpoint", "failure", "id", "idempotent", "known", "nonce", "open", "owned",
        "principal", "profile", "round", "server", "who",
    )  # fmt: skip

    def __init__(
        self,
        holder: Holder,
        id: str,
        call: ToolCall,
        reply: Reply,
        *,
        endpoint: str,
        bound: bytes,
        known: dict[bytes, bytes],
        bridged: bool = True,
    ) -> None:
        assert reply.source is not None
        self.id = id
        self.endpoint = endpoint
        self.server = call.server
        self.principal = call.principal.id if call.principal is not None else ""
        self.who = call.principal
        self.owned: Held | None = None
        self.profile = call.profile
        self.idempotent = call.idempotent
        self.bound = bound
        self.known = known
        self.round = call.round
        self.nonce = ""
        self.open: dict[str, tuple[bytes, mrtr.InputRequest]] = {}
        self.failure: Failure | None = None
        self.deadline = FOREVER
        self._bridged = bridged
        self._holder: Holder | None = holder
        self._upstream: Source | None = reply.source
        self._call: ToolCall | None = call
        self._attempts = call.context.attempts
        self._stale: set[str] = set()  # asked in an attempt that was lost: nobody waits for their answers
        self._leg: Leg | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fresh: dict[str, tuple[bytes, mrtr.InputRequest]] = {}
        self._keys = 0
        self._progress: bytes | None = None
        self._logs: list[bytes] = []
        self._allowed = 0.0  # until when the server has the agent's time
        self._final: bytes | None = None

    @property
    def held(self) -> bool:
        """It waits for the agent."""
        return self._leg is None and self._holder is not None

    # ---- its legs
    def begin(self, reply: Reply) -> Reply:
        """The same answer, with the call's first leg as its source."""
        leg = self._leg = Leg(self)
        leg.upstream = self._upstream
        first, reply.first, reply.source = reply.first, b"", leg
        self.send(first)
        return reply

    def adopt(self, asked: dict[str, bytes], answers: dict[str, msgspec.Raw]) -> Reply:
        """Go on with a call that another worker has held: `resume` of the questions that were open there. One that is
        not known by more than its name, and has no answer, gets none."""
        for key, data in asked.items():
            message = jsonrpc.decode(data)
            if key in answers or len(message.params) or message.method == "roots/list":
                self.open[key] = (bytes(message.id), mrtr.as_input_request(message))
            else:
                tell(self._call, mrtr.given_up(bytes(message.id), message.method))
        upstream = self._upstream
        reply = self.resume(answers)
        if upstream is not None:
            upstream.start(self)
        return reply

    @property
    def place(self) -> bytes:
        """Where another worker finds the server's answer, b"" where it cannot."""
        call = self._call
        if call is None or call.moves is None or self._stale or self._final is not None:
            return b""
        return call.moves.place()

    def asked(self, limit: int) -> dict[str, bytes]:
        """The open questions as the server has asked them, in not much more than `limit` bytes."""
        asked = {key: jsonrpc.request(id, request.method, request.params) for key, (id, request) in self.open.items()}
        if sum(map(len, asked.values())) > limit:
            asked = {key: jsonrpc.request(id, request.method) for key, (id, request) in self.open.items()}
        return asked

    def leave(self) -> None:
        """This worker leaves: another one finds the call at its `place`, or begins it again where it may."""
        call = self._call
        if self.place and call is not None and call.moves is not None:
            self._upstream = None
            moves, call.moves = call.moves, None
            moves.leave()
            self._end()
        else:
            self.expire()

    def resume(self, answers: dict[str, msgspec.Raw]) -> Reply:
        """Go on with what the agent has answered: the answer to the request that brought it.

        Questions that it did not answer are asked again, and only those; answers to nothing are ignored. Raises Failure
        when the server has given the call up meanwhile.
        """
        if self.failure is not None:
            failure, self.failure = self.failure, None
            self._end()
            raise failure
        for key in [key for key in self.open if key in answers]:
            id, request = self.open.pop(key)
            if self.idempotent:
                self.known[mrtr.question(request)] = bytes(answers[key])
            if key not in self._stale:
                tell(self._call, jsonrpc.result(id, answers[key]))
        for key in self._stale:
            self.open.pop(key, None)
        self._stale.clear()
        if self._final is not None:
            final = self._final
            self._end()
            return Reply(200, [JSON], final)
        if self.open:
            holder = self._holder
            told = holder.hold(self) if holder is not None else None
            if told is not None:
                self._allow()
                return Reply(200, [JSON], jsonrpc.result(0, told))
        leg = self._leg = Leg(self)
        self.deadline = FOREVER
        self._allow()
        for message in (*self._logs, *((self._progress,) if self._progress is not None else ())):
            leg.send(message)
        self._logs.clear()
        self._progress = None
        if self._fresh:
            self._gather()
        return Reply(200, [JSON], b"", leg)

    def paused(self, paused: bool) -> None:
        upstream = self._upstream
        if upstream is not None:
            (upstream.pause if paused else upstream.resume)()

    def left(self) -> None:
        """Whoever listened does not any more, and brings no answers: the call is given up."""
        self._quit()

    # ---- what the server says
    def send(self, data: bytes) -> None:
        leg = self._leg
        try:
            message = jsonrpc.decode(data)
            if message.is_request:
                self._asked(message)
                return
        except jsonrpc.Malformed as problem:
            upstream, self._upstream = self._upstream, None
            if upstream is not None:
                upstream.close()
            self.end(Failure(502, Reason.UPSTREAM_FAILURE, f"{self.server}: {problem.message}", sent=True))
            return
        if leg is not None:
            leg.send(data)
        elif message.is_response:
            self._final = data
        elif message.method == "notifications/progress":
            self._progress = data
        elif message.method == "notifications/message" and len(self._logs) < _LOGS:
            self._logs.append(data)

    def end(self, failure: Failure | None = None) -> None:
        self._upstream = None
        leg = self._leg
        if leg is not None:
            self._end()
            leg.end(failure)
        elif self._final is None:
            self.failure = failure or Failure(
                502, Reason.UPSTREAM_FAILURE, f"{self.server}: it ended without an answer"
            )

    def _asked(self, message: jsonrpc.Message) -> None:
        id = bytes(message.id)
        call = self._call
        if call is not None and call.context.attempts != self._attempts:  # it was made again: so are its questions
            self._attempts = call.context.attempts
            self._stale = {*self.open, *self._fresh}
        if not capabilities.allows(self.profile, message.method, message.params):
            tell(self._call, unsupported(message))
            return
        request = mrtr.as_input_request(message)
        answer = self.known.get(mrtr.question(request)) if self.known else None
        if answer is not None:  # it was asked before, in a call that this one repeats
            tell(self._call, jsonrpc.result(id, answer))
        elif (key := self._asked_before(request)) is not None:
            self._stale.discard(key)
            (self.open if key in self.open else self._fresh)[key] = (id, request)
        elif len(self._fresh) + len(self.open) >= _QUESTIONS:
            tell(self._call, mrtr.given_up(id, message.method))
        else:
            self._keys += 1
            self._fresh[f"{self.id[:6]}-{self._keys}"] = (id, request)  # never that of another round or call
            if self._leg is not None:
                self._gather()

    def _asked_before(self, request: mrtr.InputRequest) -> str | None:
        """The key of an equal question of an attempt that was lost: the agent may be answering it already."""
        if not self._stale:
            return None
        digest = mrtr.question(request)
        asked = {**self.open, **self._fresh}
        return next((key for key in self._stale if key in asked and mrtr.question(asked[key][1]) == digest), None)

    def _gather(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER, self._gathered)

    def _gathered(self) -> None:
        self._timer = None
        leg, holder = self._leg, self._holder
        if leg is None or holder is None:
            return
        if not self._bridged:
            self._leg = None
            data = {"requiredCapabilities": mrtr.requires(0, self.questions())}
            self._give_up()
            self._quit()
            what = f"{self.server}: the server asks for input, which is not bridged to this revision here"
            leg.last(jsonrpc.error(0, revisions.MISSING_CAPABILITY, what, data))
            return
        self.open |= self._fresh
        self._fresh.clear()
        told = holder.hold(self)
        if told is None:
            self._give_up()
            return
        self._leg = None
        self.paused(False)
        self._allow()
        leg.last(jsonrpc.result(0, told))

    def _allow(self) -> None:
        """While the agent is waited for it is not the server that is slow."""
        now = monotonic()
        upstream = self._upstream
        if isinstance(upstream, Patient):
            more = self.deadline if self.deadline != FOREVER else now
            upstream.allow(more - max(now, self._allowed))
            self._allowed = more

    def questions(self) -> dict[str, mrtr.InputRequest]:
        """What is open, with what came since the last round."""
        self.open |= self._fresh
        self._fresh.clear()
        return {key: request for key, (_, request) in self.open.items()}

    # ---- the end
    def _give_up(self) -> None:
        """Tell the server that nobody answers."""
        for key, (id, request) in (*self.open.items(), *self._fresh.items()):
            if key not in self._stale:
                tell(self._call, mrtr.given_up(id, request.method))
        self.open.clear()
        self._fresh.clear()

    def lapse(self, failure: Failure) -> None:
        """Who may go on with it is no longer good. What streams at the moment is ended by who reads it."""
        if self.held:
            self.expire()

    def expire(self) -> None:
        """The agent has not come back."""
        self._give_up()
        self._quit()

    def _quit(self) -> None:
        upstream, self._upstream = self._upstream, None
        self._end()
        if upstream is not None:
            upstream.close()

    def _end(self) -> None:
        holder, self._holder = self._holder, None
        self.deadline = FOREVER
        self._leg = None
        call, self._call = self._call, None
        if call is not None:
            call.moves = None
        self._logs.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if holder is not None:
            holder.let_go(self)


class Leg:
    """One request's part of a held call: Source of its Reply. upstream: what is to be started with it."""

    __slots__ = ("_call", "_ended", "_failure", "_kept", "_sink", "upstream")

    def __init__(self, call: HeldCall) -> None:
        self._call: HeldCall | None = call
        self._sink: Sink | None = None
        self._kept: list[bytes] = []
        self._ended = False
        self._failure: Failure | None = None
        self.upstream: Source | None = None

    # ---- from the call
    def send(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.send(data)
        else:
            self._kept.append(data)

    def last(self, data: bytes) -> None:
        """The call leaves this leg with these words."""
        self._call = None
        self.send(data)
        self.end()

    def end(self, failure: Failure | None = None) -> None:
        self._call = None
        self._ended = True
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(failure)
        else:
            self._failure = failure

    # ---- Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        kept, self._kept = self._kept, []
        for data in kept:
            sink.send(data)
        if self._ended:
            self._sink = None
            sink.end(self._failure)
            return
        upstream, self.upstream = self.upstream, None
        call = self._call
        if upstream is not None and call is not None:
            upstream.start(call)

    def pause(self) -> None:
        if self._call is not None:
            self._call.paused(True)

    def resume(self) -> None:
        if self._call is not None:
            self._call.paused(False)

    def close(self) -> None:
        call, self._call = self._call, None
        self._sink = None
        self._kept.clear()
        self.upstream = None
        if call is not None:
            call.left()
