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
        b'{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":[]}}',
        b'{"jsonrpc":"2.0","id":10,"method":"tools/call","params":{"name":"time"}}',
        b'{"jsonrpc":"2.0","id":11,"method":"prompts/get","params":{"name":"summary","arguments":[1]}}',
        b'{"jsonrpc":"2.0","id":12,"method":"prompts/get","params":{"name":{}}}',
        b'{"jsonrpc":"2.0","id":[],"method":"ping"}',
        b'{"jsonrpc":"2.0","id":14,"method":"ping"}',
    )
    codes = [answer["error"]["code"] if "error" in answer else "result" for answer in answers]
    assert codes == [
        -32700, -32601, -32602, -32602, "result", -32602, "result", -32022,
        -32602, "result", -32602, -32602, -32600, "result",
    ]  # fmt: skip


def test_nothing_kills_it() -> None:
    """Around what the decoder takes, what is done with a value may be too deep."""
    depths = [*range(900, 1100), 6000, 100_000]
    texts = (b"[" * depth + b"]" * depth for depth in depths)
    about = b'{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"summary","arguments":{"text":%b}}}'
    answers = said(*(about % text for text in texts), b'{"jsonrpc":"2.0","id":2,"method":"ping"}')
    assert len(answers) == len(depths) + 1
    assert {answer["error"]["code"] for answer in answers if "error" in answer} <= {-32700, -32603}
    assert answers[-1]["result"] == {}
