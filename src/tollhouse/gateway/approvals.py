"""`tollhouse approvals`: the calls that wait for an operator, seen from outside of the gateway.

Rule: it looks where the gateway's workers look: in the state they share, or in the directory beside the ledger.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.gateway.assembly import spool_of
from tollhouse.gateway.state import opened_state
from tollhouse.policies.authorize.desk import Answer, Desk, Directory, Entry, Shared
from tollhouse.store.base import State

__all__ = ["Answer", "Entry", "answer", "desk_of", "waiting"]

T = TypeVar("T")


def waiting(config: Config) -> list[Entry]:
    """The calls that wait, the oldest first. Raises ConfigError where none could, and Failure 503."""
    return _at_desk(config, lambda desk: desk.entries())


def answer(config: Config, id: str, said: Answer) -> bool:
    """Whether a call of that id waited for it. Raises ConfigError where none could, and Failure 503."""
    return _at_desk(config, lambda desk: desk.answer(id, said))


def desk_of(config: Config, state: State) -> Desk:
    """Where the calls of a gateway wait whose state is open. Raises ConfigError where none could."""
    return Directory(Path(_directory(config))) if config.state.is_memory else Shared(state)


def _at_desk(config: Config, use: Callable[[Desk], Awaitable[T]]) -> T:
    async def run() -> T:
        if config.state.is_memory:
            return await use(Directory(Path(_directory(config))))
        async with opened_state(config.state) as (state, _):
            return await use(Shared(state))

    return asyncio.run(run())


def _directory(config: Config) -> str:
    directory = spool_of(config)
    if not directory:
        message = "nobody could see calls that wait: they stand beside the `ledger`, or in a `state` with a server"
        raise ConfigError([Problem(message, path="ledger")])
    return directory
