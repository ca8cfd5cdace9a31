"""State on a Valkey or Redis server or cluster (6.2 and later; the extra `redis`).

Rule: this file puts the parts together; what keys and channels are called is said here and in them:

    <prefix>:v:<key>    a value                      {<prefix>}:r:<digest>  a bucket of a limit
    <prefix>:b:<topic>  a channel                    {<prefix>}:a:<id>      the answer to an admission, for seconds
                                                     {<prefix>}:s:<node>    a worker's last batch of corrections
                                                     {<prefix>}:d h x k e w  allowances (`lua/hold.lua`)
    <prefix>:l:<key>    a list                       {<prefix>}:n           the workers
"""

import os
from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any

from redis.asyncio import Connection, SSLConnection

from tollhouse.core.clock import Clock
from tollhouse.store.base import LARGEST, Bus, KeyValue, Logs, must_fit
from tollhouse.store.crypt import OVERHEAD, SealedBus, SealedLogs, SealedValues
from tollhouse.store.redis_bus import RedisBus
from tollhouse.store.redis_cluster import Slots
from tollhouse.store.redis_counter import RedisCounter, script
from tollhouse.store.redis_line import Connect, Node
from tollhouse.store.redis_logs import RedisLogs
from tollhouse.store.redis_server import Observe, Server
from tollhouse.store.spec import Place, StateSpec, StateTLSSpec

__all__ = ["RedisState", "RedisValues", "connects"]


class RedisState:
    """A `store.base.State`. keys: what the State's `keys` are, where the Spec has none. observe: told of each
    operation. Raises ValueError for TLS files that cannot be used. Nothing is opened before it is needed."""

    shared = True

    def __init__(
        self, spec: StateSpec, clock: Clock, keys: Sequence[bytes] = (), observe: Observe | None = None
    ) -> None:
        place = spec.place
        name = str(place)
        connect = connects(place, spec.timeout, spec.tls)
        slots = Slots() if place.is_cluster else None
        serve = partial(Server, connect, place.nodes, name=name, timeout=spec.timeout, slots=slots, observe=observe)
        self._server = serve(lines=spec.connections)
        self._publisher = serve(lines=1)  # of its own: one connection keeps the order
        self.node = os.urandom(8).hex()
        largest = LARGEST + OVERHEAD if spec.keys else LARGEST
        self._bus = RedisBus(
            self._publisher,
            _Turns(connect, place.nodes, slots),
            name=name,
            prefix=spec.prefix,
            timeout=spec.timeout,
            largest=largest,
        )
        self.counter = RedisCounter(
            self._server, clock, prefix=spec.prefix, node=self.node, patience=2.0 * spec.timeout
        )
        values = RedisValues(self._server, spec.prefix, largest)
        self.values: KeyValue = SealedValues(values, spec.keys) if spec.keys else values
        logs = RedisLogs(self._server, spec.prefix, largest)
        self.logs: Logs | None = SealedLogs(logs, spec.keys) if spec.keys else logs
        self.bus: Bus = SealedBus(self._bus, spec.keys) if spec.keys else self._bus
        self.keys = spec.keys or tuple(keys) or (os.urandom(32),)

    async def close(self) -> None:
        await self.counter.close()
        await self._bus.close()
        await self._publisher.close()
        await self._server.close()


class RedisValues:
    """A `store.base.KeyValue`. largest: bytes of a value."""

    __slots__ = ("_claim", "_largest", "_prefix", "_server", "_swap")

    def __init__(self, server: Server, prefix: str, largest: int = LARGEST) -> None:
        self._server = server
        self._prefix = f"{prefix}:v:".encode()
        self._largest = largest
        self._swap = script("swap.lua")
        self._claim = script("claim.lua")

    async def get(self, key: str) -> bytes | None:
        name = self._name(key)
        value: bytes | None = await self._server.ask("get", (b"GET", name), key=name, again=True)
        return value

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        name = self._name(key, value, ttl)
        await self._server.ask("put", (b"SET", name, value, b"PX", _milliseconds(ttl)), key=name)

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        name = self._name(key, value, ttl)
        command = (b"SET", name, value, b"PX", _milliseconds(ttl), b"NX")
        return await self._server.ask("add", command, key=name) is not None

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        name = self._name(key, value, ttl)
        command = (b"1", name, value, _milliseconds(ttl))
        there: bytes | None = await self._server.ask("claim", command, key=name, again=True, script=self._claim)
        return there

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        name = self._name(key, new, ttl)
        command = (b"1", name, old, new, _milliseconds(ttl))
        return bool(await self._server.ask("swap", command, key=name, script=self._swap))

    async def touch(self, key: str, ttl: float) -> bool:
        name = self._name(key, ttl=ttl)
        return bool(await self._server.ask("touch", (b"PEXPIRE", name, _milliseconds(ttl)), key=name, again=True))

    async def remove(self, key: str) -> bool:
        name = self._name(key)
        return bool(await self._server.ask("remove", (b"UNLINK", name), key=name))

    async def take(self, key: str) -> bytes | None:
        name = self._name(key)
        value: bytes | None = await self._server.ask("take", (b"GETDEL", name), key=name)
        return value

    def _name(self, key: str, value: bytes = b"", ttl: float = 1.0) -> bytes:
        must_fit(key, value, ttl, self._largest)
        return self._prefix + key.encode("utf-8", "surrogatepass")


def _milliseconds(ttl: float) -> bytes:
    return b"%d" % ceil(ttl * 1000.0)


def connects(place: Place, timeout: float, tls: StateTLSSpec | None = None) -> Connect:
    """What makes connections there. timeout: seconds for opening one. Raises ValueError for files that cannot be
    used."""
    context = (tls or StateTLSSpec()).context() if place.is_tls else None

    def connect(node: Node) -> Connection:
        settings: dict[str, Any] = {
            "host": node[0],
            "port": node[1],
            "db": place.database,
            "username": place.user or None,
            "password": place.password or None,
            "socket_timeout": None,  # each batch has its own
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "driver_info": None,
            "client_name": "tollhouse",
        }
        if context is None:
            return Connection(**settings)
        connection = SSLConnection(**settings)
        connection.ssl_context.context = context
        return connection

    return connect


class _Turns:
    """Connections to one node after another: in a cluster each of them has every message."""

    __slots__ = ("_connect", "_nodes", "_number", "_slots")

    def __init__(self, connect: Connect, nodes: Sequence[Node], slots: Slots | None) -> None:
        self._connect = connect
        self._nodes = tuple(nodes)
        self._slots = slots
        self._number = 0

    def __call__(self) -> Connection:
        nodes = (*(self._slots.known if self._slots is not None else ()), *self._nodes)
        self._number += 1
        return self._connect(nodes[(self._number - 1) % len(nodes)])
