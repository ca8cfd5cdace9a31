"""MCP tools as plain REST, where a server's definitions are odd. For the rest see tests/e2e/test_http_tools.py."""

import json
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import INFO
from tests.fixtures.mcp_raw import Old, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.servers import Servers
from tollhouse.core.clock import Clock
from tollhouse.core.http import Request
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.endpoints.tools import ToolsEndpoint
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.wire.mcp.catalogue import Cursors
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return {"type": "object", "properties": {"a": schema}}


@pytest.mark.parametrize("levels", [200, 450, 900])
async def test_a_tool_nested_too_deeply_is_left_out_of_the_document(levels: int) -> None:
    tools = [{"name": "good", "inputSchema": nested(20)}, {"name": "deep", "inputSchema": {}}]
    listed = json.dumps({"tools": tools}).replace(
        '"deep", "inputSchema": {}', '"deep", "inputSchema": ' + '{"items":' * levels + "{}" + "}" * levels
    )
    script = Old(tools_list=lambda asked: raw(asked, listed))
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client, streams, seals = Client(clock), Client(clock), Seals()
    sessions = Sessions(clock, seals=seals)
    servers = Servers(clock, client, streams, info=INFO, on_change=sessions.changed)
    bridge = Bridge(clock, seals)
    try:
        async with upstream(script) as behind:
            one = servers.get("s", HttpServerSpec(url=behind.url))
            chains = {"s": Server("s", one, one.handle)}
            endpoint = ToolsEndpoint("/tools", chains, cursors=Cursors(seals), bridge=bridge)
            answer = await endpoint.handle(Request(b"GET", b"/tools/openapi.json", []))
            paths = json.loads(answer.body)["paths"]
            assert paths.keys() == {"/tools/s/good"}
    finally:
        bridge.close()
        await sessions.closed()
        await servers.close()
        await client.close()
        await streams.close()
        timer.stop()


def raw(asked: Any, text: str) -> bytes:
    body = f'{{"jsonrpc":"2.0","id":{json.dumps(asked.id)},"result":{text}}}'.encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
