"""TLS on the listener, as configured: versions, client certificates, and a certificate that is replaced."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.service import Service, service
from tests.fixtures.wire import Wire

pytestmark = pytest.mark.anyio

CONFIG = """
server:
  listen:
    - {{address: "127.0.0.1:0", tls: {{cert: cert.pem, key: key.pem{more}}}}}
    - 127.0.0.1:0
  metrics: 127.0.0.1:0
  shutdown: {{min: 0s, max: 5s}}
routes: [{{name: plain, path: /, to: "{url}"}}]
"""


@dataclass
class Running:
    gateway: Gateway
    service: Service
    ca: trustme.CA
    where: Path

    def trusting(self, ca: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        (ca or self.ca).configure_trust(context)
        return context

    def connect(self, context: ssl.SSLContext) -> Wire:
        return Wire(self.gateway.url, context, "gateway.test")


def write(where: Path, cert: trustme.LeafCert) -> None:
    """The key first: between the two the pair does not fit, which must do no harm."""
    for name, blob in (("key.pem", cert.private_key_pem), ("cert.pem", cert.cert_chain_pems[0])):
        blob.write_to_path(str(where / "new"))
        (where / "new").replace(where / name)


@asynccontextmanager
async def running(where: Path, more: str = "") -> AsyncIterator[Running]:
    ca = trustme.CA()
    for name in ("ca.pem", "clients.pem"):
        ca.cert_pem.write_to_path(str(where / name))
    write(where, ca.issue_cert("gateway.test"))
    async with service() as upstream, serving(CONFIG.format(url=upstream.url, more=more), where) as gateway:
        assert gateway.url.startswith("https://")
        yield Running(gateway, upstream, ca, where)
        assert "Traceback" not in gateway.text()


async def test_requests_over_tls_and_what_is_not_tls(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        async with now.connect(now.trusting()) as wire:
            chosen = wire.writer.get_extra_info("ssl_object")
            assert chosen.version() == "TLSv1.3"
            for _ in range(3):
                answer = await wire.ask("POST", "/echo", bytes(100_000))
                headers = dict(answer.json()["headers"])
                assert (answer.status, answer.json()["size"]) == (200, 100_000)
                assert headers["x-forwarded-proto"] == "https"
        with pytest.raises(ssl.SSLError):
            async with now.connect(ssl.create_default_context()):
                pass
        old = now.trusting()
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with now.connect(old):
                pass
        async with Wire(now.gateway.url) as wire:  # not TLS at all
            await wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in await wire.closed()
        async with now.connect(now.trusting()) as wire:
            assert (await wire.ask("GET", "/status")).status == 200
        text = await asyncio.to_thread(now.gateway.metrics)
        assert 'scheme="https"' in text or 'protocol="https"' in text


@pytest.mark.parametrize("hup", [True, False])
async def test_a_certificate_is_replaced_while_connections_stay(tmp_path: Path, hup: bool) -> None:
    async with running(tmp_path) as now:
        fresh = trustme.CA()
        async with now.connect(now.trusting()) as before:
            assert (await before.ask("GET", "/echo")).status == 200
            since = now.gateway.log.stat().st_size
            write(tmp_path, fresh.issue_cert("gateway.test"))
            if hup:
                os.kill(now.gateway.pid, signal.SIGHUP)
            await now.gateway.logged("a certificate was replaced", since)
            async with now.connect(now.trusting(fresh)) as after:
                assert (await after.ask("GET", "/echo")).status == 200
            with pytest.raises(ssl.SSLError):
                async with now.connect(now.trusting()):
                    pass
            assert (await before.ask("GET", "/echo")).status == 200
        # What cannot be used leaves the one that serves.
        since = now.gateway.log.stat().st_size
        (tmp_path / "cert.pem").write_text("no certificate\n")
        if hup:
            os.kill(now.gateway.pid, signal.SIGHUP)
        await now.gateway.logged("the old certificate keeps serving", since)
        async with now.connect(now.trusting(fresh)) as after:
            assert (await after.ask("GET", "/echo")).status == 200


async def test_client_certificates_are_required(tmp_path: Path) -> None:
    async with running(tmp_path, ", client_ca: ca.pem") as now:
        context = now.trusting()
        now.ca.issue_cert("agent@example.com").configure_cert(context)
        async with now.connect(context) as wire:
            assert (await wire.ask("GET", "/echo")).status == 200
        stranger = now.trusting()
        trustme.CA().issue_cert("agent@example.com").configure_cert(stranger)
        for refused in (now.trusting(), stranger):
            # With TLS 1.3 the client learns of it when it reads.
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                async with now.connect(refused) as wire:
                    await wire.ask("GET", "/echo")
        assert now.service.requests == now.service.requests[:1]


async def test_the_authority_of_client_certificates_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, ", client_ca: clients.pem") as now:
        fresh = trustme.CA()

        def client(issuer: trustme.CA) -> ssl.SSLContext:
            context = now.trusting()
            issuer.issue_cert("agent@example.com").configure_cert(context)
            return context

        async def is_let_in(issuer: trustme.CA) -> bool:
            try:
                async with now.connect(client(issuer)) as wire:
                    return (await wire.ask("GET", "/echo")).status == 200
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                return False

        async with now.connect(client(now.ca)) as before:
            assert (await before.ask("GET", "/echo")).status == 200
            assert not await is_let_in(fresh)
            since = now.gateway.log.stat().st_size
            fresh.cert_pem.write_to_path(str(tmp_path / "new"))
            (tmp_path / "new").replace(tmp_path / "clients.pem")
            await now.gateway.logged("the client CA of .* was replaced", since)
            async with asyncio.timeout(5):
                while not await is_let_in(fresh):
                    pass
            assert not await is_let_in(now.ca)
            assert (await before.ask("GET", "/echo")).status == 200
            since = now.gateway.log.stat().st_size
            (tmp_path / "clients.pem").write_text("no authority\n")
            await now.gateway.logged("the old client CA keeps serving", since)
            assert await is_let_in(fresh)
        assert await asyncio.to_thread(now.gateway.stop, signal.SIGTERM) == 0


async def test_client_certificates_are_optional(tmp_path: Path) -> None:
    async with running(tmp_path, ", client_ca: ca.pem, client_auth: optional") as now:
        async with now.connect(now.trusting()) as wire:
            assert (await wire.ask("GET", "/echo")).status == 200
        stranger = now.trusting()
        trustme.CA().issue_cert("agent@example.com").configure_cert(stranger)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with now.connect(stranger) as wire:
                await wire.ask("GET", "/echo")


async def test_term_over_tls_ends_well(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        async with now.connect(now.trusting()) as stream, now.connect(now.trusting()) as idle:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.head()
            assert await stream.chunk() == b"data: 0\n\n"
            await idle.ask("GET", "/echo")
            os.kill(now.gateway.pid, signal.SIGTERM)
            assert await idle.closed() == b""
            now.service.release()
            assert await stream.chunk() == b""
        assert await now.gateway.ended() == 0


async def test_a_certificate_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    ca = trustme.CA()
    write(tmp_path, ca.issue_cert("gateway.test"))
    ca.issue_cert("other.test").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    with pytest.raises(AssertionError, match=r"tollhouse.yaml:\d+:\d+: server.listen.*cannot load the certificate"):
        async with serving(CONFIG.format(url="http://127.0.0.1:9", more=""), tmp_path):
            pass
