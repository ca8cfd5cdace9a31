"""A worker: the parts of a process, brought up in order and taken down in the reverse order.

Rule: what is started here is ended here. Nothing is served before everything is built, and the ledger is the last to
go, so that the record of the last answer finds it.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import uvloop

from tollhouse.config.parse import Loaded, load, parse
from tollhouse.config.secrets import digest, digest_of
from tollhouse.config.server import AdminSpec, ListenSpec
from tollhouse.config.sources.file import FileSource
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.gateway.audit import chain_of
from tollhouse.gateway.build import Builder, Fixtures
from tollhouse.gateway.drain import Drain
from tollhouse.gateway.listeners import (
    Certificates,
    addresses_of,
    admin_certificate,
    certificates,
    limits_of,
    name_of,
    sockets_at,
)
from tollhouse.gateway.memory import Memory, system_trim
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.premises import Admin, Premises, admin_listener
from tollhouse.gateway.runtime import Runtime, fixed
from tollhouse.gateway.state import file_of, open_state
from tollhouse.gateway.supervise import TOLD, Supervisor
from tollhouse.ledger.audit import Chain
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import KeyLedger
from tollhouse.ledger.ship import Shipper
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.net.client import Client
from tollhouse.net.egress import Egress
from tollhouse.net.head import Limits
from tollhouse.net.listen import Listener
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import Families, names_for
from tollhouse.observe.metrics import Metrics, Share
from tollhouse.observe.runtime import Runtime as RuntimeMetrics
from tollhouse.store.base import State
from tollhouse.store.revocation import Revocations

__all__ = ["DEMO", "Worker", "demo_path", "ledger_of", "load_config", "serve"]

log = logging.getLogger("tollhouse")

DEMO = "built-in demo"
"""What the built-in configuration is called where a file would be named."""

_SERVED = "served"  # in the workers' directory: what the configuration was made from that one of them serves


_LISTENS = "listens"  # in the same directory: one of them has come so far


class _Bound(NamedTuple):
    """A listener's Spec, its name and its sockets."""

    spec: ListenSpec
    name: str
    sockets: list[socket.socket]


class _Shared(NamedTuple):
    """What several workers have in common. directory: where they add up their metrics. addresses: of the listeners, of
    the metrics and of the admin API, with their ports. supervisor: its process. key: secret, of this start."""

    directory: Path
    addresses: list[str]
    metrics: str | None
    admin: str | None
    supervisor: int
    key: bytes


def demo_path() -> Path:
    """The built-in configuration that needs no key, no network and no server."""
    return Path(str(files("tollhouse.config") / "demo.yaml"))


def load_config(path: Path | None, before: Loaded | None = None) -> Loaded:
    """Read the configuration in `path`, or the built-in demo, whose files are then in the working directory.

    `${TOLLHOUSE_PYTHON}` is this interpreter unless the environment says otherwise. Raises ConfigError.
    """
    env = {"TOLLHOUSE_PYTHON": sys.executable, **os.environ}
    if path is None:
        return parse(demo_path().read_text(encoding="utf-8"), DEMO, env, before)
    return load(str(path), env, before)


def ledger_of(config: Config) -> SqliteLedger | None:
    """The ledger that `config` names."""
    return None if config.ledger is None else SqliteLedger(ledger_path(config.ledger))


def ledger_path(url: str) -> Path:
    """The file of `sqlite:PATH`."""
    return Path(url.removeprefix("sqlite:"))


def serve(path: Path | None, admin: Admin | None = None) -> int:
    """Serve the configuration in `path` (None: the demo) until TERM or INT: the exit status. admin: makes the admin API
    where one is configured. Raises ConfigError before serving."""
    loaded = load_config(path)
    log.info("serving %s", f"the {DEMO}: there is no tollhouse.yaml here" if path is None else path)
    try:
        _find_place(loaded.config)
        if loaded.config.server.workers == 1:
            return _run(path, loaded, 0, None, admin)
        return _several(path, loaded, admin)
    except ConfigError as error:
        raise ConfigError(loaded.complete(error.problems)) from None


def _find_place(config: Config) -> None:
    """Raises ConfigError when the ledger's directory is not there: a misspelt name must not become a tree of them."""
    if config.ledger is not None and not (directory := ledger_path(config.ledger).parent).is_dir():
        message = f"there is no directory {str(directory)!r}; make it, or name a file in another one"
        raise ConfigError([Problem(message, path="ledger")])


def _several(path: Path | None, loaded: Loaded, admin: Admin | None) -> int:
    server = loaded.config.server
    with ExitStack() as stack:
        certificates(server.listen)  # what no worker could use is said once, before any of them starts
        admin_certificate(server.admin)
        addresses, metrics, admin_address = _reserve(loaded.config, stack)
        directory = Path(tempfile.mkdtemp(prefix="tollhouse-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        shared = _Shared(directory, addresses, metrics, admin_address, os.getpid(), os.urandom(32))
        grace = server.shutdown.max + 15.0  # the hard end, then the ledger
        good = _LastGood(path, loaded, directory)
        where = _Where(loaded.config, shared)

        def told() -> None:
            good.look()
            where.look()

        return Supervisor(server.workers, partial(_forked, path, good, shared, admin), grace, told=told).run()


class _LastGood:
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


class _Where:
    """Says where the gateway can be reached: once for all workers, when the first of them listens."""

    def __init__(self, config: Config, shared: _Shared) -> None:
        schemes = ("https" if spec.tls else "http" for spec in config.server.listen)
        self._listeners = list(zip(schemes, shared.addresses, strict=True))
        self._metrics = shared.metrics
        self._mark = shared.directory / _LISTENS
        self._is_said = False

    def look(self) -> None:
        """A worker has told."""
        if not self._is_said and self._mark.exists():
            self._is_said = True
            _say_where(self._listeners, self._metrics)


def _say_where(listeners: Iterable[tuple[str, str]], metrics: str | None) -> None:
    for scheme, name in listeners:
        log.info("listening on %s://%s", scheme, name)
    if metrics is not None:
        log.info("metrics on http://%s/metrics", metrics)


def _tell(what: str, value: str, shared: _Shared) -> None:
    """The supervisor. what: the name of a file in the workers' directory; value: what it holds then."""
    fresh = shared.directory / f"{what}.{os.getpid()}"
    try:
        fresh.write_text(value)
        fresh.replace(shared.directory / what)
    except OSError as error:
        log.warning("the supervisor cannot be told what is served: %s", error)
    if os.getppid() == shared.supervisor:
        os.kill(shared.supervisor, TOLD)


def _made_from(loaded: Loaded) -> str:
    """A digest of the contents of every file that `loaded` was made from."""
    return digest(repr(sorted(loaded.files.items())).encode())


def _reserve(config: Config, stack: ExitStack) -> tuple[list[str], str | None, str | None]:
    """Hold every address for the workers, so that one that cannot be had is said once, before any of them starts, and
    port 0 is the same port for all: the addresses of the listeners, that of the metrics, and that of the admin API."""
    held = []
    for address, path in addresses_of(config):
        for sock in sockets_at(address, path):  # alone at first: what is shared would also share with another gateway
            sock.close()
        sockets = sockets_at(address, path, shared=True)
        for sock in sockets:
            stack.callback(sock.close)
        held.append(name_of(address, sockets))
    admin = held.pop() if config.server.admin is not None else None
    metrics = held.pop() if config.server.metrics is not None else None
    return held, metrics, admin


def _forked(path: Path | None, good: _LastGood, shared: _Shared, admin: Admin | None, index: int) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is listened to: what it would say is read anyway
    newest = good.newest()
    for loaded in (newest, good.loaded) if newest is not good.loaded else (newest,):
        try:
            return _run(path, loaded, index, shared, admin)
        except ConfigError as error:
            instead = "; the last good one is tried" if loaded is not good.loaded else ""
            log.error("the configuration cannot be served%s:\n%s", instead, error)
    return 2


def _run(path: Path | None, loaded: Loaded, index: int, shared: _Shared | None, admin: Admin | None) -> int:
    try:
        return uvloop.run(Worker(path, loaded, index, shared, admin).run())
    except ConfigError as error:
        raise ConfigError(loaded.complete(error.problems)) from None


class Worker:
    """One serving process. index: its place among several. shared: what it has in common with them. admin: makes the
    admin API, which the first one serves.

    listening: set once requests are taken; then `listeners` have their ports.
    """

    def __init__(
        self,
        path: Path | None,
        loaded: Loaded,
        index: int = 0,
        shared: _Shared | None = None,
        admin: Admin | None = None,
    ) -> None:
        self._path = path
        self._loaded = loaded
        self._index = index
        self._shared = shared
        self._admin = admin if index == 0 else None
        self._certificates = Certificates()
        self._clock = Clock()
        self._memory = Memory(self._clock, self._connections, system_trim())
        self.listeners: list[Listener] = []
        self.metrics_listener: Listener | None = None
        self.admin_listener: Listener | None = None
        self.listening = asyncio.Event()
        self.drain: Drain | None = None
        self.runtime: Runtime | None = None

    async def run(self) -> int:
        """Serve until told to stop; the exit status. Raises ConfigError when the configuration cannot be served."""
        async with AsyncExitStack() as stack:
            await self._serve(stack)
        return 0

    async def _serve(self, stack: AsyncExitStack) -> None:
        config = self._loaded.config
        clock = self._clock
        families = self._families(config)
        journal = self._journal(config, families, stack)
        chain = await self._chain(config, journal, stack)
        access_log = self._access_log(config, clock, families, stack)
        client = Client(
            clock,
            egress=Egress(config.egress.allow),
            on_connect=lambda kind, seconds: families.connect_duration.child(kind).observe(seconds),
        )
        stack.push_async_callback(client.close)
        keys = (self._shared.key,) if self._shared is not None else ()
        file = None
        if config.issuer is not None:
            file = file_of(config.state, None if config.ledger is None else ledger_path(config.ledger))
        state = open_state(config.state, clock, families, keys, file)
        stack.push_async_callback(state.close)
        operations = Operations(families.metrics, self._share(families.metrics, clock, stack), journal)
        held = self._bound(config, stack)
        names = tuple((name, "https" if spec.tls else "http") for spec, name, _ in held)
        fixtures = Fixtures(
            clock,
            families,
            client,
            state,
            operations,
            journal,
            access_log,
            listeners=names,
            revocations=await self._revocations(state, clock, stack),
            issued=self._issued(config, stack),
            chain=chain,
        )
        builder = Builder(fixtures)
        stack.push_async_callback(builder.close)
        runtime = self.runtime = Runtime(
            self._loaded,
            self._load,
            builder.build,
            families,
            partial(self._applied, builder),
            self._looked,
        )
        stack.push_async_callback(runtime.close)
        await builder.ready()
        self._listen(config, runtime, clock, families, access_log, held)
        if config.server.metrics is not None:
            self.metrics_listener = self._metrics_listener(config.server.metrics, operations, clock, stack)
        if config.server.admin is not None and self._admin is not None:
            self.admin_listener = self._admin_listener(config.server.admin, self._admin, fixtures, builder, stack)
        metrics = RuntimeMetrics(clock, families, worker=str(self._index))
        timer = Timer(clock)
        timer.start()
        stack.callback(timer.stop)
        metrics.start()
        stack.callback(metrics.stop)
        times = config.server.shutdown
        drain = self.drain = Drain(
            self.listeners, times.min, times.max, builder.finish_streams, builder.close_sessions, builder.settled
        )
        if self._shared is not None:
            clock.every_turn(partial(self._end_with, self._shared.supervisor))
        try:
            await state.bus.ready()
        except Failure as failure:  # it serves what needs no state, and the rest when it is there
            log.error("the state is not available: %s", failure.detail)
        self._memory.start()
        stack.callback(self._memory.stop)
        own = [listener for listener in (self.metrics_listener, self.admin_listener) if listener is not None]
        for listener in (*self.listeners, *own):
            await listener.start()
        self._signals(drain, runtime, access_log, operations)
        runtime.start(FileSource() if self._path is not None else None)
        operations.ready = True
        self.listening.set()
        self._say_that_it_listens()
        await drain.run()
        for listener in own:
            listener.stop()
            listener.server.abort()
            await listener.server.wait_closed()

    # ---- parts
    def _families(self, config: Config) -> Families:
        namespace = config.telemetry.metrics.namespace
        worker = str(self._index) if self._shared is not None else ""
        metrics = Metrics(namespace, names=names_for(namespace), worker=worker)
        families = Families(metrics)
        families.build_info(version("tollhouse"))
        return families

    def _share(self, metrics: Metrics, clock: Clock, stack: AsyncExitStack) -> Share | None:
        if self._shared is None:
            return None
        share = Share(self._shared.directory, metrics)
        clock.every_turn(share.turn)
        stack.callback(share.flush)
        return share

    def _journal(self, config: Config, families: Families, stack: AsyncExitStack) -> Journal | None:
        ledger = ledger_of(config)
        if config.ledger is None or ledger is None:
            return None
        path = ledger_path(config.ledger)
        journal = Journal(path.with_name(path.name + ".journal"))
        try:
            journal.open()
        except OSError as error:
            message = f"the ledger's journal cannot be written in {journal.directory}: {error.strerror}"
            raise ConfigError([Problem(message, path="ledger")]) from None
        stack.callback(journal.close)
        shipper = Shipper(journal, ledger)
        shipper.start()
        stack.push_async_callback(_stop_shipper, shipper)
        families.ledger_lag.reads(lambda: shipper.lag, "sqlite")
        families.journal_bytes.reads(lambda: float(journal.size), "journal")
        families.ledger_records.reads(lambda: float(shipper.shipped - shipper.audits), "usage", "sqlite")
        families.ledger_records.reads(lambda: float(shipper.audits), "audit", "sqlite")
        families.ledger_errors.reads(lambda: float(shipper.rejected), "rejected", "sqlite")
        families.ledger_errors.reads(lambda: float(shipper.damaged), "damaged", "journal")
        families.ledger_errors.reads(lambda: float(journal.failures), "failed", "journal")
        return journal

    async def _chain(self, config: Config, journal: Journal | None, stack: AsyncExitStack) -> Chain | None:
        """The chain of this process's audit records, which is ended before its journal."""
        if journal is None:
            return None
        chain = await asyncio.to_thread(chain_of, config, journal)

        def end() -> None:
            try:
                chain.end()
            except Failure as failure:
                log.error("the audit's chain could not be ended: %s", failure.detail)

        stack.callback(end)
        return chain

    def _issued(self, config: Config, stack: AsyncExitStack) -> KeyFollower | None:
        """The keys in the ledger; followed once a configuration takes them."""
        if config.ledger is None:
            return None
        follower = KeyFollower(KeyLedger(ledger_path(config.ledger)))
        stack.push_async_callback(asyncio.to_thread, follower.stop)
        return follower

    async def _revocations(self, state: State, clock: Clock, stack: AsyncExitStack) -> Revocations:
        revocations = Revocations(state, clock)
        try:
            await revocations.load()
        except Failure as failure:  # it follows them as soon as the state is there
            log.error("revocations cannot be read: %s", failure.detail)
        revocations.start()
        stack.push_async_callback(revocations.close)
        return revocations

    def _access_log(self, config: Config, clock: Clock, families: Families, stack: AsyncExitStack) -> AccessLog | None:
        spec = config.telemetry.access_log
        if spec is None:
            return None
        access_log = AccessLog(spec.path, format=spec.format)
        try:
            access_log.start()
        except OSError as error:
            message = f"cannot be opened: {error.strerror}"
            raise ConfigError([Problem(message, path="telemetry.access_log.path")]) from None
        stack.callback(access_log.close)
        clock.every_turn(access_log.flush)
        families.log_dropped.reads(lambda: float(access_log.dropped))
        return access_log

    def _bound(self, config: Config, stack: AsyncExitStack) -> "list[_Bound]":
        shared = self._shared
        bound: list[_Bound] = []
        for n, spec in enumerate(config.server.listen):
            address = shared.addresses[n] if shared is not None else spec.address
            sockets = sockets_at(address, "server.listen", shared=shared is not None)
            for sock in sockets:
                stack.callback(sock.close)
            bound.append(_Bound(spec, name_of(address, sockets), sockets))
        return bound

    def _listen(
        self,
        config: Config,
        runtime: Runtime,
        clock: Clock,
        families: Families,
        access_log: AccessLog | None,
        held: "list[_Bound]",
    ) -> None:
        limits = limits_of(config)
        for (_, name, sockets), tls in zip(held, certificates(config.server.listen), strict=True):
            scheme = "https" if tls else "http"
            observer = Connections(families, name, scheme, access_log)
            server = Server(runtime.handle, clock, limits, name=name, scheme=scheme, observer=observer)
            families.connections_open.reads(partial(_count, server), *Connections.labels(name, scheme))
            listener = Listener(server, sockets, tls.context if tls else None)
            self.listeners.append(listener)
            if tls is not None:
                self._certificates.add(tls, listener)

    def _metrics_listener(self, address: str, operations: Operations, clock: Clock, stack: AsyncExitStack) -> Listener:
        if self._shared is not None and self._shared.metrics is not None:
            address = self._shared.metrics
        sockets = sockets_at(address, "server.metrics", shared=self._shared is not None)
        for sock in sockets:
            stack.callback(sock.close)
        limits = Limits(connections=256, body=4096)
        return Listener(Server(operations.serve_metrics, clock, limits, name=name_of(address, sockets)), sockets)

    def _admin_listener(
        self, spec: AdminSpec, admin: Admin, fixtures: Fixtures, builder: Builder, stack: AsyncExitStack
    ) -> Listener:
        address = spec.address if self._shared is None else self._shared.admin or spec.address
        sockets = sockets_at(address, "server.admin", shared=self._shared is not None)
        for sock in sockets:
            stack.callback(sock.close)
        runtime, revocations = self.runtime, fixtures.revocations
        assert runtime is not None
        assert revocations is not None
        premises = Premises(
            spec,
            name_of(address, sockets),
            lambda: runtime.config,
            fixtures.state,
            revocations,
            lambda: builder.signing_keys,
            lambda: builder.audit,
        )
        return admin_listener(admin, premises, sockets, fixtures.clock, self._certificates)

    # ---- while it runs
    def _say_that_it_listens(self) -> None:
        if self.admin_listener is not None:
            log.info("admin API on %s://%s", self.admin_listener.server.scheme, self.admin_listener.server.name)
        if self._shared is not None:
            log.info("worker %d listens", self._index)
            _tell(_LISTENS, "", self._shared)
        else:
            metrics = self.metrics_listener.server.name if self.metrics_listener is not None else None
            _say_where(((one.server.scheme, one.server.name) for one in self.listeners), metrics)

    def _connections(self) -> int:
        return sum(len(listener.server.connections) for listener in self.listeners)

    def _load(self, before: Loaded | None) -> Loaded:
        self._memory.reading()
        self._loaded = load_config(self._path, before)
        return self._loaded

    def _looked(self) -> None:
        self._memory.read()
        self._certificates.reload()

    def _applied(self, builder: Builder, config: Config) -> None:
        builder.applied(config)
        if self._shared is not None:
            _tell(_SERVED, _made_from(self._loaded), self._shared)
        limits = limits_of(config)
        for listener in self.listeners:
            listener.server.limits = limits
        if self.drain is not None:
            self.drain.times(config.server.shutdown.min, config.server.shutdown.max)

    def _end_with(self, supervisor: int) -> None:
        """A worker must not outlive its supervisor: nobody could stop it, and the next one would share its port."""
        if os.getppid() != supervisor and self.drain is not None and not self.drain.begun:
            log.error("the supervisor is gone; stopping")
            self.drain.begin(now=True)

    def _signals(self, drain: Drain, runtime: Runtime, access_log: AccessLog | None, operations: Operations) -> None:
        loop = asyncio.get_running_loop()

        def stop(now: bool) -> None:
            if self._shared is None:  # else the supervisor has said it
                log.info("stopping")
            operations.draining = True
            drain.begin(now=now)

        def again() -> None:
            runtime.reload(asked=True)
            if access_log is not None:
                access_log.reopen()

        loop.add_signal_handler(signal.SIGTERM, stop, False)
        loop.add_signal_handler(signal.SIGINT, stop, True)
        loop.add_signal_handler(signal.SIGHUP, again)


def _count(server: Server) -> float:
    return float(len(server.connections))


async def _stop_shipper(shipper: Shipper) -> None:
    if not await asyncio.to_thread(shipper.stop):
        log.warning("the ledger did not take every record in time; the next start ships them from the journal")
