"""A policy server: a real one on a socket that answers what the test says."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.policies.floor import Shelf, answer, counted, layer, model, parts, request, respond, tool, who

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.policies.authorize import AUTHORIZE, AUTHORIZE_ROUTE, GuardSpec, permitted
from tollhouse.policies.base import Parts

pytestmark = pytest.mark.anyio


class Server:
    """Keeps what it was asked; answers `says`, in JSON, with `status`. None: it never answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.says: Any = {"result": True}
        self.status = 200
        self.url = ""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().strip().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.asked.append((line, headers, json.loads(body)))
                if self.says is None:
                    await reader.read()
                    return
                told = self.says if isinstance(self.says, bytes) else json.dumps(self.says).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(told), told))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


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
        opa.status = 500
        failure = await decide(p, tool("x"), guard(url))
        assert failure is not None
        assert (failure.status, "status 500" in failure.detail) == (503, True)
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
        opa.status = 500
        assert await decide(p, tool("x"), guard(opa.url, shadow=True)) is None


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


async def test_lists_do_not_ask_it() -> None:
    async with server() as opa, world() as p:
        assert permitted((guard(opa.url),), p) is None
        assert not opa.asked


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
