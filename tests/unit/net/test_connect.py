"""Origins, addresses that race, TLS, outbound proxies, names that are remembered."""

import asyncio
import base64
import gc
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import pytest
import trustme
from tests.unit.net.upstreams import Peer, ask, client, upstream

from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import TLS, Origin, OriginError
from tollhouse.net.connect import Address, Connector, _interleaved
from tollhouse.net.egress import Egress

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
V4, V6 = socket.AF_INET, socket.AF_INET6


async def polite(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def failing(awaitable: object, status: int) -> Failure:
    with pytest.raises(Failure) as raised:
        await awaitable  # type: ignore[misc]
    failure = raised.value
    assert (failure.status, failure.sent) == (status, False)
    assert failure.reason == (Reason.TIMEOUT if status == 504 else Reason.UPSTREAM_FAILURE)
    return failure


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- origins


def test_origin() -> None:
    origin, path = Origin.of("https://API.example.com/v1?x=1#frag", tls=TLS(verify=False), proxy="http://u:secret@p:1")
    assert (origin.scheme, origin.host, origin.port, path) == ("https", "api.example.com", 443, b"/v1?x=1")
    assert origin.authority == b"api.example.com"
    assert origin == Origin("https", "api.example.com", 443, TLS(verify=False), "http://u:secret@p:1")
    assert hash(origin)
    assert "secret" not in repr(origin) + str(origin) + f"{origin}"
    assert Origin.of("http://[::1]:80")[0].authority == b"[::1]"
    assert Origin.of("http://[::1]:8080")[0].authority == b"[::1]:8080"
    assert str(Origin.of("http://a:443")[0]) == "http://a:443"
    assert Origin.of("http://a", tls=TLS())[0] == Origin.of("http://a")[0]  # http has no TLS to differ in
    assert Origin.of("http://my_service.ns.svc.cluster.local./")[0].host == "my_service.ns.svc.cluster.local."


@pytest.mark.parametrize("url", ["", "a", "ftp://a", "http://a:99999", "http://u:p@a", "http://a/\n", "http://ü"])
def test_urls_that_are_no_origin(url: str) -> None:
    with pytest.raises(OriginError) as raised:
        Origin.of(url)
    assert "u:p" not in str(raised.value)


@pytest.mark.parametrize("proxy", ["https://p:1", "p:1", "http://", "socks5://p:1", "http://p:x", "http://u:p@p:1/x"])
async def test_proxies_that_cannot_be_used_show_at_once(proxy: str) -> None:
    async with client() as c:
        with pytest.raises(OriginError) as raised:
            c.pool(Origin.of("http://a", proxy=proxy)[0])
        assert "u:p@" not in str(raised.value).replace("user:password@", "")


async def test_tls_files_that_cannot_be_used_show_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    async with client() as c:
        for tls, message in (
            (TLS(ca=str(tmp_path / "none.pem")), "none.pem"),
            (TLS(ca=str(empty)), "empty.pem"),
            (TLS(cert=str(empty), key=str(empty)), "client certificate"),
        ):
            with pytest.raises(OriginError, match=message):
                c.pool(Origin.of("https://a", tls=tls)[0])


def test_families_take_turns() -> None:
    six = [(V6, f"::{i}") for i in range(3)]
    four: list[Address] = [(V4, "10.0.0.1")]
    assert _interleaved([*six, *four]) == [six[0], four[0], six[1], six[2]]
    assert _interleaved([*four, *six]) == [four[0], six[0], six[1], six[2]]
    assert _interleaved(four) == four


# ---- addresses


class Names:
    """A resolver that knows what a test says."""

    def __init__(self, *addresses: Address) -> None:
        self.addresses: Sequence[Address] = addresses
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


async def test_the_system_resolves_localhost() -> None:
    async with upstream(polite) as up, client() as c:
        assert (await ask(c.pool(Origin.of(up.url(host="localhost"))[0]))).status == 200


@pytest.mark.timed
async def test_an_address_that_refuses_is_followed_by_the_next_at_once() -> None:
    names = Names((V6, "::1"), (V4, "127.0.0.2"), (V4, "127.0.0.1"))
    async with upstream(polite) as up, client(lookup=names) as c:
        began = monotonic()
        assert (await ask(c.pool(Origin.of(up.url(host="a.example"))[0]))).status == 200
        assert monotonic() - began < 0.2
        assert names.asked == 1


def deaf() -> tuple[socket.socket, list[socket.socket], int]:
    """A port on 127.0.0.3 that neither accepts nor refuses: its queue is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.3", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fill = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.3", port))
        fill.append(sock)
    return listener, fill, port


async def test_an_address_that_is_silent_is_overtaken_and_left() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await polite(Peer(reader, writer, 0))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    listener, fill, port = deaf()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    seconds: list[tuple[str, float]] = []

    names = Names((V4, "127.0.0.3"), (V4, "127.0.0.1"))
    try:
        async with client(lookup=names, on_connect=lambda kind, took: seconds.append((kind, took))) as c:
            files, tasks = open_files(), len(asyncio.all_tasks())
            assert (await ask(c.pool(Origin.of(f"http://a.example:{port}/")[0]))).status == 200
            assert seconds[0][0] == "plaintext"
            assert 0.2 < seconds[0][1] < 1.5
            assert open_files() <= files + 2  # ours and the server's side
            assert len(asyncio.all_tasks()) == tasks + 1  # the server's side
            # nobody answers: the whole race is within the time
            names.addresses = [(V4, "127.0.0.3"), (V4, "127.0.0.3")]
            pool = c.pool(Origin.of(f"http://b.example:{port}/")[0])
            began = monotonic()
            failure = await failing(ask(pool, connect=0.4), 504)
            assert failure.retry
            assert 0.3 < monotonic() - began < 1.5
            # and a caller that leaves takes everything along
            files = open_files()
            call = asyncio.create_task(ask(pool))
            await asyncio.sleep(0.3)
            assert open_files() > files
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.sleep(0.01)
            assert open_files() == files
            assert pool.open == 0
    finally:
        server.close()
        for sock in (listener, *fill):
            sock.close()


async def test_names_are_remembered_for_a_while_and_failures_are_not() -> None:
    names = Names()
    async with upstream(polite) as up, client(lookup=names) as c:
        pool = c.pool(Origin.of(up.url(host="a.example"))[0])
        for _ in range(2):
            failure = await failing(ask(pool), 502)
            assert failure.retry
        assert names.asked == 2
        names.addresses = [(V4, "127.0.0.1")]
        await asyncio.gather(*(ask(pool) for _ in range(2)))
        before = names.asked
        await asyncio.gather(*(ask(pool) for _ in range(5)))
        assert names.asked == before
        other = c.pool(Origin.of("http://b.example:1/")[0])
        for asked in (before + 1, before + 2):  # what cannot be reached is looked up again
            await failing(ask(other), 502)
            assert names.asked == asked


class SlowNames(Names):
    """They answer when they may."""

    def __init__(self, *addresses: Address) -> None:
        super().__init__(*addresses)
        self.may = asyncio.Event()

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        await self.may.wait()
        return await super().__call__(host, port)


async def test_a_name_is_looked_up_once_for_all_who_wait() -> None:
    names = SlowNames((V4, "127.0.0.1"))
    connector = Connector(lookup=names)
    waiting = [asyncio.create_task(connector.resolve("a.example", 80)) for _ in range(200)]
    other = asyncio.create_task(connector.resolve("a.example", 81))
    await asyncio.sleep(0)
    waiting.pop(0).cancel()  # who began it may leave
    names.may.set()
    assert set(await asyncio.gather(*waiting)) == {((V4, "127.0.0.1"),)}
    await other
    assert names.asked == 2
    assert not connector._lookups


async def test_all_who_wait_hear_that_there_is_no_such_name() -> None:
    names = SlowNames()
    connector = Connector(lookup=names)
    waiting = [asyncio.create_task(connector.resolve("a.example", 80)) for _ in range(3)]
    names.may.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [OSError] * 3
    assert len({id(error) for error in errors}) == 3  # one exception raised in several tasks would know them all
    assert names.asked == 1


async def test_a_look_up_that_nobody_waits_for_ends_with_the_client() -> None:
    names = SlowNames((V4, "127.0.0.1"))
    async with client(lookup=names) as c:
        pool = c.pool(Origin.of("http://a.example:1/")[0])
        call = asyncio.create_task(ask(pool))
        while not c._connector._lookups:
            await asyncio.sleep(0)
        (task,) = c._connector._lookups.values()
        call.cancel()
        await asyncio.wait((call,))
        assert not task.done()
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        await c.close()
        assert task.cancelled()
        await asyncio.wait((waiting,))
        assert isinstance(waiting.exception(), Failure)  # and it is not cancelled itself


@pytest.mark.parametrize("gone", [False, True])
async def test_when_names_cannot_be_looked_up_the_last_addresses_serve(gone: bool) -> None:
    """But not those of a name that is gone."""

    async def lookup(host: str, port: int) -> Sequence[Address]:
        nonlocal answer
        if isinstance(answer, int):
            raise socket.gaierror(answer, "no")
        return answer

    answer: int | Sequence[Address] = ((V4, "127.0.0.1"),)
    connector = Connector(lookup=lookup)
    assert await connector.resolve("a.example", 80) == ((V4, "127.0.0.1"),)
    connector._names["a.example", 80] = (0.0, connector._names["a.example", 80][1])  # its time is over
    answer = socket.EAI_NONAME if gone else socket.EAI_AGAIN
    if gone:
        with pytest.raises(OSError, match="no"):
            await connector.resolve("a.example", 80)
    else:
        assert await connector.resolve("a.example", 80) == ((V4, "127.0.0.1"),)


async def test_the_memory_for_names_is_bounded() -> None:
    names = Names((V4, "127.0.0.1"))
    connector = Connector(lookup=names)
    for i in range(1000):
        await connector.resolve(f"{i}.example", 80)
    assert len(connector._names) <= 256
    assert await connector.resolve("127.0.0.9", 80) == ((V4, "127.0.0.9"),)
    assert await connector.resolve("::1", 80) == ((V6, "::1"),)
    assert names.asked == 1000


async def test_an_upstream_that_closes_at_once() -> None:
    async def play(peer: Peer) -> None:
        peer.cut()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        with pytest.raises(Failure) as raised:
            await ask(pool)
        assert raised.value.status == 502
        assert raised.value.retry
        assert pool.open == 0


# ---- TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def roots(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path)


def server_context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_tls(ca: trustme.CA, roots: str) -> None:
    protocols = []
    seen = []

    async def play(peer: Peer) -> None:
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await polite(peer)

    async with (
        upstream(play, tls=server_context(ca, "127.0.0.1", "a.example")) as up,
        client(on_connect=lambda kind, took: seen.append(kind), lookup=Names((V4, "127.0.0.1"))) as c,
    ):
        for tls, host in (
            (TLS(ca=roots), "127.0.0.1"),
            (TLS(ca=roots), "a.example"),
            (TLS(ca=roots, server_name="a.example"), "b.example"),
            (TLS(verify=False), "b.example"),
        ):
            pool = c.pool(Origin.of(up.url(scheme="https", host=host), tls=tls)[0])
            for _ in range(2):
                assert (await ask(pool, b"x" * 100_000, method=b"POST")).take() == b"hi"
            assert pool.open == 1
        assert protocols == ["http/1.1"] * 4
        assert seen == ["tls"] * 4
        for tls, host in ((TLS(ca=roots), "b.example"), (None, "a.example")):
            pool = c.pool(Origin.of(up.url(scheme="https", host=host), tls=tls)[0])
            failure = await failing(ask(pool), 502)
            assert "certificate" in failure.message
            assert pool.open == 0


async def test_a_client_certificate(ca: trustme.CA, roots: str, tmp_path: Path) -> None:
    context = server_context(ca, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    mine = ca.issue_cert("client@example.com")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(pem.bytes() for pem in mine.cert_chain_pems))
    mine.private_key_pem.write_to_path(key)
    async with upstream(polite, tls=context) as up, client() as c:
        tls = TLS(ca=roots, cert=str(cert), key=str(key))
        assert (await ask(c.pool(Origin.of(up.url(scheme="https"), tls=tls)[0]))).status == 200
        with pytest.raises(Failure) as raised:
            await ask(c.pool(Origin.of(up.url(scheme="https"), tls=TLS(ca=roots))[0]))
        assert raised.value.status == 502


async def test_a_tls_handshake_that_hangs_or_is_not_tls(roots: str) -> None:
    async def silent(peer: Peer) -> None:
        await peer.closed()

    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with upstream(silent) as up, client() as c:
        pool = c.pool(Origin.of(up.url(scheme="https"), tls=TLS(ca=roots))[0])
        assert (await failing(ask(pool, connect=0.1), 504)).retry
        await up.until_left(1)
        call = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.03)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await up.until_left(2)
        assert pool.open == 0
    async with upstream(plain) as up, client() as c:
        pool = c.pool(Origin.of(up.url(scheme="https"), tls=TLS(ca=roots))[0])
        assert (await failing(ask(pool), 502)).retry


async def test_tls_leaves_nothing_for_the_collector(ca: trustme.CA, roots: str) -> None:
    async with upstream(polite, tls=server_context(ca, "127.0.0.1")) as up, client() as c:
        pool = c.pool(Origin.of(up.url(scheme="https"), tls=TLS(ca=roots))[0])
        await ask(pool)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await ask(pool)
            assert gc.collect() == 0
        finally:
            gc.enable()


async def test_contexts_are_made_once_and_bounded(roots: str) -> None:
    async with client() as c:
        connector = c._connector
        tls = TLS(ca=roots)
        assert connector._context(tls) is connector._context(TLS(ca=roots))
        assert connector._context(tls) is connector._context(TLS(ca=roots, server_name="a"))
        for i in range(300):
            connector._context(TLS(ca=roots, key=str(i)))
        assert len(connector._contexts) <= 256


async def test_files_of_an_upstream_that_change_are_read_again(
    ca: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    roots, cert, key = (tmp_path / name for name in ("roots.pem", "cert.pem", "key.pem"))

    def issue() -> None:
        issued = ca.issue_cert("gateway@example.com")
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))

    seen: list[str] = []

    async def serve(peer: Peer) -> None:
        seen.append(peer.writer.get_extra_info("peercert")["serialNumber"])
        await peer.request()
        await peer.send(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

    ca.cert_pem.write_to_path(str(roots))
    issue()
    context = server_context(ca, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    async with upstream(serve, tls=context) as up, client() as c:
        tls = TLS(ca=str(roots), cert=str(cert), key=str(key))
        origin = Origin.of(up.url(scheme="https"), tls=tls)[0]
        pool = c.pool(origin)
        for _ in range(2):
            assert (await ask(pool)).status == 200
        issue()
        assert (await ask(pool)).status == 200
        assert seen[0] == seen[1] != seen[2]
        # What cannot be loaded leaves in use what was, and says so once; as a setting it is refused.
        key.write_text("nonsense")
        with pytest.raises(OriginError, match=r"key\.pem.*no PEM private key"):
            c._connector.prepare(origin)
        caplog.clear()
        for _ in range(2):
            assert (await ask(pool)).status == 200
        assert caplog.text.count("what was loaded before stays in use") == 1
        assert seen[3] == seen[4] == seen[2]
        issue()
        assert (await ask(pool)).status == 200
        assert seen[5] not in seen[:5]
        # An authority that is taken out is trusted no more.
        trustme.CA().cert_pem.write_to_path(str(roots))
        failure = await failing(ask(pool), 502)
        assert "certificate was refused" in failure.message


# ---- outbound proxy


class Proxy:
    """Answers CONNECT and joins the two sides. seen: the heads it got."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", to: int | None = None) -> None:
        self.answer = answer
        self.to = to
        self.seen: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        head, _ = await peer.request()
        self.seen.append(head)
        for byte in self.answer[:5], self.answer[5:]:
            await peer.send(byte)
            await asyncio.sleep(0.002)
        if b" 200" not in self.answer[:13]:
            return
        _, _, port = head.split()[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        back = asyncio.create_task(copy(reader, peer.writer))
        try:
            await copy(peer.reader, writer)
            await back
        finally:
            back.cancel()


async def test_through_a_proxy(ca: trustme.CA, roots: str) -> None:
    proxy = Proxy()
    async with (
        upstream(polite, tls=server_context(ca, "a.example")) as secure,
        upstream(polite) as plain,
        upstream(proxy) as through,
        client() as c,
    ):
        url = f"http://us%40er:pass@127.0.0.1:{through.port}"
        for target, scheme in ((secure, "https"), (plain, "http")):
            tls = TLS(ca=roots) if scheme == "https" else None
            pool = c.pool(Origin.of(target.url(scheme=scheme, host="a.example"), tls=tls, proxy=url)[0])
            for _ in range(2):
                assert (await ask(pool)).take() == b"hi"
            assert target.connections == 1
        lines = proxy.seen[0].split(b"\r\n")
        assert lines[0] == b"CONNECT a.example:%d HTTP/1.1" % secure.port
        assert lines[1] == b"host: a.example:%d" % secure.port
        assert lines[2] == b"proxy-authorization: Basic " + base64.b64encode(b"us@er:pass")
        assert len(proxy.seen) == 2  # the http origin is tunnelled, too


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\nbody",
        b"HTTP/1.1 2",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 forged\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000,
    ],
)
async def test_a_proxy_that_does_not_connect(answer: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    async with upstream(play) as through, client() as c:
        proxy = f"http://u:secret@127.0.0.1:{through.port}"
        pool = c.pool(Origin.of("http://a.example/", proxy=proxy)[0])
        failure = await failing(ask(pool), 502)
        assert "secret" not in failure.message + failure.detail
        assert "proxy" in failure.detail
        assert pool.open == 0


async def test_a_silent_proxy_and_a_caller_that_leaves() -> None:
    async def silent(peer: Peer) -> None:
        await peer.closed()

    async with upstream(silent) as through, client() as c:
        pool = c.pool(Origin.of("http://a.example/", proxy=f"http://127.0.0.1:{through.port}")[0])
        await failing(ask(pool, connect=0.1), 504)
        await through.until_left(1)
        call = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.03)
        call.cancel()
        await asyncio.wait([call])
        await through.until_left(2)
        assert pool.open == 0


async def test_a_guarded_document_asks_the_proxy_for_the_checked_address() -> None:
    proxy = Proxy()
    names = Names((V4, "127.0.0.1"))
    async with (
        upstream(polite) as up,
        upstream(proxy) as through,
        client(egress=Egress(["127.0.0.1"]), lookup=names) as c,
    ):
        fetched = await c.fetch(up.url(host="a.example"), proxy=f"http://127.0.0.1:{through.port}")
        assert fetched.body == b"hi"
        assert proxy.seen[0].startswith(b"CONNECT 127.0.0.1:%d " % up.port)


async def test_failed_connections_leave_nothing_for_the_collector(roots: str) -> None:
    async def plain(peer: Peer) -> None:
        await peer.closed()

    names = Names((V4, "127.0.0.4"), (V4, "127.0.0.5"))
    async with upstream(plain) as up, client(lookup=names) as c:
        pools = [
            c.pool(Origin.of(url, proxy=proxy)[0])
            for url, proxy in (
                ("http://127.0.0.1:1", None),
                ("http://a.example:1", None),
                ("http://a.example:1", f"http://127.0.0.1:{up.port}"),
            )
        ]
        gc.collect()
        gc.disable()
        try:
            for pool in pools:
                for _ in range(5):
                    try:
                        await ask(pool, connect=0.05)
                    except Failure:
                        pass
                await asyncio.sleep(0.02)
                assert gc.collect() == 0, pool.origin
        finally:
            gc.enable()
