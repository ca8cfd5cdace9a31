"""Servers whose tools are HTTP requests: documents that change, credentials, failures, and what goes out."""

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fixtures.api import Api, Asked, Said, serving_api

from tollhouse.backends.http_tools import HttpTools, HttpToolsSpec, as_tool_error
from tollhouse.backends.mcp.openapi import OpenApiServerSpec
from tollhouse.backends.mcp.rest import RestServerSpec
from tollhouse.backends.mcp.servers import Servers, fingerprint
from tollhouse.core.call import Context, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.net.client import Client
from tollhouse.wire.mcp.catalogue import KINDS

pytestmark = pytest.mark.anyio

TOOLS = KINDS["tools/list"]


class Place:
    """Servers of a gateway, and what they told of changes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.client = Client(self.clock)
        self.told: list[tuple[str, str]] = []
        self.changed = asyncio.Event()
        self.servers = Servers(self.clock, self.client, self.client, info=b"{}", on_change=self._change)

    def _change(self, server: str, what: str) -> None:
        self.told.append((server, what))
        self.changed.set()

    def get(self, spec: HttpToolsSpec, *, start: bool = True) -> HttpTools:
        made = self.servers.get("shop", spec)
        assert isinstance(made, HttpTools)
        if start:
            made.start()
        return made


@asynccontextmanager
async def place() -> AsyncIterator[tuple[Place, Api]]:
    async with serving_api() as api:
        one = Place()
        try:
            yield one, api
        finally:
            await one.servers.close()
            await one.client.close()


def call(name: str, arguments: Any = None, **more: Any) -> ToolCall:
    request = Request(b"POST", b"/mcp", Headers([(b"authorization", b"Bearer of-the-agent"), (b"cookie", b"a=b")]))
    params = {
        "name": msgspec.Raw(msgspec.json.encode(name)),
        "arguments": msgspec.Raw(msgspec.json.encode(arguments or {})),
    }
    return ToolCall(request, Context(), server="shop", method="tools/call", name=name, params=params, **more)


async def result(tools: HttpTools, name: str, arguments: Any = None, **more: Any) -> Any:
    reply = await tools.handle(call(name, arguments, **more))
    return json.loads(reply.first)["result"]


async def text(tools: HttpTools, name: str, arguments: Any = None) -> str:
    return str((await result(tools, name, arguments))["content"][0]["text"])


def document(*operations: str, **more: Any) -> Any:
    return {
        "openapi": "3.1.0",
        "servers": [{"url": "/v1"}],
        "paths": {f"/{name}": {"get": {"operationId": name, "responses": {}}} for name in operations},
        **more,
    }


def rest(api: Api, *tools: Any, **more: Any) -> RestServerSpec:
    return RestServerSpec.model_validate({"base_url": api.url, "rest": tools, **more})


def tool(**said: Any) -> Any:
    return {"name": "t", "description": "d", "path": "/x", **said}


# ---- documents


async def test_a_file_is_there_at_once(tmp_path: Path) -> None:
    async with place() as (one, api):
        file = tmp_path / "api.json"
        file.write_text(json.dumps(document("a", "b", servers=[{"url": api.url}])))
        spec = OpenApiServerSpec(openapi=str(file))
        tools = one.get(spec)
        listing = tools.known(TOOLS, None)
        assert listing is not None
        assert [entry.name for entry in listing.entries] == ["a", "b"]
        assert tools.features is not None
        assert (await result(tools, "a"))["structuredContent"] == {"target": "/a"}
        # Another content is another server; the same is the same.
        before = fingerprint(spec)
        assert fingerprint(OpenApiServerSpec(openapi=str(file))) == before
        file.write_text(json.dumps(document("c", servers=[{"url": api.url}])))
        assert fingerprint(OpenApiServerSpec(openapi=str(file))) != before


async def test_a_url_is_fetched_and_looked_at_again() -> None:
    async with place() as (one, api):
        served: dict[str, Any] = {"document": document("a"), "etag": '"1"'}

        def answer(asked: Asked) -> Said:
            if asked.target != "/openapi.json":
                return Said(200, {"target": asked.target})
            if asked.headers.get("if-none-match") == served["etag"]:
                return Said(304)
            return Said(200, served["document"], (("etag", served["etag"]),))

        api.answer = answer
        tools = one.get(OpenApiServerSpec(openapi=f"{api.url}/openapi.json", refresh=3600.0))
        assert [entry.name for entry in (await tools.listing(TOOLS, None, None)).entries] == ["a"]
        assert (await result(tools, "a"))["structuredContent"] == {"target": "/v1/a"}

        tools.expire()
        await settled(tools)
        assert api.asked[-1].headers["if-none-match"] == '"1"'
        assert one.told == []

        served |= {"document": document("a", "b"), "etag": '"2"'}
        tools.expire()
        await settled(tools)
        assert one.told == [("shop", "notifications/tools/list_changed")]
        assert [entry.name for entry in (await tools.listing(TOOLS, None, None)).entries] == ["a", "b"]

        # What cannot be used changes nothing.
        for broken in ({"swagger": "2.0"}, document("a", servers=[{"url": "http://elsewhere.test"}]), []):
            served |= {"document": broken, "etag": '"3"'}
            tools.expire()
            await settled(tools)
            assert len((await tools.listing(TOOLS, None, None)).entries) == 2
        assert len(one.told) == 1
        assert tools.deadline < one.clock.now + 60.0  # type: ignore[attr-defined]


async def settled(tools: HttpTools) -> None:
    task = tools._task  # type: ignore[attr-defined]
    assert task is not None
    await task


async def test_a_bug_is_in_the_log_and_does_not_fetch_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    async with place() as (one, api):
        api.answer = lambda asked: Said(200, document(f"a{len(api.asked)}"))
        tools = one.get(OpenApiServerSpec(openapi=f"{api.url}/openapi.json", refresh=600.0))
        await tools.listing(TOOLS, None, None)

        def fail(server: str, what: str) -> None:
            raise ZeroDivisionError

        tools._on_change = fail
        tools.expire()
        await settled(tools)
        assert tools.deadline > one.clock.now + 500.0  # type: ignore[attr-defined]
        assert "mcp server shop: internal error" in caplog.messages


async def test_a_document_that_is_not_there_is_a_server_that_is_not_there() -> None:
    async with place() as (one, api):
        api.answer = lambda asked: Said(404)
        tools = one.get(OpenApiServerSpec(openapi=f"{api.url}/openapi.json", list_timeout=2.0))
        for ask in (tools.listing(TOOLS, None, None), tools.handle(call("a"))):
            with pytest.raises(Failure) as caught:
                await ask
            assert (caught.value.status, caught.value.retry, caught.value.sent) == (503, True, False)
        assert tools.known(TOOLS, None) is None
        api.answer = lambda asked: Said(200, document("a") if asked.target == "/openapi.json" else {})
        assert len((await tools.listing(TOOLS, None, None)).entries) == 1


async def test_credentials_go_with_a_document_only_to_where_calls_go() -> None:
    async with place() as (one, api), serving_api() as other:
        other.answer = lambda asked: Said(200, document("a"))
        spec = OpenApiServerSpec.model_validate(
            {"openapi": f"{other.url}/openapi.json", "base_url": api.url, "headers": {"x-key": "secret"}}
        )
        tools = one.get(spec)
        await result(tools, "a")
        assert (api.asked[-1].target, api.asked[-1].headers["x-key"]) == ("/a", "secret")
        assert "x-key" not in other.asked[0].headers
        beside = OpenApiServerSpec.model_validate({"openapi": f"{other.url}/openapi.json", "headers": {"x-key": "k"}})
        await one.get(beside).listing(TOOLS, None, None)
        assert other.asked[-1].headers["x-key"] == "k"


async def test_a_redirect_of_a_document_passes_the_guard() -> None:
    async with place() as (one, api), serving_api() as other:
        api.answer = lambda asked: Said(302, b"", (("location", f"{other.url}/openapi.json"),))
        tools = one.get(OpenApiServerSpec(openapi=f"{api.url}/openapi.json"))
        with pytest.raises(Failure):
            await tools.listing(TOOLS, None, None)
        assert other.asked == []


# ---- what goes out


async def test_nothing_of_the_agents_own_request_goes_out() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool(), headers={"X-Team": "platform"}))
        await result(tools, "t")
        (asked,) = api.asked
        assert asked.headers.keys() == {"host", "x-team", "user-agent", "accept"}
        assert asked.headers["x-team"] == "platform"


@pytest.mark.parametrize(
    ("scheme", "credential", "sent"),
    [
        ({"type": "apiKey", "in": "header", "name": "X-Api-Key"}, {"key": "k1"}, ("x-api-key", "k1")),
        ({"type": "apiKey", "in": "query", "name": "api key"}, {"key": "k&1"}, ("target", "/v1/a?api%20key=k%261")),
        ({"type": "apiKey", "in": "cookie", "name": "sid"}, {"key": "k1"}, ("cookie", "sid=k1")),
        ({"type": "http", "scheme": "bearer"}, {"token": "t1"}, ("authorization", "Bearer t1")),
        ({"type": "oauth2", "flows": {}}, {"token": "t1"}, ("authorization", "Bearer t1")),
        ({"type": "http", "scheme": "Basic"}, {"username": "u", "password": "p"}, ("authorization", "Basic dTpw")),
    ],
)
async def test_security_schemes(tmp_path: Path, scheme: Any, credential: Any, sent: tuple[str, str]) -> None:
    async with place() as (one, api):
        file = tmp_path / "api.json"
        more = {"security": [{"s": []}], "components": {"securitySchemes": {"s": scheme}}}
        file.write_text(json.dumps(document("a", servers=[{"url": f"{api.url}/v1"}], **more)))
        spec = OpenApiServerSpec.model_validate({"openapi": str(file), "credentials": {"s": credential}})
        await result(one.get(spec), "a")
        name, value = sent
        assert (api.asked[0].target if name == "target" else api.asked[0].headers[name]) == value


async def test_a_token_that_is_refused_is_fetched_anew(tmp_path: Path) -> None:
    async with place() as (one, api):
        given = iter(("old", "new"))
        good = {"Bearer old"}

        def answer(asked: Asked) -> Said:
            if asked.target == "/token":
                return Said(200, {"access_token": next(given), "token_type": "Bearer", "expires_in": 3600})
            return Said(200, {"ok": True}) if asked.headers.get("authorization") in good else Said(401)

        api.answer = answer
        file = tmp_path / "api.json"
        more = {"security": [{"s": []}], "components": {"securitySchemes": {"s": {"type": "oauth2", "flows": {}}}}}
        file.write_text(json.dumps(document("a", servers=[{"url": api.url}], **more)))
        oauth = {"token_url": f"{api.url}/token", "client_id": "c", "client_secret": "s"}
        spec = OpenApiServerSpec.model_validate({"openapi": str(file), "credentials": {"s": {"oauth": oauth}}})
        tools = one.get(spec)
        assert (await result(tools, "a"))["structuredContent"] == {"ok": True}
        good.add("Bearer new")
        good.remove("Bearer old")
        one.clock.now += 300.0
        assert (await result(tools, "a"))["structuredContent"] == {"ok": True}
        assert [asked.target for asked in api.asked] == ["/token", "/a", "/a", "/token", "/a"]


# ---- what comes back


async def test_what_is_wrong_with_arguments_reaches_nobody() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool(input={"properties": {"a": {}}, "required": ["a"]}, path="/x/{a}")))
        assert await text(tools, "t") == "The call was not made: the argument 'a' is missing."
        assert "`.` or `..`" in await text(tools, "t", {"a": ".."})
        assert "there is no argument 'b'; there are: a" in await text(tools, "t", {"a": 1, "b": 2})
        assert api.asked == []
        answer = json.loads((await tools.handle(call("other"))).first)
        assert answer["error"] == {"code": -32602, "message": "Unknown tool: other"}


async def test_what_the_api_refuses_is_a_result_and_what_it_fails_at_is_a_failure() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool()))
        api.answer = lambda asked: Said(409, {"detail": "no"})
        refused = await result(tools, "t")
        assert refused["isError"]
        assert '{"detail": "no"}' in refused["content"][0]["text"]
        api.answer = lambda asked: Said(503, b"busy", (("retry-after", "3"), ("content-type", "text/plain")))
        with pytest.raises(Failure) as caught:
            await tools.handle(call("t"))
        failure = caught.value
        assert (failure.status, failure.retry, failure.sent, failure.retry_after) == (503, True, True, 3.0)
        api.answer = lambda asked: Said(429, b"")
        with pytest.raises(Failure) as caught:
            await tools.handle(call("t"))
        assert (caught.value.status, caught.value.sent, caught.value.reason) == (429, False, Reason.UPSTREAM_FAILURE)


async def test_at_the_outer_end_a_failure_is_a_result() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool(), max_answer=100))

        async def told() -> str:
            asked = call("t")
            answer = json.loads((await as_tool_error(asked, tools.handle)).first)["result"]
            assert answer["isError"]
            assert asked.context.error
            return str(answer["content"][0]["text"])

        api.answer = lambda asked: Said(500, b"it broke", (("content-type", "text/plain"),))
        assert await told() == "The API answered 500 Internal Server Error.\n\nit broke"
        api.answer = lambda asked: Said(cut=True)
        assert (await told()).endswith("It is not known whether it was carried out.")
        api.answer = lambda asked: Said(200, b"x" * 101)
        assert "larger than 100 bytes" in await told()
        api.answer = lambda asked: Said(200, b"x" * 100)
        assert len(await text(tools, "t")) == 100

        async def refused(_: ToolCall) -> Any:
            raise Failure(403, Reason.AUTHORIZATION, "no")

        with pytest.raises(Failure):
            await as_tool_error(call("t"), refused)


async def test_an_api_that_is_not_there() -> None:
    async with place() as (one, _):
        spec = RestServerSpec.model_validate({"base_url": "http://127.0.0.1:1", "rest": [tool()]})
        with pytest.raises(Failure) as caught:
            await one.get(spec).handle(call("t"))
        assert caught.value.message.startswith("shop: ")
        assert not caught.value.sent


async def test_a_server_without_prompts_says_so() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool()))
        assert (await tools.listing(KINDS["prompts/list"], None, None)).entries == ()
        asked = call("x")
        asked.method = "prompts/get"
        assert json.loads((await tools.handle(asked)).first)["error"]["code"] == -32601


async def test_a_new_configuration_ends_the_old_server() -> None:
    async with place() as (one, api):
        first, second = rest(api, tool()), rest(api, tool(path="/y"))
        old = one.get(first)
        assert one.servers.get("shop", rest(api, tool())) is old
        new = one.get(second)
        assert new is not old
        one.servers.retain({"shop": second})
        assert one.servers.all == [new]
        assert (await result(new, "t"))["structuredContent"] == {"target": "/y"}


async def test_a_server_that_leaves_takes_its_tasks_along(tmp_path: Path) -> None:
    async with place() as (one, api):
        never = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await never.wait()
            writer.close()

        deaf = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = deaf.sockets[0].getsockname()[1]
        waiting = one.get(OpenApiServerSpec(openapi=f"http://127.0.0.1:{port}/x", list_timeout=0.05))
        with pytest.raises(Failure, match="did not come in time"):
            await waiting.listing(TOOLS, None, None)
        assert not waiting.idle

        file = tmp_path / "api.json"
        more = {"security": [{"s": []}], "components": {"securitySchemes": {"s": {"type": "oauth2", "flows": {}}}}}
        file.write_text(json.dumps(document("a", servers=[{"url": api.url}], **more)))
        oauth = {"token_url": f"{api.url}/token", "client_id": "c", "client_secret": "s"}
        spec = OpenApiServerSpec.model_validate({"openapi": str(file), "credentials": {"s": {"oauth": oauth}}})
        signed = one.get(spec)
        one.servers.retain({})
        for server in (waiting, signed):
            for _ in range(100):
                if server.idle:
                    break
                await asyncio.sleep(0.01)
            assert server.idle
        never.set()
        deaf.close()


# ---- settings


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"openapi": "nope.json"}, "there is no file"),
        ({"openapi": "ftp://a.test/x"}, "write the name of a file, or a URL"),
        ({"openapi": "API", "refresh": "1h"}, "`refresh` has no effect"),
        ({"openapi": "BAD"}, "bad.json: /openapi: no OpenAPI 3 document"),
        ({"openapi": "EMPTY"}, "no operation of the document can be a tool"),
        ({"openapi": "API", "max_document": 10}, "the document is larger than 10 bytes"),
        ({"openapi": "API", "select": {}}, "neither `allow` nor `deny`"),
        ({"openapi": "API", "select": {"allow": {}}}, "it names nothing"),
        (
            {"openapi": "API", "select": {"allow": {"tags": ["x"]}}},
            "`select` names what no operation has: allow.tags: x",
        ),
        ({"openapi": "API", "credentials": {"x": {"key": "k"}}}, "there is no security scheme 'x'; there are: s"),
        ({"openapi": "API", "credentials": {"s": {"token": "k"}}}, "the scheme is an API key; write `key`"),
        ({"openapi": "API", "credentials": {"s": {}}}, "write one of `key`"),
        ({"openapi": "UNNAMED", "credentials": {"s": {"key": "k"}}}, "the document does not say where the key goes"),
        (
            {"openapi": "API", "credentials": {"s": {"key": "k"}}, "headers": {"X-K": "1"}},
            "it stands in `headers` already",
        ),
        ({"openapi": "API", "headers": {"Accept": "x"}}, "is the gateway's own to set"),
        ({"openapi": "API", "base_url": "http://a.test/?x=1"}, "has no query"),
    ],
)
def test_what_is_no_server(tmp_path: Path, said: Any, problem: str) -> None:
    scheme = {"s": {"type": "apiKey", "in": "header", "name": "x-k"}}
    files = {
        "API": document("a", servers=[{"url": "http://a.test"}], components={"securitySchemes": scheme}),
        "UNNAMED": document(
            "a",
            servers=[{"url": "http://a.test"}],
            components={"securitySchemes": {"s": {"type": "apiKey", "in": "header", "name": ""}}},
        ),
        "BAD": {},
        "EMPTY": document(servers=[{"url": "http://a.test"}]),
    }
    for name, content in files.items():
        (tmp_path / f"{name.lower()}.json").write_text(json.dumps(content))
    if said["openapi"] in files:
        said = {**said, "openapi": str(tmp_path / f"{said['openapi'].lower()}.json")}
    with pytest.raises(ValueError, match=re.escape(problem)):
        OpenApiServerSpec.model_validate(said)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"path": "x"}, "begins with a slash"),
        ({"name": "a b"}, "name"),
        ({"body": {}}, "a GET has no body"),
        ({"body_type": "form"}, "`body_type` has no effect"),
        ({"output": {"type": "array"}}, "`output` must be a schema of an object"),
        ({"result": "items"}, "a JSON Pointer begins with a slash"),
        ({"headers": {"a b": "x"}}, "not a header name"),
        ({"headers": {"x-team": "x"}}, "stands in `headers` of the server"),
        ({"query": {"q": "{nope}"}}, "{nope} is no argument"),
    ],
)
def test_what_is_no_tool(said: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        RestServerSpec.model_validate({"base_url": "http://a.test", "headers": {"X-Team": "t"}, "rest": [tool(**said)]})
    with pytest.raises(ValueError, match="two tools have the name 't'"):
        RestServerSpec.model_validate({"base_url": "http://a.test", "rest": [tool(), tool()]})


async def test_calls_leave_nothing_for_the_collector() -> None:
    async with place() as (one, api):
        tools = one.get(rest(api, tool()))
        await result(tools, "t")
        for said in (Said(200, {"a": 1}), Said(404, {}), Said(503, b"")):
            api.answer = lambda asked, said=said: said  # type: ignore[misc]
            gc.collect()
            for _ in range(5):
                await as_tool_error(call("t"), tools.handle)
            assert gc.collect() == 0


async def test_a_call_that_is_under_way_is_not_made_again() -> None:
    """It may have begun at a server of that name that was another one."""

    async def ended(_: ToolCall) -> Any:
        raise Failure(503, Reason.MCP, "it is lost", code="call_lost", sent=True)

    async with place() as (one, api):
        tools = one.get(rest(api, tool()))
        with pytest.raises(Failure, match="it is lost"):
            await tools.handle(call("t", resume=ended))
        assert not api.asked
