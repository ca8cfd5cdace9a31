"""The `state` of a worker, and of a command: made of what the configuration says."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.net.timer import Timer
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.base import State
from tollhouse.store.file import FileState
from tollhouse.store.memory import MemoryState
from tollhouse.store.spec import StateSpec

__all__ = ["KEPT", "check_state", "file_of", "open_state", "opened_state"]

log = logging.getLogger("tollhouse")

KEPT = ("iss:", "up:")
"""What the keys begin with of which a file keeps the values: the auth provider's, and of accounts that users have
connected."""


def check_state(spec: StateSpec) -> None:
    """Whether the files that it names can be used. Raises ConfigError."""
    if spec.tls is not None:
        try:
            spec.tls.context()
        except ValueError as error:
            raise ConfigError([Problem(str(error), path="state.tls")]) from None


def file_of(spec: StateSpec, ledger: Path | None) -> Path | None:
    """Where an auth provider's state is kept by a process that has it in memory; None where a server has it. ledger:
    the ledger's file."""
    if not spec.is_memory:
        return None
    return spec.file or (Path("tollhouse.state") if ledger is None else ledger.with_name(f"{ledger.name}.state"))


def open_state(
    spec: StateSpec, clock: Clock, families: Families, keys: Sequence[bytes] = (), file: Path | None = None
) -> State:
    """The state of this worker; nothing is asked of a server yet. keys: those of its workers, where the Spec has none.
    file: where memory keeps what must not be forgotten, if there is anything such. Raises ConfigError."""
    if spec.is_memory and file is not None:
        try:
            return FileState(clock, file, KEPT, spec.keys, keys)
        except (ValueError, OSError) as error:
            why = str(error) if isinstance(error, ValueError) else f"the file {file} cannot be used: {error.strerror}"
            raise ConfigError([Problem(why, path="state")]) from None
    if spec.is_memory:
        return MemoryState(clock, spec.keys or keys)
    check_state(spec)
    from tollhouse.store.redis import RedisState  # noqa: PLC0415 - the extra `redis`

    if not spec.keys:
        log.warning(
            "state without `encryption_key`: what is kept at %s can be read there, and session ids are known to this "
            "gateway only until it ends",
            spec.place,
        )
    return RedisState(spec, clock, keys, partial(_observe, families))


@asynccontextmanager
async def opened_state(spec: StateSpec, file: Path | None = None) -> AsyncIterator[tuple[State, Clock]]:
    """The state as a command has it while it runs, and the clock that it goes by. Raises ConfigError."""
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    try:
        state = open_state(spec, clock, Families(Metrics()), (), file)
        try:
            yield state, clock
        finally:
            await state.close()
    finally:
        timer.stop()


def _observe(families: Families, operation: str, outcome: str, seconds: float) -> None:
    families.state_duration.child(operation, outcome).observe(seconds)
