"""A call of an agent with a session on a stateless server that asks for input: questions go to the agent on the
stream of its request, and the call is made again with the answers, until it is done.

Rule: between two rounds nothing is held at the server, so that another worker can ask the agent the same and go on
(`Pending`). To the agent it is one request: its policies have run once, the rounds after the first go to the server
itself.
"""

import asyncio
import logging
import random
import secrets
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Sink
from tollhouse.core.reply import Reply
from tollhouse.core.stand_in import StandIn
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr

__all__ = ["MOST_ROUNDS", "Pending", "Rounds", "answer_to", "unanswered"]

log = logging.getLogger("tollhouse.endpoints.mcp")

MOST_ROUNDS = 10
_MARK = b"round1."
_LARGEST = 256 << 10  # bytes of a round that others are told


class Pending(msgspec.Struct, array_like=True, gc=False):
    """A round whose questions the agent has not answered, as the place of a call (`core.call.Movable`). params: raw
    JSON of the request as the agent made it. result: the server's `input_required`."""

    params: bytes
    result: bytes

    def encode(self) -> bytes:
        return _MARK + msgspec.msgpack.encode(self)

    @classmethod
    def read(cls, place: bytes) -> "Pending | None":
        """None for the place of anything else."""
        if not place.startswith(_MARK):
            return None
        try:
            return msgspec.msgpack.decode(place[len(_MARK) :], type=cls)
        except msgspec.DecodeError:
            return None


class Rounds(StandIn):
    """Source of the whole answer, Sink of each round's. Timed while the agent is asked.

    handle: asks the server. revision: the agent's. allowed: False where eras are not bridged (`bridge: off`).
    """

    __slots__ = (
        "_allowed", "_answers", "_call", "_clock", "_elicitations", "_first", "_handle", "_need", "_open", "_params",
        "_revision", "_round", "_state", "_task", "_timeout", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        call: ToolCall,
        reply: Reply,
        handle: Handler[ToolCall, Reply],
        clock: Clock,
        *,
        revision: str,
        timeout: float,
        allowed: bool,
    ) -> None:
        super().__init__(reply.source)
        self.deadline = FOREVER
        self._call: ToolCall | None = call
        self._params = call.params
        self._handle = handle
        self._clock = clock
        self._revision = revision
        self._timeout = timeout
        self._allowed = allowed
        self._first = reply.first
        self._task: asyncio.Task[None] | None = None
        self._round = 0
        self._state: str | None = None
        self._need: mrtr.NeedInput | None = None
        self._open: dict[int, str] = {}
        self._answers: dict[str, msgspec.Raw] = {}
        self._elicitations: dict[str, str] = {}
        call.answer = self._answered

    @classmethod
    def of(cls, reply: Reply, *args: Any, call: ToolCall, **more: Any) -> Reply:
        """`reply` with the rounds that may follow as its source."""
        rounds = cls(call, reply, *args, **more)
        reply.first, reply.source = b"", rounds
        return reply

    # ---- Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        first, self._first = self._first, b""
        self._take(first)

    def _take(self, first: bytes) -> None:
        """A round has begun to answer."""
        source = self._source
        self._message(first, whole=source is None)
        if source is not None and self._source is source and self._sink is not None:
            self._start_behind()

    def close(self) -> None:
        self._sink = None
        self._over()

    # ---- Sink
    def send(self, data: bytes) -> None:
        self._message(data, whole=False)

    def end(self, failure: Failure | None = None) -> None:
        if self._source is None:
            return  # it has said what it needs, and that was its end
        self._source = None
        self._stop(failure)

    def _message(self, data: bytes, *, whole: bool) -> None:
        sink, call = self._sink, self._call
        if sink is None or call is None:
            return
        try:
            message = jsonrpc.decode(data)
            if message.is_request:
                return  # a stateless server has no way to take an answer
            need = None
            if len(message.result) and b"input_required" in data:
                need = mrtr.need_input(call.method, message.result)
            if need is not None:
                self._source = None
                self._ask(need)
                return
        except jsonrpc.Malformed as problem:
            self._close_behind()
            self._refuse(f"{call.server}: {problem.message}")
            return
        if message.is_response:
            self._completed({})
        sink.send(data)
        if whole:
            self._stop(None)

    # ---- a round
    def _ask(self, need: mrtr.NeedInput) -> None:
        call, sink = self._call, self._sink
        assert call is not None
        assert sink is not None
        self._round += 1
        if self._round > MOST_ROUNDS:
            self._refuse(f"{call.server}: the server asks for input more than {MOST_ROUNDS} times in one request")
            return
        lacking = mrtr.requires(call.profile, need.requests)
        if lacking or not self._allowed:
            what = "what the client cannot be asked" if lacking else "for input, which is not bridged here"
            needed = lacking or mrtr.requires(0, need.requests)
            self._refuse(f"{call.server}: the server asks {what}", {"requiredCapabilities": needed})
            return
        self._completed(need.requests)
        self._state = need.state
        self._answers = {}
        self._open = dict(enumerate(need.requests))
        if not need.requests:
            self._go_on(random.uniform(0.05, 0.25))  # noqa: S311 - spreads load
            return
        questions = []
        for number, (key, request) in enumerate(need.requests.items()):
            minted = self._elicitations.get(key) or secrets.token_urlsafe(12)
            params = mrtr.as_server_request(request, self._revision, minted)
            if mrtr.is_url(request):
                self._elicitations[key] = minted
            questions.append(jsonrpc.request(number, request.method, params))
        self.deadline = self._clock.now + self._timeout
        self._clock.watch(self)
        self._need, call.moves = need, self
        for question in questions:
            sink.send(question)

    # ---- Movable, while the agent is asked
    def place(self) -> bytes:
        need = self._need
        if need is None:
            return b""
        fields: dict[str, Any] = {"resultType": mrtr.RESULT_TYPE, "inputRequests": mrtr.rendered(need.requests)}
        if need.state is not None:
            fields["requestState"] = need.state
        pending = Pending(jsonrpc.encode_fields(self._params), jsonrpc.encode_fields(fields))
        return pending.encode() if len(pending.params) + len(pending.result) <= _LARGEST else b""

    def leave(self) -> None:
        """The server holds nothing."""
        self._sink = None
        self._over()

    def _answered(self, data: bytes) -> None:
        """The agent's response to one question."""
        answer = answer_to(self._open, data)
        if answer is None:
            return
        key, result, refused = answer
        if refused:
            self._refuse(refused)
            return
        self._answers[key] = result
        if not self._open:
            self._go_on(0.0)

    def _completed(self, asked: dict[str, mrtr.InputRequest]) -> None:
        """Tell of elicitations out of band that the server does not ask for any more."""
        sink = self._sink
        for key in [key for key in self._elicitations if key not in asked]:
            params = jsonrpc.encode_fields({"elicitationId": self._elicitations.pop(key)})
            if sink is not None:
                sink.send(jsonrpc.notification("notifications/elicitation/complete", params))

    def _go_on(self, pause: float) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)
        self._not_pending()
        self._task = asyncio.get_running_loop().create_task(self._again(pause), name="mcp round")

    def _not_pending(self) -> None:
        self._need = None
        if self._call is not None and self._call.moves is self:
            self._call.moves = None

    async def _again(self, pause: float) -> None:
        """The call once more, with the answers."""
        call = self._call
        if call is None:
            return
        params = dict(self._params)
        if self._answers:
            params["inputResponses"] = msgspec.Raw(jsonrpc.encode_fields(dict(self._answers)))
        if self._state is not None:
            params["requestState"] = msgspec.Raw(msgspec.json.encode(self._state))
        call.params = params
        call.round = self._round
        try:
            if pause:
                await asyncio.sleep(pause)
            reply = await self._handle(call)
            if self._call is None:  # it was closed meanwhile
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
                return
            call.answer = self._answered
            self._source = reply.source
            self._take(reply.first)
        except Failure as failure:
            self._stop(failure.copy())
        except Exception:  # the root of a task: the agent waits for what it says
            log.exception("mcp server %s: a round of a call failed", call.server)
            self._stop(Failure(500, Reason.INTERNAL, "internal error"))

    # ---- the end
    def expire(self) -> None:
        """The agent does not answer."""
        self._stop(unanswered())

    def _refuse(self, message: str, data: Any = None) -> None:
        sink = self._sink
        if sink is not None:
            sink.send(jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, message, data))
        self._stop(None)

    def _stop(self, failure: Failure | None) -> None:
        sink, self._sink = self._sink, None
        self._over()
        if sink is not None:
            sink.end(failure)

    def _over(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)
        self._not_pending()
        call, self._call = self._call, None
        if call is not None:
            call.answer = None
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._close_behind()


def answer_to(asked: dict[int, str], data: bytes) -> tuple[str, msgspec.Raw, str] | None:
    """What an agent's response says to one of the questions that it was `asked`, which are keys by their number: the
    key, taken out of them, its result, and why there is none, "" for nothing. None for a response to no question."""
    message = jsonrpc.decode(data)
    id = bytes(message.id)
    key = asked.pop(int(id), None) if id.isdigit() else None
    if key is None:
        return None
    refused = ""
    if len(message.error):
        problem = jsonrpc.error_fields(message.error)
        refused = f"the client answered a question of the server with an error: {problem.message[:200]}"
    return key, message.result, refused


def unanswered() -> Failure:
    """The agent that was asked does not answer."""
    why = "the client did not answer the server's question in time"
    return Failure(504, Reason.TIMEOUT, why, code="input_timeout")
