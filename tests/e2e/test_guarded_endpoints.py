"""What an endpoint of chosen tools adds to its servers: guardrails, rules, limits and budgets, for all that is shown
there and nowhere else."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.mcp_gateway import Gateway as Agents
from tests.fixtures.mcp_gateway import Old as Agent
from tests.fixtures.mcp_raw import STREAM, Asked, Old, Upstream, answer, chunk, events, result, upstream
from tests.fixtures.mcp_suite import fixture_server

pytestmark = pytest.mark.anyio

MAIL = "ada@example.org"
SECRET = "sk-ant-api03-" + "Ab3dEf6hIj9kLm2nOp5q" * 4 + "-AAAAAA"
MASK = {"pii": ["email"], "action": "mask"}
GUARDS = {"request": [MASK, {"secrets": True}], "response": [MASK, {"secrets": True}]}


def _initialize(asked: Asked, to: Upstream | None = None) -> Any:
    """to: where the sessions are told from each other."""
    capabilities = {"tools": {}, "resources": {"subscribe": True}, "prompts": {}, "logging": {}}
    value = {
        "protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": {"name": "raw", "version": "1"},
        "instructions": f"Ask {MAIL} first.",
    }  # fmt: skip
    return result(asked, value, mcp_session_id=f"s-{len(to.calls('initialize')) if to is not None else 1}")


def _said(asked: Asked) -> Any:
    given = asked.body["params"].get("arguments", {})
    return result(asked, {"content": [{"type": "text", "text": f"{MAIL} {json.dumps(given)}"}]})


def _lists() -> dict[str, Any]:
    schema = {"type": "object"}
    tools = [
        {"name": "echo", "description": f"By {MAIL}", "inputSchema": schema},
        {"name": "read", "description": "Reads.", "inputSchema": schema, "annotations": {"readOnlyHint": True}},
        {"name": "key", "description": f"Uses {SECRET}", "inputSchema": schema},
    ]
    resources = [{"uri": "note://one", "name": MAIL, "description": MAIL}, {"uri": f"mailto:{MAIL}", "name": "m"}]
    blob = {"uri": "note://one", "blob": b64encode(f"to {MAIL}".encode()).decode()}
    message = {"role": "user", "content": {"type": "text", "text": MAIL}}
    return {
        "tools_list": lambda asked: result(asked, {"tools": tools}),
        "prompts_list": lambda asked: result(asked, {"prompts": [{"name": "p", "description": MAIL}]}),
        "resources_list": lambda asked: result(asked, {"resources": resources}),
        "resources_read": lambda asked: result(asked, {"contents": [blob]}),
        "prompts_get": lambda asked: result(asked, {"messages": [message]}),
    }


@asynccontextmanager
async def behind(
    where: Path, endpoint: Any, *, server: Any = None, more: Any = None, **top: Any
) -> AsyncIterator[tuple[Agents, Upstream]]:
    """A server at /mcp/u, and the endpoint /mcp/team of it."""
    script = Old(initialize=_initialize, tools_call=_said, **_lists())
    async with upstream(script) as running:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
            "mcp": {
                "servers": {"u": {"url": running.url, **(server or {})}, **(more or {})},
                "endpoints": [{"path": "/mcp/team", "servers": ["u"], **endpoint}],
            },
            **top,
        }
        async with serving(yaml.safe_dump(config), where) as gateway:
            yield agents_of(gateway), running


def agents_of(gateway: Gateway) -> Agents:
    none: Any = None
    return Agents(int(gateway.url.rpartition(":")[2]), none, none, none)


async def told(agent: Agent, method: str, params: Any = None) -> str:
    return (await agent.ask(method, params)).body.decode()


async def test_guards_of_an_endpoint_are_for_all_that_it_shows(tmp_path: Path) -> None:
    async with behind(tmp_path, {"guardrails": GUARDS}) as (agents, server):
        team, all_of = await agents.agent(path="/mcp/team"), await agents.agent(path="/mcp/u")
        named: dict[str, Any] = {"name": "echo", "arguments": {"to": MAIL}}
        for method, params in (
            ("tools/list", None), ("prompts/list", None), ("tools/call", named), ("prompts/get", {"name": "p"}),
        ):  # fmt: skip
            guarded, plain = await told(team, method, params), await told(all_of, method, params)
            assert MAIL not in guarded, method
            assert "[EMAIL]" in guarded, method
            assert MAIL in plain, method
        calls = [asked.body["params"]["arguments"] for asked in server.calls("tools/call")]
        assert calls == [{"to": "[EMAIL]"}, {"to": MAIL}]
        names = [tool["name"] for tool in (await team.ask("tools/list")).message["result"]["tools"]]
        assert names == ["echo", "read"]  # one with a key in its description is not listed
        listed = (await team.ask("resources/list")).message["result"]["resources"]
        assert listed == [{"uri": "note://one", "name": MAIL, "description": "[EMAIL]"}]
        assert len((await all_of.ask("resources/list")).message["result"]["resources"]) == 2
        hidden = await team.ask("resources/read", {"uri": f"mailto:{MAIL}"})
        assert "not found" in hidden.message["error"]["message"]
        assert not [
            asked for asked in server.calls("resources/read") if asked.body["params"]["uri"] == f"mailto:{MAIL}"
        ]
        assert "Unknown tool" in (await team.call("key")).message["error"]["message"]
        assert (await all_of.call("key")).message["result"]
        read = (await team.ask("resources/read", {"uri": "note://one"})).message["result"]["contents"][0]
        assert b64decode(read["blob"]) == b"to [EMAIL]"
        refused = await team.call("echo", {"key": SECRET})
        assert "a guardrail" in refused.message["error"]["message"]
        assert (await all_of.call("echo", {"key": SECRET})).message["result"]
        assert (await team.call(SECRET)).message["error"]  # a tool that nobody has: the server is not asked
        assert SECRET not in json.dumps([asked.body for asked in server.calls("tools/call")[:-1]])


async def test_instructions_and_what_is_said_outside_of_calls(tmp_path: Path) -> None:
    streams: dict[str, asyncio.Queue[bytes]] = {}  # by session: that of nobody, for lists, has one too
    answers: asyncio.Queue[Any] = asyncio.Queue()

    def get(asked: Asked) -> Any:
        loose = streams.setdefault(asked.headers["mcp-session-id"], asyncio.Queue())

        async def more() -> None:
            said.append(chunk(events(json.loads(await loose.get()))))
            said.append(more())

        said: list[Any] = [STREAM]
        said.append(more())
        return said

    def heard(asked: Asked) -> Any:
        if asked.http == "POST" and asked.method == "":
            answers.put_nowait(asked.body)
        return script(asked)

    script: Old = Old(initialize=lambda asked: _initialize(asked, server), tools_call=_said, **_lists())
    script.get = get
    async with upstream(heard) as server:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {
                "servers": {"u": {"url": server.url, "session": "exclusive"}},
                "endpoints": [
                    {"path": "/mcp/team", "servers": ["u"], "guardrails": GUARDS},
                    {"path": "/mcp/none", "servers": ["u"], "guardrails": {"response": [{"pii": ["email"]}]}},
                ],
            },
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            agents = agents_of(gateway)
            team = await agents.agent({"elicitation": {}}, path="/mcp/team")
            listening = await team.listen()
            await team.call("echo")
            [called] = server.calls("tools/call")
            loose = streams.setdefault(called.headers["mcp-session-id"], asyncio.Queue())
            plain = await agents.agent(path="/mcp/u")
            assert plain.opening["instructions"] == f"Ask {MAIL} first."
            assert (await agents.agent(path="/mcp/team")).opening["instructions"] == "Ask [EMAIL] first."
            assert "instructions" not in (await agents.agent(path="/mcp/none")).opening
            discovered = await agents.stateless("/mcp/team").ask("server/discover")
            assert discovered.message["result"]["instructions"] == "Ask [EMAIL] first."

            for data in (f"key {SECRET}", f"log of {MAIL}"):
                params = {"level": "error", "logger": MAIL, "data": data}
                loose.put_nowait(
                    json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": params}).encode()
                )
            log = await listening.next()  # the first was left out
            assert log["params"] == {"level": "error", "logger": "[EMAIL]", "data": "log of [EMAIL]"}
            params = {"message": f"Is it {MAIL}?", "requestedSchema": {"type": "object", "properties": {}}}
            question = {"jsonrpc": "2.0", "id": 77, "method": "elicitation/create", "params": params}
            loose.put_nowait(json.dumps(question).encode())
            asked = await listening.next()
            assert asked["params"]["message"] == "Is it [EMAIL]?"
            await team.answer(asked["id"], {"action": "accept", "content": {"to": MAIL}})
            async with asyncio.timeout(10):
                said = await answers.get()
            assert (said["id"], said["result"]["content"]) == (77, {"to": "[EMAIL]"})
            await listening.close()


async def test_what_is_kept_of_a_guarded_endpoint_is_kept_apart(tmp_path: Path) -> None:
    cached = {"cache": {"exact": {"ttl": "1m"}}}
    guards = {"guardrails": {"response": [MASK]}}
    async with behind(tmp_path, guards, server=cached) as (agents, server):
        team, all_of = await agents.agent(path="/mcp/team"), await agents.agent(path="/mcp/u")
        for agent, seen in ((all_of, MAIL), (team, "[EMAIL]"), (all_of, MAIL), (team, "[EMAIL]")):
            await agent.ask("tools/list")
            assert (await agent.call("read")).text == f"{seen} {{}}"
        assert len(server.calls("tools/call")) == 2


async def test_another_tools_answer_has_the_guards_of_the_endpoint(tmp_path: Path) -> None:
    def fails(asked: Asked) -> Any:
        return answer(500) if asked.method == "tools/call" else broken(asked)

    broken = Old()
    async with upstream(fails) as down:
        own = {"url": down.url, "tools": {"echo": {"idempotent": True, "alternate": "u__echo"}}}
        endpoint = {"servers": ["down"], "guardrails": GUARDS}
        async with behind(tmp_path, endpoint, more={"down": own}) as (agents, _):
            team, plain = await agents.agent(path="/mcp/team"), await agents.agent(path="/mcp/down")
            assert (await team.call("echo", {"to": MAIL})).text == '[EMAIL] {"to": "[EMAIL]"}'
            assert (await plain.call("echo", {"to": MAIL})).text == f'{MAIL} {{"to": "{MAIL}"}}'


async def test_what_an_api_says_where_it_fails(tmp_path: Path) -> None:
    async with upstream(lambda asked: answer(503, {"error": f"ask {MAIL}"})) as api:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {
                "servers": {
                    "api": {"base_url": api.url, "rest": [{"name": "note", "description": "A note.", "path": "/note"}]}
                },
                "endpoints": [{"path": "/mcp/team", "servers": ["api"], "guardrails": {"response": [MASK]}}],
            },
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            agents = agents_of(gateway)
            for path, seen in (("/mcp/team", "ask [EMAIL]"), ("/mcp/api", f"ask {MAIL}")):
                told = (await (await agents.agent(path=path)).call("note")).message["result"]
                assert told["isError"]
                assert seen in told["content"][0]["text"]


async def test_what_a_server_says_where_it_has_no_list(tmp_path: Path) -> None:
    def refuses(asked: Asked) -> Any:
        error = {"code": -32603, "message": f"ask {MAIL}"}
        return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})

    script = Old(initialize=_initialize, tools_list=refuses)
    async with upstream(script) as server:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {
                "failure": "closed",
                "servers": {"u": {"url": server.url}},
                "endpoints": [{"path": "/mcp/team", "servers": ["u"], "guardrails": {"response": [MASK]}}],
            },
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            agent = await agents_of(gateway).agent(path="/mcp/team")
            assert "ask [EMAIL]" in (await agent.ask("tools/list")).message["error"]["message"]


@pytest.mark.parametrize("era", ["old", "new"])
@pytest.mark.parametrize("reversible", [False, True])
async def test_a_call_that_was_masked_goes_on_after_a_question(tmp_path: Path, era: str, reversible: bool) -> None:
    mask = {**MASK, "reversible": reversible}
    endpoint = {"path": "/mcp/team", "servers": ["u"], "guardrails": {"request": [mask]}}
    with fixture_server("--era", era) as url:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {"servers": {"u": {"url": url}}, "endpoints": [endpoint]},
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            agents = agents_of(gateway)
            can = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
            stateless = agents.stateless("/mcp/team")
            call = {"name": "test_elicitation", "arguments": {"message": f"Is it {MAIL}?"}, "_meta": can}
            asked = (await stateless.ask("tools/call", call)).message["result"]
            (key,) = asked["inputRequests"]
            shown = asked["inputRequests"][key]["params"]["message"]
            assert shown == (f"Is it {MAIL}?" if reversible else "Is it [EMAIL]?")
            said = {key: {"action": "accept", "content": {"username": MAIL, "email": MAIL}}}
            more = {"requestState": asked["requestState"], "inputResponses": said}
            told = (await stateless.ask("tools/call", {**call, **more})).body.decode()
            assert '"result"' in told
            assert (MAIL in told, "[EMAIL" in told) == (reversible, not reversible)


async def test_addresses_are_masked_wherever_they_are_told(tmp_path: Path) -> None:
    def read(asked: Asked) -> Any:
        if asked.method == "server/discover":
            return result(asked, {"supportedVersions": ["2026-07-28"], "capabilities": {"resources": {}}})
        return result(asked, {"resultType": "complete", "contents": [], "ttlMs": 0, "cacheScope": "private"})

    async with upstream(read) as server:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {
                "servers": {"u": {"url": server.url}},
                "endpoints": [{"path": "/mcp/team", "servers": ["u"], "guardrails": {"request": [MASK]}}],
            },
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            agent = agents_of(gateway).stateless("/mcp/team")
            assert (await agent.ask("resources/read", {"uri": f"mailto:{MAIL}"})).message["result"]["contents"] == []
            (asked,) = server.calls("resources/read")
            assert asked.body["params"]["uri"] == "mailto:[EMAIL]"
            assert asked.headers["mcp-name"] == "mailto:[EMAIL]"


@pytest.mark.parametrize(
    "bound",
    [
        {"limits": [{"per": "server", "calls": 2, "window": "1h"}]},
        {"budgets": [{"per": "all", "calls": 2, "window": "year"}]},
    ],
)
async def test_rules_limits_and_budgets_of_an_endpoint(tmp_path: Path, bound: Any) -> None:
    endpoint = {"authorize": {"rules": [{"deny": 'mcp.tool.name == "read"'}]}, **bound}
    async with behind(tmp_path, endpoint, ledger="sqlite:tollhouse.db") as (agents, _):
        team, all_of = await agents.agent(path="/mcp/team"), await agents.agent(path="/mcp/u")
        names = [tool["name"] for tool in (await team.ask("tools/list")).message["result"]["tools"]]
        assert names == ["echo", "key"]
        assert "read" in await told(all_of, "tools/list")
        assert (await team.call("read")).message["error"]
        got = [(await team.call("echo")).message for _ in range(3)]
        assert ["result" in one for one in got] == [True, True, False]
        for _ in range(3):
            assert (await all_of.call("echo")).message["result"]


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"cache": {"exact": {"ttl": "1m"}}}, "`cache` cannot be set here; at the top it is set for everything"),
        ({"retry": {"attempts": 2}}, "`retry` cannot be set here; at the top it is set for everything"),
        ({"limits": [{"per": "user", "tokens": 5, "window": "1m"}]}, "`tokens` can have no effect on an endpoint"),
        ({"limits": [{"per": "model", "calls": 5, "window": "1m"}]}, "`per: model` can have no effect on an endpoint"),
        ({"budgets": [{"per": "user", "usd": 5, "window": "month"}]}, "`usd` can have no effect on an endpoint"),
        ({"guardrails": {"request": [{"pii": True, "in": ["system"]}]}}, "a request has arguments, results, text"),
    ],
)
def test_what_has_no_effect_on_an_endpoint(
    tmp_path: Path, endpoint: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tollhouse.cli import main

    file = tmp_path / "tollhouse.yaml"
    servers = {name: {"url": f"http://127.0.0.1:9/{name}"} for name in "ab"}
    mcp = {"servers": servers, "endpoints": [{"path": "/mcp/team", "servers": ["a", "b"], **endpoint}]}
    config = {
        "mcp": mcp, "server": {"listen": "127.0.0.1:0", "metrics": None}, "ledger": "sqlite:tollhouse.db",
        "providers": {"p": {"kind": "openai", "api_key": "k"}},
        "models": [{"name": "m", "targets": [{"provider": "p", "model": "m"}]}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(config))
    assert main(["check", str(file)]) != 0
    out = "".join(capsys.readouterr())
    assert out.count(said) == 1
