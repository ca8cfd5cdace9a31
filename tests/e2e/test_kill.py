"""`tollhouse kill` and its admin API: what a run, an agent or a key has under way ends at once, in every gateway."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.mcp_raw import Asked as McpAsked
from tests.fixtures.mcp_raw import Old, result, upstream
from tests.fixtures.provider import Provider, provider
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

SOON = 5.0  # a second is promised; a busy machine adds
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null, {more}shutdown: {{min: 0s, max: 2s}}}}
{state}
ledger: sqlite:tollhouse.db
authenticate:
  keys:
    - {{name: ci, key: ci-secret-0123, agent: robot}}
    - {{name: dev, key: dev-secret-0123, agent: human}}
runs: {{calls: 1000}}
providers:
  p: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1"}}
models: [{{name: "p/*", targets: [{{provider: p, model: "*"}}]}}]
routes: [{{name: raw, path: /raw/, to: ["http://127.0.0.1:{port}"], strip_prefix: true}}]
"""


class Asked:
    """Something under way at a gateway: a stream whose first event is here, or a call that waits."""

    def __init__(self, task: "asyncio.Task[tuple[int, str]]", began: asyncio.Event) -> None:
        self.task = task
        self.began = began

    async def end(self) -> tuple[int, str]:
        async with asyncio.timeout(SOON):
            return await self.task

    @property
    def goes_on(self) -> bool:
        return not self.task.done()


class Agent:
    def __init__(self, node: Gateway, key: str = "ci-secret-0123") -> None:
        self.node = node
        self.http = httpx.AsyncClient(base_url=node.url, headers={"authorization": f"Bearer {key}"}, timeout=30.0)

    async def call(self, model: str, run: str = "", *, began: asyncio.Event | None = None) -> tuple[int, str]:
        """Status and text; a stream for the model `ok`."""
        headers = {"x-tollhouse-run": run} if run else {}
        body = {"model": f"p/{model}", "messages": [{"role": "user", "content": "hi"}], "stream": model == "ok"}
        text = ""
        async with self.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            async for part in answer.aiter_text():
                text += part
                if began is not None:
                    began.set()
        return answer.status_code, text

    async def begin(self, provider: Provider, model: str, run: str = "") -> Asked:
        """A call that has come as far as it will for the moment."""
        before, began = len(provider.seen), asyncio.Event()
        asked = Asked(asyncio.create_task(self.call(model, run, began=began)), began)
        async with asyncio.timeout(SOON):
            if model == "ok":
                await began.wait()
            while len(provider.seen) == before:
                await asyncio.sleep(0.01)
        return asked


@asynccontextmanager
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Gateway, Gateway, Provider, asyncio.Event]]:
    """Two gateways on one state, before a provider whose streams wait for the event."""
    with valkey(tmp_path) as store:
        go_on = asyncio.Event()
        async with provider(go_on=go_on) as up:
            text = CONFIG.format(more="", state=f"state: {store.url}", port=up.port)
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
            async with serving(text, tmp_path / "a") as one, serving(text, tmp_path / "b") as other:
                yield one, other, up, go_on


async def kill(node: Gateway, *arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(run, node.where, "kill", *arguments, "--config", str(node.config))
    return done.returncode, done.stdout + done.stderr


async def test_a_run_ends_in_every_gateway_and_no_other_does(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (one, other, up, go_on):
        here, there = Agent(one), Agent(other)
        stream = await there.begin(up, "ok", "task-1")
        waits = await there.begin(up, "hang", "task-1")
        near = await here.begin(up, "ok", "task-1")
        another = await there.begin(up, "ok", "task-2")
        anothers = await Agent(other, "dev-secret-0123").begin(up, "ok", "task-1")
        assert (await kill(one, "run", "key:ci/task-1"))[0] == 0
        for asked in (stream, near):
            status, text = await asked.end()
            assert (status, "run_stopped" in text) == (200, True)
            assert "[DONE]" not in text
        status, text = await waits.end()
        assert (status, json.loads(text)["error"]["code"]) == (403, "run_stopped")
        assert another.goes_on
        assert anothers.goes_on
        for agent in (here, there):
            status, text = await agent.call("500", "task-1")
            assert (status, json.loads(text)["error"]["code"]) == (403, "run_stopped")
        assert (await here.call("500", "task-3"))[0] == 502
        go_on.set()
        for asked in (another, anothers):
            status, text = await asyncio.wait_for(asked.task, 20)
            assert (status, "[DONE]" in text) == (200, True)


@pytest.mark.parametrize(("kind", "id"), [("agent", "robot"), ("key", "ci")])
async def test_an_agent_or_a_key_has_nothing_under_way_any_more(tmp_path: Path, kind: str, id: str) -> None:
    async with nodes(tmp_path) as (one, other, up, go_on):
        agent, spared = Agent(other), Agent(other, "dev-secret-0123")
        stream = await agent.begin(up, "ok")
        waits = await agent.begin(up, "hang")
        goes_on = await spared.begin(up, "ok")
        code, said = await kill(one, kind, id, "--for", "30m")
        assert code == 0, said
        status, text = await stream.end()
        assert (status, "credential_revoked" in text, "[DONE]" in text) == (200, True, False)
        status, text = await waits.end()
        assert (status, json.loads(text)["error"]["code"]) == (401, "credential_revoked")
        for node in (one, other):
            assert (await Agent(node).call("500"))[0] == 401
        go_on.set()
        status, text = await asyncio.wait_for(goes_on.task, 20)
        assert (status, "[DONE]" in text) == (200, True)


MCP = """
server: {{listen: 127.0.0.1:0, metrics: null, shutdown: {{min: 0s, max: 2s}}}}
state: {state}
ledger: sqlite:tollhouse.db
authenticate: {{keys: [{{name: ci, key: ci-secret-0123}}]}}
runs: {{tools: 1000}}
mcp:
  servers: {{slow: {{url: "{url}"}}}}
"""


async def test_calls_of_tools_end_with_their_run_in_whatever_revision(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    def call(asked: McpAsked) -> Any:
        return [go_on.wait(), result(asked, {"content": [{"type": "text", "text": "done"}]})]

    headers = {"authorization": "Bearer ci-secret-0123", "accept": "application/json, text/event-stream"}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "slow", "arguments": {}}}
    with valkey(tmp_path) as store:
        async with (
            upstream(Old(tools_call=call)) as server,
            serving(MCP.format(state=store.url, url=server.url), tmp_path) as node,
            httpx.AsyncClient(base_url=node.url, headers=headers, timeout=30.0) as http,
        ):

            async def begin(revision: str, run: str) -> Asked:
                before = len(server.calls("tools/call"))
                own = {"x-tollhouse-run": run, "mcp-protocol-version": revision}
                message = dict(body)
                if revision == "2026-07-28":
                    own |= {"mcp-method": "tools/call", "mcp-name": "slow"}
                    of = "io.modelcontextprotocol/"
                    meta = {f"{of}protocolVersion": revision, f"{of}clientCapabilities": {}}
                    message["params"] = {**body["params"], "_meta": meta}  # type: ignore[dict-item]
                else:
                    info = {"name": "test", "version": "1"}
                    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": info}
                    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
                    opened = await http.post("/mcp", json=hello)
                    own["mcp-session-id"] = opened.headers["mcp-session-id"]
                    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                    assert (await http.post("/mcp", json=ready, headers=own)).status_code == 202

                async def ask() -> tuple[int, str]:
                    answer = await http.post("/mcp", json=message, headers=own)
                    return answer.status_code, answer.text

                asked = Asked(asyncio.create_task(ask()), asyncio.Event())
                async with asyncio.timeout(SOON):
                    while len(server.calls("tools/call")) == before:
                        await asyncio.sleep(0.01)
                return asked

            revisions = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
            waiting = [await begin(revision, "one") for revision in revisions]
            others = [await begin(revision, "other") for revision in revisions]
            assert (await kill(node, "run", "key:ci/one"))[0] == 0
            for asked in waiting:
                _, text = await asked.end()
                assert "run_stopped" in text
            async with asyncio.timeout(SOON):
                while len(server.calls("notifications/cancelled")) < len(revisions):
                    await asyncio.sleep(0.01)
            assert all(asked.goes_on for asked in others)
            go_on.set()
            for asked in others:
                status, text = await asked.end()
                assert (status, "done" in text) == (200, True)
    with sqlite3.connect(tmp_path / "tollhouse.db") as ledger:  # whole, since the gateway has ended
        rows = ledger.execute("SELECT run_id, outcome, reason FROM usage WHERE tool <> '' ORDER BY run_id")
        ended = [("key:ci/one", "denied", "Authorization")] * 4 + [("key:ci/other", "ok", "Upstream")] * 4
        assert [tuple(row) for row in rows] == ended


async def test_a_gateway_alone_is_told_by_its_admin_api(tmp_path: Path) -> None:
    async with provider(go_on=asyncio.Event()) as up:
        text = CONFIG.format(more="admin: 127.0.0.1:0, ", state="", port=up.port)
        async with serving(text, tmp_path) as node:
            address = (await node.logged(r"admin API on http://(\S+)"))[1]
            node.config.write_text(text.replace("admin: 127.0.0.1:0", f"admin: {address}"))
            agent = Agent(node)
            stream = await agent.begin(up, "ok", "task-1")
            code, said = await kill(node, "run", "key:ci/task-1", "--for", "5m")
            assert code == 0, said
            assert "run_stopped" in (await stream.end())[1]
            assert (await agent.call("ok", "task-1"))[0] == 403
            body: dict[str, Any] = {"kind": "run", "id": "key:ci/task-2"}
            token = (tmp_path / "tollhouse.db.admin-token").read_text().strip()
            headers = {"authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers) as operator:
                assert (await operator.post("/api/revocations", json=body)).status_code == 201
            assert (await agent.call("ok", "task-2"))[0] == 403
    code, said = await kill(node, "run", "key:ci/task-1")
    assert (code, "cannot be asked" in said) == (1, True)
    node.config.write_text(CONFIG.format(more="", state="", port=up.port))
    code, said = await kill(node, "run", "key:ci/task-1")
    assert (code, "set `server.admin`" in said) == (1, True)
    assert (await kill(node, "run", "x", "--for", "soon"))[0] == 2
