"""A task of a stateless server that somebody waits for: an agent with a session (`tasks/result`, 2025-11-25), or one
that listens to its changes.

Rule: such a server tells by being asked, so it is asked at the pace that it wants. What the task needs is asked of the
agent by requests on the stream of its `tasks/result`, each question once.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Sink
from tollhouse.endpoints.mcp.request import Refused
from tollhouse.endpoints.mcp.rounds import answer_to, unanswered
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr, tasks

__all__ = ["TaskResult", "Watch", "outcome"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_LEAST = 1.0  # seconds between two looks at a task that is listened to
_REQUESTS = msgspec.json.Decoder(dict[str, mrtr.InputRequest])

Look = Callable[[], Awaitable[msgspec.Raw]]
"""Asks for a task: the result of its `tasks/get` in the new era. Raises Failure and Refused."""


def outcome(task: Mapping[str, msgspec.Raw]) -> bytes | None:
    """The response, to request 0, that says what came of a task; None while it runs."""
    status = jsonrpc.decode_string(task.get("status"))
    if status == "completed" and "result" in task:
        return jsonrpc.result(0, task["result"])
    if status == "failed" and "error" in task:
        return jsonrpc.failed(0, task["error"])
    if status in tasks.OVER:
        return jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, f"the task is {status}")
    return None


class TaskResult:
    """Source of the answer to `tasks/result`. Timed while the agent is asked.

    task: what the first look saw. look: asks again; update: gives answers; cancel: gives the task up. token: its id to
    the agent. revision: the agent's.
    """

    __slots__ = (
        "_answers", "_asked", "_call", "_cancel", "_clock", "_look", "_moved", "_numbers", "_revision",
        "_sink", "_task", "_timeout", "_token", "_update", "_work", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        call: ToolCall,
        task: msgspec.Raw,
        clock: Clock,
        *,
        look: Look,
        update: Callable[[dict[str, msgspec.Raw]], Awaitable[None]],
        cancel: Callable[[], Awaitable[None]],
        token: str,
        revision: str,
        timeout: float,
    ) -> None:
        self.deadline = FOREVER
        self._call: ToolCall | None = call
        self._task = task
        self._clock = clock
        self._look = look
        self._update = update
        self._cancel = cancel
        self._token = token
        self._revision = revision
        self._timeout = timeout
        self._sink: Sink | None = None
        self._work: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._asked: set[str] = set()
        self._numbers: dict[int, str] = {}
        self._answers: dict[str, msgspec.Raw] = {}
        call.answer = self._answered

    # ---- Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._work = asyncio.get_running_loop().create_task(self._run(), name="mcp task result")

    def pause(self) -> None:
        """There is little to say, and questions have a bound."""

    def resume(self) -> None:
        """See `pause`."""

    def close(self) -> None:
        self._sink = None
        self._over()

    # ---- its work
    async def _run(self) -> None:
        call = self._call
        assert call is not None
        try:
            while True:
                task = jsonrpc.decode_fields(self._task)
                done = outcome(task)
                if done is not None:
                    self._say(done)
                    self._stop(None)
                    return
                if jsonrpc.decode_string(task.get("status")) == "input_required":
                    self._ask(task.get("inputRequests", jsonrpc.NONE))
                try:
                    async with asyncio.timeout(tasks.interval(self._task)):
                        await self._moved.wait()
                except TimeoutError:
                    pass
                self._moved.clear()
                if self._answers:
                    answers, self._answers = self._answers, {}
                    await self._update(answers)
                self._task = await self._look()
        except Refused as refused:
            self._say(jsonrpc.error(0, refused.code, refused.message, refused.data))
            self._stop(None)
        except jsonrpc.Malformed as problem:
            self._say(jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, f"{call.server}: {problem.message}"))
            self._stop(None)
        except Failure as failure:
            self._stop(failure.copy())
        except Exception:  # the root of a task: the agent waits for what it says
            log.exception("mcp server %s: a task could not be waited for", call.server)
            self._stop(Failure(500, Reason.INTERNAL, "internal error"))

    def _ask(self, raw: msgspec.Raw) -> None:
        call, sink = self._call, self._sink
        if call is None or sink is None:
            return
        try:
            requests = _REQUESTS.decode(raw) if len(raw) else {}
        except msgspec.DecodeError:
            raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the inputRequests of its task cannot be read") from None
        fresh = {key: request for key, request in requests.items() if key not in self._asked}
        lacking = mrtr.requires(call.profile, fresh)
        if lacking:
            what = f"{call.server}: the task needs input that the client cannot be asked for"
            raise Refused(jsonrpc.INTERNAL_ERROR, what, {"requiredCapabilities": lacking})
        for key, request in fresh.items():
            self._asked.add(key)
            params = mrtr.as_server_request(request, self._revision, secrets.token_urlsafe(12))
            number = len(self._asked)
            self._numbers[number] = key
            sink.send(jsonrpc.request(number, request.method, tasks.related(params, self._token)))
        if self._numbers and self.deadline == FOREVER:
            self.deadline = self._clock.now + self._timeout
            self._clock.watch(self)

    def _answered(self, data: bytes) -> None:
        """The agent's response to one question."""
        answer = answer_to(self._numbers, data)
        if answer is None:
            return
        if not self._numbers:
            self._rest()
        key, result, refused = answer
        if refused:
            self._give_up(refused)
            return
        self._answers[key] = result
        self._moved.set()

    def _give_up(self, why: str) -> None:
        """There is no answer that says it: the task is cancelled, and this says why."""
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        self._say(jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, why))
        self._work = asyncio.get_running_loop().create_task(self._cancelled(), name="mcp task cancel")

    async def _cancelled(self) -> None:
        try:
            async with asyncio.timeout(10.0):
                await self._cancel()
        except (Failure, Refused, TimeoutError) as problem:
            log.info("mcp: a task that nobody answers could not be cancelled: %s", problem)
        finally:
            self._stop(None)

    # ---- the end
    def expire(self) -> None:
        self._stop(unanswered())

    def _say(self, message: bytes) -> None:
        if self._sink is not None:
            self._sink.send(message)

    def _rest(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)

    def _stop(self, failure: Failure | None) -> None:
        sink, self._sink = self._sink, None
        self._over()
        if sink is not None:
            sink.end(failure)

    def _over(self) -> None:
        self._rest()
        call, self._call = self._call, None
        if call is not None:
            call.answer = None
        work, self._work = self._work, None
        if work is not None and work is not asyncio.current_task():
            work.cancel()


class Watch:
    """Tells of changes of tasks (2026-07-28, `subscriptions/listen` with `taskIds`), until they are over or `close`.

    looks: by task. say: takes `notifications/tasks`. meta: their `_meta`.
    """

    __slots__ = ("_looks", "_meta", "_said", "_say", "_work")

    def __init__(self, looks: Mapping[str, Look], say: Callable[[bytes], Any], meta: dict[str, Any]) -> None:
        self._looks = dict(looks)
        self._say = say
        self._meta = meta
        self._said: dict[str, Any] = {}
        self._work = asyncio.get_running_loop().create_task(self._run(), name="mcp task watch")

    def close(self) -> None:
        self._work.cancel()

    async def _run(self) -> None:
        try:
            while self._looks:
                pause = 5.0
                for token in list(self._looks):
                    pause = min(pause, await self._one(token))
                await asyncio.sleep(max(pause, _LEAST))
        except Exception:  # the root of a task: the agent asks by itself then
            log.exception("mcp: tasks cannot be watched any more")

    async def _one(self, token: str) -> float:
        """Seconds after which to look again."""
        try:
            task = await self._looks[token]()
            fields: dict[str, Any] = dict(jsonrpc.decode_fields(task))
        except (Refused, jsonrpc.Malformed):
            del self._looks[token]  # it is gone, or what it says is not for this agent
            return 5.0
        except Failure:
            return 5.0
        fields.pop("resultType", None)
        fields["_meta"] = self._meta
        notification = jsonrpc.notification("notifications/tasks", jsonrpc.encode_fields(fields))
        if self._said.get(token) != notification:
            self._said[token] = notification
            self._say(notification)
        if jsonrpc.decode_string(fields.get("status")) in tasks.OVER:
            del self._looks[token]
        return tasks.interval(task)
