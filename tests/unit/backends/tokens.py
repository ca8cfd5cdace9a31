"""Time that a test moves, and token endpoints on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

from tests.unit.net.upstreams import Peer, Upstream, upstream

from tollhouse.backends.credential import Credential
from tollhouse.backends.token import Bearer
from tollhouse.core.clock import SLICES, Clock

Answer = bytes | Callable[["Asked"], bytes | Awaitable[bytes]]


class Time:
    """A Clock whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(1.0, lambda: self.now)

    def turn(self) -> None:
        for _ in range(SLICES + 1):
            self.clock.turn()

    async def pass_(self, seconds: float, step: float = 1.0) -> None:
        """As the gateway would see it: turns, and what they began comes to its end where it waits for nothing."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            self.turn()
            await rest()


async def rest(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def ready(credential: Credential, seconds: float = 5.0) -> bytes:
    await credential.ready(monotonic() + seconds)
    return credential.lines


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


class Asked:
    """A request that came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ")
        self.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
        self.body = body

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), strict_parsing=True))

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], strict_parsing=True))


class Endpoint:
    """answers: by path; what is not there is answered with 404. asked: all requests."""

    def __init__(self, up: Upstream, answers: dict[str, Answer], asked: list[Asked]) -> None:
        self.up = up
        self.answers = answers
        self.asked = asked
        self.url = up.url("")


class World:
    """A credential, the endpoint that it asks, and its time."""

    def __init__(self, it: Endpoint, credential: Bearer, time: Time) -> None:
        self.endpoint = it
        self.credential = credential
        self.time = time


def answer(fields: Any, status: int = 200, headers: bytes = b"") -> bytes:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


def token(value: str = "tok-1", seconds: float = 3600, **more: Any) -> bytes:
    return answer({"access_token": value, "token_type": "Bearer", "expires_in": seconds, **more})


@asynccontextmanager
async def endpoint(answers: dict[str, Answer]) -> AsyncIterator[Endpoint]:
    asked: list[Asked] = []

    async def play(peer: Peer) -> None:
        request = Asked(*await peer.request())
        asked.append(request)
        said = it.answers.get(request.target.partition("?")[0], answer({}, 404))
        if not isinstance(said, bytes):
            made = said(request)
            said = made if isinstance(made, bytes) else await made
        if said:
            await peer.send(said)

    async with upstream(play) as up:
        it = Endpoint(up, answers, asked)
        yield it
