"""A FastAPI application by the document it writes of itself: what is put into a call comes out at the application."""

import asyncio
import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import uvicorn
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from tests.e2e.test_mcp_endpoints import ask
from tests.fixtures.gateway import serving

from tollhouse.wire.mcp.openapi import Reading, tools_of
from tollhouse.wire.mcp.openapi_answer import HttpTool
from tollhouse.wire.mcp.openapi_document import read

fastapi = pytest.importorskip("fastapi")
pytestmark = pytest.mark.anyio


class Size(BaseModel):
    width: int
    height: float | None = None


class Thing(BaseModel):
    name: str
    size: Size | None = None
    tags: list[str] = []
    parts: "list[Thing]" = []


def application() -> Any:
    from fastapi import Body, Cookie, FastAPI, File, Form, Header, HTTPException, Path, Query, UploadFile

    app = FastAPI(title="Things", description="Everything there is.")

    @app.get("/echo/{text}/{number}", operation_id="echo")
    def echo(
        text: Annotated[str, Path()],
        number: int,
        q: Annotated[list[str], Query()] = [],  # noqa: B006
        flag: bool = False,
        x_note: Annotated[str | None, Header()] = None,
        sid: Annotated[str | None, Cookie()] = None,
    ) -> dict[str, Any]:
        return {"text": text, "number": number, "q": q, "flag": flag, "note": x_note, "sid": sid}

    @app.post("/things", operation_id="add")
    def add(thing: Thing) -> Thing:
        return thing

    @app.put("/any", operation_id="anything")
    def anything(value: Annotated[Any, Body()]) -> Any:
        return value

    @app.post("/form", operation_id="form")
    def form(a: Annotated[str, Form()], b: Annotated[list[int], Form()] = []) -> dict[str, Any]:  # noqa: B006
        return {"a": a, "b": b}

    @app.post("/file", operation_id="file")
    async def file(data: Annotated[bytes, File()], more: UploadFile, note: Annotated[str, Form()]) -> dict[str, Any]:
        return {"size": len(data), "data": base64.b64encode(await more.read()).decode(), "note": note}

    @app.get("/missing", operation_id="missing")
    def missing() -> None:
        raise HTTPException(404, "it was never here")

    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(), log_level="error", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def tools(url: str) -> dict[str, HttpTool]:
    document = json.dumps(application().openapi()).encode()
    found = tools_of(read(document), Reading(url=f"{url}/openapi.json"))
    assert found.dropped == ()
    for tool in found.tools:
        jsonschema.Draft202012Validator.check_schema(json.loads(tool.raw)["inputSchema"])
    return {tool.name: tool for tool in found.tools}


@pytest.fixture(scope="module")
def line(url: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    yield connection
    connection.close()


def answered(line: http.client.HTTPConnection, tool: HttpTool, **arguments: Any) -> tuple[int, Any]:
    request = tool.operation.request(json.dumps(arguments).encode())
    line.putrequest(request.method.decode(), request.target.decode())
    for name, value in request.headers:
        line.putheader(name.decode(), value)
    line.putheader("content-length", str(len(request.body)))
    line.endheaders(request.body)
    answer = line.getresponse()
    data = answer.read()
    return answer.status, json.loads(data)


PIECE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: not {".", ".."} & set(text.replace("\\", "/").split("/")) and "/" not in text and "%" not in text
)
FIELD = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
COOKIE = st.text(st.sampled_from("abcXYZ019-_.~"), min_size=1)


@given(PIECE, st.integers(-(2**53), 2**53), st.lists(st.text()), st.booleans(), FIELD, COOKIE)
@settings(max_examples=40, deadline=None)
def test_parameters(
    tools: dict[str, HttpTool], line: http.client.HTTPConnection, text: str, number: int, q: list[str], flag: bool,
    note: str, sid: str,
) -> None:  # fmt: skip
    status, got = answered(
        line, tools["echo"], text=text, number=number, q=q, flag=flag, sid=sid, **{"x-note": note}
    )  # fmt: skip
    assert (status, got) == (
        200, {"text": text, "number": number, "q": q, "flag": flag, "note": note, "sid": sid}
    )  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ).filter(lambda value: value is not None)
)
@settings(max_examples=40, deadline=None)
def test_json(tools: dict[str, HttpTool], line: http.client.HTTPConnection, value: Any) -> None:
    assert answered(line, tools["anything"], body=value) == (200, value)


@given(st.text(min_size=1), st.lists(st.integers(-(2**31), 2**31)), st.binary(min_size=1))
@settings(max_examples=40, deadline=None)
def test_forms(
    tools: dict[str, HttpTool], line: http.client.HTTPConnection, text: str, several: list[int], data: bytes
) -> None:
    assert answered(line, tools["form"], a=text, b=several) == (200, {"a": text, "b": several})
    encoded = base64.b64encode(data).decode()
    status, got = answered(line, tools["file"], data=encoded, more=f"data:image/png;base64,{encoded}", note=text)
    assert (status, got) == (200, {"size": len(data), "data": encoded, "note": text})


async def test_through_the_gateway(url: str, tmp_path: Path) -> None:
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
        "mcp": {"servers": {"things": {"openapi": f"{url}/openapi.json"}}},
    }
    async with serving(yaml.safe_dump(config), tmp_path) as gateway:

        async def call(name: str, /, **arguments: Any) -> Any:
            params = {"name": name, "arguments": arguments}
            return (await asyncio.to_thread(ask, f"{gateway.url}/mcp", "tools/call", params))["result"]

        listed = (await asyncio.to_thread(ask, f"{gateway.url}/mcp", "tools/list"))["result"]["tools"]
        schemas = {tool["name"]: tool for tool in listed}
        thing = {"name": "a", "size": {"width": 1, "height": None}, "tags": ["x"], "parts": [{"name": "b"}]}
        jsonschema.validate(thing, schemas["add"]["inputSchema"])
        made = await call("add", **thing)
        jsonschema.validate(made["structuredContent"], schemas["add"]["outputSchema"])
        assert made["structuredContent"]["parts"][0]["name"] == "b"
        wrong = await call("add", name="a", size={"width": "wide"})
        assert wrong["isError"]
        assert "size" in wrong["content"][0]["text"]
        assert "it was never here" in (await call("missing"))["content"][0]["text"]
