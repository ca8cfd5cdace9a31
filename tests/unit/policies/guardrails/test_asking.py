"""Guards that have to be asked: before a call, beside it, and about answers, whole and in pieces."""

import asyncio
from time import monotonic
from typing import Any

import msgspec
import pytest
from tests.fixtures.guard_services import guard_services
from tests.unit.policies.floor import Shelf, counted, parts, tool
from tests.unit.policies.guardrails.house import (
    Client,
    Server,
    asked,
    chunk,
    completion,
    guarded,
    said,
    settle,
    through,
)
from tests.unit.policies.guardrails.test_streams import DONE, events
from tests.unit.policies.guardrails.test_tools import arguments, result

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Sink
from tollhouse.policies.guardrails.segments import Room

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi Anna"}]


def named(body: Any) -> Any:
    """A service that masks Anna and refuses bombs."""
    if any("bomb" in text for text in body["texts"]):
        return {"action": "reject", "message": "no bombs"}
    if any("Anna" in text for text in body["texts"]):
        return {"action": "mask", "texts": [text.replace("Anna", "X") for text in body["texts"]]}
    return {"action": "allow"}


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class Slow(Server):
    """Its answer comes when `go` is set."""

    def __init__(self, *blocks: bytes, **more: Any) -> None:
        super().__init__(*blocks, **more)
        self.go = asyncio.Event()
        self.cancelled = False

    async def handle(self, call: Any) -> Any:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().handle(call)


class Live(Server):
    """A stream that the test feeds."""

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def say(self, *blocks: bytes) -> None:
        assert self.sink is not None
        for block in blocks:
            self.sink.send(block)

    def end(self, failure: Failure | None = None) -> None:
        assert self.sink is not None
        self.sink.end(failure)


async def test_a_request_is_masked_refused_and_let_through() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/guard"}}]}
        server = Server(completion("ok"))
        await through(guarded(server, spec, made=made), asked(messages=HI))
        assert server.fields["messages"] == [{"role": "user", "content": "hi X"}]
        server = Server(completion("ok"))
        call = asked(messages=[{"role": "user", "content": "a bomb"}])
        with pytest.raises(Failure) as caught:
            await guarded(server, spec, made=made)(call)
        assert (caught.value.status, caught.value.reason, caught.value.message) == (403, Reason.GUARDRAIL, "no bombs")
        assert not server.calls
        await through(guarded(server, spec, made=made), asked(messages=[{"role": "user", "content": "x"}]))
        assert counted(made, "guardrail_checks") == {
            ("Request", "Mask"): 1, ("Request", "Reject"): 1, ("Request", "Allow"): 1,
        }  # fmt: skip
        await made.client.close()


async def test_a_service_does_not_see_what_patterns_have_masked() -> None:
    async with guard_services() as services:
        made = parts(entrance="llm")
        rules = [{"webhook": {"url": services.url + "/g"}, "in": ["text"]}, {"pii": ["email"], "action": "mask"}]
        server = Server(completion("ok"))
        messages = [{"role": "system", "content": "secret"}, {"role": "user", "content": "ada@example.org"}]
        await through(guarded(server, {"request": rules}, made=made), asked(messages=messages))
        assert services.asked[0].body["texts"] == ["[EMAIL]"]
        await made.client.close()


@pytest.mark.parametrize("phase", ["request", "response"])
async def test_a_guard_that_cannot_run(phase: str) -> None:
    async with guard_services() as services:
        services.fails = "500"
        made = parts(entrance="llm")
        rule: dict[str, Any] = {"webhook": {"url": services.url + "/g"}, "name": "judge"}
        server = Server(completion("ok"))
        with pytest.raises(Failure) as caught:
            await guarded(server, {phase: [rule]}, made=made)(asked(messages=HI))
        assert (caught.value.status, caught.value.reason) == (503, Reason.GUARDRAIL)
        assert caught.value.retry_after is not None
        assert len(server.calls) == (phase == "response")
        assert counted(made, "guardrail_unable") == {("judge",): 1}
        call = asked(messages=HI)
        _, client = await through(guarded(server, {phase: [{**rule, "on_failure": "open"}]}, made=made), call)
        assert client.body == completion("ok")
        assert call.context.guard_action == "failopen"
        named = phase.capitalize()
        assert counted(made, "guardrail_checks") == {(named, "Reject"): 1, (named, "FailOpen"): 1}
        services.fails = ""
        await through(guarded(server, {phase: [rule]}, made=made), asked(messages=HI))
        assert counted(made, "guardrail_unable") == {}
        await made.client.close()


async def test_a_guard_that_hangs_is_left_in_time() -> None:
    async with guard_services() as services:
        services.fails = "hang"
        made = parts(entrance="llm")
        rule = {"webhook": {"url": services.url + "/g"}, "timeout": "100ms"}
        with pytest.raises(Failure) as caught:
            await guarded(Server(), {"request": [rule]}, made=made)(asked(messages=HI))
        assert caught.value.status == 503
        await made.client.close()


async def test_no_guard_is_waited_for_longer_than_the_request_may_take() -> None:
    async with guard_services() as services:
        services.fails = "hang"
        made = parts(entrance="llm")
        rule = {"webhook": {"url": services.url + "/g"}, "timeout": "30s", "on_failure": "open"}
        call = asked(messages=HI)
        call.context.deadline = monotonic() + 0.1
        with pytest.raises(Failure) as caught:
            await guarded(Server(), {"request": [rule]}, made=made)(call)
        assert (caught.value.status, caught.value.reason) == (504, Reason.TIMEOUT)
        await made.client.close()


async def test_what_all_streams_hold_is_bounded() -> None:
    """Answers that wait to be looked at share one room; what leaves, is refused or is left gives it back."""
    async with guard_services() as services:
        made = parts(entrance="llm")
        room = made.shared(("guard room",), Room)
        room.most = 80_000
        spec = {"response": [{"webhook": {"url": services.url + "/g"}}]}
        pairs = []
        for _ in range(4):
            server = Live(*events("")[:1], stream=True)
            reply = await guarded(server, spec, made=made)(asked(messages=HI, stream=True))
            client = Client()
            client.read(reply)
            pairs.append((server, client, reply))
        for server, _, _ in pairs:
            for _ in range(40):
                if not server.closed:
                    server.say(chunk("word "))
        refused = [client for server, client, _ in pairs if server.closed]
        assert refused
        assert len(refused) < 4
        assert all(client.failure is not None and client.failure.status == 403 for client in refused)
        assert 0 < room.held <= room.most
        ended, left = [one for one in pairs if one[1] not in refused]
        ended[0].say(chunk(finish="stop"), DONE)
        ended[0].end()
        await until(lambda: ended[1].ended)
        assert said(ended[1].body) == "word " * 40
        left[2].source.close()
        assert room.held == 0
        await made.client.close()


async def test_beside_the_call_only_the_answer_waits() -> None:
    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, "parallel": True}]}
        server = Server(completion("ok"))
        task = asyncio.ensure_future(guarded(server, spec, made=made)(asked(messages=HI)))
        await until(lambda: server.calls and services.asked)
        assert not task.done()  # the answer is there, the verdict is not
        services.gate.set()
        reply = await task
        assert Client().read(reply) == completion("ok")
        await made.client.close()


async def test_beside_the_call_a_verdict_ends_it() -> None:
    async with guard_services() as services:
        services.says = {"action": "reject"}
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, "parallel": True, "name": "judge"}]}
        server = Slow(completion("ok"))
        call = asked(messages=HI)
        with pytest.raises(Failure) as caught:
            await guarded(server, spec, made=made)(call)
        assert (caught.value.status, caught.value.reason) == (403, Reason.GUARDRAIL)
        assert server.cancelled
        assert call.context.guard == "judge"
        # The answer was there first: it is closed, and nobody sees it.
        services.gate = asyncio.Event()
        quick = Server(*events("hello"), stream=True)
        task = asyncio.ensure_future(guarded(quick, spec, made=made)(asked(messages=HI, stream=True)))
        await until(lambda: quick.calls)
        services.gate.set()
        with pytest.raises(Failure):
            await task
        assert quick.closed
        # What a mask would cover has been sent.
        services.says = named
        with pytest.raises(Failure):
            await guarded(Server(completion("ok")), spec, made=made)(asked(messages=HI))
        await made.client.close()


async def test_a_caller_who_leaves_ends_both() -> None:
    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, "parallel": True}]}
        server = Slow(completion("ok"))
        task = asyncio.ensure_future(guarded(server, spec, made=made)(asked(messages=HI)))
        await until(lambda: services.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.cancelled
        services.gate.set()
        await made.client.close()


async def test_a_call_that_fails_ends_the_guard() -> None:
    class Broken(Server):
        async def handle(self, call: Any) -> Any:
            raise Failure(502, Reason.UPSTREAM_FAILURE, "down")

    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, "parallel": True}]}
        with pytest.raises(Failure) as caught:
            await guarded(Broken(), spec, made=made)(asked(messages=HI))
        assert caught.value.status == 502
        services.gate.set()
        await made.client.close()


async def test_a_stream_is_held_until_it_was_looked_at() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        server = Live(*events("")[:1], stream=True)
        spec = {"response": [{"webhook": {"url": services.url + "/g"}}]}
        reply = await guarded(server, spec, made=made)(asked(messages=HI, stream=True))
        client = Client()
        client.read(reply)
        server.say(chunk("I am An"), chunk("na, and Anna is I"))
        assert not client.body
        server.say(chunk(finish="stop"), DONE)
        server.end()
        await until(lambda: client.ended)
        assert said(client.body) == "I am X, and X is I"
        assert client.failure is None
        assert client.body.endswith(DONE)
        assert services.asked[0].body["texts"] == ["I am Anna, and Anna is I"]
        settle(reply)
        assert counted(made, "guardrail_checks") == {("Response", "Mask"): 1}
        await made.client.close()


async def test_a_held_stream_that_is_rejected() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        server = Server(*events("how to make a bomb"), stream=True)
        spec = {"response": [{"webhook": {"url": services.url + "/g"}}]}
        _, client = await through(guarded(server, spec, made=made), asked(messages=HI, stream=True))
        await until(lambda: client.ended)
        assert not client.body
        assert client.failure is not None
        assert (client.failure.status, client.failure.message) == (403, "no bombs")
        await made.client.close()


async def test_a_stream_in_windows() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        text = "Anna went home. " * 20
        server = Live(*events("")[:1], stream=True)
        spec = {"response": [{"webhook": {"url": services.url + "/g"}, "stream": "window", "window": 100}]}
        reply = await guarded(server, spec, made=made)(asked(messages=HI, stream=True))
        client = Client()
        client.read(reply)
        for at in range(0, 112, 7):
            server.say(chunk(text[at : at + 7]))
        await until(lambda: client.body)
        left = said(client.body)
        assert text.replace("Anna", "X").startswith(left)
        assert 10 < len(left) < 105 - 64  # the end waits for what follows
        for at in range(112, len(text), 7):
            server.say(chunk(text[at : at + 7]))
        server.say(chunk(finish="stop"), DONE)
        server.end()
        await until(lambda: client.ended)
        assert said(client.body) == text.replace("Anna", "X")
        assert len(services.asked) > 3
        assert all(len(one.body["texts"][0]) < 200 for one in services.asked)
        assert services.most == 1
        await made.client.close()


async def test_a_client_that_leaves_ends_the_question() -> None:
    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance="llm")
        server = Server(*events("text"), stream=True)
        spec = {"response": [{"webhook": {"url": services.url + "/g"}}]}
        reply = await guarded(server, spec, made=made)(asked(messages=HI, stream=True))
        client = Client()
        client.read(reply)
        await until(lambda: services.asked)
        assert reply.source is not None
        reply.source.close()
        services.gate.set()
        await asyncio.sleep(0)
        assert not client.ended
        await made.client.close()


async def test_a_shadow_asks_and_changes_nothing() -> None:
    async with guard_services() as services:
        services.says = {"action": "reject"}
        made = parts(entrance="llm")
        rule = {"webhook": {"url": services.url + "/g"}, "shadow": True, "name": "judge"}
        server = Server(completion("ok"))
        await through(guarded(server, {"request": [rule], "response": [rule]}, made=made), asked(messages=HI))
        assert counted(made, "guardrail_findings_total") == {
            ("Request", "judge", "reject", "true"): 1, ("Response", "judge", "reject", "true"): 1,
        }  # fmt: skip
        services.fails = "500"
        await through(guarded(server, {"request": [rule], "response": [rule]}, made=made), asked(messages=HI))
        await made.client.close()


async def test_length_and_language_are_judged_whole() -> None:
    made = parts(entrance="llm")
    spec = {"response": [{"length": {"max": 10}}]}
    server = Server(*events("more than ten characters"), stream=True)
    _, client = await through(guarded(server, spec, made=made), asked(messages=HI, stream=True))
    await until(lambda: client.ended)
    assert client.failure is not None
    assert not client.body
    server = Server(*events("short"), stream=True)
    _, client = await through(guarded(server, spec, made=made), asked(messages=HI, stream=True))
    await until(lambda: client.ended)
    assert said(client.body) == "short"
    with pytest.raises(Failure):
        await through(guarded(Server(completion("x" * 11)), spec, made=made), asked(messages=HI))


async def test_what_stands_beside_an_answer_is_for_patterns_alone() -> None:
    """Log-probs with the tokens that end a text, comments and ids of events are no texts for who judges the answer."""
    made = parts(entrance="llm")
    spec = {
        "response": [{"schema": {"type": "object"}}, {"length": {"max": 10}}, {"keywords": ["forbidden"]}],
    }
    proof = {"content": [{"token": one, "logprob": -1.0} for one in ('{"a', '": 1}', "<|end|>")]}
    choice = {"index": 0, "message": {"content": '{"a": 1}'}, "logprobs": proof, "finish_reason": "stop"}
    body = msgspec.json.encode({"id": "c", "choices": [choice]})
    _, client = await through(guarded(Server(body), spec, made=made), asked(messages=HI))
    assert client.body == body
    blocks = [b": the provider is thinking about it\n\n", b"id: 0123456789abcdef0123456789\n" + chunk('{"a": 1}'),
              chunk(finish="stop"), DONE]  # fmt: skip
    _, client = await through(guarded(Server(*blocks, stream=True), spec, made=made), asked(messages=HI, stream=True))
    await until(lambda: client.ended)
    assert client.failure is None
    assert client.body == b"".join(blocks)
    blocks[0] = b": this is a forbidden comment, is it\n\n"
    server = Server(*blocks, stream=True)
    with pytest.raises(Failure) as caught:
        await through(guarded(server, spec, made=made), asked(messages=HI, stream=True))
    assert caught.value.status == 403


async def test_tools_are_asked_about_too() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="mcp")
        rule = {"webhook": {"url": services.url + "/g"}}
        server = Server(result("from Anna"))
        chain = guarded(server, {"request": [rule], "response": [rule]}, made=made, entrance="mcp", levels=("top",))
        _, client = await through(chain, tool(to="Anna"))
        assert arguments(server) == {"to": "X"}
        assert client.body == result("from X")
        blocks = [result("1"), result("from Anna"), b"", result("a bomb"), result("4")]
        server = Server(*blocks, stream=True)
        chain = guarded(server, {"response": [rule]}, made=made, entrance="mcp", levels=("top",))
        reply, client = await through(chain, tool())
        await until(lambda: client.ended)
        assert client.parts == [result("1"), result("from X"), b""]
        assert client.failure is not None
        settle(reply)
        await made.client.close()


HIDDEN = '{"to": "\\u0041nna \\"\\u0058\\" \\\\u0041nn\\\\u0061", "n": "a\\\\\\/b\\n"}'
SHOWN = '{"to": "Anna \\"X\\" Anna", "n": "a/b\\n"}'


def calls(arguments: str) -> Any:
    return [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]


async def test_a_service_sees_what_is_meant_and_its_masks_come_back() -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, "in": ["arguments", "results"]}]}
        server = Server(completion("ok"))
        messages = [
            {"role": "assistant", "tool_calls": calls(HIDDEN)},
            {"role": "tool", "tool_call_id": "1", "content": 'He said {"to": "\\u0041nna"} and left'},
        ]
        await through(guarded(server, spec, made=made), asked(messages=messages))
        assert services.asked[0].body["texts"] == [SHOWN, 'He said {"to": "Anna"} and left']
        assistant, told = server.fields["messages"]
        arguments = assistant["tool_calls"][0]["function"]["arguments"]
        assert arguments == '{"to": "X \\"\\u0058\\" X", "n": "a\\\\\\/b\\n"}'
        assert told["content"] == 'He said {"to": "X"} and left'
        await made.client.close()


@pytest.mark.parametrize("how", ["hold", "window"])
@pytest.mark.parametrize("size", [3, 200])
async def test_a_service_sees_what_a_streams_arguments_mean(how: str, size: int) -> None:
    async with guard_services() as services:
        services.says = named
        made = parts(entrance="llm")
        rule: dict[str, Any] = {"webhook": {"url": services.url + "/g"}, "stream": how}
        if how == "window":
            rule["window"] = 100
        whole = '{"text": "' + "so " * 40 + '", "to": "\\u0041nna", "and": "' + "so " * 40 + '"}'
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        blocks = [chunk(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in pieces]
        server = Server(*blocks, chunk(finish="tool_calls"), DONE, stream=True)
        _, client = await through(guarded(server, {"response": [rule]}, made=made), asked(messages=HI, stream=True))
        await until(lambda: client.ended)
        assert client.failure is None
        lines = [msgspec.json.decode(line[6:]) for line in client.body.splitlines() if line.startswith(b"data: {")]
        deltas = [line["choices"][0]["delta"].get("tool_calls", ()) for line in lines]
        out = "".join([call["function"]["arguments"] for delta in deltas for call in delta])
        assert out == whole.replace("\\u0041nna", "X")
        await made.client.close()


async def test_checks_end_with_their_configuration() -> None:
    async with guard_services() as services:
        shelf = Shelf()
        made = parts(entrance="llm", shared=shelf)
        guarded(Server(), {"request": [{"webhook": {"url": services.url + "/g"}}]}, made=made)
        assert shelf.closes
        await shelf.close()
        await made.client.close()


@pytest.mark.parametrize("entrance", ["llm", "mcp"])
async def test_a_caller_who_leaves_while_an_answer_is_looked_at(entrance: str) -> None:
    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance=entrance)
        server = Server(completion("x") if entrance == "llm" else result("x"), stream=entrance == "mcp")
        spec = {"response": [{"webhook": {"url": services.url + "/g"}}]}
        chain = guarded(server, spec, made=made, entrance=entrance)
        task = asyncio.ensure_future(chain(asked(messages=HI) if entrance == "llm" else tool()))
        await until(lambda: services.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [ending.status for ending in server.ended] == [499]
        assert server.closed == (entrance == "mcp")
        services.gate.set()
        await made.client.close()
