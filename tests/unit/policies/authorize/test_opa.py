"""A policy server: a real one on a socket that answers what the test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.fixtures.gone import until_gone
from tests.fixtures.listening import listening
from tests.unit.policies.floor import Shelf, answer, counted, layer, model, parts, request, respond, tool, who

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.policies.authorize import AUTHORIZE, AUTHORIZE_ROUTE, GuardSpec
from tollhouse.policies.authorize.opa import Opa
from tollhouse.policies.base import Parts

pytestmark = pytest.mark.anyio


class Server:
    """Keeps what it was asked; answers `says`, in JSON, with `status`: a value, or what a function of the input gives.
    None: it never answers. most: questions that it had at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.says: Any = {"result": True}
        self.status = 200
        self.url = ""
        self.connections = 0
        self.now = self.most = 0
        self.gate: Callable[[], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with until_gone(writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().strip().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.asked.append((line, headers, json.loads(body)))
                says = self.says(self.asked[-1][2]["input"]) if callable(self.says) else self.says
                self.now += 1
                self.most = max(self.most, self.now)
                try:
                    if self.gate is not None:
                        await self.gate()
                    if says is None:
                        await reader.read()
                        return
                finally:
                    self.now -= 1
                told = says if isinstance(says, bytes) else json.dumps(says).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(told), told))


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    made = Server()
    running = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        running.close()


@asynccontextmanager
async def world() -> AsyncIterator[Parts]:
    clock = Clock()
    timer, client, shelf = Timer(clock), Client(clock), Shelf()
    timer.start()
    p = replace(parts(entrance="mcp", client=client, shared=shelf), clock=clock)
    try:
        yield p
    finally:
        await shelf.close()
        await client.close()
        timer.stop()


def guard(url: str, *, more: dict[str, Any] | None = None, **opa: Any) -> Any:
    return layer(GuardSpec.model_validate({"opa": {"url": url, **opa}, **(more or {})}))


async def decide(p: Parts, call: Any, *layers: Any) -> Failure | None:
    policy = AUTHORIZE.make(layers, p)
    assert policy is not None
    try:
        await compose((policy,), answer)(call)
    except Failure as failure:
        return failure
    return None


@pytest.mark.parametrize(
    "says, status, rule",
    [
        ({"result": True}, 0, ""),
        ({"result": {"allow": True, "reason": "fine", "more": 1}}, 0, ""),
        ({"result": False}, 403, "top: data.tollhouse.allow"),
        ({"result": {"allow": False, "reason": "not today"}}, 403, "top: data.tollhouse.allow: not today"),
        ({}, 403, "top: data.tollhouse.allow (undefined)"),
        ({"result": {}}, 403, "top: data.tollhouse.allow"),
        ({"result": None}, 403, "top: data.tollhouse.allow (undefined)"),
        ({"Result": True, "results": [True]}, 403, "top: data.tollhouse.allow (undefined)"),
        ({"result": {"Allow": True}}, 403, "top: data.tollhouse.allow"),
        ({"result": {"allow": False, "reason": "x" * 999}}, 403, f"top: data.tollhouse.allow: {'x' * 200}"),
        ({"result": [True]}, 503, "data.tollhouse.allow (not asked)"),
        ({"result": {"allow": 1}}, 503, "data.tollhouse.allow (not asked)"),
        (b'{"result": true', 503, "data.tollhouse.allow (not asked)"),
        (b'{"result": true}}', 503, "data.tollhouse.allow (not asked)"),
        ({"result": "true"}, 503, "data.tollhouse.allow (not asked)"),
        ({"result": 1}, 503, "data.tollhouse.allow (not asked)"),
        (b"no json", 503, "data.tollhouse.allow (not asked)"),
        (b" " * 70_000, 503, "data.tollhouse.allow (not asked)"),
    ],
)
async def test_answers(says: Any, status: int, rule: str) -> None:
    async with server() as opa, world() as p:
        opa.says = says
        call = tool("x")
        failure = await decide(p, call, guard(opa.url))
        assert (failure.status if failure else 0, call.context.rule) == (status, rule)
        assert call.context.decision == ("deny" if status else "allow")


async def test_the_question() -> None:
    async with server() as opa, world() as p:
        principal = who(claims={"sub": "s"}, scopes=frozenset(("b", "a")))
        made = guard(opa.url + "/base/", path="a/b-c/d", token="t0ken")
        for _ in range(2):
            assert await decide(p, tool("pay", principal, amount=5), made) is None
        line, headers, body = opa.asked[0]
        assert line == "POST /base/v1/data/a/b-c/d HTTP/1.1"
        assert (headers["authorization"], headers["content-type"]) == ("Bearer t0ken", "application/json")
        asked = body["input"]
        assert (asked["mcp"]["tool"]["name"], asked["mcp"]["arguments"]) == ("pay", {"amount": 5})
        assert (asked["jwt"], asked["principal"]["scopes"]) == ({"sub": "s"}, ["a", "b"])
        assert asked["request"]["path"] == "/x"
        assert (len(opa.asked), opa.connections) == (2, 1)


async def test_rules_come_first_and_both_must_agree() -> None:
    async with server() as opa, world() as p:
        made = guard(opa.url, more={"rules": [{"deny": 'mcp.tool.name == "x"'}]})
        failure = await decide(p, tool("x"), made)
        assert failure is not None
        assert not opa.asked
        opa.says = {"result": False}
        failure = await decide(p, tool("y"), made)
        assert failure is not None
        assert counted(p, "authorization_decisions_total") == {("cel", "deny"): 1, ("opa", "deny"): 1}


async def test_a_server_that_does_not_answer() -> None:
    async with server() as opa, world() as p:
        opa.says = None
        failure = await decide(p, tool("x"), guard(opa.url, timeout="200ms"))
        assert failure is not None
        assert (failure.status, failure.code, failure.retry_after) == (503, "authorization_unavailable", 1.0)
        assert opa.url not in failure.message
        assert await decide(p, tool("x"), guard(opa.url, timeout="200ms", on_failure="allow")) is None
        assert counted(p, "authorization_decisions_total")["opa", "unavailable"] == 2


async def test_nobody_there_and_a_server_that_fails() -> None:
    async with server() as opa, world() as p:
        url = opa.url
        for status in (500, 404, 302, 204, 206):  # whatever it says beside that
            opa.status = status
            failure = await decide(p, tool("x"), guard(url))
            assert failure is not None
            assert (failure.status, f"status {status}" in failure.detail) == (503, True)
    async with world() as p:
        failure = await decide(p, tool("x"), guard(url))
        assert failure is not None
        assert failure.status == 503


async def test_decisions_are_kept_for_a_while() -> None:
    async with server() as opa, world() as p:
        made = guard(opa.url, cache="60s")
        for _ in range(3):
            call = tool("x", who(), n=1)
            assert await decide(p, call, made) is None
        assert len(opa.asked) == 1
        opa.says = {"result": False}
        failure = await decide(p, tool("x", who(), n=2), made)
        assert failure is not None
        assert await decide(p, tool("x", who(), n=1), made) is None
        assert await decide(p, tool("x", who(id="eve"), n=1), made) is not None
        assert len(opa.asked) == 3
        p.clock.now += 61.0
        assert await decide(p, tool("x", who(), n=1), made) is not None
        assert len(opa.asked) == 4


async def test_not_more_than_so_many_are_kept() -> None:
    async with server() as opa, world() as p:
        spec = GuardSpec.model_validate({"opa": {"url": opa.url, "cache": "60s"}}).opa
        assert spec is not None
        asked = Opa(spec, p.client, p.clock)
        asked._kept |= {b"%d" % n: (1e18, "") for n in range(4096)}
        assert await asked.refusal(tool("x")) == ""
        assert len(asked._kept) == 1
        await asked.close()


async def test_what_is_not_kept_is_asked_each_time() -> None:
    async with server() as opa, world() as p:
        made = guard(opa.url)
        assert await decide(p, tool("x", who()), made) is None
        opa.says = {"result": False}
        assert await decide(p, tool("x", who()), made) is not None


async def test_one_that_answers_a_byte_at_a_time_has_no_more_time() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async with listening(drip) as url, world() as p:
        failure = await asyncio.wait_for(decide(p, tool("x"), guard(url, timeout="300ms")), 10.0)
        assert failure is not None
        assert failure.status == 503


async def test_what_cannot_be_asked_about_is_refused() -> None:
    async with server() as opa, world() as p:
        call = tool("x", n=1)
        call.params["arguments"] = msgspec.Raw(b'{"a":1,"A":2}')  # two readers may read two things
        failure = await decide(p, call, guard(opa.url, on_failure="allow"))
        assert failure is not None
        assert (failure.status, call.context.rule) == (403, "top: data.tollhouse.allow (in doubt)")
        assert not opa.asked


async def test_a_server_that_failed_is_asked_again() -> None:
    async with server() as opa, world() as p:
        made = guard(opa.url, cache="60s")
        opa.status = 500
        assert await decide(p, tool("x"), made) is not None
        opa.status = 200
        assert await decide(p, tool("x"), made) is None


async def test_in_shadow() -> None:
    async with server() as opa, world() as p:
        opa.says = {"result": False}
        call = tool("x")
        assert await decide(p, call, guard(opa.url, shadow=True)) is None
        assert call.context.shadow == "top: data.tollhouse.allow"
        call = tool("x")
        assert await decide(p, call, guard(opa.url, more={"shadow": True})) is None  # all of the block
        assert call.context.shadow == "top: data.tollhouse.allow"
        opa.status = 500
        for more in ({}, {"shadow": True}):
            call = tool("x")
            assert await decide(p, call, guard(opa.url, shadow=not more, more=more)) is None
            assert call.context.decision == "allow"
        opa.status = 200
        assert await decide(p, tool("x"), guard(opa.url)) is not None  # of one that is in force, with the same server


async def test_routes_and_models() -> None:
    async with server() as opa, world() as p:
        made = guard(opa.url)
        assert await decide(p, model("m"), made) is None
        assert opa.asked[0][2]["input"]["llm"]["model"] == "m"
        policy = AUTHORIZE_ROUTE.make((made,), parts(entrance="http", client=p.client, shared=p.shared))
        assert policy is not None
        assert (await compose((policy,), respond)(request(principal=who()))).status == 200
        opa.says = {"result": False}
        with pytest.raises(Failure):
            await compose((policy,), respond)(request(principal=who()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "opa"},
        {"url": "http://h/?q"},
        {"url": "http://h", "path": "/x"},
        {"url": "http://h", "path": "a b"},
        {"url": "http://h", "token": "a b"},
        {"url": "http://h", "token": ""},
        {"url": "http://h", "ca": "x.pem"},
    ],
)
def test_what_cannot_be_configured(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="opa"):
        GuardSpec.model_validate({"opa": wrong})
