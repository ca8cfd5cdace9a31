"""Addresses and listening sockets: what is written, what is bound, and what happens when one cannot be had."""

import asyncio
import socket

import pytest

from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server


@pytest.mark.parametrize(
    ("text", "address", "written", "loopback"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), "127.0.0.1:8080", True),
        (" localhost:1 ", Address("localhost", 1), "localhost:1", True),
        ("[::1]:8080", Address("::1", 8080), "[::1]:8080", True),
        (":8080", Address("", 8080), ":8080", False),
        ("[::]:0", Address("::", 0), "[::]:0", False),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535), "0.0.0.0:65535", False),
        ("127.example.com:80", Address("127.example.com", 80), "127.example.com:80", False),
        ("localhost.example.com:80", Address("localhost.example.com", 80), "localhost.example.com:80", False),
    ],
)
def test_an_address(text: str, address: Address, written: str, loopback: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == written
    assert address.is_loopback is loopback


@pytest.mark.parametrize("text", ["", "8080", "x", "x:", "x:y", "x:65536", "::1:80", "[::1]", "[x]:80", "a:1:2"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        Address.parse(text)


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def test_every_address_of_a_host_has_the_same_port() -> None:
    sockets = bind(Address("", 0))
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert sockets[0].getsockname()[1] != 0
        assert not any(sock.getblocking() for sock in sockets)
    finally:
        close(sockets)


def test_a_port_that_is_taken_is_an_error_and_leaves_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    taken = bind(Address("127.0.0.1", 0))
    taken[0].listen()
    try:
        with pytest.raises(OSError, match="in use"):
            bind(Address("127.0.0.1", taken[0].getsockname()[1]))
        with pytest.raises(OSError, match="assign"):
            bind(Address("192.0.2.1", 0))  # not ours
        with pytest.raises(socket.gaierror):
            bind(Address("no-such-host.invalid", 0))
    finally:
        close(taken)
    assert not [one for one in recwarn if issubclass(one.category, ResourceWarning)]


def test_a_shared_port_may_be_bound_again() -> None:
    first = bind(Address("127.0.0.1", 0), shared=True)
    second = bind(Address("127.0.0.1", first[0].getsockname()[1]), shared=True)
    close([*first, *second])


@pytest.mark.anyio
async def test_a_stopped_listener_takes_nobody_and_leaves_who_is_there() -> None:
    async def handler(request: Request) -> Response:
        return Response(200, [], b"hello")

    server = Server(handler, Clock())
    listener = Listener(server, bind(Address("127.0.0.1", 0)))
    await listener.start()
    port = listener.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    listener.stop()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    server.abort()
    await server.wait_closed()
