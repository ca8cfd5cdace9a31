"""The cache through a running gateway: answers that come again, to whom, and what it costs; nodes that share them;
purges; a state that is gone."""

import asyncio
import http.client
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, free_port, serving, until
from tests.fixtures.provider import Provider, provider
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

ADA, BOB = "ada-secret-0123456789", "bob-secret-0123456789"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
providers:
  ours: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: upstream-secret}}
models:
  - {{name: kept, targets: [{{provider: ours, model: "{model}"}}], cache: {{exact: {{ttl: 1m, {exact}}}}}}}
  - {{name: plain, targets: [{{provider: ours, model: ok}}]}}
authenticate:
  keys:
    - {{name: a, key: {ada}, user: ada, org: acme}}
    - {{name: b, key: {bob}, user: bob, org: acme}}
limits: [{{per: user, tokens: 200000, window: 1h, headers: draft}}]
prices: [{{provider: ours, model: ok, input: 1000000, output: 1000000}}]
telemetry: {{access_log: {{path: access.log}}}}
"""


def config(port: int, model: str = "ok", exact: str = "scope: user") -> str:
    return CONFIG.format(port=port, model=model, exact=exact, ada=ADA, bob=BOB)


@asynccontextmanager
async def housed(where: Path, **changes: Any) -> AsyncIterator[tuple[Gateway, Provider]]:
    async with provider() as upstream, serving(config(upstream.port, **changes), where) as running:
        yield running, upstream


async def ask(
    running: Gateway, text: str = "hello", key: str = ADA, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, dict[str, str], bytes]:
    body = {"model": "kept", "messages": [{"role": "user", "content": text}]} | fields
    sent = {"authorization": f"Bearer {key}"} | (headers or {})
    return await asyncio.to_thread(running.exchange, "POST", "/v1/chat/completions", body, sent)


async def test_an_answer_comes_again_and_only_to_who_asked(tmp_path: Path) -> None:
    async with housed(tmp_path) as (running, upstream):
        status, headers, first = await ask(running)
        assert (status, headers["x-tollhouse-cache"]) == (200, "stored")
        status, headers, again = await ask(running)
        assert (status, headers["x-tollhouse-cache"], again) == (200, "hit", first)
        assert int(headers["age"]) <= 60
        assert headers["content-type"] == "application/json"
        _, headers, _ = await ask(running, key=BOB)
        assert headers["x-tollhouse-cache"] == "stored"
        assert len(upstream.seen) == 2
        _, headers, _ = await ask(running, model="plain")
        assert "x-tollhouse-cache" not in headers
        text = running.metrics()
        assert 'tollhouse_cache_requests_total{kind="exact",result="hit",route="chat"} 1' in text
        assert 'tollhouse_cache_requests_total{kind="exact",result="miss",route="chat"} 2' in text
        found = [line for line in (await asyncio.to_thread(running.metrics)).splitlines() if "cache_entries" in line]
        assert found[-1] == "tollhouse_cache_entries 2"


async def test_a_stream_comes_again_as_a_stream(tmp_path: Path) -> None:
    async with housed(tmp_path) as (running, upstream):
        _, headers, first = await ask(running, stream=True)
        assert headers["x-tollhouse-cache"] == "miss"
        _, headers, again = await ask(running, stream=True)
        assert headers["x-tollhouse-cache"] == "hit"
        assert again == first
        assert again.endswith(b"data: [DONE]\n\n")
        assert headers["content-type"].startswith("text/event-stream")
        _, headers, whole = await ask(running)
        assert headers["x-tollhouse-cache"] == "stored"
        assert whole.startswith(b"{")
        assert len(upstream.seen) == 2


async def test_a_stream_comes_again_at_its_pace(tmp_path: Path) -> None:
    async with housed(tmp_path, exact="replay: paced") as (running, upstream):
        upstream.pace = 0.05
        _, _, first = await ask(running, stream=True)
        began = asyncio.get_running_loop().time()
        _, headers, again = await ask(running, stream=True)
        assert headers["x-tollhouse-cache"] == "hit"
        assert again == first
        assert asyncio.get_running_loop().time() - began > 0.25


@pytest.mark.parametrize("model, status", [("500", 502), ("cut", 200)])
async def test_what_failed_or_was_cut_is_asked_again(tmp_path: Path, model: str, status: int) -> None:
    async with housed(tmp_path, model=model) as (running, upstream):
        for number in (1, 2):
            try:
                found, headers, _ = await ask(running, stream=model == "cut")
                assert found == status
                assert headers.get("x-tollhouse-cache") != "hit"
            except (ConnectionError, http.client.HTTPException):
                pass
            assert len(upstream.seen) >= number


async def test_a_hit_is_in_the_ledger_and_is_not_charged(tmp_path: Path) -> None:
    async with housed(tmp_path) as (running, _):
        await ask(running)
        _, second, _ = await ask(running)
        records = await asyncio.to_thread(running.records, 2)
        assert [record["outcome"] for record in records] == ["ok", "ok"]
        assert records[0]["cost_nano"] > 0 == records[1]["cost_nano"]
        assert (records[1]["input"], records[1]["output"]) == (0, 0)
        assert records[1]["model_answered"] == records[0]["model_answered"]
        assert records[1]["cached"] == "exact"
        assert records[1]["saved_nano"] == records[0]["cost_nano"]
        await until(lambda: len(running.lines()) >= 2)  # they are written behind
        asked, hit = [line for line in running.lines() if line["path"].startswith("/v1/")]
        assert (asked["cache"], asked["reason"], asked["cost_usd"] > 0) == ("miss", "Upstream", True)
        assert (hit["cache"], hit["reason"], hit["cost_usd"]) == ("exact", "DirectResponse", 0.0)
        assert hit["model_answered"] == asked["model_answered"]
        counts = [line for line in running.metrics().splitlines() if "token_usage_count{" in line]
        assert {line.rpartition(" ")[2] for line in counts} == {"1"}  # a hit is no answer of no tokens
        _, third, _ = await ask(running)
        left = [int(one["ratelimit"].split("r=")[1].split(";")[0]) for one in (second, third)]
        assert abs(left[0] - left[1]) <= 100  # what was taken on an estimate is given back, and comes back with time


async def test_another_target_is_another_model(tmp_path: Path) -> None:
    async with provider() as other, housed(tmp_path) as (running, upstream):
        await ask(running)
        await running.change(config(other.port))
        _, headers, _ = await ask(running)
        assert headers["x-tollhouse-cache"] == "stored"
        assert len(other.seen) == 1
        await running.change(config(upstream.port))
        _, headers, _ = await ask(running)
        assert headers["x-tollhouse-cache"] == "hit"  # the model is what it was


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_guard_has_masked_is_kept_masked_and_another_guard_is_another_answer(
    tmp_path: Path, stream: bool
) -> None:
    async with housed(tmp_path) as (running, upstream):
        plain = config(upstream.port)
        _, _, before = await ask(running, stream=stream)
        assert b"Hello" in before
        await running.change(plain + 'guardrails: {response: [{regex: "Hel+o", action: mask}]}\n')
        for state in ("miss" if stream else "stored", "hit"):
            _, headers, masked = await ask(running, stream=stream)
            assert headers["x-tollhouse-cache"] == state
            assert b"Hello" not in masked
        await running.change(plain + 'guardrails: {response: [{regex: "there", action: mask}]}\n')
        _, headers, other = await ask(running, stream=stream)
        assert headers["x-tollhouse-cache"] != "hit"
        assert b"Hello" in other
        assert b"there" not in other


async def test_what_is_kept_outlives_a_configuration(tmp_path: Path) -> None:
    async with housed(tmp_path) as (running, upstream):
        await ask(running)
        for before, after in (("user: bob,", "user: bert,"), ("output: 1000000", "output: 900000")):
            await running.change(running.config.read_text().replace(before, after))
            _, headers, _ = await ask(running)
            assert headers["x-tollhouse-cache"] == "hit"
        assert len(upstream.seen) == 1


async def test_the_same_at_once_is_asked_once_and_who_leaves_takes_nothing_away(tmp_path: Path) -> None:
    async with housed(tmp_path) as (running, upstream):
        upstream.pace = 0.1
        port = int(running.url.rpartition(":")[2])
        body = json.dumps({"model": "kept", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADA}\r\n"
        sent = f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await reader.readuntil(b"\r\n\r\n")
        others = [asyncio.ensure_future(ask(running, "hi", stream=True)) for _ in range(4)]
        await until(lambda: running.metrics().count('result="hit"') == 1, 10)
        writer.transport.abort()
        answers = await asyncio.gather(*others)
        assert {data.endswith(b"data: [DONE]\n\n") for _, _, data in answers} == {True}
        assert len(upstream.seen) == 1
        assert not upstream.gone
        records = await asyncio.to_thread(running.records, 5)
        assert sorted(record["output"] > 0 for record in records) == [False] * 4 + [True]  # one has paid


MEANING = """
  - name: vectors
    targets: [{{provider: ours, model: vectors}}]
  - name: alike
    targets: [{{provider: ours, model: ok}}]
    cache: {{exact: {{ttl: 1m}}, semantic: {{ttl: 1m, model: {model}, sample: 0}}}}
"""


@pytest.mark.parametrize("model", ["local", "vectors"])
async def test_the_same_in_other_words(tmp_path: Path, model: str) -> None:
    async with provider() as upstream:
        text = config(upstream.port).replace("authenticate:", MEANING.format(model=model) + "authenticate:")
        async with serving(text, tmp_path) as running:
            _, _, first = await ask(running, "How do I reset my password?", model="alike")
            _, headers, again = await ask(running, "What are the steps to reset my password?", model="alike")
            assert again == first
            assert (headers["x-tollhouse-cache"], headers["x-tollhouse-cache-kind"]) == ("hit", "semantic")
            _, headers, _ = await ask(running, "How do I delete my account?", model="alike")
            assert headers["x-tollhouse-cache"] == "stored"
            _, headers, _ = await ask(running, "What are the steps to reset my password?", BOB, model="alike")
            assert headers["x-tollhouse-cache"] == "stored"
            asked = [seen for seen in upstream.seen if seen.target.endswith("/embeddings")]
            assert len(asked) == (0 if model == "local" else 4)
            records = await asyncio.to_thread(running.records, 4 + len(asked))
            assert [record["cached"] for record in records].count("semantic") == 1


async def test_purged_by_the_command_through_the_admin_api(tmp_path: Path) -> None:
    async with provider() as upstream:
        port = free_port()
        text = config(upstream.port).replace("metrics: 127.0.0.1:0", f"metrics: 127.0.0.1:0, admin: 127.0.0.1:{port}")
        async with serving(text, tmp_path) as running:
            await ask(running)
            for by, name, state in (("user", "bob", "hit"), ("user", "ada", "stored")):
                done = await command(tmp_path, "cache", "purge", by, name)
                assert done == (0, f"purged {by}:{name}\n")
                _, headers, _ = await ask(running)
                assert headers["x-tollhouse-cache"] == state


async def shared(one: Gateway, other: Gateway, text: str = "hello") -> bytes:
    """The answer that one node has kept and the other finds. A state that was slow once is left alone for a while, and
    is not told of what was kept meanwhile: then it is asked for again."""
    async with asyncio.timeout(60):
        while True:
            await ask(one, text, headers={"cache-control": "no-cache"})
            for _ in range(20):
                status, _, answer = await ask(other, text, headers={"cache-control": "only-if-cached"})
                if status == 200:
                    return answer


async def test_nodes_share_what_is_kept_and_purged(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as server:
        state = f"state: {{url: '{server.url}', encryption_key: 0123456789abcdef0123456789abcdef}}\n"
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        async with provider() as upstream:
            text = config(upstream.port) + state
            async with serving(text, tmp_path / "one") as one, serving(text, tmp_path / "other") as other:
                first = await shared(one, other)
                assert (await ask(one))[2] == (await ask(other))[2] == first

                async def given() -> str:
                    return (await ask(other, headers={"cache-control": "only-if-cached"}))[1]["x-tollhouse-cache"]

                assert (await command(tmp_path / "one", "cache", "purge", "all"))[0] == 0
                async with asyncio.timeout(15):  # a second, and a machine that is busy
                    while await given() == "hit" or (await ask(one))[1]["x-tollhouse-cache"] == "hit":
                        pass
                server.kill()
                for node in (one, other):
                    status, _, _ = await ask(node, "after")
                    assert status in (200, 503)  # 503 by the limits, which are in the state too


async def test_nodes_ask_once_for_the_same_at_once_and_survive_who_asks(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as server:
        state = f"state: {{url: '{server.url}'}}\n"
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        async with provider() as upstream:
            upstream.go_on = asyncio.Event()
            text = config(upstream.port, exact="single_flight: {streams: 20s}") + state
            async with serving(text, tmp_path / "one") as one, serving(text, tmp_path / "other") as other:
                for node, another in ((one, other), (other, one)):  # both look there
                    await shared(node, another, str(node.url))

                def asks() -> int:
                    return int(server.do("INFO", "commandstats")["cmdstat_evalsha"]["calls"])

                for killed in (False, True):
                    asked = len(upstream.seen)
                    upstream.go_on.clear()
                    first = asyncio.ensure_future(ask(one, f"killed {killed}", stream=True))
                    await until(lambda asked=asked: len(upstream.seen) > asked, 10)
                    before = asks()
                    second = asyncio.ensure_future(ask(other, f"killed {killed}", stream=True))
                    await until(lambda before=before: asks() > before + 2, 10)
                    if killed:
                        os.kill(one.pid, signal.SIGKILL)
                    else:
                        assert not second.done()
                    upstream.go_on.set()
                    done = await asyncio.gather(first, second, return_exceptions=True)
                    assert not isinstance(done[1], BaseException)
                    assert done[1][2].endswith(b"data: [DONE]\n\n")
                    assert done[1][1]["x-tollhouse-cache"] == ("miss" if killed else "hit")
                    assert len(upstream.seen) == asked + 1 + killed


TOOLS = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
mcp:
  rest: true
  servers:
    shop:
      base_url: "http://127.0.0.1:{port}"
      cache: {{exact: {{ttl: 1m}}}}
      rest:
        - name: look
          description: Looks it up.
          path: /look/{{id}}
          input: {{type: object, properties: {{id: {{type: string}}}}}}
          annotations: {{read_only: true}}
        - {{name: order, description: Orders one., method: POST, path: /order, annotations: {{idempotent: true}}}}
authenticate:
  keys: [{{name: a, key: {ada}, user: ada}}, {{name: b, key: {bob}, user: bob}}]
"""


async def test_a_tool_that_only_reads_is_called_once_for_each_user(tmp_path: Path) -> None:
    async with provider() as upstream:
        text = TOOLS.format(port=upstream.port, ada=ADA, bob=BOB)
        async with serving(text, tmp_path) as running:
            states: list[str] = []

            async def call(tool: str, arguments: dict[str, Any], key: str = ADA) -> bytes:
                headers = {"accept": "application/json, text/event-stream", "authorization": f"Bearer {key}"}
                headers |= {"mcp-protocol-version": "2025-06-18"}
                params = {"name": tool, "arguments": arguments}
                message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
                info = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {},
                    "clientInfo": {"name": "e", "version": "1"},
                }
                hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
                _, told, _ = await asyncio.to_thread(running.exchange, "POST", "/mcp", hello, headers)
                headers["mcp-session-id"] = told["mcp-session-id"]
                listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
                await asyncio.to_thread(running.exchange, "POST", "/mcp", listed, headers)
                status, told, body = await asyncio.to_thread(running.exchange, "POST", "/mcp", message, headers)
                assert status == 200, body
                assert b'"id":7' in body.replace(b" ", b"")
                states.append(told.get("x-tollhouse-cache", ""))
                return body

            first = await call("look", {"id": "1"})
            assert await call("look", {"id": "1"}) == first
            assert len(upstream.seen) == 1
            await call("look", {"id": "2"})
            await call("look", {"id": "1"}, BOB)
            assert len(upstream.seen) == 3
            for _ in range(2):
                await call("order", {})
            assert len(upstream.seen) == 5
            records = await asyncio.to_thread(running.records, 6)
            assert [record["cached"] for record in records if record["tool"] == "look"] == ["", "exact", "", ""]
            assert states == ["miss", "hit", "miss", "miss", "", ""]


async def command(where: Path, *words: str) -> tuple[int, str]:
    """A command of ours: its exit status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tollhouse.cli", *words, "--config", "tollhouse.yaml",
        cwd=where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()
