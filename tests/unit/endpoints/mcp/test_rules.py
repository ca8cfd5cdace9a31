"""Rules and limits before everything an agent can ask for: real policies, real sockets."""

import asyncio
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import NEW, Answer, Gateway, child, gateway, until
from tests.fixtures.mcp_raw import Asked, Old, answer, result, upstream
from tests.unit.policies.floor import Time, layer, limiting, parts

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import Call, ToolCall
from tollhouse.core.handler import compose
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.endpoint import Admit
from tollhouse.policies.authorize import AUTHORIZE, AuthorizeSpec, permitted
from tollhouse.policies.limits import LimitSpec

pytestmark = pytest.mark.anyio

OPENING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
WAIT = {"per": "user", "window": 3600.0}


class Rules:
    """What the gateway makes of rules and limits: the guard of lists, the policies of a chain, and `admit`."""

    def __init__(self, *rules: dict[str, str], requests: int = 0) -> None:
        p = parts(Time(), entrance="mcp")
        layers = [layer(AuthorizeSpec.model_validate({"rules": rules}))] if rules else []
        limits = (LimitSpec.model_validate({**WAIT, "requests": requests}),) if requests else ()
        guard = permitted(layers, p)
        self.permitted = None if guard is None else guard.permitted
        made = (AUTHORIZE.make(tuple(layers), p), limiting(limits, p))
        self.policies = [policy for policy in made if policy is not None]
        self.asked: list[str] = []

    @property
    def admit(self) -> Admit:
        async def last(call: Call) -> Reply:
            return Reply(200, [], b"")

        chain = compose(self.policies, last)

        async def admit(call: ToolCall) -> None:
            assert (call.server, call.name, call.params) == ("", "", {})
            self.asked.append(call.method)
            await chain(call)

        return admit

    @property
    def parts(self) -> dict[str, Any]:
        return {"permitted": self.permitted, "policies": self.policies, "admit": self.admit}


def reason(answered: Answer) -> str:
    """Of a refusal."""
    return str(answered.message["error"]["data"]["reason"])


async def initialize(running: Gateway, who: str = "") -> Answer:
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": OPENING}
    return await running.send(body, {"x-who": who} if who else {})


# ---- limits
OWN: list[tuple[str, Any]] = [
    ("ping", {}),
    ("tools/list", {}),
    ("prompts/list", {}),
    ("resources/list", {}),
    ("resources/templates/list", {}),
    ("logging/setLevel", {"level": "info"}),
    ("nothing/here", {}),
    ("tools/call", {"name": "two__nothing"}),
    ("tools/call", {"name": 7}),
    ("tools/call", {"name": "n" * 1000}),
    ("prompts/get", {"name": "nobody__x"}),
    ("resources/read", {"uri": "x"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "nobody__x"}}),
]


@pytest.mark.parametrize(("method", "params"), OWN)
async def test_every_request_counts(method: str, params: Any) -> None:
    rules = Rules(requests=3)
    async with gateway({"one": child(), "two": child("dies")}, **rules.parts) as running:
        agent = await running.agent()
        for _ in range(2):
            assert "RateLimit" not in (await agent.ask(method, params)).headers.get("x-tollhouse-reason", "")
        if params.get("name") != "two__nothing":  # that one is its server's
            assert rules.asked == ["initialize", method, method]
        refused = await agent.ask(method, params)
        assert (refused.error, reason(refused)) == ((200, -32603), "rate_limit_exceeded")
        assert refused.headers["x-tollhouse-reason"] == "RateLimit"
        again = await agent.tell("notifications/initialized")  # once it belongs to the handshake
        assert (again.status, reason(again)) == (429, "rate_limit_exceeded")


async def test_a_stateless_agent_counts_too() -> None:
    rules = Rules(requests=2)
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = running.stateless()
        assert "result" in (await agent.ask("server/discover")).message
        stream = await agent.start("subscriptions/listen", {"notifications": {}})
        await stream.head()
        await stream.close()
        for method in ("server/discover", "subscriptions/listen", "tools/list", "ping"):
            assert reason(await agent.ask(method)) == "rate_limit_exceeded"
        unheard = {"mcp-protocol-version": NEW, "mcp-method": "ping"}
        bare = await running.send({"jsonrpc": "2.0", "id": 1, "method": "ping"}, unheard)
        assert reason(bare) == "rate_limit_exceeded"  # before it is looked at


async def test_sessions_streams_and_their_end_count() -> None:
    rules = Rules(requests=3)
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        stream = await agent.listen()
        await stream.close()
        assert await agent.end() == 204
        assert rules.asked == ["initialize", "GET", "DELETE"]
        for method in ("GET", "DELETE"):
            refused = await running.send(None, agent.headers, method=method)
            assert refused.status == 429
            assert reason(refused) == "rate_limit_exceeded"
            assert int(refused.headers["retry-after"]) > 0
        assert reason(await initialize(running)) == "rate_limit_exceeded"
        assert len(running.sessions) == 0


async def test_what_a_server_is_asked_counts_once() -> None:
    rules = Rules(requests=3)
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        for _ in range(2):
            assert (await agent.call("echo", {"message": "hi"})).text == "hi"
        assert reason(await agent.call("echo")) == "rate_limit_exceeded"
        assert rules.asked == ["initialize"]


async def test_what_has_no_answer_counts() -> None:
    rules = Rules(requests=5)
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        assert (await agent.tell("notifications/roots/list_changed")).status == 202
        assert (await agent.tell("notifications/cancelled", {"requestId": 99})).status == 202
        batch = await running.send([agent.request("ping")], agent.headers)
        assert batch.error == (400, -32600)
        assert (await agent.tell("notifications/what")).status == 202
        assert rules.asked == [
            "initialize", "notifications/roots/list_changed", "notifications/cancelled", "batch", "notifications/what",
        ]  # fmt: skip
        for refused in (
            await agent.tell("notifications/roots/list_changed"),
            await running.send([agent.request("ping")], agent.headers),
        ):
            assert (refused.status, reason(refused)) == (429, "rate_limit_exceeded")
        new = {"mcp-protocol-version": NEW, "mcp-method": "notifications/what"}
        assert (await running.send({"jsonrpc": "2.0", "method": "notifications/what"}, new)).status == 429


async def test_who_has_had_enough_may_still_end_what_runs() -> None:
    rules = Rules(requests=2)
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", {"name": "never", "arguments": {}})
        (session,) = running.sessions._open.values()
        await until(lambda: session.calls)
        assert reason(await agent.ask("ping")) == "rate_limit_exceeded"
        assert (await agent.tell("notifications/cancelled", {"requestId": agent.ids - 1})).status == 202
        await until(lambda: not session.calls)
        await stream.close()


async def test_servers_hear_of_other_roots_once_a_second() -> None:
    """And for the last time after the last change."""
    async with gateway({"c": child()}) as running:
        await running.agent()
        (session,) = running.sessions._open.values()
        times: list[float] = []
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            session.roots_changed(lambda: times.append(asyncio.get_running_loop().time() - began))
        assert len(times) == 1
        await until(lambda: len(times) == 2)
        assert times[1] > 0.9
        session.roots_changed(lambda: times.append(0.0))


# ---- rules
async def test_a_caller_who_may_nothing_gets_nothing() -> None:
    rules = Rules({"deny": 'principal.id == "eve"'})
    async with gateway({"c": child()}, **rules.parts) as running:
        ada = await running.agent(who="ada")
        refused = await initialize(running, "eve")
        assert (refused.error, reason(refused)) == ((200, -32603), "permission_denied")
        assert refused.headers["x-tollhouse-reason"] == "Authorization"
        assert "mcp-session-id" not in refused.headers
        eve = running.stateless(who="eve")
        for method in ("server/discover", "subscriptions/listen", "tools/list"):
            assert reason(await eve.ask(method, {"notifications": {}})) == "permission_denied"
        assert reason(await eve.call("echo")) == "permission_denied"
        assert reason(await eve.call("nothing")) == "permission_denied"
        for method in ("GET", "DELETE"):
            assert (await running.send(None, ada.headers | {"x-who": "eve"}, method=method)).status == 403
        assert len(running.sessions) == 1
        assert "result" in (await ada.ask("ping")).message


async def test_rules_see_the_method() -> None:
    rules = Rules({"deny": 'mcp.method in ["logging/setLevel", "GET", "server/discover"]'})
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        assert "result" in (await agent.ask("ping")).message
        assert reason(await agent.ask("logging/setLevel", {"level": "info"})) == "permission_denied"
        assert (await running.send(None, agent.headers, method="GET")).status == 403
        assert reason(await running.stateless().ask("server/discover")) == "permission_denied"
        assert await agent.end() == 204


async def test_requests_that_name_nothing_pass_allow_rules_about_names() -> None:
    rules = Rules({"allow": 'mcp.server == "c" && mcp.tool.name == "echo"'})
    async with gateway({"c": child()}, **rules.parts) as running:
        agent = await running.agent()
        for method in ("ping", "tools/list", "prompts/list"):
            assert "result" in (await agent.ask(method)).message, method
        assert (await agent.call("echo", {"message": "hi"})).text == "hi"
        assert reason(await agent.call("pid")) == "permission_denied"
        stream = await agent.listen()
        await stream.close()


# ---- what is said at the opening
def named(name: str) -> Old:
    def initialize(asked: Asked) -> bytes:
        about = {"capabilities": {"tools": {}}, "serverInfo": {"name": name, "version": "1"}}
        value = {"protocolVersion": "2025-11-25", "instructions": f"all about {name}", **about}
        return result(asked, value, mcp_session_id="s")

    return Old(initialize=initialize)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"deny": "false"}, {"one", "two"}),
        ({"deny": 'mcp.server == "two" && mcp.tool.name == "echo"'}, {"one"}),
        ({"deny": 'principal.id == "eve" && has(mcp.tool)'}, set()),
        ({"allow": 'mcp.server == "two" && mcp.tool.name == "echo" && mcp.arguments.x == 1'}, {"two"}),
        ({"allow": 'mcp.tool.name == "other"'}, set()),
    ],
)
async def test_instructions_are_of_servers_that_the_caller_sees(rule: dict[str, str], told: set[str]) -> None:
    rules = Rules(rule)
    async with upstream(named("one")) as one, upstream(named("two")) as two:
        specs = {"one": HttpServerSpec(url=one.url), "two": HttpServerSpec(url=two.url)}
        async with gateway(specs, **rules.parts) as running:
            await (await running.agent(who="ada")).ask("tools/list")
            openings = [
                (await running.agent(who="eve")).opening,
                (await running.agent({"roots": {}}, who="eve")).opening,
                (await running.stateless(who="eve").ask("server/discover")).message["result"],
            ]
            for opening in openings:
                assert {name for name in ("one", "two") if name in opening.get("instructions", "")} == told


# ---- completion
VALUES = {"completion": {"values": ["SECRET"], "total": 1, "hasMore": False}}


def completing() -> Old:
    def initialize(asked: Asked) -> bytes:
        about = {"capabilities": {"prompts": {}, "completions": {}}, "serverInfo": {"name": "c", "version": "1"}}
        return result(asked, {"protocolVersion": "2025-11-25", **about}, mcp_session_id="s")

    return Old(initialize=initialize, completion_complete=lambda asked: result(asked, VALUES))


PROMPT = {"type": "ref/prompt", "name": "secret"}
TEMPLATE = {"type": "ref/resource", "uri": "secret://{x}"}


@pytest.mark.parametrize(
    ("rule", "ref", "passes"),
    [
        ({"deny": 'mcp.prompt.name == "secret"'}, PROMPT, False),
        ({"deny": 'mcp.prompt.name == "secret"'}, PROMPT | {"name": "open"}, True),
        ({"deny": 'mcp.prompt.name == "secret"'}, TEMPLATE, True),
        ({"allow": 'mcp.prompt.name == "open"'}, PROMPT, False),
        ({"allow": 'mcp.prompt.name == "open"'}, TEMPLATE, False),
        ({"allow": 'mcp.prompt.name == "open"'}, PROMPT | {"name": "open"}, True),
        ({"deny": 'mcp.resource.uri.startsWith("secret:")'}, TEMPLATE, False),
        ({"deny": 'mcp.resource.uri.startsWith("secret:")'}, TEMPLATE | {"uri": "open://{x}"}, True),
        # The other member is no way around: the type decides, and only what was looked at goes out.
        ({"deny": 'mcp.prompt.name == "secret"'}, TEMPLATE | {"uri": "open://{x}", "name": "secret"}, True),
        ({"deny": 'mcp.resource.uri.startsWith("secret:")'}, TEMPLATE | {"name": "open"}, False),
        ({"deny": 'mcp.method == "completion/complete"'}, PROMPT, False),
    ],
)
async def test_completion_obeys_the_rules_of_what_it_completes(rule: Any, ref: Any, passes: bool) -> None:
    rules = Rules(rule)
    params = {"ref": ref, "argument": {"name": "x", "value": ""}}
    async with (
        upstream(completing()) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, **rules.parts) as running,
    ):
        for agent in (await running.agent(), running.stateless()):
            said = await agent.ask("completion/complete", params)
            assert (said.message.get("result", {}).get("completion") == VALUES["completion"]) is passes
            assert ("SECRET" in said.body.decode()) is passes
        calls = server.calls("completion/complete")
        assert len(calls) == (2 if passes else 0)
        for call in calls:
            told = call.body["params"]["ref"]
            assert set(told) == {"type", "name" if told["type"] == "ref/prompt" else "uri"}


async def test_a_refused_completion_looks_like_an_unknown_name() -> None:
    rules = Rules({"deny": 'mcp.prompt.name == "secret"'})
    params = {"ref": PROMPT, "argument": {"name": "x", "value": ""}}
    async with (
        upstream(completing()) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, **rules.parts) as running,
    ):
        agent = await running.agent()
        hidden = (await agent.ask("completion/complete", params)).message["error"]
        assert hidden == {"code": -32602, "message": "Unknown prompt: secret"}
    async with gateway({"u": child(), "v": child()}) as running:
        unknown = await (await running.agent()).ask("completion/complete", params)
        assert unknown.message["error"] == hidden


# ---- subscriptions
def subscriptions(running: Gateway) -> set[str]:
    session = next(iter(running.sessions._open.values()))
    assert not session._subscribing
    return session.subscribed


async def test_a_refused_subscription_is_none() -> None:
    rules = Rules({"deny": 'mcp.resource.uri.startsWith("secret:")'}, {"deny": 'mcp.method == "resources/unsubscribe"'})
    async with gateway({"c": child()}, **rules.parts) as running:
        agent, ada = await running.agent(who="ada"), await running.agent(who="ada")
        assert reason(await agent.ask("resources/subscribe", {"uri": "secret:x"})) == "permission_denied"
        assert subscriptions(running) == set()
        assert "result" in (await ada.ask("resources/subscribe", {"uri": "x:y"})).message
        assert "result" in (await agent.ask("resources/subscribe", {"uri": "x:y"})).message
        assert subscriptions(running) == {"x:y"}
        await ada.end()
        assert reason(await agent.ask("resources/unsubscribe", {"uri": "x:y"})) == "permission_denied"
        assert subscriptions(running) == {"x:y"}


async def test_a_failed_subscription_is_none() -> None:
    ok = [False]

    def subscribe(asked: Asked) -> Any:
        error = {"code": -32002, "message": "Resource not found"}
        return result(asked, {}) if ok[0] else answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})

    script = Old(resources_subscribe=subscribe)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        assert "error" in (await agent.ask("resources/subscribe", {"uri": "x:y"})).message
        assert subscriptions(running) == set()
        ok[0] = True
        assert "result" in (await agent.ask("resources/subscribe", {"uri": "x:y"})).message
        assert subscriptions(running) == {"x:y"}
        ok[0] = False
        assert "error" in (await agent.ask("resources/subscribe", {"uri": "x:y"})).message
        assert subscriptions(running) == {"x:y"}  # what was granted stays granted
        assert "error" in (await agent.ask("resources/unsubscribe", {"uri": "x:y"})).message
        assert subscriptions(running) == {"x:y"}


async def test_subscriptions_are_bounded() -> None:
    script = Old(resources_subscribe=lambda asked: result(asked, {}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        await agent.ask("resources/subscribe", {"uri": "x:0"})
        known = next(iter(running.sessions._open.values())).subscribed
        known.update(f"x:{n}" for n in range(1000))
        refused = await agent.ask("resources/subscribe", {"uri": "x:1000"})
        assert (refused.error, reason(refused)) == ((200, -32603), "RateLimit")
        assert "result" in (await agent.ask("resources/subscribe", {"uri": "x:7"})).message
        assert len(known) == 1000
        assert len(server.calls("resources/subscribe")) == 2


async def test_an_update_that_comes_before_the_answer_is_not_lost() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        stream = await agent.listen()
        assert (await agent.ask("resources/subscribe", {"uri": "x:y"})).message["result"] == {}
        assert (await stream.next())["params"] == {"uri": "x:y"}
        await stream.close()


async def test_what_is_refused_never_waits_for_a_server() -> None:
    rules = Rules({"deny": "true"})
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}, **rules.parts) as running:
        assert reason(await running.stateless().ask("tools/list")) == "permission_denied"
        assert not server.asked
