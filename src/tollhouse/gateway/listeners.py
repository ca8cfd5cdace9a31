"""Listeners: what `server.listen` and `server.metrics` ask for, as sockets and TLS, and what is wrong with it.

Rule: every address and every file is tried, so that all that is wrong is said at once, each with its setting.
"""

import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack

from tollhouse.config.server import AdminSpec, ListenSpec, ListenTlsSpec
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.net.head import Limits
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.tls import CertificateError, ClientAuth, ServerTLS

__all__ = [
    "Certificates", "addresses_of", "admin_certificate", "certificates", "held_at", "limits_of", "name_of",
    "sockets_at",
]  # fmt: skip

log = logging.getLogger("tollhouse")


def addresses_of(config: Config) -> list[tuple[str, str]]:
    """Each address to listen on, with the setting that names it; last that of the metrics, and then of the admin
    API."""
    server = config.server
    found = [(spec.address, "server.listen") for spec in server.listen]
    if server.metrics is not None:
        found.append((server.metrics, "server.metrics"))
    return found if server.admin is None else [*found, (server.admin.address, "server.admin")]


def sockets_at(address: str, path: str, *, shared: bool = False) -> list[socket.socket]:
    """Sockets at `address`, which the setting `path` names. shared: among workers. Raises ConfigError."""
    try:
        return bind(Address.parse(address), shared=shared)
    except OSError as error:
        raise ConfigError([Problem(f"cannot listen on {address}: {error.strerror}", path=path)]) from None


def held_at(address: str, path: str, stack: ExitStack | AsyncExitStack, *, shared: bool = False) -> list[socket.socket]:
    """As `sockets_at`; `stack` closes them."""
    sockets = sockets_at(address, path, shared=shared)
    for sock in sockets:
        stack.callback(sock.close)
    return sockets


def name_of(address: str, sockets: list[socket.socket]) -> str:
    """A listener's name: its address with the port it really has."""
    return str(Address(Address.parse(address).host, sockets[0].getsockname()[1]))


def certificates(listen: Sequence[ListenSpec]) -> list[ServerTLS | None]:
    """The TLS of each listener, None of one without. Raises ConfigError with every file that cannot be used."""
    made: list[ServerTLS | None] = []
    problems = []
    for n, spec in enumerate(listen):
        try:
            made.append(None if spec.tls is None else _tls(spec.tls))
        except CertificateError as error:
            problems.append(Problem(str(error), path=f"server.listen[{n}].tls.{error.setting}"))
    if problems:
        raise ConfigError(problems)
    return made


def admin_certificate(admin: AdminSpec | None) -> ServerTLS | None:
    """The TLS of the admin listener, None where it has none. Raises ConfigError."""
    if admin is None or admin.tls is None:
        return None
    try:
        return _tls(admin.tls)
    except CertificateError as error:
        raise ConfigError([Problem(str(error), path=f"server.admin.tls.{error.setting}")]) from None


def _tls(spec: ListenTlsSpec) -> ServerTLS:
    auth = ClientAuth(spec.client_auth) if spec.client_ca else ClientAuth.NONE
    return ServerTLS(spec.cert, spec.key, spec.client_ca, auth)


class Certificates:
    """The TLS of running listeners, which follows its files."""

    def __init__(self) -> None:
        self._listeners: list[tuple[ServerTLS, Listener]] = []

    def add(self, tls: ServerTLS, listener: Listener) -> None:
        self._listeners.append((tls, listener))

    def reload(self) -> None:
        """Take what has changed; what cannot be used is logged and changes nothing."""
        for tls, listener in self._listeners:
            before = tls.context
            try:
                changed = tls.reload()
            except CertificateError as error:
                what = "client CA" if error.setting == "client_ca" else "certificate"
                log.error("%s; the old %s keeps serving", error, what)
                continue
            if tls.context is not before:
                listener.renew(tls.context)
                log.info("the client CA of %s was replaced", listener.server.name)
            elif changed:
                log.info("a certificate was replaced")


def limits_of(config: Config) -> Limits:
    """What a client may cost, as the server takes it."""
    server = config.server
    times = server.timeouts
    return Limits(
        target=server.max_target,
        head=server.max_head,
        headers=server.max_headers,
        body=server.max_body,
        connections=server.max_connections,
        head_timeout=times.head,
        body_timeout=times.body,
        idle_timeout=times.idle,
        write_timeout=times.write,
    )
