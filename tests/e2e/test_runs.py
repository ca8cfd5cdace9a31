"""Agent runs: what a run may use up, over models and tools, in one gateway and in several, and what it has cost."""

import asyncio
import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import provider
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 1s}}}}
{state}
ledger: sqlite:tollhouse.db
authenticate:
  keys:
    - {{name: ci, key: ci-secret-0123}}
    - {{name: dev, key: dev-secret-0123}}
runs: {runs}
providers:
  p: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1"}}
prices: [{{provider: p, model: "*", input: 1000, output: 1000}}]
models: [{{name: "p/*", targets: [{{provider: p, model: "*"}}]}}]
mcp:
  servers:
    shop:
      base_url: "http://127.0.0.1:{port}"
      rest:
        - name: look
          path: /v1/x
          method: POST
          description: look
          input: {{type: object, properties: {{a: {{}}, b: {{}}}}}}
"""
BODY = {"model": "p/ok", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 10}


class Agent:
    def __init__(self, node: Gateway, run: str, key: str = "ci-secret-0123") -> None:
        headers = (
            {"authorization": f"Bearer {key}", "x-tollhouse-run": run} if run else {"authorization": f"Bearer {key}"}
        )
        self.http = httpx.AsyncClient(base_url=node.url, headers=headers, timeout=30.0)

    async def chat(self, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json={**BODY, **more})

    async def said(self, **more: Any) -> str:
        """`ok`, or what the refusal says."""
        answer = await self.chat(**more)
        return _said(answer)

    async def look(self, arguments: dict[str, Any] | None = None, **meta: str) -> str:
        """A call of the tool, by a stateless agent."""
        told = {f"tollhouse/{name}": value for name, value in meta.items()}
        params = {
            "name": "look",
            "arguments": arguments or {},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
                **told,
            },
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "look",
                   "accept": "application/json, text/event-stream"}  # fmt: skip
        answer = await self.http.post("/mcp", json=body, headers=headers)
        return _said(answer)


def _said(answer: httpx.Response) -> str:
    if answer.status_code == 200 and "error" not in answer.json():
        return "ok"
    return str(answer.json()["error"]["message"])


def _in(where: Path, name: str) -> Path:
    (where / name).mkdir()
    return where / name


def config(port: int, runs: str, state: str = "") -> str:
    return CONFIG.format(port=port, runs=runs, state=f"state: {state}" if state else "")


async def test_calls_and_tools_are_bounded_apart_and_each_run_for_itself(tmp_path: Path) -> None:
    async with provider() as up, serving(config(up.port, "{calls: 2, tools: 1}"), tmp_path) as node:
        agent = Agent(node, "task-1")
        assert [await agent.said() for _ in range(2)] == ["ok", "ok"]
        answer = await agent.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "run_limit_exceeded")
        assert answer.headers["x-tollhouse-reason"] == "Budget"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["message"] == "the run 'task-1' has used up what it may: 2 calls of models"
        assert await agent.look() == "ok"
        assert "1 call of tools" in await agent.look({"a": 1})
        assert await Agent(node, "task-2").said() == "ok"
        assert await Agent(node, "task-1", "dev-secret-0123").said() == "ok"
        assert [await Agent(node, "").said() for _ in range(3)] == ["ok"] * 3
        by_meta = Agent(node, "")
        assert await by_meta.look(run="task-9") == "ok"
        assert "'task-9'" in await by_meta.look({"a": 2}, run="task-9")


async def test_tokens_and_money_are_held_and_settled(tmp_path: Path) -> None:
    """An answer comes to 15 tokens: a call may come to a hundred or so before it."""
    async with provider() as up, serving(config(up.port, "{tokens: 400}"), _in(tmp_path, "a")) as node:
        agent = Agent(node, "task-1")
        said = [await agent.said() for _ in range(40)]
        assert said[0] == "ok"
        assert 10 <= said.count("ok") <= 26
        assert "tokens" in said[-1]
    async with provider() as up, serving(config(up.port, "{usd: 0.4}"), _in(tmp_path, "b")) as node:
        agent = Agent(node, "task-1")
        said = [await agent.said() for _ in range(40)]
        assert 10 <= said.count("ok") <= 26
        assert "USD" in said[-1]


async def test_many_at_once_never_pass_it_on_several_gateways(tmp_path: Path) -> None:
    with valkey(tmp_path) as store:
        async with provider() as up:
            text = config(up.port, "{calls: 20}", store.url)
            async with serving(text, _in(tmp_path, "a")) as one, serving(text, _in(tmp_path, "b")) as other:
                agents = [Agent(one, "task-1"), Agent(other, "task-1")]
                said = await asyncio.gather(*(agents[n % 2].said() for n in range(60)))
                assert said.count("ok") == 20
                assert len([seen for seen in up.seen if seen.target.endswith("completions")]) == 20


async def test_the_same_again_and_again(tmp_path: Path) -> None:
    async with provider() as up, serving(config(up.port, "{same: {times: 2, window: 1h}}"), tmp_path) as node:
        agent = Agent(node, "task-1")
        assert [await agent.look({"a": 1, "b": 2}) for _ in range(2)] == ["ok", "ok"]
        refused = await agent.look({"b": 2, "a": 1})  # the same, said the other way round
        assert "goes round in a circle" in refused
        assert await agent.look({"a": 1, "b": 3}) == "ok"
        assert await Agent(node, "task-2").look({"a": 1, "b": 2}) == "ok"
        assert [await agent.said() for _ in range(2)] == ["ok", "ok"]
        assert "goes round in a circle" in await agent.said()


async def test_calls_at_once(tmp_path: Path) -> None:
    async with provider() as up, serving(config(up.port, "{parallel: 2}"), tmp_path) as node:
        agent = Agent(node, "task-1")
        waiting = [asyncio.create_task(agent.chat(model="p/hang")) for _ in range(2)]
        await until(lambda: len(up.seen) == 2)
        assert "may have at once: 2" in await agent.said()
        assert await Agent(node, "task-2").said() == "ok"
        waiting[0].cancel()
        async with asyncio.timeout(10):
            while await agent.said() != "ok":
                await asyncio.sleep(0.05)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_it_has_used_outlives_the_gateway(tmp_path: Path) -> None:
    async with provider() as up:
        text = config(up.port, "{calls: 3}")
        node = Gateway(text, tmp_path)
        await asyncio.to_thread(node.start)
        assert [await Agent(node, "task-1").said() for _ in range(2)] == ["ok", "ok"]
        assert node.process is not None
        node.process.kill()
        node.process.wait()
        await asyncio.to_thread(node.start)
        try:
            said = [await Agent(node, "task-1").said() for _ in range(3)]
        finally:
            await asyncio.to_thread(node.stop)
        assert said[0] == "ok"
        assert "3 calls of models" in said[1]


async def test_what_it_has_cost_is_one_question(tmp_path: Path) -> None:
    async with provider() as up, serving(config(up.port, "{calls: 100}"), tmp_path) as node:
        agent = Agent(node, "task-1")
        for _ in range(3):
            assert await agent.said() == "ok"
        assert await agent.look() == "ok"
        assert await Agent(node, "task-2").said() == "ok"
        await asyncio.to_thread(node.records, 5)
        command = [sys.executable, "-m", "tollhouse.cli", "usage", "--by", "run", "--format", "csv",
                   "--config", str(node.config)]  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        rows = {row["run"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
        assert set(rows) == {"key:ci/task-1", "key:ci/task-2"}
        assert rows["key:ci/task-1"]["requests"] == "4"
        assert rows["key:ci/task-2"]["requests"] == "1"


def test_a_setting_without_effect_is_refused(tmp_path: Path) -> None:
    text = "server: {listen: 127.0.0.1:0}\nruns: {calls: 1}\nroutes: [{name: a, path: /, to: [http://127.0.0.1:1]}]\n"
    (tmp_path / "t.yaml").write_text(text)
    command = [sys.executable, "-m", "tollhouse.cli", "check", str(tmp_path / "t.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "runs" in done.stderr
