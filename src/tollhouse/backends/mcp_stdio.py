"""MCP over a child's standard input and output (2025-11-25 and 2026-07-28, Transports, stdio): a message a line.

Rule: one process carries many calls, so every answer is found by an id of ours and all progress by a token of ours;
what carries neither belongs to no call. A line that is no message is logged and left out; the process that sends one
too long, or exits, fails what was in flight and is started again at the next need.
"""

import asyncio
import logging
from time import monotonic
from typing import Any

import msgspec
from pydantic import Field, field_validator

from tollhouse.backends.mcp_session import Key, McpServerSpec, Messages, Owner, Session
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Size
from tollhouse.net import process
from tollhouse.wire import jsonrpc

__all__ = ["StdioServerSpec", "StdioSession"]

log = logging.getLogger("tollhouse.backends.mcp")

_ERROR_LINES = 20  # of standard error a second that reach the log


class StdioServerSpec(McpServerSpec):
    """A server that the gateway starts.

    command, args: as for exec, with no shell. env: what it sees beside PATH, HOME and the like. cwd: absolute, or
    from where the gateway was started. max_children: processes at once; agents that can be asked things have one each.
    max_line: bytes of one message.
    """

    command: str = Field(min_length=1)
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    max_children: int = Field(default=16, ge=1, le=1000)
    max_line: Size = 4 << 20

    @field_validator("command", "cwd", "args", "env")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        if "\0" in repr(value) or "\\x00" in repr(value):
            raise ValueError("NUL cannot be passed to a process")
        return value


class _Params(msgspec.Struct, gc=False):
    token: msgspec.Raw = msgspec.field(name="progressToken", default=jsonrpc.NONE)


_params = msgspec.json.Decoder(_Params)


class StdioSession(Session):
    """One child process. It listens to its lines, and to its end."""

    def __init__(self, upstream: Owner, key: Key) -> None:
        super().__init__(upstream, key)
        spec = upstream.spec
        assert isinstance(spec, StdioServerSpec)
        self._spec = spec
        self._child: process.Child | None = None
        self._calls: dict[int, _Call] = {}
        self._carrying = 0  # of `_calls`: what agents have asked
        self._mixed = False  # several of those have run at once, and one of them still does
        self._told = 0
        self._told_since = 0.0

    async def open(self) -> None:
        spec = self._spec
        self._child = await process.spawn(
            (spec.command, *spec.args),
            self,
            env=process.clean_environment(spec.env),
            cwd=spec.cwd,
            max_line=spec.max_line,
            stderr=self._stderr,
        )
        await self.handshake()

    # ---- calls
    async def call(self, call: ToolCall, deadline: float) -> Reply:
        id = self.next_id()
        messages = self._begin(id, jsonrpc.request(id, call.method, self.params_of(call, id)), deadline, call)
        call.answer = self.tell
        return messages.reply(await messages.first())

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        id = self.next_id()
        line = jsonrpc.request(id, method, jsonrpc.encode_fields(params))
        messages = self._begin(id, line, monotonic() + timeout, None)
        while True:
            message = jsonrpc.decode(await messages.first())
            if message.is_response:
                return message
            messages.rearm(asyncio.get_running_loop().create_future())

    def _begin(self, id: int, line: bytes, deadline: float, call: ToolCall | None) -> "_Call":
        child = self._child
        if child is None or self.lost:
            raise self._gone("it is not running", sent=False)
        child.send(jsonrpc.one_line(line))
        messages = _Call(self, id, deadline, call)
        self._calls[id] = messages
        self.active += 1
        if call is not None:
            self._carrying += 1
            self._mixed = self._mixed or self._carrying > 1
        return messages

    def ended(self, id: int) -> None:
        """A call is no longer waited for or has been answered."""
        messages = self._calls.pop(id, None)
        if messages is not None:
            if messages.carries:
                self._carrying -= 1
                self._mixed = self._mixed and self._carrying > 0
            self.done()

    def cancel(self, id: int, why: str) -> None:
        """Tell the server that nobody waits for `id` any more."""
        params = jsonrpc.encode_fields({"requestId": id, "reason": why})
        self.tell(jsonrpc.notification("notifications/cancelled", params))

    def tell(self, message: bytes) -> None:
        if self._child is not None and not self.lost:
            try:
                self._child.send(jsonrpc.one_line(message))
            except (Failure, jsonrpc.Malformed) as failure:
                log.info("mcp server %s: could not tell it something: %s", self.upstream.name, failure)

    def in_flight(self) -> Messages | None:
        return next(reversed(self._calls.values()), None)

    def sole(self) -> Messages | None:
        if self._carrying != 1 or self._mixed:
            return None
        return next((messages for messages in self._calls.values() if messages.carries), None)

    # ---- process.Listener
    def line(self, data: bytes) -> None:
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as problem:
            self._stderr(f"a line of its output is no message ({problem.message})")
            return
        if message.is_response:
            raw = bytes(message.id)
            messages = self._calls.get(int(raw)) if raw.isdigit() and len(raw) < 19 else None
            if messages is not None:  # else it is late: the call was cancelled
                messages.push(data)
                messages.finish()
                self.ended(int(raw))
            return
        if message.method == "notifications/progress":
            try:
                token = bytes(_params.decode(message.params).token)
            except msgspec.DecodeError:
                return
            messages = self._calls.get(int(token)) if token.isdigit() and len(token) < 19 else None
            if messages is not None and messages.progress:
                messages.push(data, droppable=True)
            return
        self.hear(data, message)

    def exited(self, code: int | None, why: str) -> None:
        self.lost = True
        calls, self._calls = self._calls, {}
        self._carrying, self._mixed = 0, False
        if calls:
            log.warning("mcp server %s: %s, with %d calls in flight", self.upstream.name, why, len(calls))
        self.active += 1  # what follows must not make it look idle halfway
        for messages in calls.values():
            messages.finish(self._gone(why, sent=True))
            self.active -= 1
        self.active -= 1
        self.upstream.discard(self)

    def _gone(self, why: str, *, sent: bool) -> Failure:
        return Failure(
            502,
            Reason.UPSTREAM_FAILURE,
            f"{self.upstream.name}: the server's process is gone: {why}",
            retry=True,
            sent=sent,
            reached=sent,
        )

    def _stderr(self, text: str) -> None:
        now = self.upstream.clock.now
        if now - self._told_since > 1.0:
            if self._told > _ERROR_LINES:
                log.info("mcp server %s: %d more lines", self.upstream.name, self._told - _ERROR_LINES)
            self._told_since, self._told = now, 0
        self._told += 1
        if self._told <= _ERROR_LINES:
            log.info("mcp server %s: %s", self.upstream.name, text)

    async def close(self) -> None:
        self.lost = True
        if self._child is not None:
            await self._child.close()


class _Call(Messages):
    """A call on a child, watched for its deadline. carries: an agent's, not one of our own."""

    __slots__ = ("_id", "_session", "carries")

    def __init__(self, session: StdioSession, id: int, deadline: float, call: ToolCall | None) -> None:
        super().__init__(asyncio.get_running_loop().create_future(), call)
        self._session = session
        self._id = id
        self.carries = call is not None
        self.deadline = deadline
        clock = session.upstream.clock
        clock.watch(self)
        if deadline - clock.now < 2.0:
            clock.hurry(self)

    def finish(self, failure: Failure | None = None) -> None:
        self._session.upstream.clock.drop(self)
        super().finish(failure)

    def quit(self) -> None:
        session = self._session
        session.upstream.clock.drop(self)
        session.cancel(self._id, "the client does not wait for it any more")
        session.ended(self._id)

    def expire(self) -> None:
        session = self._session
        session.cancel(self._id, "it took too long")
        self.finish(
            Failure(504, Reason.TIMEOUT, f"{session.upstream.name}: the server did not answer in time", sent=True)
        )
        session.ended(self._id)
