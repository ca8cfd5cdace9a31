"""What happens to agents' sessions at other workers, and what other workers want of those here.

Rule: a worker that lives keeps its streams, and is read through; what only a worker has that is gone, one other takes
over, and every further one reads it there. Words between workers may be lost; what must not be is in a record.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Response
from tollhouse.endpoints.mcp.agent import Session
from tollhouse.endpoints.mcp.relay import Lent, Relayed
from tollhouse.endpoints.mcp.shared import Left, Records, Word, Workers
from tollhouse.endpoints.mcp.stream import HEADERS, Outlet
from tollhouse.store.base import State
from tollhouse.wire import jsonrpc

__all__ = ["Elsewhere", "GoOn"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_ASKS = 12  # times that a worker which lives is asked for a stream, each for a second
_MOVED = 64
_RELAYS = 1000
_LOOKS, _LOOK = 25, 0.2  # times, and seconds between them, that a worker is asked for what it takes over just now

GoOn = Callable[[Session, Left], Awaitable[Response | None]]
"""Answer a call in the place of a worker that is gone; None where that cannot be. Raises Failure."""


class Home(Protocol):
    """All sessions of this worker (`session.Sessions`)."""

    clock: Clock

    def known(self, key: str) -> Session | None:
        """The session of that key, in memory."""
        ...

    def ended_elsewhere(self, session: Session) -> None: ...

    def reread(self, session: Session | None) -> None:
        """Another worker has changed its record; None: maybe those of all, and more was lost."""
        ...

    def later(self, work: Coroutine[Any, Any, None]) -> bool:
        """Work that nobody waits for; False when too much of it is under way."""
        ...


class Elsewhere:
    """Of one worker. state: shared with others."""

    def __init__(self, home: Home, state: State, records: Records) -> None:
        self._home = home
        self._node = state.node
        self._records = records
        self._workers = Workers(state, self._heard, self._gap)
        self._relayed: dict[int, Relayed] = {}
        self._lent: dict[tuple[str, int], Lent] = {}
        self._moving: dict[tuple[str, str], asyncio.Future[None]] = {}  # being taken over: session and stream

    @property
    def idle(self) -> bool:
        """Nothing waits to be said."""
        return self._workers.idle

    @property
    def streams(self) -> int:
        """That are read through other workers, or by them."""
        return len(self._relayed) + len(self._lent)

    # ---- what this worker says
    def ended(self, key: str) -> None:
        self._workers.tell_all(Word("ended", session=key))

    def changed(self, key: str) -> None:
        self._workers.tell_all(Word("changed", session=key))

    def cancel(self, session: Session, request: bytes) -> None:
        """The agent does not want the answer to that request (a raw id) any more, which is not made here."""
        self._workers.tell_all(Word("cancel", session=session.key, body=request))

    async def answered(self, session: Session, message: jsonrpc.Message) -> bool:
        """The agent's response to a request of a server that nobody here waits for; False when nobody does at all."""
        node = (jsonrpc.decode_string(message.id) or "").rpartition("-")[0]
        if not node or node == self._node:
            return False
        id = bytes(message.id)
        body = jsonrpc.failed(id, message.error) if len(message.error) else jsonrpc.result(id, message.result)
        return bool(await self._workers.ask(node, Word("answered", session=session.key, body=body)))

    def forward(self, session: Session, message: bytes) -> bool:
        """Say it on the session's stream, where that is."""
        return self._home.later(self._forward(session, message))

    async def _forward(self, session: Session, message: bytes) -> None:
        node = session.owner
        if not node or not await self._workers.ask(node, Word("say", session=session.key, body=message)):
            session.owner_lost(node)
            session.say(message)

    # ---- streams of other workers
    async def read(self, session: Session, node: str, stream: int, after: int, go_on: GoOn | None) -> Response | None:
        """What came after event `after` of a stream of worker `node`; None when nobody knows of it. Raises Failure."""
        records = self._records
        name = f"{node}.{stream}"
        if (moved := self._moved(session, name)) is not None:
            return moved
        last = await records.parked(session.key, name)
        if last is not None:
            outlet = Outlet(self._home.clock, lambda _: None, held=(last,))
            outlet.finish()
            return Response(200, list(HEADERS), source=outlet)
        there, response = await self._through(session, node, b"%d" % stream, after)
        if response is not None:
            return response
        left = await records.noted_call(session.key, name)
        if left is None:
            return None
        gone = there is None or not await records.lives(node)
        if gone and go_on is not None and session.open:
            response = await self._take_over(session, name, left, go_on)
            if response is not None:
                return response
        return session.lost_answer(left.request)

    async def _take_over(self, session: Session, name: str, left: Left, go_on: GoOn) -> Response | None:
        """Go on with the call that answered on stream `name` of a worker that is gone; or read it where an agent that
        has come back to two workers at once was quicker. None: it is lost."""
        moving = self._moving.get((session.key, name))
        if moving is not None:
            await asyncio.wait((moving,))
            return self._moved(session, name)
        moving = self._moving[session.key, name] = asyncio.get_running_loop().create_future()
        try:
            other = await self._records.claim_stream(session.key, name, self._node)
            for _ in range(_LOOKS if other != self._node else 0):
                there, response = await self._through(session, other, name.encode(), 0)
                if response is not None or there is None:
                    return response
                await asyncio.sleep(_LOOK)  # it is about to begin
            if other != self._node:
                return None
            response = await go_on(session, left)
            if response is not None and response.source is not None:
                session.moved[name] = max(session.tracks)  # the one that was made just now
                if len(session.moved) > _MOVED:
                    del session.moved[next(iter(session.moved))]
            return response
        except Failure as failure:
            log.info("mcp: a call of a worker that is gone is lost: %s", failure.message)
            return None
        finally:
            del self._moving[session.key, name]
            moving.set_result(None)

    def _moved(self, session: Session, name: str) -> Response | None:
        stream = session.moved.get(name)
        return session.read_again(stream, 0) if stream is not None else None

    async def _through(
        self, session: Session, node: str, stream: bytes, after: int
    ) -> tuple[bool | None, Response | None]:
        """Whether worker `node` has that stream, None when it says nothing, and what it reads like from here."""
        if len(self._relayed) >= _RELAYS:
            raise Failure(503, Reason.MCP, "too many streams are read over other workers", retry=True)
        workers = self._workers
        token = workers.token()

        def ended() -> None:
            self._relayed.pop(token, None)

        relayed = self._relayed[token] = Relayed(self._home.clock, workers, node, token, ended)
        word = Word("read", session=session.key, token=token, number=after, body=stream)
        there: bool | None = None
        try:
            for _ in range(_ASKS):
                there = await workers.ask(node, word)
                if there is not None or not await self._records.lives(node):
                    break
        finally:
            if not there:
                relayed.close()
        return there, relayed.response() if there else None

    # ---- words of other workers
    def _heard(self, word: Word) -> None:
        workers = self._workers
        if word.op in ("frame", "end"):
            relayed = self._relayed.get(word.token)
            if relayed is not None:
                relayed.take(word)
            return
        if word.op == "leave":
            lent = self._lent.get((word.node, word.token))
            if lent is not None:
                lent.leave()
            return
        session = self._home.known(word.session)
        if word.op == "answered":
            workers.answer(word, session is not None and session.answered(jsonrpc.decode(word.body)))
        elif word.op == "say":
            workers.answer(word, session is not None and session.say_here(word.body))
        elif word.op == "read":
            workers.answer(word, session is not None and self._lend(session, word))
        elif session is None:
            return
        elif word.op == "ended":
            self._home.ended_elsewhere(session)
        elif word.op == "changed":
            self._home.reread(session)
        elif word.op == "cancel":
            session.cancel(word.body)

    def _lend(self, session: Session, word: Word) -> bool:
        """Have one of the session's streams read at another worker: one of ours by its number, or what became of that
        of a worker that is gone by its name."""
        stream = int(word.body) if word.body.isdigit() else session.moved.get(word.body.decode())
        response = session.read_again(stream, word.number) if stream is not None else None
        if response is None or response.source is None:
            return False
        to = (word.node, word.token)

        def ended() -> None:
            self._lent.pop(to, None)

        lent = self._lent[to] = Lent(self._workers, *to, response.source, ended)
        # After the answer, which goes out first.
        asyncio.get_running_loop().call_soon(lent.begin)
        return True

    def _gap(self) -> None:
        """Words of other workers may have been lost."""
        self._home.reread(None)

    # ---- the end
    def finish_streams(self) -> None:
        """This worker leaves: who reads here comes back elsewhere."""
        for relayed in list(self._relayed.values()):
            relayed.finish()

    async def closed(self) -> None:
        for lent in list(self._lent.values()):  # who reads it there comes back for it, and finds its record
            lent.end()
        await self._workers.close()
