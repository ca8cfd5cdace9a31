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
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import uvloop

from tollhouse.config.load import DEMO, load_config
from tollhouse.config.parse import Loaded
from tollhouse.config.server import AdminSpec, ListenSpec
from tollhouse.config.sources.file import FileSource
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.core.http import Request
from tollhouse.gateway.audit import chain_of
from tollhouse.gateway.build import Builder, Fixtures
from tollhouse.gateway.drain import Drain
from tollhouse.gateway.journal_watch import JournalWatch, measured, opened_journal
from tollhouse.gateway.ledger import keys_of, ledger_of, sink_of
from tollhouse.gateway.listeners import (
    Certificates,
    admin_certificate,
    certificates,
    held_at,
    limits_of,
    name_of,
)
from tollhouse.gateway.memory import Memory, system_trim
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.premises import Admin, Premises, admin_listener
from tollhouse.gateway.reconciliation import lease_of
from tollhouse.gateway.runtime import Runtime
from tollhouse.gateway.spending import Spending
from tollhouse.gateway.state import file_of, open_state
from tollhouse.gateway.supervise import Supervisor
from tollhouse.gateway.upkeep import Upkeep
from tollhouse.gateway.workers import LastGood, Shared, Where, reserve, say_where
from tollhouse.ledger.audit import Chain
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.ship import Shipper
from tollhouse.net.client import Client
from tollhouse.net.egress import Egress
from tollhouse.net.head import Limits
from tollhouse.net.listen import Listener
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import Families, names_for
from tollhouse.observe.metrics import Metrics
from tollhouse.observe.runtime import Runtime as RuntimeMetrics
from tollhouse.observe.share import Share
from tollhouse.store.base import State
from tollhouse.store.revocation import Revocations

__all__ = ["Worker", "serve"]

log = logging.getLogger("tollhouse")


class _Bound(NamedTuple):
    """A listener's Spec, its name and its sockets."""

    spec: ListenSpec
    name: str
    sockets: list[socket.socket]


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
    if config.ledger_file is not None and not (directory := config.ledger_file.parent).is_dir():
        message = f"there is no directory {str(directory)!r}; make it, or name a file in another one"
        raise ConfigError([Problem(message, path="ledger")])


def _several(path: Path | None, loaded: Loaded, admin: Admin | None) -> int:
    server = loaded.config.server
    with ExitStack() as stack:
        certificates(server.listen)  # what no worker could use is said once, before any of them starts
        admin_certificate(server.admin)
        addresses, metrics, admin_address = reserve(loaded.config, stack)
        directory = Path(tempfile.mkdtemp(prefix="tollhouse-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        shared = Shared(directory, addresses, metrics, admin_address, os.getpid(), os.urandom(32))
        grace = server.shutdown.max + 15.0  # the hard end, then the ledger
        good = LastGood(path, loaded, directory)
        where = Where(loaded.config, shared)

        def told() -> None:
            good.look()
            where.look()

        return Supervisor(server.workers, partial(_forked, path, good, shared, admin), grace, told=told).run()


def _forked(path: Path | None, good: LastGood, shared: Shared, admin: Admin | None, index: int) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is listened to: what it would say is read anyway
    newest = good.newest()
    for loaded in (newest, good.loaded) if newest is not good.loaded else (newest,):
        try:
            return _run(path, loaded, index, shared, admin)
        except ConfigError as error:
            instead = "; the last good one is tried" if loaded is not good.loaded else ""
            log.error("the configuration cannot be served%s:\n%s", instead, error)
    return 2


def _run(path: Path | None, loaded: Loaded, index: int, shared: Shared | None, admin: Admin | None) -> int:
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
        shared: Shared | None = None,
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
        self._watch: JournalWatch | None = None
        self._upkeep: Upkeep | None = None
        self._spending: Spending | None = None
        self._shipper: Shipper | None = None
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
        file = None if config.issuer is None else file_of(config.state, config.ledger_file)
        state = open_state(config.state, clock, families, keys, file)
        stack.push_async_callback(state.close)
        ledger = None if config.ledger is None else ledger_of(config)
        values = state.values if state.shared else None
        spending = Spending(state.counter, ledger, families, clock, self._shipper, lease_of(state), values=values)
        self._spending = spending
        stack.push_async_callback(spending.close)
        operations = Operations(families.metrics, self._share(families.metrics, clock, stack), journal, self._alarm)
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
            revocations=await self._revocations(state, clock, families, stack),
            issued=self._issued(config, stack),
            chain=chain,
            holds=spending.holds,
            opens=spending.open,
            run_began=spending.run_began,
        )
        builder = Builder(fixtures, self._stop_requests)
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
        spending.start(lambda: runtime.is_drained)
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
        if config.ledger is None:
            return None
        journal = opened_journal(config)
        stack.callback(journal.close)
        if self._index == 0:
            self._upkeep = Upkeep(config, journal)
        ledger = ledger_of(config)
        shipper = Shipper(journal, ledger, upkeep=None if self._upkeep is None else self._upkeep.step)
        self._shipper = shipper
        shipper.start()
        stack.push_async_callback(_stop_shipper, shipper)
        measured(families, journal, shipper, ledger, sink_of(config))
        watch = self._watch = JournalWatch(journal, lambda: shipper.error)
        self._clock.every_turn(watch.turn)
        stack.callback(self._clock.remove, watch.turn)
        return journal

    async def _chain(self, config: Config, journal: Journal | None, stack: AsyncExitStack) -> Chain | None:
        """The chain of this process's audit records, which is ended before its journal."""
        if journal is None:
            return None
        chain = await asyncio.to_thread(chain_of, config, journal)
        if self._upkeep is not None:
            self._upkeep.chain = chain

        def end() -> None:
            if self._upkeep is not None:
                self._upkeep.chain = None
            try:
                chain.end()
            except Failure as failure:
                log.error("the audit's chain could not be ended: %s", failure.detail)

        stack.callback(end)
        return chain

    def _issued(self, config: Config, stack: AsyncExitStack) -> KeyFollower | None:
        """The keys in the ledger; followed once a configuration takes them."""
        if config.ledger_file is None:
            return None
        follower = KeyFollower(keys_of(config))
        stack.push_async_callback(asyncio.to_thread, follower.stop)
        return follower

    async def _revocations(self, state: State, clock: Clock, families: Families, stack: AsyncExitStack) -> Revocations:
        revocations = Revocations(state, clock)
        try:
            await revocations.load()
        except Failure as failure:  # it follows them as soon as the state is there
            log.error("revocations cannot be read: %s", failure.detail)
        revocations.start()
        stack.push_async_callback(revocations.close)
        families.revocations.reads(lambda: float(len(revocations)))
        families.revocation_lag.reads(lambda: revocations.lag)
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
            sockets = held_at(address, "server.listen", stack, shared=shared is not None)
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
        sockets = held_at(address, "server.metrics", stack, shared=self._shared is not None)
        limits = Limits(connections=256, body=4096)
        return Listener(Server(operations.serve_metrics, clock, limits, name=name_of(address, sockets)), sockets)

    def _admin_listener(
        self, spec: AdminSpec, admin: Admin, fixtures: Fixtures, builder: Builder, stack: AsyncExitStack
    ) -> Listener:
        address = spec.address if self._shared is None else self._shared.admin or spec.address
        sockets = held_at(address, "server.admin", stack, shared=self._shared is not None)
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
            lambda: builder.accounts,
            None if self._spending is None else self._spending.check,
        )
        return admin_listener(admin, premises, sockets, fixtures.clock, self._certificates)

    # ---- while it runs
    def _alarm(self) -> str:
        return "" if self._watch is None else self._watch.state

    def _say_that_it_listens(self) -> None:
        if self.admin_listener is not None:
            log.info("admin API on %s://%s", self.admin_listener.server.scheme, self.admin_listener.server.name)
        if self._shared is not None:
            log.info("worker %d listens", self._index)
            self._shared.tell_listens()
        else:
            metrics = self.metrics_listener.server.name if self.metrics_listener is not None else None
            say_where(((one.server.scheme, one.server.name) for one in self.listeners), metrics)

    def _stop_requests(self, which: Callable[[Request, bool], bool], failure: Failure) -> None:
        for listener in self.listeners:
            listener.server.stop(which, failure)

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
        if self._spending is not None:
            self._spending.serves(config)
        if self._upkeep is not None:
            self._upkeep.config = config
        if self._shared is not None:
            self._shared.tell_served(self._loaded)
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
