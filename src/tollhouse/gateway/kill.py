"""`tollhouse kill` where gateways share a state: what is written there is in force in all of them at once.

Rule: it is a revocation like any other, so that it outlives the gateways and nobody misses it.
"""

import asyncio
import time
from typing import Final, Literal

from tollhouse.config.spec import Config
from tollhouse.gateway.deeds import recorded
from tollhouse.gateway.state import opened_state
from tollhouse.store.revocation import Revocations

__all__ = ["KILLED", "Killed", "kill"]

Killed = Literal["run", "agent", "key"]
KILLED: Final[tuple[Killed, ...]] = ("run", "agent", "key")


def kill(config: Config, kind: Killed, id: str, seconds: float) -> None:
    """End all that this run, agent or key has under way, and refuse what it asks for so many seconds. Raises Failure
    503 where the state cannot be reached, ConfigError."""
    with recorded(config, "admin.revocations.create", f"{kind} {id!r}"):
        asyncio.run(_write(config, kind, id, seconds))


async def _write(config: Config, kind: Killed, id: str, seconds: float) -> None:
    async with opened_state(config.state) as (state, clock):
        revocations = Revocations(state, clock)
        await revocations.load()
        await revocations.revoke(kind, id, time.time() + seconds)
