"""What a worker lets the admin API work on, which is built above the gateway and handed in; and its listener.

Rule: it is asked each time and not remembered: the configuration, and with it the auth provider, may be another one.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tollhouse.config.server import AdminSpec
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.gateway.account_list import AccountList
from tollhouse.gateway.listeners import Certificates, admin_certificate
from tollhouse.gateway.reconciliation import Reconciled
from tollhouse.issuer.keys import SigningKeys
from tollhouse.net.head import Limits
from tollhouse.net.listen import Address, Listener
from tollhouse.net.server import Server
from tollhouse.policies.audit import Audit
from tollhouse.store.base import State
from tollhouse.store.revocation import Revocations

__all__ = ["Admin", "Premises", "admin_listener"]

log = logging.getLogger("tollhouse")

_LIMITS = Limits(connections=64, body=64 << 10)


class Premises(NamedTuple):
    """spec, name: the admin listener's settings and its name. config: the configuration that serves. signing_keys: of
    its auth provider, None where it has none. audit: records what is done, None where that is off. accounts: that users
    have connected at servers, None where there is no such server. check_budgets: compares them with the ledger."""

    spec: AdminSpec
    name: str
    config: Callable[[], Config]
    state: State
    revocations: Revocations
    signing_keys: Callable[[], SigningKeys | None]
    audit: Callable[[], Audit | None]
    accounts: Callable[[], AccountList | None] = lambda: None
    check_budgets: Callable[[], Awaitable[Reconciled]] | None = None


Admin = Callable[[Premises], Handler[Request, Response]]
"""Makes the handler of the admin listener. Raises ConfigError."""


def admin_listener(
    admin: Admin, premises: Premises, sockets: list[socket.socket], clock: Clock, certificates: Certificates
) -> Listener:
    """The listener of the admin API; with TLS its files are followed by `certificates`. Raises ConfigError."""
    tls, name = admin_certificate(premises.spec), premises.name
    server = Server(admin(premises), clock, _LIMITS, name=name, scheme="https" if tls else "http")
    listener = Listener(server, sockets, tls.context if tls else None)
    if tls is not None:
        certificates.add(tls, listener)
    elif not Address.parse(name).is_loopback:
        log.warning("the admin API is without TLS on %s: keys of operators can be read on their way", name)
    return listener
