"""A client that is to speak TLS, from its accepted socket to the end of its handshake.

Rule: it counts as a connection from the beginning. Whoever opens sockets and says nothing would else hold as many as
there are descriptors. So the listening socket has a server without TLS, and what it accepts is handed to a transport
that speaks it once there is room.
"""

import asyncio
import logging
import os
import socket
import ssl
from time import monotonic
from typing import Protocol

from tollhouse.net import connection
from tollhouse.net.connection import Connection
from tollhouse.net.head import full

__all__ = ["Handshake"]

log = logging.getLogger("tollhouse.net.server")

_TIMEOUT = 10.0  # seconds


class Home(connection.Home, Protocol):
    """The server as its clients in their handshake see it."""

    handshakes: "set[Handshake]"


class Handshake(asyncio.Protocol):
    """Takes an accepted socket, and gives way to a Connection. task: while it lasts."""

    __slots__ = ("_context", "_loop", "_server", "task")

    def __init__(self, server: Home, context: ssl.SSLContext, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._context = context
        self._loop = loop
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        if server.crowded:  # an answer in the clear would be no answer
            peer = transport.get_extra_info("peername")
            fault = full(server.limits)
            server.observer.refused(fault.status, fault.reason, fault.message, peer[0] if peer else "", b"")
        else:
            try:
                sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            except OSError as error:
                log.error("a client of %s cannot be served: %s", server.name, error)
            else:
                server.handshakes.add(self)
                self.task = self._loop.create_task(self._run(sock))
        transport.abort()  # type: ignore[attr-defined]  # its descriptor of the socket; what is sent waits in the kernel

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _run(self, sock: socket.socket) -> None:
        began = monotonic()
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Secured(self, began), sock, ssl=self._context, ssl_handshake_timeout=_TIMEOUT
            )
        except (OSError, asyncio.CancelledError) as error:
            log.debug("a handshake failed: %s", error)
            sock.close()
        except Exception:  # the root of this client's task: a bug ends this connection and no other
            log.exception("a handshake ended by an internal error")
            sock.close()
        finally:
            self._server.handshakes.discard(self)
            self.task = None

    def done(self, transport: asyncio.Transport, began: float) -> None:
        server = self._server
        server.handshakes.discard(self)
        server.observer.handshakes(monotonic() - began)
        secured = Connection(server, self._loop)
        transport.set_protocol(secured)
        secured.connection_made(transport)


class _Secured(asyncio.Protocol):
    """Told by the transport that it speaks TLS now."""

    __slots__ = ("_began", "_handshake")

    def __init__(self, handshake: Handshake, began: float) -> None:
        self._handshake = handshake
        self._began = began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._handshake.done(transport, self._began)  # type: ignore[arg-type]
