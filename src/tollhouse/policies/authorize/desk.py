"""Where calls wait for an operator, and where the operator's answers are found.

Rule: who may write there may approve, so it is the gateway's state, or a directory that only its own user can read. An
entry has a time after which it counts for nothing; an answer is one of an entry, and the first one holds.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.store.base import State

__all__ = ["Answer", "Desk", "Directory", "Entry", "Shared"]

_GRACE = 60.0  # seconds that an entry and its answer are kept beyond its time
_INDEX = "approvals"
_MOST = 10_000  # entries that are listed
_TRIES = 20
_ID = re.compile(r"[a-z0-9]{4,40}")

T = TypeVar("T")


class Entry(msgspec.Struct, omit_defaults=True):
    """A call that waits. asked, until: unix seconds. what: the server's tool, the model, or the route. arguments: JSON,
    cut where it is long. rule: that has it wait."""

    id: str
    asked: float
    until: float
    what: str
    rule: str
    principal: str = ""
    user: str = ""
    agent: str = ""
    org: str = ""
    request: str = ""
    arguments: str = ""


class Answer(msgspec.Struct, omit_defaults=True):
    """approved: whether. by: who. remember: seconds for which further calls of the same are not asked about; None as
    the rule says."""

    approved: bool
    by: str = ""
    remember: float | None = None


class Desk(Protocol):
    """period: seconds between two looks for answers, where nobody says that there is one."""

    period: float

    async def put(self, entry: Entry) -> None:
        """Let it be seen. Raises Failure 503."""
        ...

    async def drop(self, id: str) -> None:
        """Nobody waits any more. Raises Failure 503."""
        ...

    async def entries(self) -> list[Entry]:
        """Those that wait, the oldest first. Raises Failure 503."""
        ...

    async def answer(self, id: str, answer: Answer) -> bool:
        """Whether it is the answer of an entry that waits, and the first one. Raises Failure 503."""
        ...

    async def answered(self, id: str) -> Answer | None:
        """Raises Failure 503."""
        ...

    def on_answer(self, told: Callable[[], None]) -> Callable[[], None]:
        """Have `told` called when there may be an answer, where that can be known: what ends it."""
        ...


class Shared:
    """In the state that workers and operators share."""

    def __init__(self, state: State, now: Callable[[], float] = time.time) -> None:
        self.period = 2.0
        self._values = state.values
        self._bus = state.bus
        self._now = now

    async def put(self, entry: Entry) -> None:
        await self._values.put(_entry(entry.id), msgspec.msgpack.encode(entry), self._life(entry))
        await self._index(lambda ids: {**ids, entry.id: entry.until})

    async def drop(self, id: str) -> None:
        await self._values.remove(_entry(id))
        await self._values.remove(_reply(id))
        await self._index(lambda ids: {key: until for key, until in ids.items() if key != id})

    async def entries(self) -> list[Entry]:
        raw = await self._values.get(_INDEX)
        now = self._now()
        found = []
        for id, until in _ids(raw).items():
            if until > now and (value := await self._values.get(_entry(id))) is not None:
                found.append(msgspec.msgpack.decode(value, type=Entry))
        return sorted(found, key=lambda entry: entry.asked)

    async def answer(self, id: str, answer: Answer) -> bool:
        raw = await self._values.get(_entry(id)) if _ID.fullmatch(id) else None
        entry = None if raw is None else msgspec.msgpack.decode(raw, type=Entry)
        if entry is None or entry.until <= self._now():
            return False
        if not await self._values.add(_reply(id), msgspec.msgpack.encode(answer), self._life(entry)):
            return False
        await self._bus.publish(_INDEX, id.encode())
        return True

    async def answered(self, id: str) -> Answer | None:
        raw = await self._values.get(_reply(id))
        return None if raw is None else msgspec.msgpack.decode(raw, type=Answer)

    def on_answer(self, told: Callable[[], None]) -> Callable[[], None]:
        return self._bus.subscribe(_INDEX, lambda _: told(), told)

    def _life(self, entry: Entry) -> float:
        return max(1.0, entry.until - self._now()) + _GRACE

    async def _index(self, change: Callable[[dict[str, float]], dict[str, float]]) -> None:
        """The ids of those that wait, with their times. What is over is forgotten in passing."""
        for _ in range(_TRIES):
            raw = await self._values.get(_INDEX)
            now = self._now()
            ids = {id: until for id, until in _ids(raw).items() if until > now}
            changed = change(ids)
            if len(changed) > _MOST:
                raise _full()
            data = msgspec.msgpack.encode(changed)
            life = max([1.0, *(until - now for until in changed.values())]) + _GRACE
            if raw is None:
                if await self._values.add(_INDEX, data, life):
                    return
            elif await self._values.swap(_INDEX, raw, data, life):
                return
        raise _full()


class Directory:
    """Files in a directory beside the ledger, for a gateway whose state is in its own memory: `ID.json` waits, and
    `ID.answer` is its answer. The directory is made when the first call waits, and nobody else can look into it."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.period = 0.25
        self._path = path
        self._now = now

    async def put(self, entry: Entry) -> None:
        await asyncio.to_thread(self._put, entry)

    async def drop(self, id: str) -> None:
        await asyncio.to_thread(self._drop, id)

    async def entries(self) -> list[Entry]:
        return await asyncio.to_thread(self._entries)

    async def answer(self, id: str, answer: Answer) -> bool:
        return await asyncio.to_thread(self._answer, id, answer)

    async def answered(self, id: str) -> Answer | None:
        return self._read(self._path / f"{id}.answer", Answer)  # a look that mostly finds nothing

    def on_answer(self, told: Callable[[], None]) -> Callable[[], None]:
        return _nothing

    def _put(self, entry: Entry) -> None:
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            self._path.chmod(0o700)
            if sum(1 for _ in self._path.glob("*.json")) >= _MOST:
                self._sweep()
                if sum(1 for _ in self._path.glob("*.json")) >= _MOST:
                    raise _full()
            self._write(f"{entry.id}.json", msgspec.json.encode(entry))
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def _drop(self, id: str) -> None:
        try:
            for kind in ("json", "answer"):
                (self._path / f"{id}.{kind}").unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def _entries(self) -> list[Entry]:
        now = self._now()
        found = [self._read(name, Entry) for name in self._path.glob("*.json")]
        return sorted((one for one in found if one is not None and one.until > now), key=lambda entry: entry.asked)

    def _answer(self, id: str, answer: Answer) -> bool:
        if not _ID.fullmatch(id):
            return False
        entry = self._read(self._path / f"{id}.json", Entry)
        if entry is None or entry.until <= self._now():
            return False
        try:
            return self._write(f"{id}.answer", msgspec.json.encode(answer))
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def _write(self, name: str, content: bytes) -> bool:
        """Whole, or not at all; False where there is one of that name."""
        fresh = self._path / f".{name}.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        try:
            os.link(fresh, self._path / name)
        except FileExistsError:
            return False
        finally:
            fresh.unlink(missing_ok=True)
        return True

    def _sweep(self) -> None:
        """Forget what a gateway that is gone has left."""
        now = self._now()
        for name in self._path.glob("*.json"):
            entry = self._read(name, Entry)
            if entry is None or entry.until + _GRACE < now:
                self._drop(name.stem)

    def _read(self, name: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(name.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):  # gone, or not ours
            return None


def _entry(id: str) -> str:
    return f"approval:{id}"


def _reply(id: str) -> str:
    return f"approval:{id}:answer"


def _ids(raw: bytes | None) -> dict[str, float]:
    return {} if raw is None else msgspec.msgpack.decode(raw, type=dict[str, float])


def _nothing() -> None: ...


def _full() -> Failure:
    return Failure(
        503, Reason.OVERLOADED, "too many calls wait for approval; try again later", code="approvals_full",
        retry_after=30.0,
    )  # fmt: skip


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(
        503,
        Reason.INTERNAL,
        "calls cannot wait for approval at the moment; ask the operator of this gateway",
        code="approvals_unavailable",
        detail=f"the directory {str(path)!r} cannot be written: {error.strerror}",
    )
