"""Requests about a task that another worker began, at a server with sessions: they are put to that worker.

Rule: the worker that the agent came to has judged the request; the one that has the session with the server only asks
it. A worker that does not say at once that it does is taken for gone, and the request is made from here.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.store.base import State

__all__ = ["Away", "Errand"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_ACK = 1.0  # seconds for the other worker to say that it does it; it is asked twice
_DONE = 30.0  # seconds for it to be done
_INLINE = 64 << 10  # bytes of an answer that goes over the bus; a larger one is left in the store
_LEFT = 60.0
_AT_ONCE = 256
_ORDER, _TAKEN, _GONE, _HERE, _KEPT = range(5)


class Errand(msgspec.Struct, array_like=True):
    """What another worker is to ask. task: our id. principal, source: whose it is. declared: what the agent can be
    asked now. responses: `inputResponses`, raw JSON. agent: which one."""

    task: str
    method: str
    principal: str
    source: str
    declared: int
    responses: bytes = b""
    agent: str = ""


class _Word(msgspec.Struct, array_like=True):
    kind: int
    node: str
    id: str
    errand: Errand | None = None
    body: bytes = b""


_words = msgspec.msgpack.Decoder(_Word)
_encode = msgspec.msgpack.Encoder().encode


class Away:
    """state: shared with the other workers. perform: carries an errand out here; None where that cannot be."""

    def __init__(self, state: State, perform: Callable[[Errand], Awaitable[bytes | None]]) -> None:
        self._node = state.node
        self._bus = state.bus
        self._values = state.values
        self._perform = perform
        self._asked: dict[str, asyncio.Queue[_Word]] = {}
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._stop: Callable[[], None] | None = state.bus.subscribe(_topic(state.node), self._heard)

    async def ask(self, node: str, errand: Errand) -> bytes | None:
        """The response to `errand`, to request 0, as `node` has it; None when it does not do it. Raises Failure."""
        id = f"{self._node}.{secrets.token_urlsafe(9)}"
        order = _encode(_Word(_ORDER, self._node, id, errand))
        heard = self._asked[id] = asyncio.Queue()
        try:
            for _ in range(2):
                await self._bus.publish(_topic(node), order)
                try:
                    word = await asyncio.wait_for(heard.get(), _ACK)
                except TimeoutError:
                    continue
                while word.kind == _TAKEN:
                    word = await asyncio.wait_for(heard.get(), _DONE)
                if word.kind == _HERE:
                    return word.body
                if word.kind == _KEPT:
                    return await self._values.take(_key(id))
                return None
            return None
        except TimeoutError:
            why = "the worker that has the task does not say how it is"
            raise Failure(504, Reason.TIMEOUT, why) from None
        finally:
            del self._asked[id]

    def _heard(self, data: bytes) -> None:
        try:
            word = _words.decode(data)
        except msgspec.DecodeError:
            log.warning("mcp: another worker sent what cannot be read")
            return
        if word.kind != _ORDER:
            queue = self._asked.get(word.id)
            if queue is not None:
                queue.put_nowait(word)
        elif word.errand is not None and word.id not in self._doing and len(self._doing) < _AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._do(word, word.errand), name="mcp task errand")
            self._doing[word.id] = task
            task.add_done_callback(lambda _: self._doing.pop(word.id, None))

    async def _do(self, word: _Word, errand: Errand) -> None:
        try:
            await self._say(word, _TAKEN)
            body = await self._perform(errand)
            if body is None:
                await self._say(word, _GONE)
            elif len(body) <= _INLINE:
                await self._say(word, _HERE, body)
            else:
                await self._values.put(_key(word.id), body, _LEFT)
                await self._say(word, _KEPT)
        except Failure as failure:
            log.warning("mcp: another worker cannot be told of a task: %s", failure.detail or failure.message)
        except Exception:  # the root of a task: who asked hears nothing more, and says so
            log.exception("mcp: a task could not be looked at for another worker")

    def _say(self, word: _Word, kind: int, body: bytes = b"") -> Coroutine[None, None, None]:
        return self._bus.publish(_topic(word.node), _encode(_Word(kind, self._node, word.id, body=body)))

    async def closed(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        doing = list(self._doing.values())
        for task in doing:
            task.cancel()
        if doing:
            await asyncio.wait(doing)


def _topic(node: str) -> str:
    return f"mcp.t.{node}"


def _key(id: str) -> str:
    return f"mcp:tr:{id}"
