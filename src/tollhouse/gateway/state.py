"""The `state` of a worker: made of what the configuration says."""

import logging
from collections.abc import Sequence
from functools import partial

from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.observe.families import Families
from tollhouse.store.base import State
from tollhouse.store.memory import MemoryState
from tollhouse.store.spec import StateSpec

__all__ = ["check_state", "open_state"]

log = logging.getLogger("tollhouse")


def check_state(spec: StateSpec) -> None:
    """Whether the files that it names can be used. Raises ConfigError."""
    if spec.tls is not None:
        try:
            spec.tls.context()
        except ValueError as error:
            raise ConfigError([Problem(str(error), path="state.tls")]) from None


def open_state(spec: StateSpec, clock: Clock, families: Families, keys: Sequence[bytes] = ()) -> State:
    """The state of this worker; nothing is asked of a server yet. keys: those of its workers, where the Spec has none.
    Raises ConfigError."""
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


def _observe(families: Families, operation: str, outcome: str, seconds: float) -> None:
    families.state_duration.child(operation, outcome).observe(seconds)
