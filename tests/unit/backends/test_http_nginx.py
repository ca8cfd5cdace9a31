"""A corpus of valid requests: an upstream sees through us what it sees through nginx, and so does the client."""

import asyncio
import codecs
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote_to_bytes

import msgspec
import pytest
from tests.fixtures.gone import until_gone

from tollhouse.backends.http import HttpBackend, HttpRouteSpec
from tollhouse.core.clock import Clock
from tollhouse.gateway.router import Route, Router
from tollhouse.net.client import Client
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer

UNPACKED = Path(__file__).parents[3] / ".cache/nginx/usr/sbin"  # by scripts/setup
NGINX = shutil.which("nginx") or shutil.which("nginx", path=f"/usr/sbin:/usr/local/sbin:{UNPACKED}")
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

CORPUS = Path(__file__).parents[1] / "net" / "corpus" / "valid.txt"

CONFIG = """
daemon off; master_process off; worker_processes 1; pid {dir}/pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    proxy_http_version 1.1; proxy_set_header Host upstream; proxy_set_header Connection ""; ignore_invalid_headers off;
    server {{ listen unix:{dir}/raw; location / {{ proxy_pass http://unix:{upstream}; }} }}
    server {{ listen unix:{dir}/normal; location / {{ proxy_pass http://unix:{upstream}:/; }} }}
}}
"""

OURS = re.compile(rb"via|forwarded|x-forwarded-.*")  # what nginx adds only if told to
HOPS = re.compile(rb"date|server|connection|keep-alive|transfer-encoding|content-length")


class Case(msgspec.Struct):
    name: str
    raw: bytes
    status: int


def cases() -> Iterator[Case]:
    for block in re.split(r"^=== ", CORPUS.read_text("ascii"), flags=re.MULTILINE)[1:]:
        title, _, text = block.partition("\n")
        status, _, name = title.partition(" ")
        raw = b""
        for line in text.split("\n")[:-1]:
            raw += codecs.decode(line.removesuffix("\\"), "unicode_escape").encode("latin-1")
            raw += b"" if line.endswith("\\") else b"\r\n"
        yield Case(name, raw, int(status))


class Seen(msgspec.Struct, frozen=True):
    """A request as the upstream got it, or an answer as the client did."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes


async def read(reader: asyncio.StreamReader, *, bodyless: bool = False, answer: bool = False) -> Seen:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
    fields = [(n.lower(), v) for n, v in (re.split(rb": ?", line, maxsplit=1) for line in lines[1:])]
    named = dict(fields)
    body = b""
    if bodyless:
        pass
    elif named.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif b"content-length" in named:
        body = await reader.readexactly(int(named[b"content-length"]))
    elif answer:
        body = await reader.read()
    return Seen(lines[0], fields, body)


class Upstream:
    """Answers as the target says, and keeps what it got last."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with until_gone(writer):
            while True:
                self.seen = seen = await read(reader)
                method, target, _ = seen.line.split()
                writer.write(self.answer(target, head=method == b"HEAD"))
                if target == b"/until-close":
                    break

    def answer(self, target: bytes, *, head: bool) -> bytes:
        if target.startswith(b"/status/"):
            status = target[8:]
            body = b"" if status in (b"204", b"304") else b"body of " + status
            length = b"content-length: %d\r\n" % len(body) if body else b""
            return b"HTTP/1.1 %b Some Words\r\n%bx-a: 1\r\n\r\n%b" % (status, length, body)
        if target == b"/chunked":
            chunks = b"" if head else b"5\r\nhello\r\n6;x\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n"
            return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
        if target == b"/until-close":
            return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nto the end"
        if target == b"/headers":
            fields = [
                b"set-cookie: a=1",
                b"Set-Cookie: b=2",
                b"X-Empty:",
                b'ETag: "x"',
                b"X-Utf: \xc3\xa9",
                b"vary: a",
                b"vary: b",
            ]
            return b"HTTP/1.1 200 OK\r\n%b\r\ncontent-length: 0\r\n\r\n" % b"\r\n".join(fields)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\n" + (b"" if head else b"hello")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="nginx") as name:  # short: a socket's name has at most 107 bytes
        path = Path(name)
        path.chmod(0o755)
        (path / "conf").write_text(CONFIG.format(dir=path, upstream=path / "up"))
        process = subprocess.Popen([str(NGINX), "-p", name, "-c", f"{name}/conf", "-e", "stderr"])
        try:
            yield path
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Upstream, Listener]]:
    """The upstream on a Unix socket for nginx and on a port for us; and us."""
    upstream = Upstream()
    (directory / "up").unlink(missing_ok=True)
    local = await asyncio.start_unix_server(upstream.serve, directory / "up")
    (directory / "up").chmod(0o777)
    remote = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{remote.sockets[0].getsockname()[1]}"
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client = Client(clock)
    fields = {"name": "all", "to": url, "rewrite": {"host": "upstream"}, "retry": {"attempts": 1}}
    spec = HttpRouteSpec.model_validate(fields)
    predicate = spec.compile()
    backend = HttpBackend(spec, predicate, client, clock)
    server = Server(Router([Route("all", (predicate,), backend.handle)]).handle, clock)
    listener = Listener(server, bind(Address("127.0.0.1", 0)))
    await listener.start()
    try:
        yield upstream, listener
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()
        await client.close()
        timer.stop()
        local.close()
        remote.close()


async def connect_nginx(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_unix_connection(socket)
            except OSError:
                await asyncio.sleep(0.01)  # it is starting


async def ask(
    upstream: Upstream, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], raw: bytes
) -> tuple[Seen, Seen]:
    """What the upstream got and what the client got."""
    reader, writer = streams
    upstream.seen = None
    writer.write(raw)
    async with asyncio.timeout(10):
        answer = await read(
            reader, bodyless=raw.startswith(b"HEAD") or b"/status/204" in raw or b"/status/304" in raw, answer=True
        )
    writer.close()
    assert upstream.seen is not None
    return upstream.seen, answer


def comparable(seen: Seen, unlike: re.Pattern[bytes]) -> tuple[bytes, dict[bytes, list[bytes]], bytes]:
    """Order counts among the fields of one name only."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in seen.fields:
        if not unlike.fullmatch(name):
            fields.setdefault(name, []).append(value)
    return seen.line, fields, seen.body


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name.replace(" ", "-"))
async def test_the_same_through_us_and_through_nginx(case: Case, directory: Path) -> None:
    async with running(directory) as (upstream, listener):
        theirs = await ask(upstream, await connect_nginx(directory / "raw"), case.raw)
        ours = await ask(upstream, await asyncio.open_connection("127.0.0.1", listener.port), case.raw)
    assert comparable(ours[0], OURS) == comparable(theirs[0], OURS)
    _, our_fields, our_body = comparable(ours[1], HOPS)
    _, their_fields, their_body = comparable(theirs[1], HOPS)
    assert ours[1].line.split()[1] == theirs[1].line.split()[1] == b"%d" % case.status
    assert (our_fields, our_body) == (their_fields, their_body)


@pytest.mark.parametrize(
    "target",
    [
        b"/a/../b", b"/a/./b", b"//a//b", b"/a/%2e%2e/b", b"/a/%2E/b/.", b"/a/b/..", b"/%7Euser", b"/%41%42",
        b"/a/..%2e/b", b"/a%20b", b"/a/b/../../c/", b"/./", b"/a//../b", b"/a...b/..c/...", b"/%C3%A9?x=../%2e",
    ],
)  # fmt: skip
async def test_paths_get_the_normal_form_nginx_gives_them(target: bytes, directory: Path) -> None:
    raw = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target
    async with running(directory) as (upstream, listener):
        theirs, _ = await ask(upstream, await connect_nginx(directory / "normal"), raw)
        ours, _ = await ask(upstream, await asyncio.open_connection("127.0.0.1", listener.port), raw)
    assert unquote_to_bytes(ours.line) == unquote_to_bytes(theirs.line)


@pytest.mark.parametrize("target", [b"/../a", b"/a/../../b", b"/%2e%2e/a", b"/a%00", b"/%", b"/%zz", b"/a\x00b"])
async def test_paths_nginx_refuses_are_refused(target: bytes, directory: Path) -> None:
    raw = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target
    async with running(directory) as (_, listener):
        for streams in (
            await connect_nginx(directory / "normal"),
            await asyncio.open_connection("127.0.0.1", listener.port),
        ):
            streams[1].write(raw)
            async with asyncio.timeout(10):
                assert (await streams[0].readline()).split()[1] == b"400"
            streams[1].close()
