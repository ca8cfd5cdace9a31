"""Listening sockets: an address becomes sockets, sockets become a running Server.

Rule: binding is separate from serving, so that a supervisor or a test can know the port before anybody is served.
"""

import asyncio
import logging
import re
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from tollhouse.net.server import Server

__all__ = ["Address", "Listener", "bind"]

log = logging.getLogger("tollhouse.net.listen")

_BACKLOG = 4096
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]*)):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """host and port of a listener. An empty host means every interface."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`127.0.0.1:8080`, `[::1]:8080`, `:8080`. Raises ValueError saying what would be right."""
        match = _ADDRESS.fullmatch(text.strip())
        if match is None or int(match["port"]) > 65_535:
            raise ValueError(f"not an address: {text!r}; write host:port, like 127.0.0.1:8080 or [::1]:8080")
        return cls(match["six"] or match["host"] or "", int(match["port"]))

    @property
    def is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name, which may lead anywhere

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def bind(address: Address, *, shared: bool = False) -> list[socket.socket]:
    """Bound, not yet listening sockets for every address of the host. shared: SO_REUSEPORT, one set per worker.

    Raises OSError when the address cannot be had.
    """
    infos = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    port = address.port
    try:
        for family, kind, proto, _, where in dict.fromkeys(infos):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With port 0 the first socket chooses, the others follow.
            sock.bind((where[0], port, *where[2:]))
            port = sock.getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class Listener:
    """A Server on its sockets: `start`, then `stop` (no new connections; the open ones go on)."""

    def __init__(self, server: Server, sockets: list[socket.socket], context: ssl.SSLContext | None = None) -> None:
        self.server = server
        self._sockets = sockets
        self._context = context
        self._servers: list[asyncio.Server] = []
        self._renewal: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._servers = await self._serve(self._sockets)

    async def _serve(self, sockets: list[socket.socket]) -> list[asyncio.Server]:
        servers: list[asyncio.Server] = []
        try:
            for sock in sockets:
                servers.append(await self._accept(sock))  # noqa: PERF401  # what was begun is ended when one fails
        except BaseException:
            for server in servers:
                server.close()
            raise
        return servers

    async def _accept(self, sock: socket.socket) -> asyncio.Server:
        context, server = self._context, self.server
        accept = server.accept if context is None else partial(server.accept_tls, context)
        return await asyncio.get_running_loop().create_server(accept, sock=sock, backlog=_BACKLOG)

    def renew(self, context: ssl.SSLContext) -> None:
        """From now on accept with `context`; handshakes and connections under way keep theirs. No client is refused:
        who waits to be accepted waits at the kernel's socket, which stays. Call it in the loop, after `start`."""
        self._context = context
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        sockets: list[socket.socket] = []
        try:
            sockets.extend(sock.dup() for sock in self._sockets)
            servers = await self._serve(sockets)
        except BaseException as error:  # cancelled, or no more file descriptors
            for sock in sockets:
                sock.close()
            if not isinstance(error, OSError):
                raise
            log.error("%s: the new client CA could not be taken (%s); the old one serves", self.server.name, error)
            return
        old, self._servers, self._sockets = self._servers, servers, sockets
        for server in old:
            server.close()

    def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        for server in self._servers:
            server.close()
        self._servers.clear()
