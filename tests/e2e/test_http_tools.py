"""HTTP APIs as tools and tools as an HTTP API, in a whole gateway."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.e2e.test_mcp_endpoints import ask
from tests.fixtures.api import Api, Asked, Said, serving_api
from tests.fixtures.gateway import Gateway, serving, until

from tollhouse.wire.mcp.openapi import Reading, tools_of
from tollhouse.wire.mcp.openapi_document import read

pytestmark = pytest.mark.anyio

CHILD = {"command": sys.executable, "args": [str(Path(__file__).parents[1] / "fixtures/mcp_child.py")]}
SHOP = Path(__file__).parents[1] / "fixtures/openapi/shop.yaml"


def config(servers: Any, **more: Any) -> str:
    mcp = {"servers": servers, **more.pop("mcp", {})}
    top = {"server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"}, "ledger": "sqlite:tollhouse.db"}
    log = {"telemetry": {"access_log": {"path": "access.log"}}}
    return yaml.safe_dump({**top, **log, "mcp": mcp, **more})


async def call(gateway: Gateway, name: str, arguments: Any = None, path: str = "/mcp") -> Any:
    params = {"name": name, "arguments": arguments or {}}
    return await in_thread(ask, gateway.url + path, "tools/call", params)


async def in_thread(what: Any, *arguments: Any) -> Any:
    import asyncio

    return await asyncio.to_thread(what, *arguments)


def shop(asked: Asked) -> Said:
    """The API of shop.yaml."""
    if asked.target.startswith("/v1/articles/404"):
        return Said(404, {"detail": "there is no article 404; there are 1 to 9"})
    if asked.target == "/v1/articles/1" and asked.method == "GET":
        return Said(200, {"id": 1, "name": "Teapot", "price": None})
    if asked.target.endswith("/picture"):
        return Said(200, b"\x89PNG", (("content-type", "image/png"),))
    if asked.target == "/v1/articles" and asked.method == "POST":
        return Said(201, {"id": 2, **json.loads(asked.body)})
    if asked.target.startswith("/v1/articles"):
        return Said(200, [{"id": 1, "name": "Teapot"}])
    return Said(500, b"", ())


async def test_an_api_by_its_document(tmp_path: Path) -> None:
    async with serving_api() as api:
        api.answer = shop
        server = {
            "openapi": str(SHOP),
            "base_url": f"{api.url}/v1",
            "credentials": {"key": {"key": "${SHOP_KEY}"}},
            "select": {"deny": {"operations": ["remove*"]}},
            "tools": {"getArticle": {"name": "article"}},
        }
        text = config({"shop": server}, mcp={"rest": True})
        async with serving(text, tmp_path, {"SHOP_KEY": "k-1", "PATH": "/usr/bin:/bin"}) as gateway:
            listed = await in_thread(ask, f"{gateway.url}/mcp", "tools/list")
            tools = {tool["name"]: tool for tool in listed["result"]["tools"]}
            assert {"article", "addArticle", "cancel_order"} <= tools.keys()
            assert not {"removeArticle", "getArticle"} & tools.keys()
            discovered = await in_thread(ask, f"{gateway.url}/mcp", "server/discover")
            assert discovered["result"]["instructions"] == "Orders and articles of a small shop."
            assert discovered["result"]["capabilities"].keys() == {"tools"}

            got = (await call(gateway, "article", {"id": 1}))["result"]
            assert got["structuredContent"] == {"id": 1, "name": "Teapot", "price": None}
            jsonschema.validate(got["structuredContent"], tools["article"]["outputSchema"])
            made = (await call(gateway, "addArticle", {"name": "Cup", "kind": 7}))["result"]
            assert made["structuredContent"] == {"id": 2, "name": "Cup", "kind": 7}
            assert api.asked[-1].headers["x-api-key"] == "k-1"
            several = (await call(gateway, "listArticles", {"status": ["new", "old"]}))["result"]
            jsonschema.validate(several["structuredContent"], tools["listArticles"]["outputSchema"])
            assert api.asked[-1].target == "/v1/articles?status=new,old"
            assert "x-api-key" not in api.asked[-1].headers
            picture = (await call(gateway, "getPicture", {"id": 1}))["result"]["content"][0]
            assert (picture["type"], picture["mimeType"]) == ("image", "image/png")

            # What it refuses, and what it cannot do, is for the model.
            for name, arguments, said in (
                ("article", {"id": 404}, "there are 1 to 9"),
                ("cancel_order", {"id": "x"}, "500 Internal Server Error"),
                ("article", {"nr": 1}, "there is no argument 'nr'"),
            ):
                failed = (await call(gateway, name, arguments))["result"]
                assert failed["isError"]
                assert said in failed["content"][0]["text"]

            def outcomes() -> list[str]:
                return [line["outcome"] for line in gateway.lines() if line.get("mcp_method") == "tools/call"]

            await until(lambda: len(outcomes()) == 7)
            assert outcomes() == ["ok"] * 4 + ["tool_error"] * 3


async def test_a_changed_document_is_told(tmp_path: Path) -> None:
    async with serving_api() as api:
        served: dict[str, Any] = {}

        def answer(asked: Asked) -> Said:
            return Said(200, served if asked.target == "/openapi.json" else {"target": asked.target})

        def offer(*names: str) -> None:
            paths = {f"/{name}": {"get": {"operationId": name, "responses": {}}} for name in names}
            served.update({"openapi": "3.1.0", "paths": paths})

        api.answer = answer
        offer("one")
        text = config({"api": {"openapi": f"{api.url}/openapi.json", "refresh": "1s"}})
        async with serving(text, tmp_path) as gateway:

            def names() -> list[str]:
                return [tool["name"] for tool in ask(f"{gateway.url}/mcp", "tools/list")["result"]["tools"]]

            assert await in_thread(names) == ["one"]
            offer("one", "two")
            await until(lambda: len(names()) == 2)
            assert (await call(gateway, "two"))["result"]["structuredContent"] == {"target": "/two"}
            served.clear()
            await gateway.logged("its OpenAPI document cannot be used: .*; the tools it had stay")
            assert await in_thread(names) == ["one", "two"]


async def test_retries_and_alternates(tmp_path: Path) -> None:
    async with serving_api() as api, serving_api() as other:
        api.answer = lambda asked: Said(503, b"")
        other.answer = lambda asked: Said(200, {"from": "other", "target": asked.target})

        def tools(**more: Any) -> Any:
            return [
                {"name": "read", "description": "d", "path": "/r/{q}", "input": {"properties": {"q": {}}}},
                {"name": "write", "description": "d", "path": "/w", "method": "POST"},
                {"name": "poke", "description": "d", "path": "/p", "method": "POST"},
            ]

        first = {
            "base_url": api.url, "rest": tools(), "retry": {"attempts": 3, "backoff": "10ms"},
            "tools": {
                "read": {"alternate": "second__read"}, "write": {"alternate": "second__write"},
                "poke": {"idempotent": True},
            },
        }  # fmt: skip
        second = {
            "base_url": other.url,
            "rest": tools(),
            "tools": {"write": {"limits": [{"per": "tool", "requests": 1, "window": "1m"}]}},
        }
        async with serving(config({"first": first, "second": second}), tmp_path) as gateway:
            got = (await call(gateway, "first__read", {"q": "a b"}))["result"]
            assert got["structuredContent"] == {"from": "other", "target": "/r/a%20b"}
            assert len(api.asked) == 3
            # What may have been done is done once, and nowhere else.
            failed = (await call(gateway, "first__write"))["result"]
            assert failed["isError"]
            assert (len(api.asked), len(other.asked)) == (4, 1)
            # Unless the operator vouches for it.
            assert (await call(gateway, "first__poke"))["result"]["isError"]
            assert [asked.target for asked in api.asked[4:]] == ["/p"] * 3
            api.asked.clear()
            # What was refused for its number was not done.
            api.answer = lambda asked: Said(429, b"")
            assert (await call(gateway, "first__write"))["result"]["structuredContent"]["target"] == "/w"
            assert (len(api.asked), len(other.asked)) == (3, 2)
            # The alternate's own limits hold.
            limited = (await call(gateway, "first__write"))["result"]
            assert limited["isError"]
            assert len(other.asked) == 2


# ---- tools as REST


@pytest.fixture
async def api() -> Any:
    async with serving_api() as one:
        yield one


def post(gateway: Gateway, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    status, fields, data = gateway.exchange("POST", path, body, headers)
    return status, fields, json.loads(data)


async def test_tools_as_rest(tmp_path: Path, api: Api) -> None:
    api.answer = shop
    servers = {
        "child": {**CHILD, "tools": {"echo": {"name": "say", "arguments": {"message": {"rename": "words"}}}}},
        "shop": {"openapi": str(SHOP), "base_url": f"{api.url}/v1"},
    }
    rules = {"rules": [{"deny": 'mcp.tool.name == "die"'}]}
    keys = {"keys": [{"name": "ci", "key": "a-key-of-ci"}]}
    text = config(servers, mcp={"rest": "/run"}, authenticate=keys, authorize=rules)
    async with serving(text, tmp_path) as gateway:
        key = {"authorization": "Bearer a-key-of-ci"}

        def asked(path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
            return post(gateway, path, body, **{**key, **headers})

        status, fields, got = await in_thread(asked, "/run/child/say", {"words": "hi"})
        assert (status, fields["content-type"]) == (200, "application/json")
        assert got["content"][0]["text"] == "hi"
        # A tool that says what it gives answers with just that.
        status, _, got = await in_thread(asked, "/run/shop/getArticle", {"id": 1})
        assert (status, got) == (200, {"id": 1, "name": "Teapot", "price": None})

        status, fields, got = await in_thread(asked, "/run/shop/getArticle", {"id": 404})
        assert (status, fields["content-type"], got["code"]) == (422, "application/problem+json", "tool_error")
        assert "there are 1 to 9" in got["title"]
        for path, body, status in (
            ("/run/child/echo", {}, 404),  # it goes by another name
            ("/run/child/nope", {}, 404),
            ("/run/nobody/echo", {}, 404),
            ("/run/child", {}, 404),
            ("/run/child/die", {}, 403),
            ("/run/child/say", [1], 400),
            ("/run/child/say", b"{", 400),
        ):
            answer = await in_thread(asked, path, body)
            assert (path, answer[0]) == (path, status)
            assert answer[1]["content-type"] == "application/problem+json"
        assert (await in_thread(post, gateway, "/run/child/say", {"words": "hi"}))[0] == 401
        sent = {"content-type": "text/plain", **key}
        assert (await in_thread(gateway.exchange, "POST", "/run/child/say", b"{}", sent))[0] == 415
        assert (await in_thread(gateway.exchange, "GET", "/run/child/say", None, key))[0] == 405

        # The document is one: it has what this caller may use, and its own references lead somewhere.
        status, fields, data = await in_thread(gateway.exchange, "GET", "/run/openapi.json", None, key)
        assert status == 200
        document = json.loads(data)
        assert {"/run/child/say", "/run/shop/getArticle"} <= document["paths"].keys()
        assert "/run/child/die" not in document["paths"]
        found = tools_of(read(data), Reading())
        assert found.dropped == ()
        assert {"child_say", "shop_getArticle"} <= {tool.name for tool in found.tools}
        assert found.base == gateway.url
        records = await in_thread(gateway.records, 2)
        assert {record["tool"] for record in records} >= {"echo", "getArticle"}


async def test_the_gateways_own_document_makes_tools_of_it_again(tmp_path: Path) -> None:
    """A circle of references in a tool's schema survives the way into a document and back."""
    tree = {"$ref": "#/$defs/Tree"}
    schema = {
        "type": "object",
        "properties": {"root": tree},
        "$defs": {"Tree": {"type": "object", "properties": {"children": {"type": "array", "items": tree}}}},
    }
    async with serving_api() as api:
        api.answer = lambda asked: Said(200, json.loads(asked.body))
        tool = {"name": "grow", "description": "d", "method": "POST", "path": "/", "input": schema, "body": "{root}"}
        text = config({"trees": {"base_url": api.url, "rest": [tool]}}, mcp={"rest": True})
        async with serving(text, tmp_path) as gateway:
            again = config({"again": {"openapi": f"{gateway.url}/tools/openapi.json"}})
            (tmp_path / "again").mkdir()
            async with serving(again, tmp_path / "again") as second:
                listed = (await in_thread(ask, f"{second.url}/mcp", "tools/list"))["result"]["tools"]
                assert [one["name"] for one in listed] == ["trees_grow"]
                value = {"children": [{"children": []}]}
                jsonschema.validate({"root": value}, listed[0]["inputSchema"])
                assert not jsonschema.Draft202012Validator(listed[0]["inputSchema"]).is_valid(
                    {"root": {"children": [{"children": 7}]}}
                )
                got = await call(second, "trees_grow", {"root": value})
                assert got["result"]["structuredContent"]["structuredContent"] == value
