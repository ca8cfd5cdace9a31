"""A cluster of Valkey or Redis: which node has a key, and what is done when that changes.

Rule: a node that is lost takes only those with it who want something of it. What a node refuses because a key is
elsewhere (MOVED, ASK) or on its way (TRYAGAIN) was not done, and is sent again; a node that is lost is asked for anew
of the others.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from redis.asyncio import Connection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as LostError

from tollhouse.store.redis_line import Connect, Job, Node, opened, packed, read, write

__all__ = ["ClusterLine", "Slots"]

_REDIRECTS = 8
_PAUSE = 0.05  # seconds, while a cluster is changing
_OUT = 0.5  # seconds that a lost node is not asked


class Slots:
    """Which node of a cluster has which keys, as all lines to it have learnt."""

    __slots__ = ("_down", "_learnt_at", "_nodes", "is_stale", "known")

    def __init__(self) -> None:
        self._nodes: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._down: dict[Node, float] = {}  # since when; few: nodes that have left are forgotten
        self._learnt_at = -1e9
        self.known: list[Node] = []
        self.is_stale = True

    @property
    def is_due(self) -> bool:
        """Whether to ask for them: not twice in a moment, whatever nodes say."""
        return self.is_stale and monotonic() - self._learnt_at > 0.1

    def node(self, key: bytes) -> Node | None:
        """Who has it. Of no key: always the same one, while it is there."""
        if key:
            return self._nodes[key_slot(key)]
        return next((node for node in self.known if not self.is_down(node)), None)

    def is_down(self, node: Node) -> bool:
        """Whether it was lost a moment ago."""
        return node in self._down and monotonic() - self._down[node] < _OUT

    def is_still(self, node: Node) -> bool:
        """Whether the cluster was asked since it was lost, and named it all the same."""
        return node in self._down and self._learnt_at > self._down[node]

    def lost(self, node: Node) -> None:
        self._down[node] = monotonic()
        self.is_stale = True

    def moved(self, slot: int, node: Node) -> None:
        self._nodes[slot] = node
        self.is_stale = True

    def learn(self, answer: Any, asked: Node) -> None:
        """What CLUSTER SLOTS says: first and last slot, and the nodes, primary first. One without a host is on the one
        that was asked."""
        nodes: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known = set()
        for first, last, primary, *_ in answer:
            host = (primary[0] or b"").decode() or asked[0]
            node = (host, int(primary[1]))
            known.add(node)
            nodes[first : last + 1] = [node] * (last + 1 - first)
        self._nodes = nodes
        self._down = {node: since for node, since in self._down.items() if node in known}
        first_known = self.known[0] if self.known else None
        self.known = sorted(known, key=lambda node: (node != first_known, node))
        self.is_stale = False
        self._learnt_at = monotonic()


class ClusterLine:
    """A line to each node of a cluster. patience: seconds that one node may take: others must not wait for it."""

    __slots__ = ("_connect", "_connections", "_patience", "_seeds", "_slots")

    def __init__(self, connect: Connect, seeds: Sequence[Node], slots: Slots, patience: float) -> None:
        self._connect = connect
        self._seeds = seeds
        self._slots = slots
        self._patience = patience
        self._connections: dict[Node, Connection] = {}

    async def run(self, jobs: Sequence[Job], answered: Callable[[Job, Any], None]) -> None:
        for _ in range(_REDIRECTS):
            if self._slots.is_due:
                await self._learn()
            jobs = await self._once(jobs, answered)
            if not jobs:
                return
        for job in jobs:
            answered(job, LostError("the cluster sends its callers from one node to another"))

    async def drop(self) -> None:
        self._slots.is_stale = True
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.disconnect(nowait=True)

    async def _once(self, jobs: Sequence[Job], answered: Callable[[Job, Any], None]) -> list[Job]:
        """Those that are to be sent again, to another node or a little later."""
        slots = self._slots
        groups: dict[Node, list[Job]] = {}
        left: list[Job] = []
        for job in jobs:
            node = job.ask or slots.node(job.key)
            if node is None or (slots.is_down(node) and not slots.is_still(node)):
                left.append(job)
            elif slots.is_down(node):
                answered(job, LostError(f"{node[0]}:{node[1]} is not reached"))
            else:
                groups.setdefault(node, []).append(job)
        is_changing = bool(left)
        for node, group in groups.items():
            try:
                async with asyncio.timeout(self._patience):
                    await write(await opened(self._to(node)), group)
            except (RedisError, OSError) as error:
                await self._lost(node, group, error, answered)
        for node, group in groups.items():
            if slots.is_down(node):
                continue
            try:
                async with asyncio.timeout(self._patience):
                    for job in group:
                        answer = await self._answer(node, job)
                        if isinstance(answer, (AskError, TryAgainError, ClusterDownError, ReadOnlyError)):
                            is_changing |= not isinstance(answer, AskError)
                            job.is_sent = False
                            left.append(job)
                        else:
                            answered(job, answer)
            except (RedisError, OSError) as error:
                waiting = [job for job in group if job.is_sent and not job.future.done()]
                await self._lost(node, waiting, error, answered)
        if is_changing:
            slots.is_stale = True
            await asyncio.sleep(_PAUSE)
        return left

    async def _answer(self, node: Node, job: Job) -> Any:
        connection = self._to(node)
        if job.ask is not None:
            await read(connection)
            job.ask = None
        answer = await read(connection)
        if isinstance(answer, MovedError):
            self._slots.moved(answer.slot_id, (answer.host or node[0], answer.port))
        elif isinstance(answer, AskError):
            job.ask = (answer.host or node[0], answer.port)
        return answer

    async def _lost(
        self, node: Node, jobs: Sequence[Job], error: Exception, answered: Callable[[Job, Any], None]
    ) -> None:
        self._slots.lost(node)
        await self._connections.pop(node).disconnect(nowait=True)
        for job in reversed(jobs):
            answered(job, LostError(str(error) or f"{node[0]}:{node[1]} does not answer"))

    async def _learn(self) -> None:
        """Ask one node after another where keys are, those that were lost lately at last."""
        cause: Exception | None = None
        for node in sorted({*self._slots.known, *self._seeds}, key=self._slots.is_down):
            try:
                async with asyncio.timeout(self._patience):
                    connection = await opened(self._to(node))
                    await connection.send_packed_command(packed((b"CLUSTER", b"SLOTS")), check_health=False)
                    answer = await read(connection)
            except (RedisError, OSError) as error:
                self._slots.lost(node)
                await self._connections.pop(node).disconnect(nowait=True)
                cause = error
                continue
            if isinstance(answer, Exception):  # not a cluster
                cause = answer
                continue
            self._slots.learn(answer, node)
            # Nodes that have left must not keep a connection for ever.
            for gone in self._connections.keys() - {*self._slots.known, *self._seeds}:
                await self._connections.pop(gone).disconnect(nowait=True)
            return
        raise LostError(f"no node says where its keys are: {cause}")

    def _to(self, node: Node) -> Connection:
        connection = self._connections.get(node)
        if connection is None:
            connection = self._connections[node] = self._connect(node)
        return connection
