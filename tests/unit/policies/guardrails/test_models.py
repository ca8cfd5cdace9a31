"""Guards before and behind a model, whole: what it gets, what its caller gets, and what is noted."""

from typing import Any

import msgspec
import pytest
from tests.unit.policies.floor import counted, parts, who
from tests.unit.policies.guardrails.house import SECRET, Client, Server, asked, completion, guarded, through

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm import CHAT, MESSAGES

pytestmark = pytest.mark.anyio

MASK = {"request": [{"pii": ["email"], "action": "mask"}]}


def hi(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def test_what_is_masked_does_not_reach_the_model() -> None:
    server = Server(completion("ok"))
    call = asked(messages=hi("write to ada@example.org, please"), temperature=0.5)
    before = call.estimate
    _, client = await through(guarded(server, MASK), call)
    assert server.fields["messages"] == hi("write to [EMAIL], please")
    assert server.fields["temperature"] == 0.5
    assert b"ada@example.org" not in call.body
    assert client.body == completion("ok")
    assert call.estimate < before
    assert (call.context.guard, call.context.guard_action) == ("pii", "mask")


async def test_what_nothing_is_found_in_passes_as_it_is() -> None:
    server = Server(completion("ok"))
    call = asked(messages=hi("hello"))
    fields = dict(call.fields)
    body = call.body
    await through(guarded(server, MASK), call)
    assert call.body is body
    assert all(call.fields[name] is value for name, value in fields.items())
    assert call.context.guard_action == ""


async def test_a_request_that_is_rejected_reaches_nobody() -> None:
    server = Server(completion("ok"))
    made = parts(entrance="llm")
    chain = guarded(server, {"request": [{"secrets": True, "message": "take the key out", "name": "keys"}]}, made=made)
    call = asked(messages=hi(f"my key is {SECRET}"))
    with pytest.raises(Failure) as caught:
        await through(chain, call)
    failure = caught.value
    assert (failure.status, failure.reason, failure.code) == (403, Reason.GUARDRAIL, "guardrail")
    assert failure.message == "take the key out"
    assert "keys" in failure.detail
    assert SECRET not in failure.detail + failure.message
    assert not server.calls
    assert (call.context.guard, call.context.guard_action) == ("keys", "reject")
    assert counted(made, "guardrail_checks") == {("Request", "Reject"): 1}
    assert counted(made, "guardrail_findings_total") == {("Request", "keys", "reject", "false"): 1}


async def test_shadows_and_flags_change_nothing() -> None:
    server = Server(completion(f"here is {SECRET}"))
    made = parts(entrance="llm")
    rules = [{"secrets": True, "shadow": True, "name": "later"}, {"pii": ["email"], "action": "flag"}]
    chain = guarded(server, {"request": rules, "response": rules}, made=made)
    call = asked(messages=hi(f"{SECRET} of ada@example.org"))
    reply, client = await through(chain, call)
    assert server.fields["messages"] == hi(f"{SECRET} of ada@example.org")
    assert client.body == completion(f"here is {SECRET}")
    assert (b"x-tollhouse-guardrails", b"pii") in reply.headers
    assert (call.context.guard, call.context.guard_action) == ("pii", "flag")
    assert counted(made, "guardrail_checks") == {("Request", "Flag"): 1, ("Response", "Allow"): 1}
    assert counted(made, "guardrail_findings_total") == {
        ("Request", "later", "reject", "true"): 1,
        ("Request", "pii", "flag", "false"): 1,
        ("Response", "later", "reject", "true"): 1,
    }


async def test_an_answer_is_masked() -> None:
    server = Server(completion(f"the key is {SECRET}."))
    call = asked(messages=hi("?"))
    _, client = await through(guarded(server, {"response": [{"secrets": True, "action": "mask"}]}), call)
    assert client.body == completion("the key is [ANTHROPIC].")
    assert call.context.withheld_tokens > 20
    assert call.context.guard_action == "mask"


async def test_an_answer_that_is_rejected_is_closed_first() -> None:
    server = Server(completion(f"the key is {SECRET}."))
    chain = guarded(server, {"response": [{"secrets": True}]})
    with pytest.raises(Failure) as caught:
        await through(chain, asked(messages=hi("?")))
    assert (caught.value.status, caught.value.reason) == (403, Reason.GUARDRAIL)
    assert [ending.status for ending in server.ended] == [403]


async def test_a_providers_refusal_is_no_answer_but_says_no_secret() -> None:
    rules = {"response": [{"schema": {"type": "object"}}, {"secrets": True, "action": "mask"}, {"keywords": ["rose"]}]}
    for told, seen in (("no", "no"), (f"bad key {SECRET}", "bad key [ANTHROPIC]")):
        server = Server(msgspec.json.encode({"error": {"message": told, "code": 7}}), status=400)
        reply, client = await through(guarded(server, rules), asked(messages=hi("?")))
        assert (reply.status, client.body) == (400, msgspec.json.encode({"error": {"message": seen, "code": 7}}))
    server = Server(b'{"error": {"message": "a rose"}}', status=400)
    with pytest.raises(Failure) as refused:
        await through(guarded(server, rules), asked(messages=hi("?")))
    assert (refused.value.status, [ending.status for ending in server.ended]) == (403, [403])


async def test_speech_is_answered_with_sound() -> None:
    for opaque in ("pass", "reject"):
        server = Server(b"ID3\xff\xfb")
        chain = guarded(server, {"response": [{"secrets": True}], "opaque": opaque})
        call = asked(messages=hi("?"))
        call.operation, call.fields = "speech", {"input": msgspec.Raw(b'"x"')}
        if opaque == "pass":
            assert (await through(chain, call))[1].body == b"ID3\xff\xfb"
            continue
        with pytest.raises(Failure) as refused:
            await through(chain, call)
        assert refused.value.status == 403


async def test_a_stream_that_nobody_has_asked_for() -> None:
    rules: Any = {"response": [{"secrets": True, "action": "mask"}]}
    fields = {"input": msgspec.Raw(b'"x"')}
    for passes in (False, True):
        server = Server(b"data: {}\n\n", stream=True)
        chain = guarded(server, {**rules, "unsupported": "pass" if passes else "reject"})
        call = asked(messages=hi("?"))
        call.operation, call.fields = "speech", fields
        if passes:
            assert (await through(chain, call))[1].body == b"data: {}\n\n"
            continue
        with pytest.raises(Failure) as refused:
            await through(chain, call)
        assert (refused.value.status, server.closed) == (403, True)


async def test_masks_are_turned_back_for_the_caller() -> None:
    class Echo(Server):
        async def handle(self, call: Any) -> Any:
            self.blocks = [completion(self.text(call))]
            return await super().handle(call)

        @staticmethod
        def text(call: Any) -> str:
            return f"I wrote to {msgspec.json.decode(call.fields['messages'])[0]['content']}"

    server = Echo()
    spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}], "response": [{"pii": ["email"]}]}
    chain = guarded(server, spec)
    call = asked(messages=hi("ada@example.org and bob@example.org, ada@example.org"))
    _, client = await through(chain, call)
    sent = server.fields["messages"][0]["content"]
    assert "example.org" not in sent
    first, _, third = sent.replace(",", "").replace("and ", "").split(" ")
    assert first == third
    assert first.startswith("[EMAIL_")
    assert b"I wrote to ada@example.org and bob@example.org, ada@example.org" in client.body


async def test_everybody_has_placeholders_of_his_own() -> None:
    made = parts(entrance="llm")
    seen = set()
    for name in ("ada", "bob"):
        server = Server(completion("ok"))
        spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
        await through(guarded(server, spec, made=made), asked(principal=who(id=name), messages=hi("x@example.org")))
        seen.add(server.fields["messages"][0]["content"])
    assert len(seen) == 2


async def test_scopes_add_up() -> None:
    server = Server(completion("ok"))
    chain = guarded(server, MASK, {"request": [{"keywords": ["Project Rose"]}]})
    with pytest.raises(Failure):
        await chain(asked(messages=hi("about project  rose")))
    await through(chain, asked(messages=hi("ada@example.org")))
    assert server.fields["messages"] == hi("[EMAIL]")


async def test_only_the_texts_that_are_meant() -> None:
    spec = {"request": [{"keywords": ["rose"], "in": ["system"]}]}
    server = Server(completion("ok"))
    await through(guarded(server, spec), asked(messages=hi("rose")))
    with pytest.raises(Failure):
        await guarded(server, spec)(asked(messages=[{"role": "system", "content": "rose"}, *hi("x")]))


async def test_what_stands_in_tools_results_and_arguments_is_found() -> None:
    spec = {"request": [{"pii": ["email"], "action": "mask"}]}
    messages = [
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {
            "name": "send", "arguments": '{"to":"ada@example.org","n":1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "sent to ada@example.org"},
    ]  # fmt: skip
    server = Server(completion("ok"))
    await through(guarded(server, spec), asked(messages=messages))
    call, result = server.fields["messages"]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"to":"[EMAIL]","n":1}'
    assert result["content"] == "sent to [EMAIL]"


async def test_other_dialects() -> None:
    server = Server(
        b'{"type":"message","role":"assistant","content":[{"type":"text","text":"ada@example.org"}],"usage":{}}'
    )
    spec = {"request": [{"pii": ["email"], "action": "mask"}], "response": [{"pii": ["email"], "action": "mask"}]}
    call = asked(MESSAGES, system="for ada@example.org", messages=hi("x"), max_tokens=5)
    _, client = await through(guarded(server, spec), call)
    assert server.fields["system"] == "for [EMAIL]"
    assert b'"text":"[EMAIL]"' in client.body


async def test_an_api_that_cannot_be_read_is_refused_unless_it_may_pass() -> None:
    call = asked(messages=hi("x"))
    call.operation = "realtime"
    for phase in ("request", "response"):
        server = Server(completion("ok"))
        made = parts(entrance="llm")
        with pytest.raises(Failure) as caught:
            await guarded(server, {phase: [{"pii": True}]}, made=made)(call)
        assert (caught.value.status, caught.value.reason) == (403, Reason.GUARDRAIL)
        assert not server.calls
        passing = {phase: [{"pii": True}], "unsupported": "pass"}
        _, client = await through(guarded(server, passing, made=made), call)
        assert client.body == completion("ok")
        assert counted(made, "guardrail_checks") == {
            (phase.capitalize(), "Reject"): 1, (phase.capitalize(), "FailOpen"): 1,
        }  # fmt: skip


async def test_pictures_pass_or_do_not() -> None:
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    messages = [{"role": "user", "content": content}]
    server = Server(completion("ok"))
    made = parts(entrance="llm")
    await through(guarded(server, {"request": [{"pii": True}]}, made=made), asked(messages=messages))
    assert counted(made, "guardrail_checks") == {("Request", "FailOpen"): 1}
    with pytest.raises(Failure) as caught:
        await guarded(server, {"request": [{"pii": True}], "opaque": "reject"})(asked(messages=messages))
    assert caught.value.status == 403


async def test_what_cannot_be_read_is_not_passed_on() -> None:
    server = Server(b"<html>")
    with pytest.raises(Failure) as caught:
        await guarded(server, {"response": [{"pii": True}]})(asked(CHAT, messages=hi("x")))
    assert caught.value.status == 403
    assert Client().body == b""
