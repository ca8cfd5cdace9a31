"""Runtime: parse, build, swap, drain.

Rule (Caddy's habit): the new configuration is built whole beside the one that serves; one reference is swapped; the
old one ends by its leases. A configuration that cannot be parsed or built changes nothing and says why. One change is
worked on at a time; changes that arrive meanwhile are one further change.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import perf_counter

from tollhouse.config.parse import Loaded, LoadError
from tollhouse.config.sources.file import FileSource
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.snapshot import Snapshot
from tollhouse.observe.families import Families

__all__ = ["Runtime", "fixed"]

log = logging.getLogger("tollhouse.config")

Build = Callable[[Config, Tenure], Handler[Request, Response]]
"""Makes the request floor of one configuration. Raises ConfigError."""

_FIXED = (
    "server.listen",
    "server.metrics",
    "server.admin.address",
    "server.admin.tls",
    "server.workers",
    "state",
    "ledger",
    "journal",
    "egress",
    "telemetry.metrics.namespace",
    "telemetry.access_log.path",
    "telemetry.access_log.format",
)

Load = Callable[[Loaded | None], Loaded]
"""Reads the configuration again, given the one that serves. Blocks; runs in a thread. Raises ConfigError."""


class Runtime:
    """Holds the Snapshot that serves. `handle` is the server's handler.

    load, build: see their types. applied: told of each configuration that begins to serve. looked: told each time the
    files were read again, whatever was found.
    """

    def __init__(
        self,
        loaded: Loaded,
        load: Load,
        build: Build,
        families: Families,
        applied: Callable[[Config], None] = lambda _: None,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self._loaded = loaded
        self._load = load
        self._build = build
        self._families = families
        self._applied = applied
        self._looked = looked
        self._keep = Keep()
        self._tenures: dict[Snapshot, Tenure] = {}
        self._again = asyncio.Event()
        self._asked = False  # whether somebody waits to hear what was found
        self._refused = False  # whether the last reading was
        self._task: asyncio.Task[None] | None = None
        self._source: FileSource | None = None
        self.apply_seconds = 0.0
        self.current = self._make(loaded, 1)
        self._release = self.current.release  # bound once, and not for each request
        applied(loaded.config)

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def is_drained(self) -> bool:
        """Whether nothing goes by an earlier configuration any more."""
        return len(self._tenures) == 1

    def handle(self, request: Request) -> Awaitable[Response]:
        current = self.current
        current.leases += 1
        request.ends.append(self._release)
        return current.handler(request)

    def start(self, source: FileSource | None) -> None:
        """Follow `source` until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._follow())
        self._source = source
        if source is not None:
            source.watch(self._loaded.files)
            source.start(self.reload)

    def reload(self, *, asked: bool = False) -> None:
        """Something may have changed: look again soon. asked: by an operator, who is told also that nothing has."""
        self._asked |= asked
        self._again.set()

    async def close(self) -> None:
        """Stop following; close every part. Call it when nothing is served any more."""
        if self._source is not None:
            self._source.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._keep.close()

    async def _follow(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                await self._change()
            except Exception:  # the root of the task that follows the file: the old configuration goes on serving
                log.exception("the configuration could not be applied; the last good one keeps serving")

    async def _change(self) -> None:
        families = self._families
        running = families.reconciling.child("file")
        running.inc()
        began = perf_counter()
        result = "error"
        asked, self._asked = self._asked, False
        refused, self._refused = self._refused, False
        try:
            loaded = await self._read()
            if loaded.config == self._loaded.config and _named(loaded) == _named(self._loaded):
                self._loaded = loaded
                result = "unchanged"
                if refused:
                    log.info("what is written is what serves again")
                elif asked:
                    log.info("read again: nothing has changed")
                return
            began = perf_counter()
            problems = fixed(self._loaded.config, loaded.config)
            if problems:
                raise ConfigError(loaded.complete(problems))
            self._swap(loaded)
            self.apply_seconds = perf_counter() - began
            result = "ok"
            log.info("configuration %d serves", self.current.version)
        except ConfigError as error:
            self._refused = True
            log.error("the new configuration is refused; the last good one keeps serving:\n%s", error)
        finally:
            running.dec()
            families.config_updates.child("file", result).inc()
            families.config_bytes.child("file", result).inc(_size(self._loaded.positions.file))
            families.reconciliations.child("file", result).inc()
            families.config_apply.child("file", result).observe(perf_counter() - began)

    async def _read(self) -> Loaded:
        try:
            loaded = await asyncio.to_thread(self._load, self._loaded)
        except LoadError as error:
            self._watch(error.files)  # the next change of any of them is another try
            raise
        finally:
            self._looked()
        self._watch(loaded.files)
        return loaded

    def _watch(self, files: Mapping[str, str]) -> None:
        if self._source is not None:
            self._source.watch(files)

    def _swap(self, loaded: Loaded) -> None:
        old = self.current
        new = self._make(loaded, old.version + 1)
        self._loaded = loaded
        self.current = new
        self._release = new.release
        old.retire()
        self._applied(loaded.config)

    def _make(self, loaded: Loaded, version: int) -> Snapshot:
        tenure = self._keep.tenure()
        try:
            handler = self._build(loaded.config, tenure)
        except ConfigError as error:
            tenure.end()
            raise ConfigError(loaded.complete(error.problems)) from None
        except BaseException:
            tenure.end()
            raise
        snapshot = Snapshot(handler, version, self._closed)
        self._tenures[snapshot] = tenure
        return snapshot

    def _closed(self, snapshot: Snapshot) -> None:
        self._tenures.pop(snapshot).end()


def fixed(old: Config, new: Config) -> list[Problem]:
    """Settings that differ, and that a running process cannot change."""
    message = "cannot change while the gateway runs; restart it to apply this"
    paths = _FIXED if old.server.workers == 1 else (*_FIXED, "server.shutdown.max")  # which the supervisor reckons with
    problems = [Problem(message, path=path) for path in paths if _at(old, path) != _at(new, path)]
    if new.state.is_memory and old.issuer is None and new.issuer is not None:
        # The file that keeps what it must not forget is opened at the start.
        message = "cannot be added while the gateway runs with its state in memory; restart it to apply this"
        problems.append(Problem(message, path="issuer"))
    return problems


def _named(loaded: Loaded) -> dict[str, str]:
    """The files that the configuration names, with their digests."""
    own = str(Path(loaded.positions.file).absolute())
    return {name: digest for name, digest in loaded.files.items() if name != own}


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:  # gone: that was the change
        return 0


def _at(config: Config, path: str) -> object:
    value: object = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
