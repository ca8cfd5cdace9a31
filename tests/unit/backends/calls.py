"""Calls to models over real sockets: providers, a client with its clock, and what came back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import msgspec
from pydantic import TypeAdapter
from tests.unit.net.upstreams import Peer

from tollhouse.backends.pool import Pool, PoolSpec, pool
from tollhouse.backends.provider import Provider
from tollhouse.backends.providers import ProviderSpec, provider
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, Request, Source, finish
from tollhouse.core.reply import Reply
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.wire.llm import CHAT
from tollhouse.wire.llm.dialect import Dialect

ANSWER = b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
EVENT = b'data: {"model":"m-1","choices":[{"index":0,"delta":{"content":"abcd"}}]}\n\n'
USAGE = b'data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*parts: bytes) -> bytes:
    """A whole answer that is a stream."""
    return HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n"


def answer(body: bytes = ANSWER, status: int = 200, headers: bytes = b"content-type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def always(data: bytes, seen: list[tuple[bytes, bytes]] | None = None) -> Callable[[Peer], Any]:
    """An upstream that answers every request with `data`."""

    async def play(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if seen is not None:
                seen.append(request)
            await peer.send(data)

    return play


class World:
    """A clock that turns 16 times in `period` seconds, a client, providers and pools made from Specs."""

    def __init__(self, period: float) -> None:
        self.clock = Clock(period)
        self.timer = Timer(self.clock)
        self.client = Client(self.clock)
        self.providers: dict[str, Provider] = {}

    def provider(self, name: str, **fields: Any) -> Provider:
        spec = TypeAdapter(ProviderSpec).validate_python(fields)
        made = self.providers[name] = provider(name, spec, self.client, self.clock)
        return made

    def openai(self, url: str, name: str = "up", **fields: Any) -> Provider:
        return self.provider(name, kind="openai", base_url=url, **fields)

    def pool(self, name: str = "smart", **fields: Any) -> Pool:
        fields.setdefault("targets", [{"provider": "up", "model": "m-1"}])
        return pool(name, PoolSpec(**fields), self.providers, self.clock)


@asynccontextmanager
async def world(period: float = 0.16) -> AsyncIterator[World]:
    it = World(period)
    it.timer.start()
    try:
        yield it
    finally:
        for made in it.providers.values():
            await made.close()
        await it.client.close()
        it.timer.stop()


def call(
    fields: dict[str, Any] | bytes | None = None,
    *,
    dialect: Dialect = CHAT,
    label: str = "smart",
    headers: list[tuple[bytes, bytes]] | None = None,
    deadline: float = 1e18,
    model: str | None = None,
    stream: bool | None = None,
) -> ModelCall:
    """A call as the endpoint makes it. model, stream: of an API whose path says them."""
    body = fields if isinstance(fields, bytes) else msgspec.json.encode({"model": "smart", **(fields or {})})
    request = Request(b"POST", dialect.path, Headers(headers or []), body)
    context = request.context
    context.began = monotonic()
    context.deadline = deadline
    asked = dialect.decode(body, model=model, stream=stream)
    return ModelCall(
        request,
        context,
        dialect=dialect,
        operation=dialect.operation,
        model=asked.model,
        label=label,
        stream=asked.stream,
        fields=asked.fields,
        body=body,
    )


class Taker:
    """A Sink that keeps what it is given. ended: with the failure, or None."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.failure: Failure | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()

    def send(self, data: bytes) -> None:
        self.parts.append(data)
        self.came.set()

    def end(self, failure: Failure | None = None) -> None:
        self.failure = failure
        self.ended.set_result(None)

    async def until(self, size: int) -> None:
        """Until `size` bytes have come."""
        async with asyncio.timeout(5):
            while sum(map(len, self.parts)) < size:
                self.came.clear()
                await self.came.wait()


async def taken(reply: Reply) -> tuple[bytes, Failure | None]:
    """All of a Reply, as the endpoint and the server would take it."""
    if reply.source is None:
        finish(reply.ends, Ending(reply.status, Reason.UPSTREAM))
        return reply.first, None
    taker = Taker()
    source: Source = reply.source
    source.start(taker)
    async with asyncio.timeout(5):
        await taker.ended
    finish(reply.ends, Ending(200, Reason.UPSTREAM, failure=taker.failure))
    return reply.first + b"".join(taker.parts), taker.failure
