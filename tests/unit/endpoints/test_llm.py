"""The LLM endpoint behind the real server, asked by the real SDKs and by hand, with real upstreams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from tests.fixtures.garbage import collected
from tests.unit.backends.calls import ANSWER, DONE, EVENT, HEAD, USAGE, World, always, answer, chunk, stream, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.core.call import Call, Context, ModelCall, Principal, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Ending, Headers, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.llm import LLMEndpoint
from tollhouse.endpoints.models import Model, Models, ModelsEndpoint
from tollhouse.net.server import Server
from tollhouse.wire.llm import CHAT, EMBEDDINGS, MESSAGES

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parents[1] / "wire" / "llm" / "golden"


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


class Gateway:
    """A server with the LLM endpoints. records: each request's context and ending."""

    def __init__(self, handlers: dict[str, Handler[ModelCall, Reply]], world: World) -> None:
        self.models = Models(Model(name, handler) for name, handler in handlers.items())
        self.records: list[tuple[Context, Ending]] = []
        self.server = Server(self.handle, world.clock)
        self.port = 0
        endpoints = [LLMEndpoint(d, self.models, self.permitted, max_body=20_000) for d in (CHAT, EMBEDDINGS, MESSAGES)]
        self.routes = {
            b"/v1/chat/completions": endpoints[0],
            b"/v1/embeddings": endpoints[1],
            b"/v1/messages": endpoints[2],
        }
        self.listing = ModelsEndpoint(self.models, self.permitted)

    @staticmethod
    def permitted(principal: Principal | None, name: str) -> bool:
        return not name.startswith("hidden")

    async def handle(self, request: Request) -> Response:
        context = request.context
        context.began = monotonic()
        context.request_id = f"req-{len(self.records)}"
        request.ends.append(lambda ending: self.records.append((context, ending)))
        endpoint = self.routes.get(request.path, self.listing)
        request.render = endpoint.render
        return await endpoint.handle(request)

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def recorded(self, count: int = 1) -> tuple[Context, Ending]:
        async with asyncio.timeout(5):
            while len(self.records) < count:
                await asyncio.sleep(0.002)
        return self.records[count - 1]


@asynccontextmanager
async def gateway(
    play: Callable[[Peer], Awaitable[None]], *, kind: str = "openai", wrap: Any = None, **fields: Any
) -> AsyncIterator[Gateway]:
    """A gateway with the model `smart`, and `openai/*`, at an upstream that behaves as `play` says."""
    async with upstream(play) as up, world() as it:
        it.provider("up", kind=kind, base_url=up.url(), api_key="sk-ours")
        handlers = {
            "smart": it.pool(**fields).handle,
            "openai/*": it.pool("openai/*", targets=[{"provider": "up", "model": "*"}]).handle,
            "hidden-smart": it.pool().handle,
        }
        if wrap is not None:
            handlers = {name: compose((wrap,), handler) for name, handler in handlers.items()}
        made = Gateway(handlers, it)
        server = await asyncio.get_running_loop().create_server(made.server.accept, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            server.close()
            made.server.abort()
            await made.server.wait_closed()


def openai_client(it: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=it.url("/v1"), api_key="callers", max_retries=0)


def anthropic_client(it: Gateway) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=it.url(), api_key="callers", max_retries=0)


ASK: Any = [{"role": "user", "content": "What is a toll house?"}]
TEXT = 'Toll houses “collect” \\n"tolls" \U0001f6a7.'


# ---- the OpenAI SDK
async def test_openai_whole() -> None:
    async with gateway(always(answer(golden("openai_answer.json")))) as it, openai_client(it) as client:
        said = await client.chat.completions.create(model="smart", messages=ASK)
        assert said.choices[0].message.content == "Toll houses collect tolls."
        assert said.usage is not None
        assert said.usage.prompt_tokens == 1200
        context, ending = await it.recorded()
        assert (ending.status, ending.reason, ending.failure) == (200, Reason.UPSTREAM, None)
        assert context.usage == Usage(176, 9, 1024, 0, 4)
        assert (context.dialect, context.operation, context.stream) == ("openai", "chat", False)
        assert (context.model_asked, context.model_answered) == ("smart", "gpt-4o-mini-2024-07-18")
        assert context.bytes_in > 0


@pytest.mark.parametrize("asked", [False, True])
async def test_openai_stream(asked: bool) -> None:
    play = always(stream(golden("openai_stream.sse")))
    async with gateway(play) as it, openai_client(it) as client:
        options: Any = {"stream_options": {"include_usage": True}} if asked else {}
        chunks = [
            c async for c in await client.chat.completions.create(model="smart", messages=ASK, stream=True, **options)
        ]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert [c.usage is not None for c in chunks].count(True) == (1 if asked else 0)
        assert all(c.choices for c in chunks[:-1])
        context, ending = await it.recorded()
        assert ending.failure is None
        assert context.usage == Usage(176, 9, 1024, 0, 4)
        assert context.first_event > 0


async def test_openai_embeddings() -> None:
    play = always(answer(golden("openai_embeddings.json")))
    async with gateway(play) as it, openai_client(it) as client:
        made = await client.embeddings.create(model="smart", input="toll", encoding_format="float")
        assert made.data[0].embedding == [0.0023064255, -0.009327292]
        context, _ = await it.recorded()
        assert context.usage == Usage(8)
        assert context.operation == "embeddings"


async def test_openai_errors() -> None:
    async with gateway(always(answer(b"{}", 429, b"retry-after: 7\r\n"))) as it, openai_client(it) as client:
        with pytest.raises(openai.NotFoundError, match="did you mean 'smart'") as missing:
            await client.chat.completions.create(model="smrt", messages=ASK)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert "hidden" not in str(missing.value)
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model="smart", messages=ASK)
        assert limited.value.response.headers["retry-after"] == "7"
        assert limited.value.type == "rate_limit_error"
        with pytest.raises(openai.BadRequestError, match='"model" must be a string'):
            await client.chat.completions.create(model=7, messages=ASK)  # type: ignore[call-overload]
        with pytest.raises(openai.APIStatusError) as large:
            await client.chat.completions.create(model="smart", messages=[{"role": "user", "content": "x" * 40_000}])
        assert large.value.status_code == 413


async def test_an_openai_stream_that_dies_raises() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.02)
        peer.cut()

    async with gateway(play) as it, openai_client(it) as client:
        events = await client.chat.completions.create(model="smart", messages=ASK, stream=True)
        assert (await anext(events)).choices[0].delta.content == "abcd"
        with pytest.raises(openai.APIError, match="the upstream closed before the end") as caught:
            await anext(events)
        assert caught.value.type == "server_error"
        context, ending = await it.recorded()
        assert ending.failure is not None
        assert ending.failure.reason is Reason.UPSTREAM_FAILURE
        assert context.usage is not None
        assert context.usage.estimated
        assert context.usage.output == 1


async def test_an_openai_error_event_reaches_the_client_as_it_is() -> None:
    raw = b'data: {"error":{"message":"boom","type":"weird_error","param":null,"code":"x1"}}\n\n'

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.02)
        await peer.send(chunk(raw + DONE) + b"0\r\n\r\n")

    async with gateway(play) as it, openai_client(it) as client:
        events = await client.chat.completions.create(model="smart", messages=ASK, stream=True)
        await anext(events)
        with pytest.raises(openai.APIError, match="boom") as caught:
            await anext(events)
        assert (caught.value.type, caught.value.code) == ("weird_error", "x1")
        _, ending = await it.recorded()
        assert ending.failure is not None


async def test_openai_models() -> None:
    async with gateway(always(answer())) as it, openai_client(it) as client:
        assert [m.id async for m in client.models.list()] == ["smart", "openai/*"]
        assert (await client.models.retrieve("openai/gpt-4o")).id == "openai/gpt-4o"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("hidden-smart")


# ---- the Anthropic SDK
async def test_anthropic_whole() -> None:
    play = always(answer(golden("anthropic_answer.json")))
    async with gateway(play, kind="anthropic") as it, anthropic_client(it) as client:
        said = await client.messages.create(model="smart", max_tokens=100, messages=ASK)
        assert said.content[0].type == "text"
        assert said.content[0].text == "Toll houses collect tolls."
        assert said._request_id == "req-0"
        context, _ = await it.recorded()
        assert context.usage == Usage(25, 503, 2000, 100, 100)
        assert (context.dialect, context.operation, context.provider) == ("anthropic", "messages", "anthropic")


async def test_anthropic_stream() -> None:
    play = always(stream(golden("anthropic_stream.sse")))
    async with gateway(play, kind="anthropic") as it, anthropic_client(it) as client:
        async with client.messages.stream(model="smart", max_tokens=100, messages=ASK) as events:
            text = "".join([t async for t in events.text_stream])
            final = await events.get_final_message()
        assert text == TEXT
        assert final.stop_reason == "tool_use"
        assert final.usage.output_tokens == 57
        context, ending = await it.recorded()
        assert ending.failure is None
        assert context.usage == Usage(25, 57, 2000, 100, 5)


@pytest.mark.parametrize("tail", [b"", None])
async def test_an_anthropic_stream_that_dies_raises(tail: bytes | None) -> None:
    data = golden("anthropic_stream.sse" if tail is None else "anthropic_stream_error.sse")
    data = data[: data.rindex(b"event: message_delta")] if tail is None else data
    at = data.index(b"event: ping")

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(data[:at]))
        await asyncio.sleep(0.02)
        await peer.send(chunk(data[at:]) + b"0\r\n\r\n")
        await peer.closed()

    async with gateway(play, kind="anthropic") as it, anthropic_client(it) as client:
        says = "ended before the answer was complete" if tail is None else "Overloaded"
        with pytest.raises(anthropic.APIStatusError, match=says):
            async for _ in await client.messages.create(model="smart", max_tokens=100, messages=ASK, stream=True):
                pass
        context, ending = await it.recorded()
        assert ending.failure is not None
        assert context.usage is not None
        assert context.usage.input == 25
        assert context.usage.estimated


async def test_anthropic_errors_and_models() -> None:
    async with gateway(always(answer(b"{}", 529)), kind="anthropic") as it, anthropic_client(it) as client:
        with pytest.raises(anthropic.NotFoundError, match="did you mean 'smart'") as missing:
            await client.messages.create(model="smrt", max_tokens=1, messages=ASK)
        assert missing.value.request_id == "req-0"
        with pytest.raises(anthropic.InternalServerError) as overloaded:
            await client.messages.create(model="smart", max_tokens=1, messages=ASK)
        assert overloaded.value.type == "overloaded_error"
        assert [m.id async for m in client.models.list()] == ["smart", "openai/*"]


async def test_another_dialect_than_the_providers_is_translated() -> None:
    choice = b'{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}'
    body = b'{"id":"c","model":"m","choices":[%b]}' % choice
    async with gateway(always(answer(body))) as it, anthropic_client(it) as client:
        message = await client.messages.create(model="smart", max_tokens=1, messages=ASK)
        assert [block.text for block in message.content if block.type == "text"] == ["Hi"]


async def test_what_no_target_can_be_asked_says_what_would_be_right() -> None:
    async with gateway(always(answer()), kind="anthropic") as it, openai_client(it) as client:
        with pytest.raises(openai.BadRequestError, match="ask for it at /v1/chat/completions"):
            await client.embeddings.create(model="smart", input="x")


# ---- by hand
async def post(it: Gateway, body: bytes, path: bytes = b"/v1/chat/completions", method: bytes = b"POST") -> bytes:
    """All bytes of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    head = b"%b %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (method, path, len(body)) + body)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_a_stream_on_the_wire() -> None:
    async with gateway(always(stream(EVENT, USAGE, DONE))) as it:
        said = await post(it, b'{"model":"smart","stream":true}')
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"content-type: text/event-stream; charset=utf-8" in head
        assert b"cache-control: no-cache" in head
        assert b"x-accel-buffering: no" in head
        assert b"usage" not in body
        assert body.endswith(b"0\r\n\r\n")
        assert EVENT in body


async def test_last_words_of_a_stream_are_the_last() -> None:
    async with gateway(always(stream(EVENT))) as it:
        body = (await post(it, b'{"model":"smart","stream":true}')).partition(b"\r\n\r\n")[2]
        assert b'data: {"error":{"message":"the provider\'s stream ended' in body
        assert b"[DONE]" not in body
        assert body.endswith(b"\n\n\r\n0\r\n\r\n")


async def test_bytes_pass_as_they_are() -> None:
    odd = b'{ "model":"x",\n "choices":[{"a":1e2,"b":"\\u00e9\xc3\xa9"}],"unknown":{"k": [ ]} ,"usage":{}}'
    async with gateway(always(answer(odd))) as it:
        assert (await post(it, b'{"model":"smart"}')).partition(b"\r\n\r\n")[2] == odd


@pytest.mark.parametrize(
    "body, status", [(b"", 400), (b"[]", 400), (b"{}", 400), (b'{"model":"none"}', 404), (b"x" * 40_000, 413)]
)
async def test_what_cannot_be_asked(body: bytes, status: int) -> None:
    async with gateway(always(answer())) as it:
        said = await post(it, body)
        assert said.startswith(b"HTTP/1.1 %d " % status)
        assert set(msgspec.json.decode(said.partition(b"\r\n\r\n")[2])) == {"error"}


async def test_only_post() -> None:
    async with gateway(always(answer())) as it:
        said = await post(it, b"", method=b"GET")
        assert said.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: POST\r\n" in said


async def test_a_client_that_leaves_stops_the_upstream() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await peer.closed()
        left.set()

    async with gateway(play) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        body = b'{"model":"smart","stream":true,"max_tokens":5}'
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(EVENT)
        writer.transport.abort()
        async with asyncio.timeout(5):
            await left.wait()
        context, ending = await it.recorded()
        assert ending.gone
        assert context.usage == Usage(len(body) // 4, 1, estimated=True)


async def test_taps_apply_to_everything() -> None:
    async def mask(call: ModelCall, next: Handler[ModelCall, Reply]) -> Reply:
        reply = await next(call)
        if reply.taps is None:
            reply.taps = []
        reply.taps.append(lambda block: block.replace(b"abcd", b"****"))
        return reply

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.02)
        await peer.send(chunk(EVENT + DONE) + b"0\r\n\r\n")
        await peer.request()
        await peer.send(answer(b'{"text":"abcd"}'))

    async with gateway(play, wrap=mask) as it:
        body = await post(it, b'{"model":"smart","stream":true}')
        assert b"abcd" not in body
        assert body.count(b"****") == 2
        assert b'{"text":"****"}' in await post(it, b'{"model":"smart"}')


async def test_a_tap_that_refuses_the_first_event() -> None:
    def guard(block: bytes) -> bytes:
        raise Failure(403, Reason.GUARDRAIL, "not this")

    async def policy(call: ModelCall, next: Handler[ModelCall, Reply]) -> Reply:
        reply = await next(call)
        assert reply.taps is not None
        reply.taps.append(guard)
        return reply

    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await peer.closed()
        left.set()

    async with gateway(play, wrap=policy) as it:
        assert (await post(it, b'{"model":"smart","stream":true}')).startswith(b"HTTP/1.1 403 ")
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_fallback_is_announced() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai("http://127.0.0.1:1", "dead")
        it.openai(up.url(), "spare")
        fallback = [{"provider": "spare", "model": "s", "notice": True}]
        pool = it.pool(targets=[{"provider": "dead"}], fallback=fallback)
        endpoint = LLMEndpoint(CHAT, Models([Model("smart", pool.handle)]), lambda p, n: True)
        request = Request(b"POST", b"/v1/chat/completions", Headers(), b'{"model":"smart"}')
        response = await endpoint.handle(request)
        assert (b"x-tollhouse-fallback", b"spare/s") in response.headers
        assert request.context.fallback == "spare/s"


async def test_nothing_waits_for_the_collector() -> None:
    answers = {
        b"whole": answer(ANSWER),
        b"stream": stream(EVENT, USAGE + DONE),
        b"cut": stream(EVENT),
        b"bad": answer(b"{}", 500),
    }

    async def play(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            await peer.send(answers[msgspec.json.decode(body)["model"].encode()])

    async with gateway(play) as it:

        async def rounds(count: int) -> None:
            for _ in range(count):
                for name in answers:
                    flag = b"true" if name in (b"stream", b"cut") else b"false"
                    await post(it, b'{"model":"openai/%b","stream":%b}' % (name, flag))
                await post(it, b"{}")

        await rounds(3)
        await asyncio.sleep(0.05)
        with collected() as found:
            await rounds(5)
            await asyncio.sleep(0.05)
    assert not [it for it in found if type(it).__module__.startswith("tollhouse.")]


@pytest.mark.parametrize("name", ["none", "", "x" * 300_000])
async def test_guessing_names_of_models_is_not_free(name: str) -> None:
    asked: list[Call] = []

    async def admit(call: Call) -> None:
        asked.append(call)
        if len(asked) > 1:
            raise Failure(429, Reason.RATE_LIMIT, "enough")

    async def nobody(call: ModelCall) -> Reply:
        raise AssertionError("nobody is asked here")

    models = Models([Model("smart", nobody), Model("openai/*", nobody)])
    it = LLMEndpoint(CHAT, models, lambda principal, name: True, admit=admit)
    body = msgspec.json.encode({"model": name, "messages": []})
    for status in (404, 429):
        request = Request(b"POST", b"/v1/chat/completions", Headers(), body)
        with pytest.raises(Failure) as caught:
            await it.handle(request)
        assert caught.value.status == status
        assert request.context.model_asked == name[:256]
    assert [isinstance(call, ModelCall) and call.model for call in asked] == ["", ""]
