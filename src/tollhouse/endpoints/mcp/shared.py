"""What workers that share a `state` know of each other's sessions: a record of each, and words between them.

Rule: whoever knows a session serves it without asking the store. So records are written when something has changed,
and a worker that cannot write goes on and tries again; only who has never heard of a session must read. A word that
is lost costs an answer that comes late or not at all, and nothing more: what must not be lost is in a record.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.endpoints.mcp.peers import sign_of
from tollhouse.store.base import KeyValue, State

__all__ = ["Change", "Left", "Record", "Records", "Word", "Workers"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_TRIES = 8
_CLAIMED = 3600.0  # seconds that what one worker has taken over is not taken over by another
_ANSWER = 1.0  # seconds for another worker to say whether it has what is asked for
_WAITING = 16 << 20  # bytes of words that are not on their way yet


class Record(msgspec.Struct, array_like=True):
    """What a session knows beside its id. touched: unix seconds of its last use, about. subscribed: URIs as the agent
    knows them. owner: the worker that has its stream. extensions: what its agent declares beside its profile, raw JSON
    of an object."""

    touched: float = 0.0
    level: str = ""
    subscribed: list[str] = []
    owner: str = ""
    ended: bool = False
    extensions: bytes = b""


class Left(msgspec.Struct, array_like=True):
    """A call that lasts, for whoever is asked for its answer when its worker is gone. request: its raw id. name: the
    server's own. token: raw, of its progress. place: where its answer is (`core.call.Movable`). params: raw JSON of a
    call that may be made again, else b""."""

    request: bytes
    server: str = ""
    method: str = ""
    name: str = ""
    token: bytes = b""
    place: bytes = b""
    params: bytes = b""


Change = Callable[[Record], None]

_records = msgspec.msgpack.Decoder(Record)
_lefts = msgspec.msgpack.Decoder(Left)


class Records:
    """Records of sessions, by their key. Whatever waits raises Failure 503 while the store cannot be reached."""

    __slots__ = ("_values",)

    def __init__(self, values: KeyValue) -> None:
        self._values = values

    async def read(self, session: str) -> Record | None:
        return _decoded(await self._values.get(_name(session)))

    async def change(self, session: str, changes: Sequence[Change], ttl: float) -> Record:
        """Make `changes` to the record, whatever others make of it meanwhile. Gives it as it is then; one that has
        ended stays as it is."""
        name = _name(session)
        for _ in range(_TRIES):
            before = await self._values.get(name)
            record = _decoded(before) or Record()
            if record.ended:
                return record
            for change in changes:
                change(record)
            after = msgspec.msgpack.encode(record)
            if before is None:
                done = await self._values.add(name, after, ttl)
            else:
                done = await self._values.swap(name, before, after, ttl)
            if done:
                return record
        log.warning("the record of an MCP session changes faster than it can be written")
        return Record()

    async def write(self, session: str, record: Record, ttl: float) -> None:
        await self._values.put(_name(session), msgspec.msgpack.encode(record), ttl)

    async def end(self, session: str, ttl: float) -> None:
        """It has ended, and is not to come back within `ttl` seconds."""
        await self.write(session, Record(ended=True), ttl)

    # ---- answers that nobody reads yet
    async def park(self, session: str, stream: str, event: bytes, ttl: float) -> None:
        """The last event of a stream, for an agent that is away."""
        await self._values.put(f"mcp.p.{session}.{stream}", event, ttl)

    async def parked(self, session: str, stream: str) -> bytes | None:
        return await self._values.get(f"mcp.p.{session}.{stream}")

    async def note_call(self, session: str, stream: str, left: Left, ttl: float) -> None:
        """What `stream` answers."""
        await self._values.put(f"mcp.c.{session}.{stream}", msgspec.msgpack.encode(left), ttl)

    async def noted_call(self, session: str, stream: str) -> Left | None:
        data = await self._values.get(f"mcp.c.{session}.{stream}")
        try:
            return _lefts.decode(data) if data is not None else None
        except msgspec.DecodeError:  # another version's
            return None

    async def claim_stream(self, session: str, stream: str, node: str) -> str:
        """The worker that goes on with `stream`, of one that is gone: `node`, if no other that lives was quicker."""
        name, mine = f"mcp.m.{session}.{stream}", node.encode()
        for _ in range(_TRIES):
            if await self._values.add(name, mine, _CLAIMED):
                return node
            owner = await self._values.get(name)
            if owner is None:
                continue
            other = owner.decode()
            if other == node or await self.lives(other):
                return other
            if await self._values.swap(name, owner, mine, _CLAIMED):
                return node
        return node

    async def lives(self, node: str) -> bool:
        """Whether a worker has given a sign of life lately."""
        return await self._values.get(sign_of(node)) is not None


def _name(session: str) -> str:
    return f"mcp.s.{session}"


def _decoded(data: bytes | None) -> Record | None:
    if data is None:
        return None
    try:
        return _records.decode(data)
    except msgspec.DecodeError:  # another version's: as if there were none
        return None


class Word(msgspec.Struct, array_like=True):
    """op: what it is about. node: who says it. session: the key of one. token: of a question or a relayed stream."""

    op: str
    node: str = ""
    session: str = ""
    token: int = 0
    number: int = 0
    body: bytes = b""


_words = msgspec.msgpack.Decoder(Word)


class Workers:
    """Words to other workers and from them. heard: given each that is no answer to a question of ours."""

    def __init__(self, state: State, heard: Callable[[Word], None], on_gap: Callable[[], None]) -> None:
        self.node = state.node
        self._bus = state.bus
        self._heard = heard
        self._tokens = count(1)
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._out: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self._sender: asyncio.Task[None] | None = None
        self._closed = False
        self._stack = ExitStack()
        for topic in ("mcp.s", f"mcp.w.{self.node}"):
            self._stack.callback(self._bus.subscribe(topic, self._deliver, on_gap))

    @property
    def idle(self) -> bool:
        """All is said."""
        return self._sender is None

    def token(self) -> int:
        return next(self._tokens)

    def tell(self, node: str, word: Word) -> bool:
        """To one worker; False when too much waits already."""
        return self._send(f"mcp.w.{node}", word)

    def tell_all(self, word: Word) -> None:
        """To all others."""
        self._send("mcp.s", word)

    async def ask(self, node: str, word: Word) -> bool | None:
        """To one worker, and whether it says yes; None when it has not answered within a second."""
        word.token = word.token or self.token()
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[word.token] = answer
        try:
            if not self.tell(node, word):
                return False
            async with asyncio.timeout(_ANSWER):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[word.token]

    def answer(self, word: Word, yes: bool) -> None:
        """To a question of another worker."""
        self.tell(word.node, Word("answer", session=word.session, token=word.token, number=int(yes)))

    def _send(self, topic: str, word: Word) -> bool:
        word.node = self.node
        data = msgspec.msgpack.encode(word)
        if self._closed or self._size + len(data) > _WAITING:
            return False
        self._out.append((topic, data))
        self._size += len(data)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._run())
        return True

    async def _run(self) -> None:
        try:
            while self._out:
                topic, data = self._out.popleft()
                self._size -= len(data)
                try:
                    await self._bus.publish(topic, data)
                except Failure as failure:
                    log.warning("other workers cannot be told of an MCP session: %s", failure.detail or failure.message)
        finally:
            self._sender = None

    def _deliver(self, data: bytes) -> None:
        try:
            word = _words.decode(data)
        except msgspec.DecodeError:
            return
        if word.node == self.node:
            return
        if word.op == "answer":
            waiting = self._asked.get(word.token)
            if waiting is not None and not waiting.done():
                waiting.set_result(bool(word.number))
        else:
            self._heard(word)

    async def close(self) -> None:
        """Say what is left to say, and hear no more."""
        self._stack.close()
        self._closed = True
        sender = self._sender
        if sender is not None:
            await asyncio.wait([sender], timeout=_ANSWER)
            sender.cancel()
            await asyncio.wait([sender])
