"""Callers that ask nonsense, and providers that answer it: every caller is told in the API that was asked, and nothing
breaks.

Each API asks each provider, its own and those it must be translated for.
"""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway
from tests.fixtures.llm_gateway import CALLER, PROVIDERS, model_gateway, recorded
from tests.fixtures.llm_upstreams import BROKEN, CUT, Upstreams, upstreams
from tests.fixtures.wire import Wire

KINDS = [kind for kind in PROVIDERS if kind not in ("azure", "vertex", "claude")]
SAVED = "\n".join(
    f'  - {{name: saved-{kind}.*, targets: [{{provider: {kind}, model: "*"}}], '
    "fallback: [{provider: compatible, model: some-plain}]}"
    for kind in KINDS
)
HEADERS = {"authorization": f"Bearer {CALLER}"}


@pytest.fixture(scope="module")
def providers() -> Iterator[Upstreams]:
    with upstreams() as running:
        yield running


@pytest.fixture(scope="module")
def running(providers: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with model_gateway(providers, tmp_path_factory.mktemp("gateway"), SAVED) as one:
        yield one


@dataclass(frozen=True)
class Asking:
    """An API as its callers see it. body: of a short question. failed: whether a stream's bytes tell an error. ends:
    what a whole stream ends with. message: of an error's body."""

    path: Callable[[str, bool], str]
    body: dict[str, Any]
    message: Callable[[int, dict[str, str], Any], str]
    failed: bytes
    ends: bytes
    in_body: bool = True

    def ask(self, running: Gateway, model: str, stream: bool, **more: Any) -> tuple[int, dict[str, str], bytes]:
        body = {**self.body, **more}
        if self.in_body:
            body = {"model": model, "stream": stream, **body}
        return running.exchange("POST", self.path(model, stream), body, HEADERS)


def _openai(status: int, headers: dict[str, str], body: Any) -> str:
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    return str(body["error"]["message"])


def _anthropic(status: int, headers: dict[str, str], body: Any) -> str:
    assert body["type"] == "error"
    assert body["error"]["type"].endswith("_error") or body["error"]["type"] == "request_too_large"
    return str(body["error"]["message"])


def _gemini(status: int, headers: dict[str, str], body: Any) -> str:
    assert body["error"]["code"] == status
    assert body["error"]["status"].isupper()
    return str(body["error"]["message"])


def _bedrock(status: int, headers: dict[str, str], body: Any) -> str:
    assert headers["x-amzn-errortype"].endswith("Exception")
    return str(body["message"])


SAY = [{"role": "user", "content": "hi"}]
APIS = {
    "chat": Asking(lambda m, s: "/v1/chat/completions", {"messages": SAY}, _openai, b'data: {"error"', b"[DONE]"),
    "responses": Asking(
        lambda m, s: "/v1/responses", {"input": "hi"}, _openai, b"event: error", b"event: response.completed"
    ),
    "messages": Asking(
        lambda m, s: "/v1/messages",
        {"messages": SAY, "max_tokens": 9},
        _anthropic,
        b"event: error",
        b"event: message_stop",
    ),
    "generate": Asking(
        lambda m, s: f"/v1beta/models/{m}:" + ("streamGenerateContent?alt=sse" if s else "generateContent"),
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        _gemini,
        b'data: {"error"',
        b'"finishReason"',
        False,
    ),
    "converse": Asking(
        lambda m, s: f"/model/{m}/converse" + ("-stream" if s else ""),
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        _bedrock,
        b":exception-type",
        b"messageStop",
        False,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("api", APIS)
def test_a_provider_that_answers_nonsense(api: str, kind: str, running: Gateway) -> None:
    """502 in the caller's API before the first event; the next target is asked where there is one."""
    asking = APIS[api]
    wrong = []
    for stream in (False, True):
        for mode in (*BROKEN, *(() if stream else CUT)):
            status, headers, body = asking.ask(running, f"{kind}.bad-{mode}", stream)
            if status != 502:
                wrong.append(f"{mode}, stream {stream}: {status} {body[:300]!r}")
                continue
            assert headers["content-type"] == "application/json"
            assert asking.message(status, headers, json.loads(body)), mode
            status, headers, body = asking.ask(running, f"saved-{kind}.bad-{mode}", stream)
            assert (status, asking.ends in body) == (200, stream or asking.ends in body), f"{mode}: {body!r:.300}"
            assert b"25 \xc2\xb0C, sun" in body or b"25 \\u00b0C, sun" in body, f"{mode}: {body!r:.300}"
    assert wrong == []


@pytest.mark.parametrize("api", APIS)
def test_a_stream_that_ends_before_its_end(api: str, running: Gateway) -> None:
    """The caller gets what came, then an error event of its API, and never the end of a whole answer."""
    asking = APIS[api]
    begun = set()
    for kind in KINDS:
        for mode in CUT:
            model = f"{kind}.{api}-{mode}"
            status, headers, body = asking.ask(running, model, True)
            if status == 502:  # nothing had come yet that means something
                assert asking.message(status, headers, json.loads(body))
                continue
            assert status == 200
            begun.add(model)
            assert asking.failed in body, f"{model}: {body!r:.1500}"
            assert asking.ends not in body, f"{model}: {body!r:.1500}"
    for records in recorded(running, begun, len(begun)).values():
        assert (records[0]["outcome"], records[0]["estimated"]) == ("cut", True)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["compatible", "anthropic", "bedrock"])
async def test_who_leaves_at_the_last_event_has_had_it_all(kind: str, running: Gateway) -> None:
    """As SDKs do: they do not wait for the end of the body."""
    model = f"{kind}.last-lingering"
    asked = {"model": model, "stream": True, "messages": SAY, "stream_options": {"include_usage": True}}
    async with Wire(running.url) as wire:
        body = json.dumps(asked).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CALLER}\r\n"
        await wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert (await wire.head()).status == 200
        while b"[DONE]" not in await wire.chunk():
            pass
    (record,) = recorded(running, {model}, 1)[model]
    assert (record["outcome"], record["status"], record["output"], record["estimated"]) == ("ok", 200, 17, False)


# ---- what callers ask
DATA = base64.b64encode(bytes(range(200))).decode()
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "chat": [
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": 7}}]}, "tools[0].function.name"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url",
        ),
    ],
    "responses": [
        ({"input": 5}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}, "input[0].content[0].text"),
        ({"tools": [{"type": "function", "name": 7}]}, "tools[0].name"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,%%%"}]}
                ]
            },
            "input[0].content[0].image_url",
        ),
    ],
    "messages": [
        ({"messages": {}}, "messages"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": []}]}]}, "messages[0].content[0].text"),
        ({"tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "%%%"}}
                        ],
                    }
                ]
            },
            "messages[0].content[0].source.data",
        ),
    ],
    "generate": [
        ({"contents": 5}, "contents"),
        ({"contents": [{"role": "user", "parts": [{"text": 7}]}]}, "contents[0].parts[0].text"),
        ({"generationConfig": {"temperature": "hot"}}, "temperature"),
        ({"tools": [{"functionDeclarations": [{"name": 7}]}]}, "functionDeclarations[0].name"),
        (
            {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "%%%"}}]}]},
            "contents[0].parts[0].inlineData.data",
        ),
    ],
    "converse": [
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"text": 7}]}]}, "messages[0].content[0].text"),
        ({"inferenceConfig": {"maxTokens": "many"}}, "inferenceConfig.maxTokens"),
        ({"toolConfig": {"tools": [{"toolSpec": {"name": 7}}]}}, "toolSpec.name"),
        (
            {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": "%%%"}}}]}]},
            "messages[0].content[0].image.source.bytes",
        ),
    ],
}


@pytest.mark.parametrize("api", APIS)
def test_a_caller_that_asks_nonsense(api: str, running: Gateway) -> None:
    """400 that names the field."""
    asking = APIS[api]
    kind = "compatible" if api != "chat" else "anthropic"
    for more, field in BAD[api]:
        status, headers, body = asking.ask(running, f"{kind}.some-plain", False, **more)
        assert status == 400, f"{more}: {body!r:.500}"
        assert field in asking.message(status, headers, json.loads(body)), f"{more}: {body!r:.500}"
    deep = b'{"tools":' + b'{"properties":' * 100_000 + b"1" + b"}" * 100_001
    for bad in (b'{"model":"x","messages":[', b"[]", b"\xff\xfe", b'{"a":NaN}', b"", deep):
        status, headers, body = running.exchange("POST", asking.path(f"{kind}.some-plain", False), bad, HEADERS)
        assert status == 400, f"{bad!r:.50}: {status} {body!r:.500}"
        asking.message(status, headers, json.loads(body))


TOOLS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "chat": lambda schema: {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
    "responses": lambda schema: {"tools": [{"type": "function", "name": "f", "parameters": schema}]},
    "messages": lambda schema: {"tools": [{"name": "f", "input_schema": schema}]},
    "generate": lambda schema: {"tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": schema}]}]},
    "converse": lambda schema: {
        "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": schema}}}]}
    },
}
PICTURES: dict[str, Callable[[str], dict[str, Any]]] = {
    "chat": lambda d: {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + d}}]}
        ]
    },
    "responses": lambda d: {
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "data:image/png;base64," + d, "detail": "auto"}],
            }
        ]
    },
    "messages": lambda d: {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": d}}],
            }
        ]
    },
    "generate": lambda d: {
        "contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": d}}]}]
    },
    "converse": lambda d: {
        "messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": d}}}]}]
    },
}


@pytest.mark.parametrize("api", APIS)
def test_what_is_big(api: str, running: Gateway, providers: Upstreams) -> None:
    """2 MB of a tool's schema and a picture of 3 MB arrive whole at each provider; a picture of 20 MB is a 413."""
    asking = APIS[api]
    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "description": "x" * 80} for n in range(16_000)},
    }
    assert len(json.dumps(schema)) > 2_000_000
    picture = base64.b64encode(bytes(range(256)) * 12_000).decode()
    for kind in KINDS:
        model = f"{kind}.{api}-plain"
        status, _, body = asking.ask(running, model, False, **TOOLS[api](schema))
        assert status == 200, f"{kind}: {body!r:.300}"
        told = json.dumps(providers.seen[-1].body)
        assert "p15999" in told, kind
        status, _, body = asking.ask(running, model, False, **PICTURES[api](picture))
        assert status == 200, f"{kind}: {body!r:.300}"
        assert picture in json.dumps(providers.seen[-1].body), kind
        providers.seen.clear()
    status, headers, body = asking.ask(running, "compatible.some-plain", False, **PICTURES[api]("A" * 20_000_000))
    assert status == 413
    assert "10" in asking.message(status, headers, json.loads(body))
