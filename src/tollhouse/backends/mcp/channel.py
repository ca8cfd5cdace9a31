"""A session whose messages all come over one channel: a child's output, or the stream of HTTP+SSE (2024-11-05).

Rule: one channel carries many calls, so every answer is found by an id of ours and all progress by a token of ours;
what carries neither belongs to no call. What the server asks belongs to the only call that runs, or to nobody: of
calls that can be asked things the owner starts no two at once.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import msgspec

from tollhouse.backends.mcp.agent import Agent, Key
from tollhouse.backends.mcp.heal import RESTART, Restarts, call_lost
from tollhouse.backends.mcp.listen import Ears
from tollhouse.backends.mcp.lost import Memory
from tollhouse.backends.mcp.messages import Messages, messages_of, result_of
from tollhouse.backends.mcp.session import Owner, Session
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.tasks import OLD_METHODS

__all__ = ["Channel"]

log = logging.getLogger("tollhouse.backends.mcp")


class _Params(msgspec.Struct, gc=False):
    token: msgspec.Raw = msgspec.field(name="progressToken", default=jsonrpc.NONE)


_params = msgspec.json.Decoder(_Params)


class _SubscribedMeta(msgspec.Struct, gc=False):
    subscription: msgspec.Raw = msgspec.field(name=revisions.SUBSCRIPTION_ID, default=jsonrpc.NONE)


class _Subscribed(msgspec.Struct, gc=False):
    meta: _SubscribedMeta = msgspec.field(name="_meta", default_factory=_SubscribedMeta)


_subscribed = msgspec.json.Decoder(_Subscribed)


class Channel(Session):
    """Subclasses write (`_write`), give what they read to `received`, and say when it is over (`_over`)."""

    channel: ClassVar[bool] = True

    def __init__(self, upstream: Owner, key: Key) -> None:
        super().__init__(upstream, key)
        self._calls: dict[int, _Call] = {}
        self._carrying = 0  # of `_calls`: what agents have asked
        self._mixed = False  # several of those have run at once, and one of them still does
        self.restarts: Restarts = Restarts()
        self._answered = False  # anything but the handshake

    # ---- what a transport does
    def _write(self, message: bytes, id: int) -> None:
        """Send one message. id: of the call that it is, or 0. Raises Failure, with which that call has failed."""
        raise NotImplementedError

    def _usable(self) -> bool:
        raise NotImplementedError

    def _gone(self, why: str) -> Failure:
        """What becomes of what was not sent."""
        return Failure(
            502, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: the server is gone: {why}", retry=True, reached=False
        )

    # ---- calls
    async def call(self, call: ToolCall, deadline: float) -> Reply:
        id = self.next_id()
        messages = self._begin(id, jsonrpc.request(id, call.method, self.params_of(call, id)), deadline, call)
        call.answer = self.tell
        return messages.reply(await messages.first())

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        id = self.next_id()
        message = jsonrpc.request(id, method, jsonrpc.encode_fields(params))
        messages = self._begin(id, message, monotonic() + timeout, None)
        while True:
            answer = jsonrpc.decode(await messages.first())
            if answer.is_response:
                return answer
            messages.rearm(asyncio.get_running_loop().create_future())

    def _begin(self, id: int, message: bytes, deadline: float, call: ToolCall | None) -> "_Call":
        if self.lost or not self._usable():
            raise self._gone("it is not running")
        self._write(message, id)
        messages = _Call(self, id, deadline, call)
        self._calls[id] = messages
        self.active += 1
        if messages.carries:
            self._carrying += 1
            self._mixed = self._mixed or self._carrying > 1
        return messages

    def ended(self, id: int, call: ToolCall | None) -> None:
        """A call is no longer waited for or has been answered."""
        messages = self._calls.pop(id, None)
        if messages is not None:
            if messages.carries:
                self._carrying -= 1
                self._mixed = self._mixed and self._carrying > 0
                if call is not None and self.profile:
                    self.upstream.release(self.key, call)
            self.done()

    def unsent(self, id: int, failure: Failure) -> None:
        """What `_write` has taken could not be sent after all."""
        messages = self._calls.get(id)
        if messages is not None:
            call = messages.call
            messages.finish(failure)
            self.ended(id, call)

    def cancel(self, id: int, why: str) -> None:
        """Tell the server that nobody waits for `id` any more."""
        params = jsonrpc.encode_fields({"requestId": id, "reason": why})
        self.tell(jsonrpc.notification("notifications/cancelled", params))

    def tell(self, message: bytes) -> None:
        if not self.lost and self._usable():
            try:
                self._write(message, 0)
            except (Failure, jsonrpc.Malformed) as failure:
                log.info("mcp server %s: could not tell it something: %s", self.upstream.name, failure)

    async def listen(self, params: dict[str, Any], heard: Callable[[bytes, jsonrpc.Message], None]) -> Ears:
        if self.lost or not self._usable():
            raise self._gone("it is not running")
        id = self.next_id()
        self._write(jsonrpc.request(id, "subscriptions/listen", jsonrpc.encode_fields(params)), 0)
        ears = self.ears[id] = Ears(heard, partial(self.cancel, id, "nobody listens any more"))
        ears.ended.add_done_callback(lambda _: self.ears.pop(id, None))
        return ears

    def _told(self, data: bytes, message: jsonrpc.Message) -> bool:
        """Whether it belongs to a stream of `subscriptions/listen`, which then has it."""
        if message.is_response:
            number = bytes(message.id)
        else:
            try:
                number = bytes(_subscribed.decode(message.params).meta.subscription)
            except msgspec.DecodeError:
                return False
        ears = self.ears.get(int(number)) if number.isdigit() and len(number) < 19 else None
        if ears is not None:
            ears.received(data, message)
        return ears is not None

    def memory(self, agents: set[Agent], cause: str) -> Memory:
        memory = super().memory(agents, cause)
        memory.restarts = self.restarts
        self.restarts.lost(memory.at - self.born, answered=self._answered)
        return memory

    def in_flight(self) -> Messages | None:
        return next((messages for messages in reversed(self._calls.values()) if messages.carries), None)

    def sole(self) -> Messages | None:
        if self._carrying != 1 or self._mixed:
            return None
        return next((messages for messages in self._calls.values() if messages.carries), None)

    def result_of(self, task: str) -> Messages | None:
        return result_of(self._calls.values(), task)

    # ---- what comes
    def received(self, data: bytes) -> None:
        """One message, or a batch of them. Raises Malformed for what is neither."""
        for part in messages_of(data, self.revision):
            self._received(part)

    def _received(self, data: bytes) -> None:
        message = jsonrpc.decode(data)
        if self.ears and self._told(data, message):
            self.noise()
            return
        if message.is_response:
            raw = bytes(message.id)
            messages = self._calls.get(int(raw)) if raw.isdigit() and len(raw) < 19 else None
            if messages is None:  # it is late: the call was cancelled; or an answer to nothing
                self.noise()
                return
            call = messages.call
            self._answered = self.features is not None
            messages.push(data)
            messages.finish()
            self.ended(int(raw), call)
            return
        if message.method == "notifications/progress":
            try:
                token = bytes(_params.decode(message.params).token)
            except msgspec.DecodeError:
                token = b""
            messages = self._calls.get(int(token)) if token.isdigit() and len(token) < 19 else None
            if messages is None or not messages.progress:
                self.noise()
            elif not self.noise():
                messages.push(data, droppable=True)
            return
        self.hear(data, message)

    def _over(self, why: str) -> None:
        """The channel is gone, and with it what was in flight."""
        self.lost = True
        calls, self._calls = self._calls, {}
        self._carrying, self._mixed = 0, False
        if calls:
            log.warning("mcp server %s: %s, with %d calls in flight", self.upstream.name, why, len(calls))
        self.active += 1  # what follows must not make it look idle halfway
        for messages in calls.values():
            call = messages.call
            if call is not None and self.profile:
                self.upstream.release(self.key, call)
            failure = self._gone(why) if call is None else call_lost(self.upstream.name, why)
            messages.lose(failure, self.upstream)
            self.active -= 1
        self.active -= 1
        self.upstream.discard(self, RESTART)


class _Call(Messages):
    """A call on a channel, watched for its deadline. carries: what belongs to no call may be about it: an agent's,
    and not about a task."""

    __slots__ = ("_id", "_session", "carries")

    def __init__(self, session: Channel, id: int, deadline: float, call: ToolCall | None) -> None:
        super().__init__(asyncio.get_running_loop().create_future(), call)
        self._session = session
        self._id = id
        self.carries = call is not None and call.method not in OLD_METHODS
        self.deadline = deadline
        clock = session.upstream.clock
        clock.watch(self)
        if deadline - clock.now < 2.0:
            clock.hurry(self)

    def finish(self, failure: Failure | None = None) -> None:
        self._session.upstream.clock.drop(self)
        super().finish(failure)

    def parted(self) -> None:
        """The one that takes its place is watched itself."""
        self._session.upstream.clock.drop(self)

    def quit(self, call: ToolCall | None) -> None:
        session = self._session
        session.upstream.clock.drop(self)
        session.cancel(self._id, "the client does not wait for it any more")
        session.ended(self._id, call)

    def expire(self) -> None:
        session = self._session
        call = self.call
        session.cancel(self._id, "it took too long")
        self.finish(
            Failure(504, Reason.TIMEOUT, f"{session.upstream.name}: the server did not answer in time", sent=True)
        )
        session.ended(self._id, call)
