"""Gateways' chains of the cache, on a state that they share."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fixtures.valkey import Valkey
from tests.unit.policies.cache.house import House
from tests.unit.policies.floor import Shelf

from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

PREFIXES = (f"p{n}" for n in itertools.count())


class Node:
    """A gateway's chain, on a state that others share."""

    def __init__(self, url: str, prefix: str, exact: Any = None, more: Any = None, **settings: Any) -> None:
        spec = StateSpec.model_validate({"url": url, "prefix": prefix, "timeout": "5s"} | settings)
        self.prefix = prefix
        self.house = House()
        self.done: list[str] = []
        self.state = RedisState(spec, self.house.time.clock, observe=lambda what, how, took: self.done.append(what))
        self.shelf = Shelf()
        self.parts = self.house.made(state=self.state, shared=self.shelf)
        self.house.parts = self.parts
        settings = {"exact": {"ttl": "1m", "tags": ["docs"]} | (exact or {})} | (more or {})
        self.house.handler = self.house.chain(settings, self.parts)

    @property
    def store(self) -> Any:
        return self.shelf.parts[("cache", 64 << 20)]

    async def ready(self) -> None:
        """Purges were read: what is in the state counts."""
        if not self.store.started:
            self.store.start()
        while not self.store.purges.known:
            await asyncio.sleep(0.001)

    async def written(self) -> None:
        while self.store._tasks:
            await asyncio.wait(tuple(self.store._tasks))

    async def close(self) -> None:
        await self.shelf.close()
        await self.house.close()
        await self.state.close()


@asynccontextmanager
async def nodes(server: Valkey, count: int = 2, **settings: Any) -> AsyncIterator[list[Node]]:
    prefix = next(PREFIXES)
    made = [Node(server.url, prefix, **settings) for _ in range(count)]
    try:
        for node in made:
            await node.ready()
        yield made
    finally:
        for node in made:
            await node.close()
