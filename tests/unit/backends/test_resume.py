"""Streams that die and go on at another target: over real sockets, in each dialect whose provider allows a prefix."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.fixtures.garbage import collected
from tests.unit.backends.calls import HEAD, Taker, World, always, answer, call, chunk, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.pool import Pool
from tollhouse.core.errors import Failure
from tollhouse.core.http import Ending, finish
from tollhouse.wire.llm import CHAT, CODECS, MESSAGES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.fold import fold
from tollhouse.wire.llm.model import Answer, Text

pytestmark = pytest.mark.anyio

END = b"0\r\n\r\n"


def chat_event(**delta: Any) -> bytes:
    finish_reason = delta.pop("finish_reason", None)
    fields = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def chat_usage(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + msgspec.json.encode({"id": "c1", "model": "m", "choices": [], "usage": usage}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
CHAT_BEGIN = [chat_event(role="assistant", content=""), chat_event(content="One two"), chat_event(content=" three ")]
CHAT_REST = [
    chat_event(role="assistant", content=""),
    chat_event(content=" four"),
    chat_event(content=" five"),
    chat_event(finish_reason="stop"),
    chat_usage(20, 2),
    DONE,
]


def message_event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def message_start(id: str) -> bytes:
    message: dict[str, Any] = {
        "id": id, "type": "message", "role": "assistant", "model": "c", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 11, "output_tokens": 1},
    }  # fmt: skip
    return message_event("message_start", message=message) + message_event(
        "content_block_start", index=0, content_block={"type": "text", "text": ""}
    )


def said(text: str) -> bytes:
    return message_event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


MESSAGES_BEGIN = [message_start("msg_1"), said("One two"), said(" three ")]
MESSAGES_REST = [
    message_start("msg_2"),
    said("four"),
    said(" five"),
    message_event("content_block_stop", index=0),
    message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    message_event("message_stop"),
]


def dies(events: list[bytes]) -> Callable[[Peer], Any]:
    """A stream that is cut after these events."""

    async def play(peer: Peer) -> None:
        await peer.request()
        for event in events:
            await peer.send(HEAD + chunk(event) if event is events[0] else chunk(event))
            await asyncio.sleep(0.005)
        peer.cut()

    return play


def whole(events: list[bytes], seen: list[tuple[bytes, bytes]] | None = None) -> Callable[[Peer], Any]:
    return always(HEAD + b"".join(map(chunk, events)) + END, seen)


def told(data: bytes, dialect: Dialect) -> Answer:
    """What a client of the API takes the stream for."""
    decoder = CODECS[dialect.operation].decoder()
    events = [e for name, payload in dialect.events(data) if payload for e in decoder.read(name, payload)]
    assert decoder.finished
    return fold(events, dialect.operation)


def text_of(answered: Answer) -> str:
    (choice,) = answered.choices
    assert all(isinstance(part, Text) for part in choice.parts)
    return "".join(part.text for part in choice.parts if isinstance(part, Text))


def resuming(it: World, *names: str, **fields: Any) -> Pool:
    targets = [{"provider": name, "model": "m", "weight": 0 if n else 1} for n, name in enumerate(names)]
    return it.pool(targets=targets, resume=True, **fields)


BODY = {"stream": True, "max_tokens": 100, "messages": [{"role": "user", "content": "count"}]}


async def test_a_chat_goes_on_elsewhere() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(whole(CHAT_REST, seen)) as two, world() as it:
        it.openai(one.url(), "one", continues=True)
        it.openai(two.url(), "two", continues=True)
        pool = resuming(it, "one", "two", health={"failures": 1})
        asked = call({**BODY, "stream_options": {"include_usage": True}, "seed": 7})
        reply = await pool.handle(asked)
        out, failure = await taken(reply)
        assert failure is None
        assert b": tollhouse resumed on two/m\n\n" in out
        answered = told(out.replace(b": tollhouse resumed on two/m\n\n", b""), asked.dialect)
        assert text_of(answered) == "One two three four five"
        assert answered.id == "c1"
        assert answered.choices[0].stop == "stop"
        body = msgspec.json.decode(seen[0][1])
        assert body["messages"] == [
            {"role": "user", "content": "count"},
            {"role": "assistant", "content": "One two three"},
        ]
        assert (body["seed"], body["stream"]) == (7, True)
        assert body["max_tokens"] < 100
        context = asked.context
        assert context.tried == "one/m, two/m"
        assert context.attempts == 2
        assert context.usage is not None
        assert context.usage.estimated
        assert context.usage.output > 2
        assert context.usage.input > 20
        assert [one.backend for one in context.shares] == ["one", "two"]
        assert sum(one.usage.total for one in context.shares) == context.usage.total
        assert answered.usage is not None
        assert answered.usage.output == context.usage.output
        assert pool.members[0].health.until > 0.0
        assert pool.members[1].health.until == 0.0


async def test_messages_go_on_at_the_same_target() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def play(peer: Peer) -> None:
        if not peer.number:
            await dies(MESSAGES_BEGIN)(peer)
        else:
            await whole(MESSAGES_REST, seen)(peer)

    async with upstream(play) as up, world() as it:
        it.provider("a", kind="anthropic", base_url=up.url().rstrip("/"), api_key="k")
        asked = call(BODY, dialect=MESSAGES)
        out, failure = await taken(await resuming(it, "a").handle(asked))
        assert failure is None
        answered = told(out.replace(b": tollhouse resumed on a/m\n\n", b""), MESSAGES)
        assert text_of(answered) == "One two three four five"
        assert answered.id == "msg_1"
        assert out.count(b"message_start") == 2  # the name and the type of one event
        assert msgspec.json.decode(seen[0][1])["messages"][-1] == {"role": "assistant", "content": "One two three"}
        assert asked.context.tried == "a/m, a/m"


async def test_across_dialects() -> None:
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(whole(MESSAGES_REST)) as two, world() as it:
        it.openai(one.url(), "one")
        it.provider("two", kind="anthropic", base_url=two.url().rstrip("/"), api_key="k")
        asked = call(BODY)
        out, failure = await taken(await resuming(it, "one", "two").handle(asked))
        assert failure is None
        answered = told(out.replace(b": tollhouse resumed on two/m\n\n", b""), asked.dialect)
        assert text_of(answered) == "One two three four five"


CALL = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a'}}


@pytest.mark.parametrize(
    "begin, continues, rest",
    [
        (CHAT_BEGIN, False, CHAT_REST),  # the provider would begin anew
        ([*CHAT_BEGIN, chat_event(tool_calls=[CALL])], True, CHAT_REST),
        ([*CHAT_BEGIN, chat_event(reasoning_content="hm")], True, CHAT_REST),
        ([*CHAT_BEGIN, chat_event(finish_reason="stop")], True, CHAT_REST),  # all but its end
        (CHAT_BEGIN, True, CHAT_REST[:2]),  # the second one dies, too: once is all
    ],
)
async def test_what_cannot_go_on_ends_with_its_failure(begin: list[bytes], continues: bool, rest: list[bytes]) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def second(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(HEAD + b"".join(map(chunk, rest)))
        peer.writer.write_eof()
        await asyncio.sleep(0.01)
        peer.cut()

    async with upstream(dies(begin)) as one, upstream(second) as two, world() as it:
        it.openai(one.url(), "one", continues=continues)
        it.openai(two.url(), "two", continues=continues)
        out, failure = await taken(await resuming(it, "one", "two").handle(call(BODY)))
        assert failure is not None
        assert failure.status == 502
        assert out.startswith(b"".join(begin))
        assert len(seen) == (rest is not CHAT_REST)


@pytest.mark.parametrize("second", [answer(b'{"error":{"message":"no prefix"}}', 400), answer(b"{}", 500)])
async def test_a_refusal_to_go_on(second: bytes) -> None:
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(always(second)) as two, world() as it:
        it.openai(one.url(), "one")
        it.openai(two.url(), "two", continues=True)
        asked = call(BODY)
        out, failure = await taken(await resuming(it, "one", "two").handle(asked))
        assert out == b"".join(CHAT_BEGIN)
        assert failure is not None
        assert asked.context.usage is not None
        assert asked.context.usage.estimated


async def test_without_a_word_anybody_may_begin_anew() -> None:
    async with upstream(dies(CHAT_BEGIN[:1])) as one, upstream(whole(CHAT_REST)) as two, world() as it:
        it.openai(one.url(), "one")
        it.openai(two.url(), "two")
        asked = call(BODY)
        out, failure = await taken(await resuming(it, "one", "two").handle(asked))
        assert failure is None
        assert text_of(told(out.replace(b": tollhouse resumed on two/m\n\n", b""), asked.dialect)) == " four five"


async def test_a_whole_stream_passes_byte_for_byte() -> None:
    events = [*CHAT_BEGIN, *CHAT_REST]
    async with upstream(whole(events)) as one, world() as it:
        it.openai(one.url(), "one", continues=True)
        asked = call({**BODY, "stream_options": {"include_usage": True}})
        reply = await resuming(it, "one").handle(asked)
        assert await taken(reply) == (b"".join(events), None)
        assert asked.context.usage is not None
        assert not asked.context.usage.estimated
        assert asked.context.tried == ""


async def test_taps_see_both_streams() -> None:
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(whole(CHAT_REST)) as two, world() as it:
        it.openai(one.url(), "one", continues=True)
        it.openai(two.url(), "two", continues=True)
        reply = await resuming(it, "one", "two").handle(call(BODY))
        assert reply.taps is not None
        reply.taps.append(bytes.upper)
        out, failure = await taken(reply)
        assert failure is None
        assert b"THREE" in out
        assert b" FIVE" in out


async def test_a_client_who_leaves_while_it_goes_on() -> None:
    asked_again = asyncio.Event()
    gone = asyncio.Event()

    async def second(peer: Peer) -> None:
        await peer.request()
        asked_again.set()
        await peer.closed()
        gone.set()

    async with upstream(dies(CHAT_BEGIN)) as one, upstream(second) as two, world() as it:
        it.openai(one.url(), "one", continues=True)
        it.openai(two.url(), "two", continues=True)
        asked = call(BODY)
        reply = await resuming(it, "one", "two").handle(asked)
        assert reply.source is not None
        reply.source.start(Taker())
        async with asyncio.timeout(5):
            await asked_again.wait()
            reply.source.close()
            finish(reply.ends, Ending(200, "Upstream", gone=True))
            await gone.wait()
        assert asked.context.usage is not None


async def test_nothing_is_left_to_the_collector() -> None:
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(whole(CHAT_REST)) as two, world() as it:
        it.openai(one.url(), "one", continues=True)
        it.openai(two.url(), "two", continues=True)
        pool = resuming(it, "one", "two", health={"failures": 1000, "error_rate": None})
        await taken(await pool.handle(call(BODY)))
        with collected() as found:
            await taken(await pool.handle(call(BODY)))
            await asyncio.sleep(0.01)
        assert not [o for o in found if type(o).__module__.startswith("tollhouse") or isinstance(o, Failure)]


# ---- servers that want to be told

PRESETS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"preset": "mistral", "api_key": "k"}, {"prefix": True}, {}),
    ({"preset": "deepseek", "api_key": "k", "continues": True}, {"prefix": True}, {}),
    ({"preset": "vllm", "continues": True}, {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ({"preset": "sglang", "continues": True}, {}, {"continue_final_message": True}),
    ({"preset": "ollama", "continues": True}, {}, {}),
]


@pytest.mark.parametrize(("provider", "message", "fields"), PRESETS)
@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
async def test_each_server_is_told_in_its_own_way(
    dialect: Dialect, provider: dict[str, Any], message: dict[str, Any], fields: dict[str, Any]
) -> None:
    """Also where the caller speaks another API."""
    seen: list[tuple[bytes, bytes]] = []
    first = CHAT_BEGIN if dialect is CHAT else MESSAGES_BEGIN
    async with upstream(dies(first)) as one, upstream(whole(CHAT_REST, seen)) as two, world() as it:
        if dialect is CHAT:
            it.openai(one.url(), "one")
        else:
            it.provider("one", kind="anthropic", base_url=one.url().rstrip("/"), api_key="k")
        it.openai(two.url(), "two", **provider)
        asked = call(BODY, dialect=dialect)
        out, failure = await taken(await resuming(it, "one", "two").handle(asked))
        assert failure is None
        assert text_of(told(out.replace(b": tollhouse resumed on two/m\n\n", b""), dialect)).startswith("One two three")
    sent = msgspec.json.decode(seen[0][1])
    assert sent["messages"][-1] == {"role": "assistant", "content": "One two three", **message}
    assert {name: sent.get(name) for name in ("continue_final_message", "add_generation_prompt")} == {
        "continue_final_message": fields.get("continue_final_message"),
        "add_generation_prompt": fields.get("add_generation_prompt"),
    }


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["One two three four", " five"], "One two three four five"),  # what was said, said again
        (["One", " two", " three", " four", " five"], "One two three four five"),
        (["One two three"], "One two three "),
        ([" four", " five"], "One two three four five"),
        (["One", " more"], "One two three One more"),  # only its beginning
        (["One"], "One two three One"),
        (["four"], "One two three four"),
    ],
)
async def test_what_is_said_again_is_not_told_again(pieces: list[str], text: str) -> None:
    rest = [*(chat_event(content=piece) for piece in pieces), chat_event(finish_reason="stop"), DONE]
    async with upstream(dies(CHAT_BEGIN)) as one, upstream(whole(rest)) as two, world() as it:
        it.openai(one.url(), "one")
        it.openai(two.url(), "two", preset="mistral", api_key="k")
        out, failure = await taken(await resuming(it, "one", "two").handle(call(BODY)))
        assert failure is None
        assert text_of(told(out.replace(b": tollhouse resumed on two/m\n\n", b""), CHAT)) == text


async def test_a_callers_own_beginning_of_an_answer_is_not_touched() -> None:
    """Only what the gateway goes on with is marked; what a caller sends is the caller's to mark."""
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(whole(CHAT_REST, seen)) as up, world() as it:
        it.openai(up.url(), preset="mistral", api_key="k")
        messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "One"}]
        await taken(await it.pool(resume=True).handle(call({**BODY, "messages": messages})))
    assert msgspec.json.decode(seen[0][1])["messages"] == messages
