"""Certificates, keys and authorities of listeners: what is wrong with them, and how others take their place."""

import asyncio
import resource
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server
from tollhouse.net.tls import CertificateError, ClientAuth, ServerTLS

pytestmark = pytest.mark.anyio


class Files:
    """cert.pem, key.pem and ca.pem in a directory."""

    def __init__(self, where: Path) -> None:
        self.cert, self.key, self.ca = where / "cert.pem", where / "key.pem", where / "ca.pem"
        self.issuer = trustme.CA()
        self.clients = trustme.CA()
        self.issue()
        self.clients.cert_pem.write_to_path(str(self.ca))

    def issue(self) -> None:
        leaf = self.issuer.issue_cert("gateway.test")
        leaf.cert_chain_pems[0].write_to_path(str(self.cert))
        leaf.private_key_pem.write_to_path(str(self.key))

    def tls(self, auth: ClientAuth = ClientAuth.REQUIRED) -> ServerTLS:
        return ServerTLS(str(self.cert), str(self.key), str(self.ca), auth)

    def client(self, ca: trustme.CA) -> ssl.SSLContext:
        """Of a client whose certificate is by `ca`."""
        context = ssl.create_default_context()
        self.issuer.configure_trust(context)
        ca.issue_cert("agent@example.com").configure_cert(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_what_is_wrong_is_told_with_the_file_to_blame(files: Files, tmp_path: Path) -> None:
    good = {path: path.read_bytes() for path in (files.cert, files.key, files.ca)}
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:x", "-in", str(files.key), "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True)
    other = trustme.CA().issue_cert("gateway.test")
    wrong: list[tuple[Path, bytes | None, str, str]] = [
        (files.cert, None, "cert", "cert.pem cannot be read: No such file or directory"),
        (files.cert, b"nonsense", "cert", "no PEM certificate in it"),
        (files.cert, good[files.key], "cert", "no PEM certificate in it"),
        (files.key, None, "key", "key.pem cannot be read: No such file or directory"),
        (files.key, b"", "key", "no PEM private key in it"),
        (files.key, other.private_key_pem.bytes(), "key", "the key is not that of the certificate"),
        (files.key, encrypted.read_bytes(), "key", "the key is encrypted"),
        (files.ca, None, "client_ca", "No such file or directory"),
        (files.ca, b"nonsense", "client_ca", "no PEM certificate in it"),
    ]
    for path, content, setting, message in wrong:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(CertificateError) as raised:
            files.tls()
        assert (raised.value.setting, message in str(raised.value)) == (setting, True), str(raised.value)
        assert "\n" not in str(raised.value)
        path.write_bytes(good[path])
    files.tls()


def test_another_authority_is_another_context_and_another_certificate_is_not(files: Files) -> None:
    tls = files.tls()
    context = tls.context
    assert not tls.reload()
    files.issue()
    assert tls.reload()
    assert tls.context is context
    files.ca.write_text("nonsense")
    for _ in range(2):  # it is tried again each time
        with pytest.raises(CertificateError, match="client CA"):
            tls.reload()
        assert tls.context is context
    trustme.CA().cert_pem.write_to_path(str(files.ca))
    assert tls.reload()
    assert tls.context is not context
    assert not tls.reload()


async def hello(request: Request) -> Response:
    return Response(200, [], b"hello")


@asynccontextmanager
async def listening(tls: ServerTLS | None) -> AsyncIterator[Listener]:
    server = Server(hello, Clock())
    listener = Listener(server, bind(Address("127.0.0.1", 0)), tls.context if tls else None)
    await listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self) -> bytes:
        self.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return await self.reader.readuntil(b"hello")


async def connect(listener: Listener, context: ssl.SSLContext) -> Client:
    name = "gateway.test"
    return Client(*await asyncio.open_connection("127.0.0.1", listener.port, ssl=context, server_hostname=name))


async def is_let_in(listener: Listener, context: ssl.SSLContext) -> bool:
    try:
        client = await connect(listener, context)
        await client.ask()
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return False
    client.writer.close()
    return True


async def test_clients_of_another_authority_are_let_in_and_those_of_the_old_one_are_not(files: Files) -> None:
    tls = files.tls()
    known, fresh = files.client(files.clients), trustme.CA()
    unknown = files.client(fresh)
    async with listening(tls) as listener:
        port = listener.port
        open_one = await connect(listener, known)
        await open_one.ask()
        assert not await is_let_in(listener, unknown)
        fresh.cert_pem.write_to_path(str(files.ca))
        assert tls.reload()
        listener.renew(tls.context)
        listener.renew(tls.context)  # once more before the first is done
        async with asyncio.timeout(5):
            while not await is_let_in(listener, unknown):
                pass
        assert not await is_let_in(listener, known)
        assert listener.port == port
        await open_one.ask()
        open_one.writer.close()


async def test_what_cannot_be_renewed_serves_on(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    tls = files.tls()
    async with listening(tls) as listener:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            listener.renew(tls.context)
            async with asyncio.timeout(5):
                while "the old one serves" not in caplog.text:
                    await asyncio.sleep(0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await is_let_in(listener, files.client(files.clients))


async def test_nobody_is_refused_while_listeners_are_renewed(files: Files) -> None:
    tls = files.tls(ClientAuth.OPTIONAL)
    context = files.client(files.clients)
    async with listening(tls) as listener:
        renewals = 0

        async def renew() -> None:
            nonlocal renewals
            while True:
                listener.renew(tls.context)
                renewals += 1
                await asyncio.sleep(0.002)

        task = asyncio.ensure_future(renew())
        for _ in range(25):
            assert all(await asyncio.gather(*(is_let_in(listener, context) for _ in range(4))))
        task.cancel()
        assert renewals > 10
