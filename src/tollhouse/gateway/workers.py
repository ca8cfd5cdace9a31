"""What several workers and their supervisor have in common: addresses, a directory, and what serves.

Rule: what a worker tells the supervisor holds no secret: it leaves a mark in the directory and sends a signal; the
supervisor looks, and reads for itself.
"""

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tollhouse.config.load import load_config
from tollhouse.config.parse import Loaded
from tollhouse.config.secrets import digest, digest_of
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.listeners import addresses_of, held_at, name_of, sockets_at
from tollhouse.gateway.runtime import fixed
from tollhouse.gateway.supervise import TOLD

__all__ = ["LastGood", "Shared", "Where", "reserve", "say_where"]

log = logging.getLogger("tollhouse")

_SERVED = "served"  # in the workers' directory: what the configuration was made from that one of them serves
_LISTENS = "listens"  # in the same directory: one of them has come so far


class Shared(NamedTuple):
    """What several workers have in common. directory: where they add up their metrics. addresses: of the listeners, of
    the metrics and of the admin API, with their ports. supervisor: its process. key: secret, of this start."""

    directory: Path
    addresses: list[str]
    metrics: str | None
    admin: str | None
    supervisor: int
    key: bytes

    def tell_served(self, loaded: Loaded) -> None:
        """This worker serves `loaded`."""
        self._tell(_SERVED, _made_from(loaded))

    def tell_listens(self) -> None:
        """This worker takes requests."""
        self._tell(_LISTENS, "")

    def _tell(self, what: str, value: str) -> None:
        """The supervisor. what: the name of a file in the workers' directory; value: what it holds then."""
        fresh = self.directory / f"{what}.{os.getpid()}"
        try:
            fresh.write_text(value)
            fresh.replace(self.directory / what)
        except OSError as error:
            log.warning("the supervisor cannot be told what is served: %s", error)
        if os.getppid() == self.supervisor:
            os.kill(self.supervisor, TOLD)


class LastGood:
    """The supervisor's copy of the configuration that serves: a new worker needs one when the file cannot be used.

    A worker that serves a new configuration leaves the digest of what it was made from, and a signal; the supervisor
    reads the same files, and takes what it finds only if it is the same. So nothing is handed over that holds a secret.
    """

    def __init__(self, path: Path | None, loaded: Loaded, directory: Path) -> None:
        self._path = path
        self._directory = directory
        self.loaded = loaded

    def look(self) -> None:
        """A worker has told."""
        try:
            served = (self._directory / _SERVED).read_text()
            if served != _made_from(self.loaded):
                fresh = load_config(self._path, self.loaded)
                if served == _made_from(fresh):
                    self.loaded = fresh
        except (OSError, ConfigError):  # the file is another one already; its watchers say what is wrong with that
            return

    def newest(self) -> Loaded:
        """The configuration as it is now, where it can be read and serve beside others; else the last good one."""
        good = self.loaded
        if all(digest_of(name) == digest for name, digest in good.files.items()):
            return good
        try:
            fresh = load_config(self._path, good)
        except ConfigError:
            return good  # the new worker's watcher says what is wrong
        return good if fixed(good.config, fresh.config) else fresh


class Where:
    """Says where the gateway can be reached: once for all workers, when the first of them listens."""

    def __init__(self, config: Config, shared: Shared) -> None:
        schemes = ("https" if spec.tls else "http" for spec in config.server.listen)
        self._listeners = list(zip(schemes, shared.addresses, strict=True))
        self._metrics = shared.metrics
        self._mark = shared.directory / _LISTENS
        self._is_said = False

    def look(self) -> None:
        """A worker has told."""
        if not self._is_said and self._mark.exists():
            self._is_said = True
            say_where(self._listeners, self._metrics)


def say_where(listeners: Iterable[tuple[str, str]], metrics: str | None) -> None:
    """listeners: scheme and name of each. metrics: name of the metrics listener, if there is one."""
    for scheme, name in listeners:
        log.info("listening on %s://%s", scheme, name)
    if metrics is not None:
        log.info("metrics on http://%s/metrics", metrics)


def reserve(config: Config, stack: ExitStack) -> tuple[list[str], str | None, str | None]:
    """Hold every address for the workers, so that one that cannot be had is said once, before any of them starts, and
    port 0 is the same port for all: the addresses of the listeners, that of the metrics, and that of the admin API.
    Raises ConfigError."""
    held = []
    for address, path in addresses_of(config):
        for sock in sockets_at(address, path):  # alone at first: what is shared would also share with another gateway
            sock.close()
        held.append(name_of(address, held_at(address, path, stack, shared=True)))
    admin = held.pop() if config.server.admin is not None else None
    metrics = held.pop() if config.server.metrics is not None else None
    return held, metrics, admin


def _made_from(loaded: Loaded) -> str:
    """A digest of the contents of every file that `loaded` was made from."""
    return digest(repr(sorted(loaded.files.items())).encode())
