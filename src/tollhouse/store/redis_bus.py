"""Messages through the pub/sub of Valkey or Redis.

Rule: what is published goes out over one connection in the order it came, and what is subscribed to comes in over
another. That one is opened again when it is lost, with all its channels; only then are subscribers told of the gap, so
that whatever they read after it cannot be older than the messages they get.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError

from tollhouse.core.backoff import Backoff
from tollhouse.store.base import LARGEST, must_fit, unavailable
from tollhouse.store.redis_line import packed
from tollhouse.store.redis_server import Server
from tollhouse.store.topics import Topics

__all__ = ["RedisBus"]

log = logging.getLogger("tollhouse.store")

_BATCH = 500  # channels of one SUBSCRIBE


class RedisBus:
    """A `store.base.Bus`.

    server: publishes, over one line. connect: makes the connection that listens. timeout: seconds for subscribing.
    quiet: seconds without a message after which the connection is tried.
    """

    def __init__(
        self,
        server: Server,
        connect: Callable[[], Connection],
        *,
        name: str,
        prefix: str,
        timeout: float,
        largest: int = LARGEST,
        quiet: float = 15.0,
    ) -> None:
        self._server = server
        self._connect = connect
        self._name = name
        self._prefix = f"{prefix}:b:".encode()
        self._timeout = timeout
        self._largest = largest
        self._quiet = quiet
        self._topics = Topics(self._emptied)
        self._pending: set[str] = set()  # topics whose subscription is not known to be in force
        self._asked: set[str] = set()  # of which the connection has sent SUBSCRIBE, and no UNSUBSCRIBE since
        self._unanswered: dict[str, int] = {}  # how many SUBSCRIBE of each have no answer yet
        self._waiting: list[asyncio.Future[None]] = []  # for nothing to be pending
        self._changed = asyncio.Event()
        self._connection: Connection | None = None  # while it is open
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._wake()

    async def publish(self, topic: str, message: bytes) -> None:
        must_fit(topic, message, largest=self._largest)
        if self._pending:
            await self.ready()
        channel = self._channel(topic)
        await self._server.ask("publish", (b"PUBLISH", channel, message))

    def subscribe(
        self, topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        must_fit(topic)
        if topic not in self._topics.names and (topic not in self._asked or topic in self._unanswered):
            self._pending.add(topic)
        end = self._topics.add(topic, deliver, on_gap)
        self._change()
        return end

    async def ready(self) -> None:
        if not self._pending or self._is_closed:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self._timeout):
                await waiting
        except TimeoutError:
            raise unavailable(f"{self._name}: not subscribed in {self._timeout:g} s", reached=False) from None
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _channel(self, topic: str) -> bytes:
        return self._prefix + topic.encode("utf-8", "surrogatepass")

    # ---- what is wanted
    def _emptied(self, topic: str) -> None:
        self._pending.discard(topic)
        if not self._pending:
            self._wake()
        self._change()

    def _change(self) -> None:
        self._changed.set()
        if not self._tasks and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._tasks = (loop.create_task(self._listen()), loop.create_task(self._follow()))

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _follow(self) -> None:
        """Say on the open connection what has changed."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            connection = self._connection
            if connection is None:  # the next one begins with all
                continue
            wanted = self._topics.names
            gone = [topic for topic in self._asked if topic not in wanted]
            fresh = [topic for topic in wanted if topic not in self._asked]
            # At once, and only then sent: whoever comes back meanwhile is asked for anew.
            self._asked.difference_update(gone)
            self._asked.update(fresh)
            for topic in fresh:
                self._unanswered[topic] = self._unanswered.get(topic, 0) + 1
            try:
                await self._say(connection, b"UNSUBSCRIBE", gone)
                await self._say(connection, b"SUBSCRIBE", fresh)
            except (RedisError, OSError):
                continue  # whoever listens has it, too

    async def _say(self, connection: Connection, word: bytes, topics: list[str]) -> None:
        for first in range(0, len(topics), _BATCH):
            command = packed((word, *map(self._channel, topics[first : first + _BATCH])))
            await connection.send_packed_command(command, check_health=False)

    # ---- what comes
    async def _listen(self) -> None:
        backoff = Backoff(0.1, most=2.0)
        failures = 0
        while True:
            connection = self._connect()
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]
                self._begin(connection)
                if failures:
                    log.warning("messages of the state at %s come again", self._name)
                failures = 0
                await self._receive(connection)
            except (RedisError, OSError) as error:
                failures += 1
                if failures == 1:
                    log.error("messages of the state at %s do not come: %s", self._name, str(error) or "no answer")
            except Exception:  # a task's root: without it nobody would hear anything any more
                failures += 1
                log.exception("messages of the state at %s do not come", self._name)
            finally:
                self._end()
                await connection.disconnect(nowait=True)
            await asyncio.sleep(0.02 + backoff.delay(failures))

    def _begin(self, connection: Connection) -> None:
        self._connection = connection
        if self._pending:
            self._changed.set()
        else:
            self._topics.regained()

    def _end(self) -> None:
        if self._connection is None:
            return
        self._connection = None
        self._asked.clear()
        self._unanswered.clear()
        self._pending = set(self._topics.names)
        self._topics.lost()

    async def _receive(self, connection: Connection) -> None:
        is_tried = False
        while True:
            answer = await connection.read_response(timeout=self._quiet)
            if answer is not None:
                is_tried = False
                self._take(answer)
            elif is_tried:
                raise LostError(f"nothing came in {2 * self._quiet:g} s")
            else:
                is_tried = True
                await connection.send_packed_command(packed((b"PING",)), check_health=False)

    def _take(self, answer: Any) -> None:
        if not isinstance(answer, list) or len(answer) < 3:  # of PING
            return
        kind, channel, content = answer[:3]
        topic = channel[len(self._prefix) :].decode("utf-8", "surrogatepass")
        if kind == b"message":
            self._topics.deliver(topic, content)
        elif kind == b"subscribe":
            left = self._unanswered.pop(topic, 1) - 1
            if left:
                self._unanswered[topic] = left
            else:
                self._pending.discard(topic)
                if not self._pending:
                    self._wake()
                    self._topics.regained()
