"""The egress guard: which addresses are public, which URLs are plain, and what is dialled is what was checked."""

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.net.upstreams import Peer, client, upstream

from tollhouse.core.errors import Failure, Reason
from tollhouse.net.egress import Egress, is_public

ASYNC = pytest.mark.anyio

CLOSED = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.0.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::8.8.8.8"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1", "2001:0:7f00:1::", "2001:0:808:808::1", "2001:2::1"),
    *("2a00:1450::5efe:a00:1", "2a00:1450::200:5efe:7f00:1", "5f00::1", "4000::1", "::ffff:0:7f00:1"),
]
OPEN = [
    *(
        "8.8.8.8",
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "223.255.255.255",
    ),
    *("2a00:1450:4001:81b::200e", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"),
]


@pytest.mark.parametrize("address", CLOSED)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OPEN)
def test_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_what_is_public_is_global_to_python_too(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(str(ip)):
        carried = getattr(ip, "ipv4_mapped", None)
        nat64 = ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96")
        assert nat64 or (carried or ip).is_global
        assert not ip.is_multicast


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com/", "example.com", ""),
        *("http:///x", "http://", "https://:443/", "http://exa mple.com/", "http://example.com\\@127.0.0.1/"),
        *("http://user@example.com/", "http://user:pw@example.com/", "http://example.com@127.0.0.1/"),
        *("http://127.1/", "http://2130706433/", "http://0x7f.0.0.1/", "http://0x7f000001/", "http://0177.0.0.1/"),
        *("http://127.0.0.01/", "http://1.2.3.4.5/", "http://a.0x1/", "http://localhost./", "http://127.0.0.1./"),
        *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1/", "http://::1/", "http://[127.0.0.1]/"),
        *("http://\u2460\u2461\u2467.0.0.1/", "http://ex\u00e4mple.com/", "http://%6cocalhost/", "http://a..b/"),
        *("http://example.com:0/", "http://example.com:65536/", "http://example.com:x/", "http://example.com:/"),
        *("http://example.com/a b", "http://example.com/\r\nx: y", "http://example.com/\x00", " http://example.com/"),
        *("http://-a/", "http://" + "a" * 300 + "/", "http://exa\tmple.com/", "http://example.com:80:90/"),
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(Failure) as raised:
        Egress().origin(url)
    assert raised.value.code == "egress_refused"
    assert (raised.value.status, raised.value.reason) == (502, Reason.UPSTREAM_FAILURE)
    assert not raised.value.retry


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://Example.COM", "example.com", 443, b"/"),
        ("http://example.com:8080/a?b=c#d", "example.com", 8080, b"/a?b=c"),
        ("HTTPS://example.com?x", "example.com", 443, b"/?x"),
        ("http://[2606:4700:4700:0:0::1111]:81/", "2606:4700:4700::1111", 81, b"/"),
        ("https://8.8.8.8/", "8.8.8.8", 443, b"/"),
        ("https://xn--exmple-cua.com/%C3%A4", "xn--exmple-cua.com", 443, b"/%C3%A4"),
        ("http://1a.b0x1.example/", "1a.b0x1.example", 80, b"/"),
    ],
)
def test_plain_urls(url: str, host: str, port: int, path: bytes) -> None:
    origin, found = Egress().origin(url)
    assert (origin.host, origin.port, found) == (host, port, path)


def test_one_address_that_is_not_public_refuses_the_name() -> None:
    guard = Egress()
    guard.admit("a.example", [(socket.AF_INET, "8.8.8.8")])
    with pytest.raises(Failure) as raised:
        guard.admit("a.example", [(socket.AF_INET, "8.8.8.8"), (socket.AF_INET6, "::1")])
    assert "::1" not in raised.value.message
    assert "::1" in raised.value.detail
    with pytest.raises(Failure):
        guard.admit("a.example", [(socket.AF_INET6, "2606:4700::1%eth0")])


def test_what_the_operator_allows() -> None:
    guard = Egress(("10.1.0.0/16", "Idp.Internal", "127.0.0.1", "[::1]"))
    guard.admit("x", [(socket.AF_INET, "10.1.2.3"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
    guard.admit("x", [(socket.AF_INET6, "::ffff:10.1.2.3")])
    guard.admit("idp.internal", [(socket.AF_INET, "10.9.9.9")])
    for host, address in (("x", "10.2.0.1"), ("idp.internal.evil", "10.9.9.9"), ("x", "127.0.0.2")):
        with pytest.raises(Failure):
            guard.admit(host, [(socket.AF_INET, address)])
    for entry in ("10.0.0.0/40", "10.0.0.1/8", "a b", "http://x", "1.2.3", ""):
        with pytest.raises(ValueError, match="network"):
            Egress((entry,))


# ---- fetched


async def page(peer: Peer) -> None:
    head, _ = await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))


@ASYNC
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_loopback_is_refused_without_a_connection(host: str) -> None:
    async with upstream(page) as up, client() as c:
        with pytest.raises(Failure) as raised:
            await c.fetch(up.url("/", host=host))
        assert raised.value.code == "egress_refused"
        assert up.connections == 0
        if host == "localhost":  # an operator's own URL is not guarded
            assert (await c.fetch(up.url("/jwks"), guarded=False)).status == 200


@ASYNC
async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    asked = 0

    async def rebinding(host: str, port: int) -> list[tuple[int, str]]:
        nonlocal asked
        asked += 1
        return [(socket.AF_INET, "127.0.0.1" if asked == 1 else "127.0.0.2")]

    async with upstream(page) as up, client(egress=Egress(["127.0.0.1"]), lookup=rebinding) as c:
        fetched = await c.fetch(up.url("/a", host="rebind.example"))
        assert asked == 1
        assert b"host: rebind.example:%d" % up.port in fetched.body
        assert up.connections == 1


@ASYNC
async def test_a_name_with_one_closed_address_is_refused() -> None:
    async def lookup(host: str, port: int) -> list[tuple[int, str]]:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "10.0.0.1")]

    async with upstream(page) as up, client(egress=Egress(["127.0.0.1"]), lookup=lookup) as c:
        with pytest.raises(Failure) as raised:
            await c.fetch(up.url("/a", host="two.example"))
        assert raised.value.code == "egress_refused"
        assert up.connections == 0


@ASYNC
async def test_redirects_are_checked_hop_by_hop() -> None:
    target = ""
    seen: list[bytes] = []

    async def play(peer: Peer) -> None:
        head, _ = await peer.request()
        seen.append(head)
        if head.startswith(b"GET /start"):
            await peer.send(
                b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % target.encode("latin-1")
            )
        elif head.startswith(b"GET /loop"):
            await peer.send(b"HTTP/1.1 307 Found\r\nlocation: /loop\r\ncontent-length: 0\r\n\r\n")
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    async with upstream(play) as up, upstream(play) as inner, client(egress=Egress(["127.0.0.1"])) as c:
        start = up.url("/start")
        target = "../other?x=1"
        fetched = await c.fetch(start)
        assert (fetched.body, fetched.url) == (b"hi", up.url("/other?x=1"))
        for target in ("http://127.0.0.2/", "http://[::1]/", "http://2130706433/", "file:///etc/passwd", "http://ü/"):
            with pytest.raises(Failure) as raised:
                await c.fetch(start)
            assert raised.value.code == "egress_refused", target
            with pytest.raises(Failure) as raised:  # an operator's URL may not lead there either
                await c.fetch(start, guarded=False)
            assert raised.value.status == 502
        with pytest.raises(Failure, match="more than 5 times"):
            await c.fetch(up.url("/loop"))
        with pytest.raises(Failure, match="more than 0 times"):
            await c.fetch(up.url("/loop"), redirects=0)
        target = inner.url("/deep")
        seen.clear()
        fields = [(b"Authorization", b"Bearer s"), (b"Private-Token", b"secret"), (b"Accept", b"text/plain")]
        await c.fetch(start, headers=fields)
        assert b"Bearer s" in seen[0]
        assert b"secret" in seen[0]
        assert b"Bearer s" not in seen[1]
        assert b"secret" not in seen[1]
        assert b"Accept: text/plain" in seen[1]
        target = "/other"
        seen.clear()
        await c.fetch(start, headers=fields)
        assert b"secret" in seen[1]
        target = inner.url("/deep")
        fetched = await c.fetch(start, method="POST", body=b"x")
        assert fetched.status == 200
        fetched = await c.fetch(up.url("/start"), redirects=1)
        assert fetched.body == b"hi"


@ASYNC
async def test_what_is_fetched_is_bounded_in_size_and_time() -> None:
    async def play(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/large" in head:
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)
        elif b"/drip" in head:
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
            while True:
                await peer.send(b"x")
                await asyncio.sleep(0.01)
        await peer.closed()

    async with upstream(play) as up, client() as c:
        with pytest.raises(Failure, match="larger"):
            await c.fetch(up.url("/large"), guarded=False, limit=1000)
        for path in ("/drip", "/silent"):
            with pytest.raises(Failure) as raised:
                await c.fetch(up.url(path + "?key=hidden"), guarded=False, timeout=0.2)
            assert (raised.value.status, raised.value.detail) == (504, up.url(path))
        await up.until_left(3)


@ASYNC
async def test_fetch_builds_its_own_head() -> None:
    async with upstream(page) as up, client() as c:
        fetched = await c.fetch(up.url("/a?b"), guarded=False, headers=[(b"Accept", b"application/json")])
        lines = fetched.body.split(b"\r\n")
        assert lines[0] == b"GET /a?b HTTP/1.1"
        assert b"Accept: application/json" in lines
        assert not any(line.startswith(b"accept: ") for line in lines)
        assert b"connection: close" in lines
        posted = await c.fetch(up.url("/a"), guarded=False, method="POST", body=b"abc")
        assert b"content-length: 3" in posted.body
        assert (await c.fetch(up.url("/a"), guarded=False, method="HEAD")).body == b""
        for bad in ([(b"a b", b"c")], [(b"a", b"b\r\nc: d")], [(b"", b"x")]):
            with pytest.raises(ValueError, match=r"header|value"):
                await c.fetch(up.url("/"), guarded=False, headers=bad)
        with pytest.raises(ValueError, match="method"):
            await c.fetch(up.url("/"), guarded=False, method="GET /\r\n")
        with pytest.raises(Failure):
            await c.fetch("http://user@x/", guarded=False)


@ASYNC
async def test_a_host_that_is_not_found() -> None:
    async def lookup(host: str, port: int) -> list[tuple[int, str]]:
        raise OSError("no such host")

    async with client(lookup=lookup) as c:
        for guarded in (True, False):
            with pytest.raises(Failure) as raised:
                await c.fetch("http://nowhere.example/", guarded=guarded)
            assert (raised.value.status, raised.value.retry, raised.value.sent) == (502, True, False)
