"""What was purged: by model, server, user, org, key or tag, or all of it; on every node that shares the state.

Rule: nothing is looked for and deleted. Each purge has a number above those before it, and an entry says which one was
known when its answer was *asked* for: what is not above all purges that concern it is not good, wherever it is kept,
and also where it is put there later. Numbers are milliseconds since 1970, or one more than the last: a state that
has lost them gives none again, as long as clocks are not set back by more than that.
"""

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import Final, Literal, get_args

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.policies.cache.entry import Entry
from tollhouse.store.base import State, unavailable

__all__ = ["KINDS", "Purges", "What", "lines_of", "purge", "purge_line"]

log = logging.getLogger("tollhouse.policies.cache")

What = Literal["all", "model", "server", "user", "org", "key", "tag"]
KINDS: Final[tuple[str, ...]] = get_args(What)

KEY: Final = "cache:purged"
TOPIC: Final = "cache:purged"
_KEPT = 31 * 86400.0  # seconds: longer than any entry is good for
_MOST = 2000
_LARGEST = 1 << 53  # no purge of ours has such a number
_TRIES = 16
_PATIENCE = 5.0  # seconds between two looks at what may have been missed
_AGAIN = 0.5  # the same, until the first of them

_Lines = dict[str, int]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Lines).decode


def purge_line(what: What, name: str = "") -> str:
    """What a purge concerns, as it is written down. Raises ValueError."""
    if what not in KINDS:
        raise ValueError(f"not something to purge by: {what!r}; one of {', '.join(KINDS)}")
    if (what == "all") == bool(name) or len(name) > 256:
        raise ValueError("`all` has no name, and all else one of up to 256 characters")
    return "all" if what == "all" else f"{what}:{name}"


def lines_of(entry: Entry) -> list[str]:
    """The purges that concern it."""
    found = ["all", f"server:{entry.server}" if entry.server else f"model:{entry.model}"]
    for kind, value in (("user", entry.user), ("org", entry.org), ("key", entry.owner)):
        if value:
            found.append(f"{kind}:{value}")
    found += [f"tag:{tag}" for tag in entry.tags]
    return found


async def purge(state: State, line: str) -> int:
    """Write a purge down, and tell every node: its number. Raises Failure 503."""
    for _ in range(_TRIES):
        there = await state.values.get(KEY)
        lines = _read(there)
        number = max(int(time() * 1000), max(lines.values(), default=0) + 1)
        made = _encode(_shortened({**lines, line: number}))
        done = await (
            state.values.add(KEY, made, _KEPT) if there is None else state.values.swap(KEY, there, made, _KEPT)
        )
        if done:
            await state.bus.publish(TOPIC, _encode({line: number}))
            return number
    raise unavailable(f"others have purged {_TRIES} times meanwhile")


def _shortened(lines: _Lines) -> _Lines:
    """Where they are too many, one for all. By their age none is left out: a clock may have been wrong."""
    return lines if len(lines) <= _MOST else {"all": max(lines.values())}


def _read(value: bytes | None) -> _Lines:
    if value is None:
        return {}
    try:
        return {line: number for line, number in _decode(value).items() if 0 < number <= _LARGEST}
    except UNREADABLE:
        return {}


class Purges:
    """What this process knows of purges. forget: told of each that is new. `start` and `close` bracket its task. known:
    what the state has was read; before that nothing from there can be told to be good."""

    def __init__(self, state: State, forget: Callable[[], None] = lambda: None) -> None:
        self._state = state
        self._forget = forget
        self._lines: _Lines = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self.latest = 0
        self.known = False

    def start(self) -> None:
        """Hear of purges from now on, and read what there is."""
        if self._task is None:
            self._unsubscribe = self._state.bus.subscribe(TOPIC, self._told, self._wake.set)
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def good(self, entry: Entry) -> bool:
        """Whether no purge concerns it."""
        known = entry.generation
        if known >= self.latest:
            return True
        lines = self._lines
        return all(lines.get(line, 0) <= known for line in lines_of(entry))

    def apply(self, lines: _Lines) -> None:
        """These are in force."""
        new = {line: number for line, number in lines.items() if number > self._lines.get(line, 0)}
        if not new:
            return
        self._lines = _shortened({**self._lines, **new})
        self.latest = max(self._lines.values())
        self._forget()

    def _told(self, message: bytes) -> None:
        self.apply(_read(message))

    async def _follow(self) -> None:
        """What the bus may not have delivered is read from the state."""
        while True:
            try:
                self.apply(_read(await self._state.values.get(KEY)))
                self.known = True
            except Failure as failure:
                log.debug("purges of the cache cannot be read: %s", failure.detail)
            self._wake.clear()
            try:
                async with asyncio.timeout(_PATIENCE if self.known else _AGAIN):
                    await self._wake.wait()
            except TimeoutError:
                pass
