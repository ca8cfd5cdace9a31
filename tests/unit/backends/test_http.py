"""The reverse proxy over real sockets: what the upstream gets, what the client gets, and what happens when it fails."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest
import trustme
from pydantic import ValidationError
from tests.fixtures.garbage import collected
from tests.fixtures.gone import until_gone
from tests.unit.net.upstreams import stand_still

from tollhouse.backends.http import HttpBackend, HttpRouteSpec
from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.http import Ending, Request, Response
from tollhouse.gateway.router import Route, Router
from tollhouse.net.client import Client
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer

pytestmark = pytest.mark.anyio

Fields = list[tuple[str, str]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Seen:
    """A request as the upstream got it."""

    def __init__(self, line: str, fields: Fields, body: bytes) -> None:
        self.method, self.target, _ = line.split(" ")
        self.fields = fields
        self.body = body

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.fields if n == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))


Answer = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes | None]]


async def read_head(reader: asyncio.StreamReader) -> tuple[str, Fields]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    return head[0], [(n.lower(), v) for n, v in (line.split(": ", 1) for line in head[1:])]


async def read_body(reader: asyncio.StreamReader, fields: Fields) -> bytes:
    named = dict(fields)
    if named.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        return body
    return await reader.readexactly(int(named.get("content-length", "0")))


class Upstream:
    """An HTTP/1.1 server that answers with what `answer` returns: bytes, or None to close the connection."""

    def __init__(self, answer: bytes | Answer = OK, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.tls = tls
        self.seen: list[Seen] = []
        self.closed = asyncio.Event()  # some connection was closed by the gateway
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Upstream":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20, ssl=self.tls)
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with until_gone(writer):
            try:
                while True:
                    line, fields = await read_head(reader)
                    eager = not callable(self.answer) or not hasattr(self.answer, "reads_body")
                    seen = Seen(line, fields, await read_body(reader, fields) if eager else b"")
                    self.seen.append(seen)
                    answer = await self.answer(seen, reader, writer) if callable(self.answer) else self.answer
                    if answer is None:
                        break
                    writer.write(answer)
                    await writer.drain()
            finally:
                self.closed.set()


class Reply:
    def __init__(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self.fields = fields
        self.body = body

    def get(self, name: str) -> str | None:
        values = [v for n, v in self.fields if n == name]
        assert len(values) < 2
        return values[0] if values else None


class Gateway:
    """A server whose only handler is a Router over one route."""

    def __init__(self, listener: Listener, backend: HttpBackend, client: Client, clock: Clock) -> None:
        self.listener = listener
        self.backend = backend
        self.client = client
        self.clock = clock
        self.endings: list[Ending] = []
        self.requests: list[Request] = []
        self.retried: list[str] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.listener.port, limit=1 << 20)

    async def send(self, raw: bytes) -> Reply:
        reader, writer = await self.connect()
        try:
            writer.write(raw)
            return await receive(reader, head=raw.startswith(b"HEAD"))
        finally:
            writer.close()

    async def get(self, target: str, *fields: tuple[str, str], method: str = "GET", body: bytes = b"") -> Reply:
        lines = [f"{method} {target} HTTP/1.1", *(f"{n}: {v}" for n, v in fields)]
        if not any(n.lower() == "host" for n, _ in fields):
            lines.append("host: gateway.example:8080")
        if body:
            lines.append(f"content-length: {len(body)}")
        return await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


async def receive(reader: asyncio.StreamReader, *, head: bool = False) -> Reply:
    async with asyncio.timeout(10):
        line, fields = await read_head(reader)
        status = int(line.split()[1])
        named = dict(fields)
        if head or status in (204, 304, 101):
            return Reply(status, fields, b"")
        if "content-length" in named or "transfer-encoding" in named:
            return Reply(status, fields, await read_body(reader, fields))
        return Reply(status, fields, await reader.read())


@asynccontextmanager
async def gateway(
    *to: Upstream | str,
    trusted: tuple[str, ...] = (),
    principal: Principal | None = None,
    before: Callable[[Request], None] = lambda request: None,
    **fields: object,
) -> AsyncIterator[Gateway]:
    urls = [u if isinstance(u, str) else u.url for u in to]
    spec = HttpRouteSpec.model_validate({"name": "route", "to": urls, **fields})
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client = Client(clock)
    predicate = spec.compile()
    retried: list[str] = []
    backend = HttpBackend(
        spec,
        predicate,
        client,
        clock,
        forwarding=Forwarding(trusted),
        retried=lambda context, why: retried.append(why),
    )
    router = Router([Route(spec.name, (predicate,), backend.handle)])
    made: Gateway

    async def handler(request: Request) -> Response:
        made.requests.append(request)
        request.ends.append(made.endings.append)
        request.context.principal = principal
        before(request)
        return await router.handle(request)

    server = Server(handler, clock)
    listener = Listener(server, bind(Address("127.0.0.1", 0)))
    made = Gateway(listener, backend, client, clock)
    made.retried = retried
    await listener.start()
    backend.start()
    try:
        yield made
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()
        await backend.close()
        await client.close()
        timer.stop()


async def dead_url() -> str:
    """A URL where nothing listens."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"


# ---- what the upstream gets


async def test_a_request_and_its_answer() -> None:
    async def answer(seen: Seen, *_: object) -> bytes:
        return b"HTTP/1.1 201 Made\r\ncontent-type: text/x\r\ncontent-length: 4\r\nx-a: 1\r\nx-a: 2\r\n\r\nmade"

    async with Upstream(answer) as upstream, gateway(upstream, path="/ai/chat/") as g:
        reply = await g.get("/ai/chat/x?q=1&q=%20", ("x-b", "b"), ("cookie", "c=1"), method="POST", body=b"hello")
        assert (reply.status, reply.body) == (201, b"made")
        assert [v for n, v in reply.fields if n == "x-a"] == ["1", "2"]
        assert reply.get("content-type") == "text/x"
        (seen,) = upstream.seen
        assert (seen.method, seen.target, seen.body) == ("POST", "/ai/chat/x?q=1&q=%20", b"hello")
        assert seen["host"] == upstream.url.removeprefix("http://")
        assert (seen["x-b"], seen["cookie"], seen["content-length"]) == ("b", "c=1", "5")
        context = g.requests[0].context
        assert (context.route, context.operation, context.attempts) == ("route", "http", 1)
        assert context.backend == seen["host"]
        assert context.began <= context.upstream_began <= context.first_event <= context.upstream_ended
        assert g.endings[0].reason == "Upstream"


@pytest.mark.parametrize(
    "fields, target, sent",
    [
        ({"path": "/ai/chat/", "strip_prefix": True}, "/ai/chat", "/"),
        ({"path": "/ai/chat/", "strip_prefix": True}, "/ai/chat/", "/"),
        ({"path": "/ai/chat/", "strip_prefix": True}, "/ai/chat/x/?a", "/x/?a"),
        ({"path": "/ai", "rewrite": {"prefix": "/v2/"}}, "/ai/x", "/v2/x"),
        ({"path": "/ai", "rewrite": {"prefix": "/v2"}}, "/ai", "/v2"),
        ({"path": "/", "rewrite": {"prefix": "/v2"}}, "/x", "/v2/x"),
        ({"path": "/ai", "rewrite": {"path": "/fixed"}}, "/ai/x?q", "/fixed?q"),
        ({"exact": "/ai", "rewrite": {"path": "/fixed"}}, "/ai", "/fixed"),
        ({"path": "/"}, "/a/%2e%2e//b/%7e%2f", "/b/~%2F"),
        ({"path": "/", "rewrite": {"query": {"remove": ["a b"], "set": {"k": "1 &"}, "add": {"n": "ü"}}}},
         "/?a+b=1&a%20b=2&k=9&x=%2F&", "/?x=%2F&k=1%20%26&n=%C3%BC"),
        ({"path": "/", "rewrite": {"query": {"remove": ["a"]}}}, "/?a=1", "/"),
    ],
)  # fmt: skip
async def test_the_target(fields: dict[str, object], target: str, sent: str) -> None:
    async with Upstream() as upstream, gateway(upstream, **fields) as g:
        assert (await g.get(target)).status == 200
        assert upstream.seen[0].target == sent


async def test_an_upstream_with_a_path_of_its_own() -> None:
    async with Upstream() as upstream, gateway(upstream.url + "/base/", path="/ai", strip_prefix=True) as g:
        for target, sent in (("/ai", "/base"), ("/ai/", "/base/"), ("/ai/x", "/base/x")):
            await g.get(target)
            assert upstream.seen[-1].target == sent


async def test_hop_by_hop_fields_stay_behind_both_ways() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nconnection: keep-alive, X-Hop\r\nkeep-alive: timeout=5\r\nx-hop: 1\r\n"
        b"proxy-authenticate: Basic\r\nupgrade: h2c\r\ntrailer: x\r\nx-stays: 1\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n"
    )
    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reply = await g.get(
            "/",
            ("Connection", "X-One , close,x-two"),
            ("X-One", "1"),
            ("x-two", "2"),
            ("X_One", "3"),
            ("Keep-Alive", "300"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic x"),
            ("TE", "trailers"),
            ("Trailer", "x"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("X-Stays", "1"),
        )
        assert reply.body == b"ok"
        names = {n for n, _ in upstream.seen[0].fields}
        assert names == {
            "host", "x-stays", "via", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
        }  # fmt: skip
        names = {n for n, _ in reply.fields}
        assert names == {"date", "connection", "x-stays", "content-length"}


async def test_provenance_is_ours_unless_the_peer_is_trusted() -> None:
    said = (
        ("X-Forwarded-For", "10.9.9.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X-Forwarded-User", "root"),
        ("X_Forwarded_For", "10.9.9.9"),
        ("Forwarded", "for=10.9.9.9"),
        ("X-Real-IP", "10.9.9.9"),
        ("X-Original-URL", "/admin"),
        ("Client-Cert", ":MIIB:"),
    )
    async with Upstream() as upstream:
        async with gateway(upstream, path="/a", strip_prefix=True) as g:
            await g.get("/a/x", *said)
            seen = upstream.seen[0]
            assert seen["x-forwarded-for"] == "127.0.0.1"
            assert seen["x-forwarded-proto"] == "http"
            assert seen["x-forwarded-host"] == "gateway.example:8080"
            assert seen["x-forwarded-prefix"] == "/a"
            assert seen["forwarded"] == 'for=127.0.0.1;host="gateway.example:8080";proto=http'
            for name in ("x-forwarded-user", "x_forwarded_for", "x-real-ip", "x-original-url", "client-cert"):
                assert name not in seen
        async with gateway(upstream, trusted=("127.0.0.0/8",), path="/a", strip_prefix=True) as g:
            await g.get("/a/x", *said, ("X-Forwarded-Prefix", "/outer/"))
            seen = upstream.seen[1]
            assert seen["x-forwarded-for"] == "10.9.9.9, 127.0.0.1"
            assert seen["x-forwarded-proto"] == "https"
            assert seen["x-forwarded-host"] == "evil"
            assert seen["x-forwarded-user"] == "root"
            assert seen["client-cert"] == ":MIIB:"
            assert seen["x-forwarded-prefix"] == "/outer/a"
            assert seen["forwarded"] == 'for=10.9.9.9, for=127.0.0.1;host="gateway.example:8080";proto=http'
            assert "x_forwarded_for" not in seen


@pytest.mark.parametrize(
    "principal, passes, stays",
    [
        (None, False, True),
        (Principal("anonymous", source="anonymous"), False, True),
        (Principal("key:ci", source="key"), False, False),
        (Principal("jwt:x", source="jwt"), False, False),
        (Principal("key:ci", source="key"), True, True),
    ],
)
async def test_the_gateways_own_credential_is_not_passed_on(
    principal: Principal | None, passes: bool, stays: bool
) -> None:
    async with Upstream() as upstream, gateway(upstream, principal=principal, pass_credentials=passes) as g:
        await g.get("/", ("Authorization", "Bearer x"), ("X-Api-Key", "k"), ("X_Api_Key", "k"))
        seen = upstream.seen[0]
        assert ("authorization" in seen, "x-api-key" in seen, "x_api_key" in seen) == (stays, stays, stays)


async def test_header_fields_for_the_upstream() -> None:
    rewrite = {"headers": {"Authorization": "Bearer upstream", "X-Forwarded-For": "hidden", "x-set": "new"}}
    principal = Principal("key:ci", source="key")
    async with Upstream() as upstream, gateway(upstream, principal=principal, rewrite=rewrite) as g:
        await g.get("/", ("authorization", "Bearer mine"), ("x-set", "old"), ("X_Set", "old"))
        seen = upstream.seen[0]
        assert (seen["authorization"], seen["x-forwarded-for"], seen["x-set"]) == ("Bearer upstream", "hidden", "new")
        assert "x_set" not in seen


@pytest.mark.parametrize(
    "fields, host",
    [({"preserve_host": True}, "gateway.example:8080"), ({"rewrite": {"host": "inner.example"}}, "inner.example")],
)
async def test_host(fields: dict[str, object], host: str) -> None:
    async with Upstream() as upstream, gateway(upstream, **fields) as g:
        await g.get("/")
        assert upstream.seen[0]["host"] == host


@pytest.mark.parametrize(
    "location, seen",
    [
        ("{}/base/x?y", "/ai/x?y"),
        ("{}/base", "/ai"),
        ("{}/elsewhere", "{}/elsewhere"),
        ("{}0/base/x", "{}0/base/x"),
        ("/base/x", "/base/x"),
        ("https://other.example/", "https://other.example/"),
    ],
)
async def test_a_redirect_to_the_upstream_itself_leads_back_to_the_route(location: str, seen: str) -> None:
    async with Upstream() as upstream, gateway(upstream.url + "/base", path="/ai", strip_prefix=True) as g:
        said = location.format(upstream.url).encode()
        upstream.answer = b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % said
        assert (await g.get("/ai/x")).get("location") == seen.format(upstream.url)


async def test_the_request_id_travels() -> None:
    def name(request: Request) -> None:
        request.context.request_id = "r-1"

    answer = b"HTTP/1.1 200 OK\r\nx-request-id: theirs\r\ncontent-length: 0\r\n\r\n"
    async with Upstream(answer) as upstream, gateway(upstream, before=name) as g:
        reply = await g.get("/", ("x-request-id", "spoofed"))
        assert upstream.seen[0]["x-request-id"] == "r-1"
        assert reply.get("x-request-id") == "r-1"


# ---- methods and bodies


async def test_head_and_bodyless_answers() -> None:
    async with Upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n") as upstream, gateway(upstream) as g:
        reply = await g.get("/", method="HEAD")
        assert reply.get("content-length") == "1234"
        upstream.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        assert (await g.get("/")).status == 204
        upstream.answer = b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n'
        reply = await g.get("/")
        assert (reply.status, reply.get("etag")) == (304, '"x"')
        assert [s.method for s in upstream.seen] == ["HEAD", "GET", "GET"]


async def test_options_trace_and_max_forwards() -> None:
    async with Upstream() as upstream, gateway(upstream) as g:
        assert (await g.get("/", ("max-forwards", "2"), method="OPTIONS")).status == 200
        assert upstream.seen[0]["max-forwards"] == "1"
        assert (await g.get("/", ("max-forwards", "0"), method="OPTIONS")).status == 204
        assert (await g.get("/", method="TRACE")).status == 405
        assert len(upstream.seen) == 1


async def test_framing_of_request_bodies() -> None:
    async with Upstream() as upstream, gateway(upstream) as g:
        await g.get("/")
        assert "content-length" not in upstream.seen[-1]
        await g.send(b"POST / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert upstream.seen[-1]["content-length"] == "0"
        await g.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert (upstream.seen[-1]["content-length"], upstream.seen[-1].body) == ("3", b"abc")
        await g.get("/", method="POST", body=b"x" * 300_000)
        assert upstream.seen[-1]["content-length"] == "300000"
        assert upstream.seen[-1].body == b"x" * 300_000
        chunk = b"%x\r\n%b\r\n" % (50_000, b"y" * 50_000)
        head = b"PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
        reader, writer = await g.connect()
        writer.write(head)
        assert (await read_head(reader))[0] == "HTTP/1.1 100 Continue"
        writer.write(chunk * 5 + b"0\r\n\r\n")
        assert (await receive(reader)).status == 200
        writer.close()
        assert upstream.seen[-1]["transfer-encoding"] == "chunked"
        assert upstream.seen[-1].body == b"y" * 250_000
        assert "expect" not in upstream.seen[-1]


async def test_a_streamed_upload_is_answered_while_it_runs() -> None:
    """Bytes go up and down at the same time."""

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while size := int(await reader.readline(), 16):
            data = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n%b" % (size, data))
        return b"0\r\n\r\n"

    answer.reads_body = True  # type: ignore[attr-defined]
    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reader, writer = await g.connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await read_head(reader)
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        assert await reader.readexactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"
        writer.close()


async def test_streams_go_through_as_they_come() -> None:
    go = asyncio.Event()

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go.wait()
        writer.write(b"data: 2\n\n")

    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reader, writer = await g.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await read_head(reader)
        assert await reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"
        go.set()
        assert await reader.readexactly(19) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        writer.close()
        assert g.endings[0].failure is None


async def test_a_large_answer_keeps_its_length_and_is_not_held() -> None:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n")
        await writer.drain()
        return b"z" * 5_000_000

    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reply = await g.get("/")
        assert reply.get("content-length") == "5000000"
        assert reply.body == b"z" * 5_000_000


async def test_the_client_leaving_ends_the_work_upstream() -> None:
    started = asyncio.Event()

    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        await reader.read()

    async with Upstream(answer) as upstream, gateway(upstream) as g:
        _, writer = await g.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await started.wait()
        writer.close()
        async with asyncio.timeout(5):
            await upstream.closed.wait()
        assert g.endings[0].gone


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("inner.example").configure_cert(context)
    tls = {"ca": str(tmp_path / "ca.pem"), "server_name": "inner.example"}
    async with Upstream(tls=context) as upstream:
        async with gateway(upstream, tls=tls) as g:
            assert (await g.get("/")).status == 200
        async with gateway(upstream, tls=tls | {"server_name": "other.example"}) as g:
            assert (await g.get("/")).status == 502
        with pytest.raises(ValueError, match="nowhere"):
            async with gateway(upstream, tls={"ca": str(tmp_path / "nowhere.pem")}):
                pass


# ---- WebSocket

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: a2V5\r\nsec-websocket-version: 13\r\n\r\n"
)


async def test_websocket_both_ways() -> None:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
        writer.write(b"sec-websocket-accept: yes\r\n\r\nhello ")
        while data := await reader.read(100):
            writer.write(data.upper())

    async with Upstream(answer) as upstream, gateway(upstream, timeout={"total": "1s", "idle": "1s"}) as g:
        reader, writer = await g.connect()
        writer.write(UPGRADE + b"early ")
        line, fields = await read_head(reader)
        assert line.startswith("HTTP/1.1 101 ")
        named = dict(fields)
        assert (named["upgrade"], named["connection"].lower()) == ("websocket", "upgrade")
        assert named["sec-websocket-accept"] == "yes"
        seen = upstream.seen[0]
        assert (seen["connection"], seen["upgrade"], seen["sec-websocket-key"]) == ("upgrade", "websocket", "a2V5")
        got = await reader.readexactly(12)
        assert sorted(got.split()) == [b"EARLY", b"hello"]
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"PING"
        writer.close()
        async with asyncio.timeout(5):
            await upstream.closed.wait()


async def test_websocket_closed_by_the_upstream() -> None:
    async def answer(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nbye")

    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reader, writer = await g.connect()
        writer.write(UPGRADE)
        await read_head(reader)
        async with asyncio.timeout(5):
            assert await reader.read() == b"bye"
        writer.close()


async def test_an_upgrade_may_be_declined() -> None:
    answer = b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno"
    async with Upstream(answer) as upstream, gateway(upstream) as g:
        reply = await g.send(UPGRADE)
        assert (reply.status, reply.body) == (426, b"no")


async def test_websocket_may_be_switched_off() -> None:
    async with Upstream() as upstream, gateway(upstream, websocket=False) as g:
        assert (await g.send(UPGRADE)).status == 200
        assert "upgrade" not in upstream.seen[0]


async def test_a_switch_nobody_asked_for_is_a_bad_gateway() -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
    async with Upstream(answer) as upstream, gateway(upstream, retry={"attempts": 1}) as g:
        assert (await g.get("/")).status == 502
        assert (await g.send(UPGRADE)).status == 502


# ---- several upstreams, failure, retry


async def close_it(*_: object) -> None:
    return None


async def test_weights() -> None:
    async with Upstream() as a, Upstream() as b:
        to = [{"url": a.url, "weight": 3}, b.url]
        async with gateway(to=to) as g:
            for _ in range(8):
                await g.get("/")
        assert (len(a.seen), len(b.seen)) == (6, 2)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unreachable_upstream_is_passed_over(method: str) -> None:
    """Nothing was sent, so the method does not matter."""
    async with Upstream() as alive, gateway(await dead_url(), alive) as g:
        for _ in range(4):
            assert (await g.get("/", method=method, body=b"b")).status == 200
        assert [s.body for s in alive.seen] == [b"b"] * 4
        assert g.retried == ["connect", "connect"]
        assert g.requests[0].context.attempts == 2
        assert g.requests[0].context.backend == alive.url.removeprefix("http://")


async def test_an_upstream_with_failures_is_ejected_and_tried_again() -> None:
    health = {"failures": 2, "eject": "30s"}
    async with Upstream(close_it) as bad, Upstream() as good, gateway(bad, good, health=health) as g:
        for _ in range(10):
            assert (await g.get("/")).status == 200
        assert len(bad.seen) == 2
        assert g.retried == ["reset", "reset"]
        bad.answer = OK
        member = g.backend._balancer.members[0]
        member.health.until = g.clock.now
        for _ in range(4):
            await g.get("/")
        assert len(bad.seen) > 2
        assert member.health.usable(g.clock.now)


async def test_only_what_may_be_repeated_is_repeated() -> None:
    async with Upstream(close_it) as bad, Upstream(close_it) as worse, gateway(bad, worse) as g:
        reply = await g.get("/", method="POST", body=b"x")
        assert reply.status == 502
        assert reply.get("x-tollhouse-reason") == "UpstreamFailure"
        assert reply.get("content-type") == "application/problem+json"
        assert len(bad.seen) + len(worse.seen) == 1
        assert (await g.get("/", method="PUT", body=b"x")).status == 502
        assert len(bad.seen) + len(worse.seen) == 3
        assert (await g.get("/", method="PUT", body=b"x" * 100_000)).status == 502
        assert len(bad.seen) + len(worse.seen) == 4, "a large body is not kept"


@pytest.mark.parametrize(
    ("method", "works", "seen"),
    [("PUT", 0.0, 2), ("POST", 0.0, 1), ("PUT", 0.5, 1), ("POST", 0.5, 1)],
)
async def test_a_kept_connection_that_closes(method: str, works: float, seen: int) -> None:
    """The close may have crossed the request: then it is sent again, if it may be done twice. One that was worked on
    never is, unless the route says so (`retry`)."""
    got: list[bytes] = []

    async def answer(asked: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        if asked.method == "GET":
            return OK
        got.append(asked.body)
        if len(got) > 1:
            return OK
        await asyncio.sleep(works)
        return None

    async with Upstream(answer) as upstream, gateway(upstream, retry={"attempts": 1}) as g:
        await g.get("/")
        if not works:
            stand_still(g.clock)
        assert (await g.get("/", method=method, body=b"pay")).status == (200 if seen > 1 else 502)
        assert got == [b"pay"] * seen
        assert not g.retried


async def test_a_route_has_its_connections_to_itself() -> None:
    """Another route to the same upstream, or a configuration that is built and refused, changes nothing of it."""
    async with Upstream() as upstream, gateway(upstream, connections=300) as g:
        spec = HttpRouteSpec.model_validate({"name": "other", "to": upstream.url, "connections": 2})
        (member,) = g.backend._balancer.members
        other = HttpBackend(spec, spec.compile(), g.client, g.clock)
        await g.get("/")
        assert (member.pool.limit, member.pool.idle) == (300, 1)
        (theirs,) = other._balancer.members
        assert (theirs.pool.limit, theirs.pool.open) == (2, 0)
        await other.close()
        assert member.pool.idle == 1
        await g.backend.close()
        assert member.pool.open == 0
        async with asyncio.timeout(5):
            await upstream.closed.wait()


async def test_a_status_may_be_tried_again_and_the_last_one_is_passed_on() -> None:
    async with Upstream(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy") as busy, gateway(busy) as g:
        reply = await g.get("/")
        assert (reply.status, reply.body, len(busy.seen)) == (503, b"busy", 2)
        assert (await g.get("/", method="POST")).status == 503
        assert len(busy.seen) == 3
        assert g.retried == ["503"]
        assert g.endings[0].reason == "Upstream"


async def test_no_retry_when_switched_off() -> None:
    async with Upstream(close_it) as bad, gateway(bad, retry={"attempts": 1}) as g:
        assert (await g.get("/")).status == 502
        assert len(bad.seen) == 1


async def test_retries_are_a_share_of_the_requests() -> None:
    answer = b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n"
    async with Upstream(answer) as busy, gateway(busy, retry={"backoff": "1ms"}) as g:
        began = monotonic()
        for _ in range(60):
            await g.get("/")
        allowed = 10 + 60 / 5 + 10 * (monotonic() - began)
        assert 60 + 10 <= len(busy.seen) <= 60 + allowed + 1


async def test_an_upstream_that_is_down_is_502() -> None:
    async with gateway(await dead_url()) as g:
        reply = await g.get("/")
        assert reply.status == 502
        assert reply.get("x-tollhouse-reason") == "UpstreamFailure"
        assert b"127.0.0.1" not in reply.body, "the client need not know where"


async def test_times() -> None:
    async def never(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def half(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await reader.read()

    async with Upstream(never) as silent, Upstream(half) as slow:
        async with gateway(silent, timeout={"first_byte": "100ms"}) as g:
            reply = await g.get("/")
            assert (reply.status, reply.get("x-tollhouse-reason"), len(silent.seen)) == (504, "Timeout", 1)
        async with gateway(silent, timeout={"total": "100ms"}) as g:
            assert (await g.get("/")).status == 504
        async with gateway(slow, timeout={"idle": "100ms"}) as g:
            with pytest.raises(asyncio.IncompleteReadError):
                await g.get("/")
            assert g.endings[0].failure is not None


async def test_an_answer_that_is_cut_is_cut_for_the_client_too() -> None:
    async def chunked(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async with Upstream(chunked) as upstream, gateway(upstream, health={"failures": 1}) as g:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            await g.get("/")
        assert g.endings[0].failure is not None
        assert g.backend._balancer.members[0].health.until > 0


async def test_active_checks() -> None:
    well = False
    asked = asyncio.Event()

    async def answer(seen: Seen, *_: object) -> bytes:
        asked.set()
        return OK if well else b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"

    check = {"path": "/health", "interval": "20ms", "healthy": 2, "unhealthy": 1}
    async with Upstream(answer) as upstream, gateway(upstream, health={"check": check}) as g:
        health = g.backend._balancer.members[0].health
        async with asyncio.timeout(10):
            while not health.down:
                await asyncio.sleep(0.01)
            reply = await g.get("/")
            assert (reply.status, reply.get("x-tollhouse-reason")) == (503, "NoHealthyBackend")
            assert {s.target for s in upstream.seen} == {"/health"}
            well = True
            while health.down:
                await asyncio.sleep(0.01)
        assert (await g.get("/")).status == 200


async def test_nothing_is_left_for_the_collector() -> None:
    async def stream(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        return b"3\r\nabc\r\n0\r\n\r\n"

    async with AsyncExitStack() as stack:
        plain, streamed = await stack.enter_async_context(Upstream()), await stack.enter_async_context(Upstream(stream))
        gateways = [await stack.enter_async_context(gateway(u)) for u in (plain, streamed)]
        connections = [await g.connect() for g in gateways]

        async def load() -> None:
            for g, (reader, writer) in zip(gateways, connections, strict=True):
                for _ in range(20):
                    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
                    assert (await receive(reader)).status == 200
                g.requests.clear()
                g.endings.clear()

        await load()
        with collected() as found:
            await load()
        assert not [o for o in found if type(o).__module__.startswith("tollhouse")]
        for _, writer in connections:
            writer.close()


# ---- configuration


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"to": []}, "at least 1"),
        ({"to": "ftp://x"}, "not a URL"),
        ({"to": "http://x/?a=1"}, "no query"),
        ({"to": {"url": "http://x", "weight": 0}}, "greater than or equal to 1"),
        ({"strip_prefix": True, "rewrite": {"prefix": "/x"}}, "no effect"),
        ({"exact": "/x", "strip_prefix": True}, "matches no prefix"),
        ({"preserve_host": True, "rewrite": {"host": "x"}}, "exclude"),
        ({"tls": {"verify": False}}, "no upstream has an https URL"),
        ({"rewrite": {"prefix": "/a/../b"}}, "normal form"),
        ({"rewrite": {"prefix": "/a", "path": "/b"}}, "not both"),
        ({"rewrite": {"headers": {"Content-Length": "1"}}}, "gateway's own"),
        ({"rewrite": {"headers": {"x": "a\r\nb: c"}}}, "cannot have"),
        ({"retry": {"on": ["404"]}}, "'connect'"),
        ({"timeout": {"idle": 5}}, "not a duration"),
        ({"health": {"check": {"path": "x"}}}, "pattern"),
        ({"too": 1}, "too"),
    ],
)
def test_bad_routes_say_what_would_be_right(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpRouteSpec.model_validate({"name": "r", "to": "http://127.0.0.1:1", **fields})
    assert says in str(caught.value)


def test_the_route_of_the_contract() -> None:
    spec = HttpRouteSpec.model_validate(
        {"name": "chat", "path": "/ai/chat/", "to": ["http://127.0.0.1:8101"], "strip_prefix": True}
    )
    assert spec.compile().path == b"/ai/chat"
    assert spec.retry.attempts == 2
    assert HttpRouteSpec.model_validate({"name": "r", "to": "http://x", "retry": {"on": [429, "5xx"]}}).retry.on == [
        "429",
        "5xx",
    ]
