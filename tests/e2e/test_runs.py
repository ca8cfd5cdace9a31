"""Agent runs: what a run may use up, over models and tools, in one gateway and in several, and what it has cost."""

import asyncio
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.listening import listening
from tests.fixtures.llm_apis import frame
from tests.fixtures.provider import provider
from tests.fixtures.realtime import realtime_provider
from tests.fixtures.valkey import valkey
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

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


@pytest.mark.parametrize("state", ["", "redis"])
async def test_what_a_run_has_used_up_is_known_when_the_state_is_lost(tmp_path: Path, state: str) -> None:
    """The process is killed, or the server emptied: its calls, money, time and depth are those of the ledger."""
    runs = "{calls: 3, tools: 2, usd: 1, wall: 1h, depth: 2}"
    async with provider() as up:
        with valkey(_in(tmp_path, "valkey")) as server:
            text = config(up.port, runs, server.url if state else "")
            async with serving(text, tmp_path) as node:
                agent, child = Agent(node, "task-1"), Agent(node, "task-2")
                child.http.headers["x-tollhouse-parent-run"] = "task-1"
                assert [await agent.said(), await agent.said(), await agent.look(), await child.said()] == ["ok"] * 4
                node.records(4)
                if state:
                    server.do("FLUSHALL")
                else:
                    assert node.process is not None
                    node.process.kill()
                    node.process.wait()
                    node.process = None
                    node.start()
                again, deeper = Agent(node, "task-1"), Agent(node, "task-3")
                deeper.http.headers["x-tollhouse-parent-run"] = "task-2"
                assert "is 3 deep" in await deeper.said()
                assert [await again.said(), await again.look()] == ["ok", "ok"]
                assert "3 calls of models" in await again.said()
                assert "2 calls of tools" in await again.look()


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


MORE = """
  - {{name: voice, targets: [{{provider: v, model: gpt-realtime}}]}}
  - name: guarded
    targets: [{{provider: p, model: ok}}]
    guardrails: {{request: [{{webhook: {{url: "{guard}"}}, timeout: 20s}}]}}
"""


async def test_when_its_time_is_over_whatever_it_has_under_way_ends(tmp_path: Path) -> None:
    """Also what keeps no deadline: a realtime session, a guard that is asked and does not answer."""

    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async with provider(pace=0.5) as up, realtime_provider() as voice, listening(never) as guard:
        text = config(up.port, "{wall: 2s}")
        text = text.replace("providers:", f'providers:\n  v: {{kind: openai, base_url: "{voice.url}/v1"}}')
        text = text.replace("models: [{", "models:\n  - {").replace('model: "*"}]}]\nmcp', 'model: "*"}]}\nmcp')
        text = text.replace("mcp:", MORE.format(guard=guard) + "mcp:")
        async with serving(text, tmp_path) as node:
            agent = Agent(node, "team/task-1")
            headers = {"authorization": "Bearer ci-secret-0123", "x-tollhouse-run": "team/task-1"}
            async with connect(f"ws{node.url[4:]}/v1/realtime?model=voice", additional_headers=headers) as session:
                stream = asyncio.create_task(agent.chat(stream=True))
                waits = asyncio.create_task(agent.chat(model="p/hang"))
                guarded = asyncio.create_task(agent.chat(model="guarded"))
                async with asyncio.timeout(10):
                    with pytest.raises(ConnectionClosed, match="has had its time, 2 s"):
                        while True:
                            await session.recv()
                    answers = await asyncio.gather(waits, guarded)
                    assert "run_limit_exceeded" in (await stream).text
            for answer in answers:
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "run_limit_exceeded")
                assert answer.json()["error"]["message"] == "the run 'team/task-1' has had its time, 2 s"
                assert answer.headers["x-should-retry"] == "false"
            late = await agent.chat()
            assert (late.status_code, late.json()["error"]["code"]) == (429, "run_limit_exceeded")
            assert await Agent(node, "task-2").said() == "ok"
            rows = await asyncio.to_thread(node.records, 6)
            assert {"voice", "guarded", "p/ok"} <= {row["model_asked"] for row in rows if row["outcome"] == "timeout"}
            assert {row["run_id"] for row in rows} == {"key:ci/team%2Ftask-1", "key:ci/task-2"}


AT_ONCE = (256 << 10) // 128  # words that a worker reads which was kept waiting; it passes on none of them


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that pays no heed to any bound: words without end, in the API that is asked."""
    head = await reader.readuntil(b"\r\n\r\n")
    framed = b"converse-stream" in head
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: ")
    writer.write(b"application/vnd.amazon.eventstream" if framed else b"text/event-stream")
    writer.write(b"\r\nconnection: close\r\n\r\n" + (frame("messageStart", {"role": "assistant"}) if framed else b""))
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
    event = b"data: " + json.dumps(chunk | delta).encode() + b"\n\n"
    if framed:
        event = frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "word"}})
    while not writer.is_closing():
        writer.write(event)
        await writer.drain()
        await asyncio.sleep(0.0005)


@pytest.mark.parametrize("bound", [None, -1, 50])
async def test_a_stream_without_end_is_cut_where_its_run_may_no_more(tmp_path: Path, bound: int | None) -> None:
    """Also where its provider does not keep to what the caller allows."""
    async with listening(endless) as url:
        port = int(url.rpartition(":")[2])
        bedrock = f'b: {{kind: bedrock, base_url: "{url}", region: us-east-1, api_key: k}}'
        text = config(port, "{tokens: 1500}").replace("providers:", f"providers:\n  {bedrock}")
        text = text.replace("models: [", 'models: [{name: "b.*", targets: [{provider: b, model: "*"}]}, ')
        async with serving(text, tmp_path) as node:
            agent = Agent(node, "task-1")
            more = {} if bound is None else {"max_completion_tokens": bound}
            answer = await agent.chat(stream=True, **({"max_completion_tokens": None} | more))
            assert "in the middle of the answer" in answer.text
            assert 0 < answer.text.count("word") <= 1500
            inference = {} if bound is None else {"inferenceConfig": {"maxTokens": bound}}
            body = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], **inference}
            answer = await Agent(node, "task-2").http.post("/model/b.m/converse-stream", json=body)
            assert b"in the middle of the answer" in answer.content
            assert 0 < answer.content.count(b"word") <= 1500
            rows = await asyncio.to_thread(node.records, 2)
            assert all(600 <= row["output"] <= 1500 + AT_ONCE and row["estimated"] for row in rows)


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
