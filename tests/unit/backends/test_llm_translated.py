"""Callers of one API, providers of another, over real sockets."""

import asyncio

import msgspec
import pytest
from tests.unit.backends.calls import HEAD, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.provider import Timeouts
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CHAT, MESSAGES

pytestmark = pytest.mark.anyio

SLOW = Timeouts(total=10.0, first_event=5.0, idle=5.0)

MESSAGE = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[{"type":"text","text":"Paris."}],'
    b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":10,"cache_read_input_tokens":5,'
    b'"output_tokens":3}}'
)


def event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


EVENTS = (
    event(
        "message_start",
        '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x",'
        '"content":[],"usage":{"input_tokens":10,"output_tokens":1}}}',
    ),
    event(
        "content_block_start",
        '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    ),
    event("ping", '{"type":"ping"}'),
    event(
        "content_block_delta",
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Pa"}}',
    ),
    event(
        "content_block_delta",
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"ris"}}',
    ),
    event("content_block_stop", '{"type":"content_block_stop","index":0}'),
    event(
        "message_delta",
        '{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":3}}',
    ),
    event("message_stop", '{"type":"message_stop"}'),
)
ASKED = {"messages": [{"role": "user", "content": "capital of France?"}]}


async def test_a_whole_answer() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(MESSAGE), seen)) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        asked = call({**ASKED, "max_tokens": 50})
        reply = await LLMBackend(made, "claude", SLOW).handle(asked)
        told = msgspec.json.decode(reply.first)
        assert told["choices"][0]["message"]["content"] == "Paris."
        assert told["usage"]["prompt_tokens"] == 15
        assert told["created"] > 1_700_000_000
        assert asked.context.usage == Usage(10, 3, 5)
        assert asked.context.model_answered == "claude-x"
    sent = msgspec.json.decode(seen[0][1])
    assert sent == {"model": "claude", "max_tokens": 50, "messages": ASKED["messages"]}
    assert b"POST /v1/messages HTTP/1.1" in seen[0][0]
    assert b"anthropic-version: 2023-06-01" in seen[0][0]


async def test_a_stream() -> None:
    async with upstream(always(stream(*EVENTS))) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        asked = call({**ASKED, "stream": True, "stream_options": {"include_usage": True}})
        told, failure = await taken(await LLMBackend(made, "claude", SLOW).handle(asked))
        assert failure is None
        chunks = [msgspec.json.decode(e[6:]) for e in told.split(b"\n\n") if e and e != b"data: [DONE]"]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        assert text == "Paris"
        assert chunks[-1]["usage"]["completion_tokens"] == 3
        assert told.endswith(b"data: [DONE]\n\n")
        assert asked.context.usage == Usage(10, 3)


async def test_the_other_way_round() -> None:
    body = (
        b'{"id":"c1","object":"chat.completion","created":1,"model":"gpt","choices":[{"index":0,"message":{"role":'
        b'"assistant","content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":'
        b'"{\\"a\\":1}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}'
    )
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(body), seen)) as up, world() as it:
        asked = call({**ASKED, "max_tokens": 50, "system": "be brief"}, dialect=MESSAGES)
        reply = await LLMBackend(it.openai(up.url()), "gpt", SLOW).handle(asked)
        told = msgspec.json.decode(reply.first)
        assert told["content"] == [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]
        assert told["stop_reason"] == "tool_use"
    sent = msgspec.json.decode(seen[0][1])
    assert sent["messages"][0] == {"role": "system", "content": "be brief"}


async def test_what_cannot_be_said_is_refused_or_told() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(MESSAGE), seen)) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        fields = {**ASKED, "seed": 7, "logit_bias": {"1": 2}}
        with pytest.raises(Failure, match=r"seed, logit_bias") as caught:
            await LLMBackend(made, "claude", SLOW).handle(call(fields))
        assert (caught.value.status, caught.value.code) == (400, "not_expressible")
        reply = await LLMBackend(made, "claude", SLOW, lossy=True).handle(call(fields))
        assert (b"x-tollhouse-dropped", b"seed; logit_bias") in reply.headers
    assert len(seen) == 1


async def test_a_refusal_is_told_in_the_callers_words() -> None:
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: too large"}}'
    async with upstream(always(answer(body, 400))) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        reply = await LLMBackend(made, "claude", SLOW).handle(call(ASKED, dialect=CHAT))
        assert reply.status == 400
        assert msgspec.json.decode(reply.first)["error"]["message"] == "max_tokens: too large"


async def test_a_stream_that_fails_ends_with_an_error_of_the_callers() -> None:
    failed = event("error", '{"type":"error","error":{"type":"overloaded_error","message":"busy"}}')
    told = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + b"".join(map(chunk, EVENTS[:4])))
        await told.wait()
        await peer.send(chunk(failed))

    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        reply = await LLMBackend(made, "claude", SLOW).handle(call({**ASKED, "stream": True}))
        told.set()
        text, failure = await taken(reply)
        assert b'"content":"Pa"' in text
        assert failure is not None
        assert failure.status == 503
        assert CHAT.last_words(failure).startswith(b'data: {"error":')


async def test_a_stream_that_is_cut() -> None:
    async with upstream(always(stream(*EVENTS[:5]))) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        reply = await LLMBackend(made, "claude", SLOW).handle(call({**ASKED, "stream": True}))
        told, failure = await taken(reply)
        assert b"[DONE]" not in told
        assert failure is not None
        assert failure.status == 502
