"""What the tests of guardrails stand on: calls through both places of a chain, and answers that come in any pieces."""

from collections.abc import Sequence
from typing import Any

import msgspec
from tests.unit.policies.floor import layer, parts, request, who

from tollhouse.core.call import Call, ModelCall, Principal
from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.core.http import Ending, Sink, finish
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.guardrails.spec import GuardrailsSpec
from tollhouse.wire.llm import CHAT
from tollhouse.wire.llm.dialect import Dialect

__all__ = ["Client", "Server", "asked", "chunk", "guarded", "said", "through"]

SECRET = "sk-ant-api03-" + "Ab3dEf6hIj9kLm2nOp5q" * 4 + "-AAAAAA"


class Server:
    """A backend, and the Source of its stream. blocks: of whole events; the first comes with the Reply. failure: with
    which the stream ends."""

    def __init__(self, *blocks: bytes, stream: bool = False, status: int = 200, failure: Failure | None = None) -> None:
        self.blocks = list(blocks)
        self.stream = stream
        self.status = status
        self.failure = failure
        self.calls: list[Call] = []
        self.closed = False
        self.paused = 0
        self.ended: list[Ending] = []
        self.sink: Sink | None = None

    async def handle(self, call: Call) -> Reply:
        self.calls.append(call)
        first = self.blocks[0] if self.blocks else b"{}"
        reply = Reply(self.status, [(b"content-type", b"application/json")], first, self if self.stream else None)
        reply.ends.append(self.ended.append)
        if self.stream:
            reply.taps = []
        return reply

    @property
    def fields(self) -> Any:
        """Of the one request that it got."""
        [call] = self.calls
        assert isinstance(call, ModelCall)
        return {name: msgspec.json.decode(value) for name, value in call.fields.items()}

    # Source
    def start(self, sink: Sink) -> None:
        self.sink = sink
        for block in self.blocks[1:]:
            if self.closed:
                return
            sink.send(block)
        if not self.closed:
            sink.end(self.failure)

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Client:
    """Reads a Reply to its end."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.failure: Failure | None = None
        self.ended = False

    def send(self, data: bytes) -> None:
        assert not self.ended
        self.parts.append(data)

    def end(self, failure: Failure | None = None) -> None:
        assert not self.ended
        self.ended = True
        self.failure = failure

    def read(self, reply: Reply) -> bytes:
        """As an endpoint and a server would."""
        first = reply.first
        for tap in reply.taps or ():
            first = tap(first)
        if first:
            self.send(first)
        if reply.source is None:
            self.end()
        else:
            reply.source.start(self)
        return self.body

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


def guarded(
    server: Server,
    *specs: Any,
    made: Parts | None = None,
    entrance: str = "llm",
    levels: Sequence[str] = ("top", "model"),
) -> Any:
    """A chain of both places before a server. specs: of each scope, widest first."""
    made = made or parts(entrance=entrance)
    layers = tuple(layer(GuardrailsSpec.model_validate(spec), levels[n], "m" * n) for n, spec in enumerate(specs))
    policies = [kind.make(layers, made) for kind in (GUARD_REQUESTS, GUARD_ANSWERS)]
    return compose([policy for policy in policies if policy is not None], server.handle)


def asked(dialect: Dialect = CHAT, principal: Principal | None = None, **fields: Any) -> ModelCall:
    body = msgspec.json.encode({"model": "m", **fields})
    made = request(b"POST", dialect.path, principal=principal or who(id="ada", org="platform"))
    decoded = dialect.decode(body, model="m", stream=bool(fields.get("stream")))
    return ModelCall(
        made, made.context, dialect=dialect, operation=dialect.operation, model="m", label="m", stream=decoded.stream,
        fields=decoded.fields, body=body,
    )  # fmt: skip


def chunk(text: str | None = None, *, finish: str | None = None, choice: int = 0, **delta: Any) -> bytes:
    """An event of a stream of chat completions."""
    if text is not None:
        delta["content"] = text
    body = {
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": choice, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def said(body: bytes, choice: int = 0) -> str:
    """The text of a stream of chat completions."""
    lines = [line for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [one for line in lines for one in msgspec.json.decode(line[6:]).get("choices", [])]
    return "".join([one["delta"].get("content") or "" for one in choices if one["index"] == choice])


def completion(text: str) -> bytes:
    return msgspec.json.encode(
        {
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    )  # fmt: skip


async def through(chain: Any, call: Call) -> tuple[Reply, Client]:
    """The call, answered and read to its end; its ends have run."""
    reply = await chain(call)
    client = Client()
    client.read(reply)
    return reply, client


def settle(reply: Reply, status: int = 200) -> None:
    """What the server does at the end."""
    finish(reply.ends, Ending(status, "Upstream"))
