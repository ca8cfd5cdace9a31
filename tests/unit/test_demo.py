"""The demo server speaks both eras to the real client."""

import io
import json
import os
import sys
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tollhouse import demo

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
async def test_with_a_real_client(mode: Any) -> None:
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = StdioServerParameters(command=sys.executable, args=["-m", "tollhouse.demo"], env=env)
    async with Client(stdio_client(command), mode=mode) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"echo", "add", "time", "weather"}
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"sum": 3}
        assert (await client.call_tool("weather", {"city": "Atlantis"})).is_error
        assert (await client.call_tool("weather", {"city": "Oslo"})).structured_content is not None
        assert not (await client.call_tool("time", {"utc_offset": -8})).is_error
        assert "coral" in (await client.read_resource("demo://palette")).contents[0].text  # type: ignore[union-attr]
        prompt = await client.get_prompt("summary", {"text": "abc"})
        assert "abc" in prompt.messages[0].content.text  # type: ignore[union-attr]


def said(*lines: bytes) -> list[Any]:
    sink = io.BytesIO()
    demo.serve(io.BytesIO(b"\n".join(lines)), sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def test_odd_lines() -> None:
    answers = said(
        b"nope",
        b"",
        b"[]",
        b"7",
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":2,"method":"nothing"}',
        b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":7}',
        b'{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"add","arguments":[]}}',
        b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"add","arguments":{"a":true,"b":1}}}',
        b'{"jsonrpc":"2.0","id":6,"method":"resources/read","params":{"uri":"x"}}',
        b'{"jsonrpc":"2.0","id":7,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":8,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"1"}}}',
    )
    codes = [answer["error"]["code"] if "error" in answer else "result" for answer in answers]
    assert codes == [-32700, -32601, -32602, "result", "result", -32602, "result", -32022]
