"""What a stateless agent listens to: changes of lists, and of resources by their URI (2026-07-28, Subscriptions).

Rule: to the servers behind it the listener is an agent like any other, and each URI goes through its server's chain as
a `resources/subscribe`: who may not read a thing does not hear of it. What is acknowledged is what the servers have
agreed to by then; a server that does not answer holds up nobody else.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, finish
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.outside import Answer, Guards, Waiting
from tollhouse.endpoints.mcp.request import outcome_of
from tollhouse.endpoints.mcp.told import unsupported
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.messages import is_tool_error, updated_uri

__all__ = ["MOST_TASKS", "MOST_URIS", "Listener", "final", "wanted_tasks", "wanted_uris"]

MOST_URIS = 1000
MOST_TASKS = 64
_LONGEST_URI = 8192
_AT_ONCE = 8
_IN_TIME = 5.0  # seconds for servers to agree
_HELD = 64


def wanted_uris(wanted: dict[str, Any]) -> list[str]:
    """The URIs of a listen request, each once. Raises Malformed."""
    uris = wanted.get("resourceSubscriptions") or []
    if not isinstance(uris, list) or not all(isinstance(uri, str) and len(uri) <= _LONGEST_URI for uri in uris):
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, "resourceSubscriptions must be a list of URIs")
    if len(uris) > MOST_URIS:
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, f"at most {MOST_URIS} resourceSubscriptions")
    return list(dict.fromkeys(uris))


def wanted_tasks(wanted: dict[str, Any]) -> list[str]:
    """The tasks of a listen request, each once. Raises Malformed."""
    ids = wanted.get("taskIds")
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids) or len(ids) > MOST_TASKS:
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, f"taskIds must be a list of at most {MOST_TASKS} task ids")
    return list(dict.fromkeys(ids))


class Listener:
    """One listen request, as servers' sessions see it (`backends.mcp.session.Agent`). meta: the `_meta` of what
    it is told. wrap: URIs carry their server. outside, endpoint: who looks at what servers say there."""

    __slots__ = (
        "_endpoint",
        "_ends",
        "_held",
        "_meta",
        "_outside",
        "_over",
        "_say",
        "_waiting",
        "ended",
        "id",
        "level",
        "profile",
        "uris",
        "wrap",
    )

    def __init__(self, meta: dict[str, Any], *, wrap: bool, outside: Guards | None = None, endpoint: str = "") -> None:
        self._outside = outside
        self._waiting: Waiting | None = None
        self._endpoint = endpoint
        self.id = f"listen-{secrets.token_urlsafe(12)}"
        self.ended = True  # once it does, no other worker goes on with it
        self.profile = 0
        self.level = ""
        self.uris: set[str] = set()
        self.wrap = wrap
        self._meta = meta
        self._say: Callable[[bytes], Any] | None = None
        self._held: list[bytes] = []
        self._ends: dict[Any, Callable[[], None]] = {}
        self._over = False

    # ---- towards servers
    def deliver(self, server: str, data: bytes, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bool:
        """Take `notifications/resources/updated`; nothing else is for a listener."""
        if message.method != "notifications/resources/updated":
            return not message.is_request
        take = partial(self._take, server)
        try:
            if self._outside is None:
                return take(message, answer)
            if self._waiting is None:
                self._waiting = Waiting(self._outside.room, _nothing)
            self._outside.hear(self._endpoint, server, data, message, answer, take, self._waiting)
        except jsonrpc.Malformed:
            return False
        return True

    def _take(self, server: str, message: jsonrpc.Message, _: Answer) -> bool:
        """The same, as guards have left it. Raises Malformed."""
        uri = updated_uri(message, server if self.wrap else "")[0]
        if any(map(uri.startswith, self.uris)):  # also of a part of it
            fields: dict[str, Any] = dict(jsonrpc.decode_fields(message.params))
            fields["uri"] = uri
            fields["_meta"] = self._meta
            self._tell(jsonrpc.notification(message.method, jsonrpc.encode_fields(fields)))
        return True

    def _tell(self, notification: bytes) -> None:
        if self._say is not None:
            self._say(notification)
        elif len(self._held) < _HELD:
            self._held.append(notification)

    def on_end(self, key: Any, callback: Callable[[], None]) -> None:
        if self._over:
            callback()
        else:
            self._ends[key] = callback

    def forget(self, key: Any) -> None:
        self._ends.pop(key, None)

    # ---- its life
    async def subscribe(self, uris: list[str], ask: Callable[[str], Awaitable[bool]]) -> list[str]:
        """Ask for each of `uris`, for five seconds at most: those that were agreed to, in their order."""
        places = asyncio.Semaphore(_AT_ONCE)
        agreed: set[str] = set()

        async def one(uri: str) -> None:
            async with places:
                self.uris.add(uri)  # what it is told of while it asks is held
                if await ask(uri):
                    agreed.add(uri)

        tasks = [asyncio.ensure_future(one(uri)) for uri in uris]
        try:
            done, late = await asyncio.wait(tasks, timeout=_IN_TIME)
        except asyncio.CancelledError:
            done, late = set(), set(tasks)
            raise
        finally:
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, Failure):
                raise error
        self.uris &= agreed
        return [uri for uri in uris if uri in agreed]

    def open(self, say: Callable[[bytes], Any]) -> None:
        """Its stream is there: `say` puts a message on it."""
        self._say = say
        held, self._held = self._held, []
        for notification in held:
            say(notification)

    def end(self, _: Ending | None = None) -> None:
        """Nobody listens any more."""
        self._over = True
        self._say = None
        if self._waiting is not None:
            self._waiting.close()
        ends, self._ends = self._ends, {}
        for callback in ends.values():
            callback()


def _nothing() -> None:
    """What a listener has lost it is not told."""


class _Final:
    """Sink that waits for the response, answers no question of the server's and drops what else comes before it."""

    __slots__ = ("_call", "_done")

    def __init__(self, done: "asyncio.Future[jsonrpc.Message]", call: ToolCall) -> None:
        self._done = done
        self._call = call

    def send(self, data: bytes) -> None:
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as problem:
            self.end(Failure(502, Reason.UPSTREAM_FAILURE, problem.message, sent=True))
            return
        if message.is_response and not self._done.done():
            self._done.set_result(message)
        elif message.is_request:
            _decline(self._call, message)

    def end(self, failure: Failure | None = None) -> None:
        if not self._done.done():
            what = failure or Failure(502, Reason.UPSTREAM_FAILURE, "the server gave no answer", sent=True)
            self._done.set_exception(what)


def _note_outcome(call: ToolCall, message: jsonrpc.Message) -> None:
    """How it ended, for those who are told at its end."""
    failed = call.method == "tools/call" and is_tool_error(message.result)
    call.context.mcp_outcome = "protocol_error" if len(message.error) else "tool_error" if failed else "ok"


def _decline(call: ToolCall, message: jsonrpc.Message) -> None:
    """A server asks in the middle of a call that no agent carries."""
    if call.answer is not None:
        call.answer(unsupported(message))


async def final(call: ToolCall, reply: Reply) -> jsonrpc.Message:
    """The response in `reply`, of a call of our own, to its end. Raises Failure."""
    failure: Failure | None = None
    gone = False
    try:
        data = reply.first
        for tap in reply.taps or ():
            data = tap(data)
        message = jsonrpc.decode(data) if data else jsonrpc.Message()
        source = reply.source
        if source is None or (data and message.is_response):
            _note_outcome(call, message)
            return message
        done: asyncio.Future[jsonrpc.Message] = asyncio.get_running_loop().create_future()
        try:
            if message.is_request:
                _decline(call, message)
            source.start(_Final(done, call))
            message = await done
            _note_outcome(call, message)
            return message
        finally:
            source.close()
            done.cancel()
    except jsonrpc.Malformed as problem:
        failure = Failure(502, Reason.UPSTREAM_FAILURE, f"{call.server}: {problem.message}", sent=True)
        raise failure from None
    except Failure as problem:
        failure = problem.copy()  # one that was raised refers to this frame, and that would be a circle
        call.context.mcp_outcome = outcome_of(problem)
        raise
    except asyncio.CancelledError:
        gone = True
        call.context.mcp_outcome = "cancelled"
        raise
    finally:
        finish(reply.ends, Ending(200 if failure is None else failure.status, Reason.UPSTREAM, 0, failure, gone=gone))
