"""The upstreams that proxies are measured against: python upstream.py MODE PORT, on loopback.

    paced   50 server-sent events, 5 ms apart, for a request that asks for a stream; else a chat completion
    burst   the same, one event after the other
    first   one event that carries the time it was written, and 2 ms later the end
    hold    one event, then nothing for as long as the client stays
    mcp     an MCP server (Streamable HTTP, 2025-11-25, JSON answers) with one tool

Rule: it costs as little as Python can, so that load and upstream fit on one core. It believes its clients.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

EVENTS = 50
PACE = 0.005
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choices: bytes, more: bytes = b"") -> bytes:
    """A chunk of a chat completion, as one chunk of HTTP."""
    return chunk(
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4.1",'
        b'"choices":[%b],"system_fingerprint":"fp_%b"}\n\n' % (choices, more)
    )


def delta(word: bytes, more: bytes = b"bench") -> bytes:
    return event(b'{"index":0,"delta":{"content":"%b"},"finish_reason":null}' % word, more)


USAGE = b'bench","usage":{"prompt_tokens":119,"completion_tokens":49,"total_tokens":168},"service_tier":"default'
WRITES = [
    STREAM_HEAD + delta(b" token0"),
    *(delta(b" token%d" % n) for n in range(1, EVENTS - 1)),
    event(b"", USAGE) + chunk(b"data: [DONE]\n\n") + END,
]

COMPLETION = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1760000000,"model":"gpt-4.1","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":119,"completion_tokens":10,"total_tokens":129}}'
)
UNARY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(COMPLETION),
    COMPLETION,
)


class Connection(asyncio.Protocol):
    """Reads whole requests, one at a time, and has them answered by `answer(head, body)`."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                whole = len(data) >= end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
            else:
                whole = b"\r\ntransfer-encoding: chunked" not in head or data.endswith(END)
            if whole:
                self._received = b""
                self.answer(head, data[end + 4 :])
                return
        self._received = data

    def answer(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


class Stream(Connection):
    """50 events, each in a write of its own, where a stream was asked for."""

    pace = 0.0
    _next = 0

    def answer(self, head: bytes, body: bytes) -> None:
        if b'"stream":true' not in body:
            self.transport.write(UNARY)
            return
        self._next = 0
        self._step()

    def _step(self) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(WRITES[self._next])
        self._next += 1
        if self._next < EVENTS:
            loop = asyncio.get_running_loop()
            if self.pace:
                loop.call_later(self.pace, self._step)
            else:
                loop.call_soon(self._step)


class PacedStream(Stream):
    pace = PACE


class FirstEvent(Connection):
    """One event that says when it was written."""

    def answer(self, head: bytes, body: bytes) -> None:
        self.transport.write(STREAM_HEAD)
        asyncio.get_running_loop().call_later(0.002, self._event)

    def _event(self) -> None:
        self.transport.write(delta(b"hi", b"%d" % time.monotonic_ns()))
        asyncio.get_running_loop().call_later(0.002, self._end)

    def _end(self) -> None:
        self.transport.write(chunk(b"data: [DONE]\n\n") + END)


class HeldStream(Connection):
    """One event, and silence."""

    def answer(self, head: bytes, body: bytes) -> None:
        self.transport.write(STREAM_HEAD + delta(b"hi"))


TOOL = {
    "name": "add",
    "description": "Add two numbers",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}


class McpServer(Connection):
    """Answers every request at once with one JSON object. One session for all, which never ends."""

    def answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"post "):
            self._send(b"405 Method Not Allowed", b"")
            return
        message = json.loads(body)
        if "id" not in message:
            self._send(b"202 Accepted", b"")
            return
        method = message["method"]
        if method == "initialize":
            result: dict[str, Any] = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "bench", "version": "1"},
            }
        elif b"\r\nmcp-session-id:" not in head:
            error = {"code": -32600, "message": "Bad Request: no session"}
            self._send(b"400 Bad Request", json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode())
            return
        elif method == "tools/call":
            arguments = message["params"]["arguments"]
            result = {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}], "isError": False}
        elif method == "tools/list":
            result = {"tools": [TOOL]}
        else:
            result = {}
        self._send(b"200 OK", json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    def _send(self, status: bytes, body: bytes) -> None:
        kind = b"content-type: application/json\r\n" if body else b""
        self.transport.write(
            b"HTTP/1.1 %b\r\nmcp-session-id: bench-session-0123456789\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, kind, len(body), body)
        )


MODES: dict[str, Callable[[], Connection]] = {
    "burst": Stream,
    "first": FirstEvent,
    "hold": HeldStream,
    "mcp": McpServer,
    "paced": PacedStream,
}


async def main(mode: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(MODES[mode], "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
