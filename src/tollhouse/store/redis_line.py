"""A connection to Valkey or Redis, and what is sent over one.

Rule: commands go out in one write and their answers come back in that order. A connection on which something went wrong
is closed: no answer is ever taken for another command's. The connections are redis-py's: TCP, TLS, login and parser.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.asyncio import Connection
from redis.exceptions import ReadOnlyError, ResponseError

from tollhouse.store.base import unavailable

__all__ = ["Connect", "Job", "Line", "Node", "Script", "SingleLine", "opened", "packed", "read", "write"]

Node = tuple[str, int]
"""Host and port."""

Connect = Callable[[Node], Connection]
"""Makes a connection that is not yet open."""


class Script:
    """A Lua script, known to servers by its digest once they have seen it."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Job:
    """One command that somebody waits for. is_sent: it may have been done. whole: send the script's text."""

    __slots__ = (
        "again", "ask", "command", "deadline", "future", "is_sent", "key", "ran_before", "script", "tries", "whole",
    )  # fmt: skip

    def __init__(
        self,
        command: Sequence[bytes],
        key: bytes,
        again: bool,
        script: Script | None,
        deadline: float,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.command = command
        self.key = key
        self.again = again
        self.script = script
        self.deadline = deadline
        self.future = future
        self.is_sent = False
        self.ran_before = False
        self.tries = 0
        self.whole = False
        self.ask: Node | None = None

    def packed(self) -> bytes:
        script = self.script
        if script is None:
            return packed(self.command)
        if self.whole:
            return packed((b"EVAL", script.text, *self.command))
        return packed((b"EVALSHA", script.digest, *self.command))

    def fail(self, cause: str) -> None:
        if not self.future.done():
            touched = self.is_sent or self.ran_before
            self.future.set_exception(unavailable(cause, sent=touched, reached=touched))


def packed(command: Sequence[bytes]) -> bytes:
    """A command as it is written: an array of bulk strings (RESP2)."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        parts.append(b"$%d\r\n" % len(argument))
        parts.append(argument)
        parts.append(b"\r\n")
    return b"".join(parts)


class Line(Protocol):
    """One connection, or one to each node of a cluster."""

    async def run(self, jobs: Sequence[Job], answered: Callable[[Job, Any], None]) -> None:
        """Do them all. Each answer is told as it comes, an error of the server's as an exception, and LostError where
        a node is lost. Raises RedisError or OSError when all is; jobs that have no answer then may have been done if
        they are sent."""
        ...

    async def drop(self) -> None:
        """Close what is open."""
        ...


async def opened(connection: Connection) -> Connection:
    """Open it if it is not. One that the server has closed meanwhile, or that has something on it that nobody asked
    for, is opened anew."""
    if connection.is_connected and await connection.can_read():
        await connection.disconnect(nowait=True)
    if not connection.is_connected:
        await connection.connect()  # type: ignore[no-untyped-call]
    return connection


async def write(connection: Connection, jobs: Sequence[Job]) -> None:
    parts = []
    for job in jobs:
        job.is_sent = True
        if job.ask is not None:
            parts.append(packed((b"ASKING",)))
        parts.append(job.packed())
    await connection.send_packed_command(b"".join(parts), check_health=False)


async def read(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class SingleLine:
    """A line to one server."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run(self, jobs: Sequence[Job], answered: Callable[[Job, Any], None]) -> None:
        connection = await opened(self._connection)
        await write(connection, jobs)
        replica: ReadOnlyError | None = None
        for job in jobs:
            answer = await read(connection)
            if isinstance(answer, ReadOnlyError):
                job.is_sent = False
                replica = answer
            else:
                answered(job, answer)
        if replica is not None:  # no primary any more: its name may lead to another one
            raise replica

    async def drop(self) -> None:
        await self._connection.disconnect(nowait=True)
