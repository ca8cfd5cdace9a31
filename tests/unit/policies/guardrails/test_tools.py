"""Guards before and behind MCP servers: arguments, results, and what a server says within a call."""

import asyncio
from base64 import b64decode, b64encode
from typing import Any

import msgspec
import pytest
from tests.unit.policies.floor import counted, parts, tool
from tests.unit.policies.guardrails.house import SECRET, Client, Server, guarded, settle, through

from tollhouse.core.call import ToolCall
from tollhouse.core.errors import API_FAILED, Failure, Reason
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.tools import Passing

pytestmark = pytest.mark.anyio

MASK: dict[str, Any] = {
    "request": [{"pii": ["email"], "action": "mask"}], "response": [{"pii": ["email"], "action": "mask"}],
}  # fmt: skip


def chain(server: Server, *specs: Any, made: Parts | None = None) -> Any:
    return guarded(server, *specs, made=made or parts(entrance="mcp"), entrance="mcp", levels=("top", "server", "tool"))


def result(text: str, **more: Any) -> bytes:
    value = {"content": [{"type": "text", "text": text}], **more}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "result": value})


def arguments(server: Server) -> Any:
    [call] = server.calls
    assert isinstance(call, ToolCall)
    return msgspec.json.decode(call.arguments)


async def test_arguments_and_results_are_masked() -> None:
    server = Server(result("found ada@example.org"))
    call = tool(to="ada@example.org", card=4, nested=[{"cc": "x@example.org, y"}])
    call = msgspec.structs.replace(call, decoded=({}, {}))
    _, client = await through(chain(server, MASK), call)
    assert arguments(server) == {"to": "[EMAIL]", "card": 4, "nested": [{"cc": "[EMAIL], y"}]}
    assert call.context.arguments == call.arguments
    assert call.decoded is None
    assert client.body == result("found [EMAIL]")
    assert (call.context.guard, call.context.guard_action) == ("pii", "mask")


async def test_what_is_structured_and_its_copy_are_masked_alike() -> None:
    value = {"owner": "ada@example.org", "n": 1}
    server = Server(result(msgspec.json.encode(value).decode(), structuredContent=value))
    _, client = await through(chain(server, MASK), tool())
    answer = msgspec.json.decode(client.body)["result"]
    assert answer["structuredContent"] == {"owner": "[EMAIL]", "n": 1}
    assert msgspec.json.decode(answer["content"][0]["text"]) == {"owner": "[EMAIL]", "n": 1}


async def test_a_number_stays_one() -> None:
    spec = {"response": [{"pii": ["card"], "action": "mask"}]}
    server = Server(result("see there", structuredContent={"card": 4111111111111111}))
    _, client = await through(chain(server, spec), tool())
    assert msgspec.json.decode(client.body)["result"]["structuredContent"] == {"card": 1111111111111111}


async def test_what_nothing_is_found_in_is_the_same_bytes() -> None:
    said = b'{"jsonrpc":"2.0", "id":1, "result":{"content":[{"type":"text","text":"caf\\u00e9"}], "odd": 1.0}}'
    server = Server(said)
    call = tool(q="hello")
    raw = call.params["arguments"]
    _, client = await through(chain(server, MASK), call)
    assert client.body == said
    assert call.params["arguments"] is raw


async def test_rejections() -> None:
    made = parts(entrance="mcp")
    server = Server(result("fine"))
    call = tool(text=f"my key {SECRET}")
    with pytest.raises(Failure) as caught:
        await chain(server, {"request": [{"secrets": True}]}, made=made)(call)
    assert (caught.value.status, caught.value.reason) == (403, Reason.GUARDRAIL)
    assert not server.calls
    server = Server(result(f"the key {SECRET}"))
    with pytest.raises(Failure):
        await chain(server, {"response": [{"secrets": True}]}, made=made)(tool())
    assert [ending.status for ending in server.ended] == [403]
    assert counted(made, "guardrail_checks") == {("Request", "Reject"): 1, ("Response", "Reject"): 1}


async def test_everything_that_is_said_within_a_call() -> None:
    question = {"message": "Is it ada@example.org?", "requestedSchema": {"type": "object", "properties": {}}}
    told: list[dict[str, Any]] = [
        {
            "method": "notifications/progress",
            "params": {"progressToken": 1, "progress": 1, "message": "ada@example.org"},
        },
        {"method": "notifications/message", "params": {"level": "info", "data": {"to": "ada@example.org"}}},
        {"id": 9, "method": "elicitation/create", "params": question},
    ]
    blocks = [*(msgspec.json.encode({"jsonrpc": "2.0", **one}) for one in told), b"", result("ada@example.org")]
    server = Server(*blocks, stream=True)
    reply, client = await through(chain(server, MASK), tool())
    assert len(client.parts) == 5
    assert client.parts[3] == b""  # the server hung up for a while
    assert b"example.org" not in client.body
    assert client.body.count(b"[EMAIL]") == 4
    assert client.failure is None
    settle(reply)


async def test_a_stream_is_refused_in_the_middle() -> None:
    progress = msgspec.json.encode(
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
    )
    server = Server(progress, result(SECRET), progress, stream=True)
    made = parts(entrance="mcp")
    reply, client = await through(chain(server, {"response": [{"secrets": True}]}, made=made), tool())
    assert client.parts == [progress]
    assert client.failure is not None
    assert (client.failure.status, client.failure.reason) == (403, Reason.GUARDRAIL)
    assert server.closed
    settle(reply)
    assert counted(made, "guardrail_checks") == {("Response", "Reject"): 1}


async def test_masks_are_turned_back() -> None:
    class Echo(Server):
        async def handle(self, call: Any) -> Any:
            text = msgspec.json.decode(call.arguments)["to"]
            self.blocks = [result(f"sent to {text}", structuredContent={"to": text})]
            return await super().handle(call)

    server = Echo()
    spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
    _, client = await through(chain(server, spec), tool(to="ada@example.org"))
    assert arguments(server)["to"].startswith("[EMAIL_")
    assert client.body == result("sent to ada@example.org", structuredContent={"to": "ada@example.org"})


async def test_prompts_and_resources() -> None:
    prompt = {"messages": [{"role": "user", "content": {"type": "text", "text": "for ada@example.org"}}]}
    server = Server(msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "result": prompt}))
    call = tool("letter", method="prompts/get", to="bob@example.org")
    _, client = await through(chain(server, MASK), call)
    assert arguments(server) == {"to": "[EMAIL]"}
    assert b"for [EMAIL]" in client.body
    resource = {"contents": [{"uri": "file:///a", "text": "ada@example.org"}, {"uri": "file:///b", "blob": "AAAA"}]}
    server = Server(msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "result": resource}))
    call = tool("file:///a", method="resources/read")
    call.params = {"uri": msgspec.Raw(b'"file:///a"')}
    made = parts(entrance="mcp")
    _, client = await through(chain(server, MASK, made=made), call)
    assert b'"text":"[EMAIL]"' in client.body


async def test_an_error_is_looked_at_as_well() -> None:
    message = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no ada@example.org"}})
    server = Server(message)
    _, client = await through(chain(server, MASK), tool())
    assert b"no [EMAIL]" in client.body


async def test_tools_of_ours_are_not_looked_at() -> None:
    server = Server(result("ada@example.org"))
    call = tool()
    call.connects = True
    _, client = await through(chain(server, MASK), call)
    assert client.body == result("ada@example.org")


async def test_an_agent_that_leaves_stops_the_server() -> None:
    server = Server(result("x"), result("y"), stream=True)
    reply = await chain(server, MASK)(tool())
    assert isinstance(reply.source, Passing)
    client = Client()
    reply.source.pause()
    reply.source.resume()
    reply.source.close()
    assert server.closed
    reply.source.send(result("late"))
    assert not client.parts


def answered(call: ToolCall, response: Any) -> bytes:
    """What the server gets, where nobody has to be asked."""
    sent: list[bytes] = []
    assert call.outgoing is not None
    call.outgoing(call, msgspec.json.encode(response), sent.append)
    [told] = sent
    return told


async def test_what_the_agent_answers_within_a_call() -> None:
    spec = {"request": [{"pii": ["email"], "action": "mask"}, {"secrets": True, "message": "no keys"}]}
    server = Server(result("x"))
    call = tool()
    await through(chain(server, spec), call)
    assert call.outgoing is not None
    answer = {"action": "accept", "content": {"mail": "ada@example.org"}}
    out = answered(call, {"jsonrpc": "2.0", "id": 7, "result": answer})
    assert msgspec.json.decode(out)["result"]["content"] == {"mail": "[EMAIL]"}
    out = answered(call, {"jsonrpc": "2.0", "id": 7, "result": {"content": {"key": SECRET}}})
    told = msgspec.json.decode(out)
    assert (told["id"], told["error"]["message"]) == (7, "no keys")
    plain = {"jsonrpc": "2.0", "id": 8, "result": {"action": "decline"}}
    assert answered(call, plain) == msgspec.json.encode(plain)


async def test_what_the_agent_answers_is_turned_back() -> None:
    asks = msgspec.json.encode({"jsonrpc": "2.0", "id": 7, "method": "elicitation/create", "params": {"message": "m"}})
    server = Server(asks, stream=True)
    call = tool()
    spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
    reply = await chain(server, spec)(call)
    assert call.outgoing is not None
    answer = {"action": "accept", "content": {"mail": "ada@example.org"}}
    out = msgspec.json.decode(answered(call, {"jsonrpc": "2.0", "id": 7, "result": answer}))
    placeholder = out["result"]["content"]["mail"]
    assert placeholder.startswith("[EMAIL_")
    server.blocks.append(result(f"sent to {placeholder}"))
    client = Client()
    client.read(reply)
    assert client.parts == [asks, result("sent to ada@example.org")]


async def test_a_call_that_another_tool_answers_has_the_guards_of_both() -> None:
    """`policies.alternate` hands over what becomes of the agent's answers."""
    call = tool()
    await through(chain(Server(result("x")), {"request": [{"pii": ["email"], "action": "mask"}]}), call)
    await through(chain(Server(result("x")), {"request": [{"keywords": ["rose"], "action": "mask"}]}), call)
    assert call.outgoing is not None
    said = {"content": {"a": "a rose", "b": "ada@example.org"}}
    out = answered(call, {"jsonrpc": "2.0", "id": 7, "result": said})
    assert msgspec.json.decode(out)["result"]["content"] == {"a": "a [KEYWORDS]", "b": "[EMAIL]"}


@pytest.mark.parametrize("params", [{}, {"arguments": {}}, {"arguments": {"a": "b"}}])
@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "tasks/get"])
async def test_each_call_is_counted_once_a_phase(method: str, params: Any) -> None:
    made = parts(entrance="mcp")
    call = tool(method=method)
    call.params = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()}
    await through(chain(Server(result("x")), MASK, made=made), call)
    assert counted(made, "guardrail_checks") == {("Request", "Allow"): 1, ("Response", "Allow"): 1}


async def test_what_goes_beside_arguments_is_masked_in_its_place() -> None:
    server = Server(result("x"))
    call = tool(q="x")
    trace = msgspec.Raw(b'"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"')
    note = msgspec.json.encode({"by": "ada@example.org", "n": [1, "\u00e9"]})
    call.meta = {"traceparent": trace, "org.example/note": msgspec.Raw(note), "org.example/x": msgspec.Raw(b"1")}
    before = dict(call.meta)
    await through(chain(server, MASK), call)
    assert call.meta == {**before, "org.example/note": msgspec.Raw(note.replace(b"ada@example.org", b"[EMAIL]"))}
    assert list(call.params) == ["arguments"]
    call.meta = {"traceparent": trace, "org.example/ada@example.org": msgspec.Raw(b"1")}
    await through(chain(Server(result("x")), MASK), call)
    assert call.meta == {"traceparent": trace, "org.example/[EMAIL]": msgspec.Raw(b"1")}
    for name, value in (
        ("org.example/note", SECRET),
        ("tracestate", f"a={SECRET}"),
        ("traceparent", SECRET),
        (SECRET, 1),
    ):
        call.meta = {name: msgspec.Raw(msgspec.json.encode(value))}
        with pytest.raises(Failure):
            await chain(server, {"request": [{"secrets": True}]})(call)


async def test_names_are_looked_at_and_never_masked_nor_asked_about() -> None:
    def named(name: str) -> ToolCall:
        call = tool(name)
        call.params["name"] = msgspec.Raw(msgspec.json.encode(name))
        return call

    with pytest.raises(Failure):
        await chain(Server(), {"request": [{"secrets": True}]})(named(SECRET))
    call = named("ada@example.org")
    await through(chain(Server(result("x")), MASK), call)
    assert msgspec.json.decode(call.params["name"]) == "ada@example.org"
    await through(chain(Server(result("x")), {"request": [{"length": {"max": 2}}]}), named("a-long-name"))


class Broken(Server):
    """It fails, and says why. detail: of an API."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__()
        self.failure = Failure(502, Reason.UPSTREAM_FAILURE, message, code=API_FAILED, detail=detail, retry=True)

    async def handle(self, call: Any) -> Any:
        assert self.failure is not None
        raise self.failure


async def test_what_is_said_where_a_call_fails() -> None:
    made = parts(entrance="mcp")
    with pytest.raises(Failure) as caught:
        await chain(Broken("s: ask ada@example.org", "by bob@example.org"), MASK, made=made)(tool())
    failure = caught.value
    assert (failure.message, failure.detail, failure.retry) == ("s: ask [EMAIL]", "by [EMAIL]", True)
    with pytest.raises(Failure) as caught:
        await chain(Broken("s", SECRET), {"response": [{"secrets": True}]}, made=made)(tool())
    assert caught.value.reason == Reason.GUARDRAIL
    with pytest.raises(Failure) as caught:
        await chain(Broken("s", "far too long"), {"response": [{"length": {"max": 5}}]}, made=made)(tool())
    assert caught.value.reason == Reason.GUARDRAIL
    broken = Broken("s: the server is away")
    with pytest.raises(Failure) as caught:
        await chain(broken, MASK, made=made)(tool())
    assert caught.value is broken.failure
    assert counted(made, "guardrail_checks")["Response", "Allow"] == 1


async def test_masks_are_turned_back_wherever_a_server_says_them_again() -> None:
    """Names are not: nothing of a call was masked in one."""

    class Asks(Server):
        async def handle(self, call: Any) -> Any:
            text = msgspec.json.decode(call.arguments)["to"]
            blob = b64encode(f"to {text}".encode()).decode()
            content = [{"type": "resource", "resource": {"uri": f"mailto:{text}", "blob": blob}}]
            asks = {text: {"method": "elicitation/create", "name": "n", "params": {"message": text}}, f"{text}2": [1]}
            self.blocks = [result(text, content=content, inputRequests=asks, resultType="input_required")]
            return await super().handle(call)

    spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
    _, client = await through(chain(Asks(), spec), tool(to="ada@example.org"))
    told = msgspec.json.decode(client.body)["result"]
    inside = told["content"][0]["resource"]
    assert (inside["uri"], b64decode(inside["blob"])) == ("mailto:ada@example.org", b"to ada@example.org")
    (name, question), (_, other) = told["inputRequests"].items()
    assert name.startswith("[EMAIL_")
    assert question == {"method": "elicitation/create", "name": "n", "params": {"message": "ada@example.org"}}
    assert other == [1]


@pytest.mark.parametrize("checks", [[], [{"length": {"max": 1000}}]])
async def test_what_is_said_where_a_stream_fails(checks: list[Any]) -> None:
    progress = {"method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
    block = msgspec.json.encode({"jsonrpc": "2.0", **progress})
    for said, message in (("ask ada@example.org", "ask [EMAIL]"), (SECRET, "a guardrail of this gateway withholds")):
        failure = Failure(502, Reason.UPSTREAM_FAILURE, said, sent=True)
        server = Server(block, block, stream=True, failure=failure)
        spec = {"response": [{"pii": ["email"], "action": "mask"}, {"secrets": True}, *checks]}
        reply = await chain(server, spec)(tool())
        client = Client()
        client.read(reply)
        async with asyncio.timeout(10):
            while not client.ended:
                await asyncio.sleep(0)
        assert client.parts == [block, block]
        assert client.failure is not None
        assert message in client.failure.message
        assert said not in client.failure.message
