"""Guardrails through a running gateway: what providers and servers get, what callers get, and what is written down."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.test_mcp_endpoints import ask as mcp
from tests.fixtures.gateway import Gateway, answer_of, serving, until
from tests.fixtures.guard_services import guard_services
from tests.fixtures.mcp_raw import Asked, result, upstream
from tests.fixtures.mcp_suite import FIXTURE, ROOT
from tests.fixtures.provider import Provider, Seen, begun
from tests.fixtures.wire import Answer, once
from tests.unit.endpoints.mcp.test_tasks import DECLARED, NEW, TASK, extension

pytestmark = pytest.mark.anyio

SECRET = "sk-ant-api03-" + "Ab3dEf6hIj9kLm2nOp5q" * 4 + "-AAAAAA"
JSON = {"content-type": "application/json"}


class Talking(Provider):
    """A provider of chat completions that says `words`, or what it was told last where there are none."""

    words: list[str]
    cut = -1  # after so many events of a stream it dies

    async def _answer(self, asked: Seen, writer: asyncio.StreamWriter) -> bool:
        words = self.words or [asked.body["messages"][-1]["content"]]
        head = {"id": "c", "created": 1, "model": "m"}
        usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
        if not asked.body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            answer = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            writer.write(answer % (len(body), body))
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        deltas: list[tuple[dict[str, str], str | None]] = [({"content": word}, None) for word in words]
        for number, (delta, finish) in enumerate([*deltas, ({}, "stop")]):
            if number == self.cut:
                writer.transport.abort()
                return False
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            event = json.dumps({**head, "object": "chat.completion.chunk", "choices": choices}).encode()
            await self._say(writer, b"data: %b\n\n" % event)
        if asked.body.get("stream_options"):
            event = json.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}).encode()
            await self._say(writer, b"data: %b\n\n" % event)
        await self._say(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _say(self, writer: asyncio.StreamWriter, event: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
        if self.pace:
            await asyncio.sleep(self.pace)


@asynccontextmanager
async def guarded(where: Path, guardrails: Any, *words: str, **more: Any) -> AsyncIterator[tuple[Gateway, Talking]]:
    async with begun(Talking()) as provider:
        provider.words = list(words)
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
            "ledger": "sqlite:tollhouse.db",
            "providers": {"p": {"kind": "openai", "base_url": f"http://127.0.0.1:{provider.port}/v1", "api_key": "k"}},
            "models": [{"name": "smart", "targets": [{"provider": "p", "model": "m"}]}],
            "guardrails": guardrails,
            "telemetry": {"access_log": {"path": "access.log"}},
            **more,
        }
        async with serving(yaml.safe_dump(config), where) as gateway:
            yield gateway, provider


async def ask(gateway: Gateway, text: str, *, stream: bool = False, path: str = "/v1/chat/completions") -> Answer:
    body: dict[str, Any] = {"model": "smart", "messages": [{"role": "user", "content": text}], "stream": stream}
    if path.endswith("/messages"):
        body["max_tokens"] = 50
    elif path.endswith("/responses"):
        body = {"model": "smart", "input": text, "stream": stream}
    return await once(gateway.url, "POST", path, json.dumps(body).encode(), JSON)


def said(answer: Answer) -> str:
    """The text of an answer in any of the three APIs, as its client has it."""
    body = answer.body.decode()
    if not body.lstrip().startswith("{"):
        out = []
        for line in body.splitlines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                out += [one["delta"].get("content") or "" for one in event.get("choices", ())]
                delta = event.get("delta")
                if event.get("type") == "response.output_text.delta":
                    out.append(delta)
                elif isinstance(delta, dict) and delta.get("type") == "text_delta":
                    out.append(delta["text"])
        return "".join(out)
    value = json.loads(body)
    if "choices" in value:
        return str(value["choices"][0]["message"]["content"])
    parts = value["content"] if "content" in value else value["output"][0]["content"]
    return "".join(part["text"] for part in parts)


PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")


async def test_masks_in_every_api_streaming_and_not(tmp_path: Path) -> None:
    rules = {
        "request": [{"pii": ["email"], "action": "mask"}],
        "response": [{"secrets": True, "action": "mask", "name": "keys"}],
    }
    words = ["The key is ", SECRET[:9], SECRET[9:40], SECRET[40:], ", use it"]
    async with guarded(tmp_path, rules, *words) as (gateway, provider):
        for path in PATHS:
            for stream in (False, True):
                answer = await ask(gateway, "to ada@example.org", stream=stream, path=path)
                assert answer.status == 200
                assert SECRET not in answer.body.decode().replace("\\/", "/")
                assert said(answer) == "The key is [ANTHROPIC], use it", (path, stream)
                assert provider.seen[-1].body["messages"][-1]["content"] in (
                    "to [EMAIL]", [{"type": "text", "text": "to [EMAIL]"}],
                )  # fmt: skip
        records = await asyncio.to_thread(gateway.records, 6)
        assert {record["guard"] for record in records} == {"keys"}
        assert all(record["withheld_tokens"] > 20 for record in records)
        assert all(record["output"] == 6 for record in records)  # as the provider has charged
        lines = [line for line in gateway.lines() if line["path"] in PATHS]
        assert {(line["guard"], line["guard_action"]) for line in lines} == {("keys", "mask")}
        metrics = await asyncio.to_thread(gateway.metrics)
        assert 'tollhouse_guardrail_checks{phase="Request",action="Mask"} 6' in metrics
        assert 'tollhouse_guardrail_checks{phase="Response",action="Mask"} 6' in metrics
        written = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
        assert SECRET.encode() not in written
        assert b"ada@example.org" not in written


async def test_refusals_in_every_api(tmp_path: Path) -> None:
    rules = {"request": [{"secrets": True, "message": "no keys, please"}], "response": [{"keywords": ["forbidden"]}]}
    async with guarded(tmp_path, rules, "this ", "is forb", "idden ", "and ", "more") as (gateway, provider):
        for path in PATHS:
            answer = await ask(gateway, f"my key {SECRET}", path=path)
            assert answer.status == 403
            assert answer.headers["x-tollhouse-reason"] == "Guardrail"
            assert "no keys, please" in answer.body.decode()
            assert not provider.seen
        for path in PATHS:
            answer = await ask(gateway, "hello", path=path)
            assert (answer.status, answer.headers["x-tollhouse-reason"]) == (403, "Guardrail")
            assert b"forbidden" not in answer.body
            answer = await ask(gateway, "hello", stream=True, path=path)
            assert answer.status in (200, 403)
            assert "idden" not in answer.body.decode()
            assert "guardrail" in answer.body.decode()
            assert "[DONE]" not in answer.body.decode()
        records = await asyncio.to_thread(gateway.records, 9)
        assert {record["outcome"] for record in records} == {"denied"}


async def test_a_rejected_stream_stops_its_provider(tmp_path: Path) -> None:
    words = ["forbidden ", *["more "] * 400]
    async with guarded(tmp_path, {"response": [{"keywords": ["forbidden"]}]}, "so ", *words) as (gateway, provider):
        provider.pace = 0.02
        answer = await ask(gateway, "hello", stream=True)
        assert "guardrail" in answer.body.decode()
        await until(lambda: provider.gone == 1)


async def test_masks_are_turned_back(tmp_path: Path) -> None:
    rules = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
    async with guarded(tmp_path, rules) as (gateway, provider):
        for stream in (False, True):
            answer = await ask(gateway, "write to ada@example.org", stream=stream)
            assert said(answer) == "write to ada@example.org"
            assert "example.org" not in json.dumps(provider.seen[-1].body)
            assert "[EMAIL_" in json.dumps(provider.seen[-1].body)


async def test_a_service_is_asked_and_may_fail(tmp_path: Path) -> None:
    async with guard_services() as services:
        rule = {"webhook": {"url": f"{services.url}/guard"}, "timeout": "1s", "name": "judge"}
        rules = {"request": [rule], "response": [rule]}  # of one name: one of them may be well
        async with guarded(tmp_path, rules, "fine") as (gateway, provider):
            answer = await ask(gateway, "hello", stream=True)
            assert said(answer) == "fine"
            assert [one.body["phase"] for one in services.asked] == ["request", "response"]
            services.fails = "500"
            answer = await ask(gateway, "hello")
            assert (answer.status, answer.headers["x-tollhouse-reason"]) == (503, "Guardrail")
            assert len(provider.seen) == 1
            metrics = await asyncio.to_thread(gateway.metrics)
            assert 'tollhouse_guardrail_unable{guard="judge"} 1' in metrics
            status = await once(gateway.url, "GET", "/status", b"", {})
            assert status.json() == {"status": "ok", "guardrails": ["judge"]}


async def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    async with guarded(tmp_path, {"request": [{"pii": True}]}) as (gateway, provider):
        body = json.dumps({"model": "smart", "input": "x", "voice": "a"}).encode()
        answer = await once(gateway.url, "POST", "/v1/audio/transcriptions", body, JSON)
        assert answer.status in (400, 403)
        assert not provider.seen


@pytest.mark.parametrize(
    "guardrails, message",
    [
        ({"request": [{"regex": "(a)\\1"}]}, "guardrails.request[0].regex: at character 4: a back-reference"),
        ({"request": [{"pii": True, "secrets": True}]}, "guardrails.request[0]: pii and secrets are 2 rules"),
        ({"request": [{"pii": ["emial"]}]}, "'email' may be meant"),
        ({"response": [{"pii": True, "reversible": True}]}, "`reversible` has an effect"),
        ({"response": [{"keywords": {"file": "nowhere.txt"}}]}, "there is no file"),
        ({"request": [{"pii": True, "timeout": "1s"}]}, "`timeout` has no effect here"),
        ({"request": [{"webhook": {"url": "http://x.test/"}, "parallel": True, "action": "mask"}]}, "cannot mask"),
    ],
)
def test_what_cannot_work_is_an_error_with_its_place(
    tmp_path: Path, guardrails: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tollhouse.cli import main

    file = tmp_path / "tollhouse.yaml"
    file.write_text(yaml.safe_dump({"guardrails": guardrails, "server": {"listen": "127.0.0.1:0"}}))
    assert main(["check", str(file)]) != 0
    out = "".join(capsys.readouterr())
    assert message in out
    assert "tollhouse.yaml:" in out


FILE_TOOLS = str(Path(__file__).parents[1] / "fixtures/mcp_tools_of_file.py")
TOOLS = [
    {"name": "add", "description": "Adds. Questions to ada@example.org", "inputSchema": {"type": "object"}},
    {"name": "key", "description": f"Uses {SECRET}", "inputSchema": {"type": "object"}},
    {"name": "sub", "description": "Subtracts.", "inputSchema": {"type": "object"}},
]


async def test_tools_lists_and_refusals(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    files = {"command": sys.executable, "args": [FILE_TOOLS, str(tmp_path / "tools.json")]}
    fixture = {"command": FIXTURE[0], "args": [*FIXTURE[1:], "--stdio"], "cwd": str(ROOT)}
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
        "mcp": {"servers": {"files": files, "demo": fixture}, "rest": True},
        "guardrails": {
            "request": [{"pii": ["email"], "action": "mask"}, {"secrets": True, "message": "no keys"}],
            "response": [{"pii": ["email"], "action": "mask"}, {"secrets": True}],
        },
    }
    async with serving(yaml.safe_dump(config), tmp_path) as gateway:
        url = f"{gateway.url}/mcp/files"
        listed = (await asyncio.to_thread(mcp, url, "tools/list"))["result"]["tools"]
        assert [(tool["name"], tool["description"]) for tool in listed] == [
            ("add", "Adds. Questions to [EMAIL]"), ("sub", "Subtracts."),
        ]  # fmt: skip
        call = {"name": "sub", "arguments": {"text": f"with {SECRET}"}}
        refused = await asyncio.to_thread(mcp, url, "tools/call", call)
        assert "no keys" in refused["error"]["message"]
        call = {"name": "echo", "arguments": {"message": "to ada@example.org"}}
        answer = await asyncio.to_thread(mcp, f"{gateway.url}/mcp/demo", "tools/call", call)
        assert "[EMAIL]" in json.dumps(answer["result"])
        assert "ada@example.org" not in json.dumps(answer)
        answer = await once(gateway.url, "POST", "/tools/files/sub", json.dumps({"text": SECRET}).encode(), JSON)
        assert (answer.status, answer.headers["x-tollhouse-reason"]) == (403, "Guardrail")
        document = await once(gateway.url, "GET", "/tools/openapi.json", b"", {})
        assert SECRET.encode() not in document.body


@pytest.mark.parametrize("of_the_server", [False, True])
async def test_a_file_that_changes_alone_is_in_force_for_tools_too(tmp_path: Path, of_the_server: bool) -> None:
    (tmp_path / "words.txt").write_text("rose\n")
    rules = {"request": [{"keywords": {"file": "words.txt"}}]}
    demo: dict[str, Any] = {"command": FIXTURE[0], "args": [*FIXTURE[1:], "--stdio"], "cwd": str(ROOT)}
    config: dict[str, Any] = {"server": {"listen": "127.0.0.1:0"}, "mcp": {"servers": {"demo": demo}}}
    (demo if of_the_server else config)["guardrails"] = rules
    async with serving(yaml.safe_dump(config), tmp_path) as gateway:

        async def refused(text: str) -> bool:
            call = {"name": "echo", "arguments": {"message": text}}
            return "error" in await asyncio.to_thread(mcp, f"{gateway.url}/mcp/demo", "tools/call", call)

        for before, after in (("rose", "tulip"), ("tulip", "lily")):
            assert (await refused(f"a {before}"), await refused(f"a {after}")) == (True, False)
            since = gateway.log.stat().st_size
            (tmp_path / "fresh").write_text(f"{after}\n")
            (tmp_path / "fresh").replace(tmp_path / "words.txt")
            await gateway.logged(r"configuration \d+ serves", since)
            assert (await refused(f"a {before}"), await refused(f"a {after}")) == (False, True)


def _tells(asked: Asked) -> Any:
    """A server whose tool is a task, and gives a secret."""
    if asked.method != "tasks/get":
        return extension(asked)
    done = {"resultType": "complete", "content": [{"type": "text", "text": SECRET}]}
    return result(asked, {"resultType": "complete", **TASK, "status": "completed", "result": done})


@pytest.mark.parametrize("level", ["top", "server", "tool"])
async def test_a_task_and_what_goes_beside_a_call(tmp_path: Path, level: str) -> None:
    rules = {"request": [{"pii": ["email"]}], "response": [{"secrets": True, "action": "mask"}]}
    async with upstream(_tells) as server:
        own: dict[str, Any] = {"url": server.url}
        config: dict[str, Any] = {"server": {"listen": "127.0.0.1:0"}, "mcp": {"servers": {"u": own}}}
        at = config if level == "top" else own if level == "server" else own.setdefault("tools", {"slow": {}})["slow"]
        at["guardrails"] = rules
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:

            async def said_to(method: str, of: str, meta: dict[str, Any] | None = None, **params: Any) -> Any:
                client = {"io.modelcontextprotocol/clientInfo": {"name": "a", "version": "1"}, **DECLARED}
                told = {"io.modelcontextprotocol/protocolVersion": NEW, **client, **(meta or {})}
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": told}}
                accepts = {"accept": "application/json, text/event-stream", "mcp-protocol-version": NEW}
                headers = {**JSON, **accepts, "mcp-method": method, "mcp-name": of}
                answer = await once(gateway.url, "POST", "/mcp/u", json.dumps(body).encode(), headers)
                return answer_of(answer.body)

            await said_to("tools/list", "")
            refused = await said_to("tools/call", "slow", {"example.com/note": "ada@example.org"}, name="slow")
            assert "a guardrail" in refused["error"]["message"]
            assert not server.calls("tools/call")
            trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
            created = await said_to("tools/call", "slow", {"example.com/note": "b", **trace}, name="slow")
            passed = server.calls("tools/call")[-1].body["params"]["_meta"]
            assert (passed["example.com/note"], passed["traceparent"]) == ("b", trace["traceparent"])
            id = created["result"]["taskId"]
            found = await said_to("tasks/get", id, taskId=id)
            assert found["result"]["result"]["content"] == [{"type": "text", "text": "[ANTHROPIC]"}]
            answers = {"q": {"action": "accept", "content": {"to": "ada@example.org"}}}
            refused = await said_to("tasks/update", id, taskId=id, inputResponses=answers)
            assert "a guardrail" in refused["error"]["message"]
            assert not server.calls("tasks/update")


async def test_a_providers_own_paths(tmp_path: Path) -> None:
    rules = {"request": [{"pii": ["email"], "action": "mask"}], "response": [{"secrets": True, "action": "mask"}]}
    async with guarded(tmp_path, rules, "it is ", SECRET) as (gateway, provider):
        config = yaml.safe_load(gateway.config.read_text())
        config["providers"]["p"]["passthrough"] = True
        await gateway.change(yaml.safe_dump(config))
        for stream in (False, True):
            answer = await ask(gateway, "ada@example.org", stream=stream, path="/providers/p/chat/completions")
            assert said(answer) == "it is [ANTHROPIC]"
            assert provider.seen[-1].body["messages"][0]["content"] == "[EMAIL]"
        count = len(provider.seen)
        answer = await once(gateway.url, "POST", "/providers/p/files", b'{"a": "ada@example.org"}', JSON)
        assert (answer.status, answer.headers["x-tollhouse-reason"]) == (403, "Guardrail")
        assert len(provider.seen) == count


async def test_what_is_kept_is_masked(tmp_path: Path) -> None:
    rules = {
        "request": [{"pii": ["email"], "action": "mask", "reversible": True}],
        "response": [{"secrets": True, "action": "mask"}],
    }
    cache = {"mode": "on", "exact": {"ttl": "10m", "any_temperature": True}}
    async with guarded(tmp_path, rules, cache=cache) as (gateway, provider):
        for _ in range(2):
            answer = await ask(gateway, f"{SECRET} of ada@example.org")
            assert said(answer) == "[ANTHROPIC] of ada@example.org"
        assert len(provider.seen) == 1


async def test_a_change_of_the_rules_is_in_force_at_once(tmp_path: Path) -> None:
    async with guarded(tmp_path, {"request": [{"keywords": ["rose"]}]}, "ok") as (gateway, _):
        assert (await ask(gateway, "a rose")).status == 403
        config = yaml.safe_load(gateway.config.read_text())
        config["guardrails"] = {"request": [{"keywords": ["tulip"]}]}
        await gateway.change(yaml.safe_dump(config))
        assert (await ask(gateway, "a rose")).status == 200
        assert (await ask(gateway, "a tulip")).status == 403


@pytest.mark.parametrize("of_the_model", [False, True])
async def test_a_file_that_changes_alone_is_in_force_at_once(tmp_path: Path, of_the_model: bool) -> None:
    """Words and schemas of files: the configuration says what it said, and the file twice in a row something else."""
    number, text = json.dumps({"type": "number"}), json.dumps({"type": "string"})
    words = {"request": [{"keywords": {"file": "words.txt"}}]}
    schema = {"response": [{"schema": {"file": "answer.json"}}]}
    (tmp_path / "words.txt").write_text("rose\n")
    (tmp_path / "answer.json").write_text(text)

    def config(rules: Any) -> dict[str, Any]:
        model = {"name": "smart", "targets": [{"provider": "p", "model": "m"}]}
        usual = {"request": [{"keywords": ["a weed"]}]}
        return {"guardrails": rules} if not of_the_model else {
            "guardrails": usual, "models": [{**model, "guardrails": rules}],
        }  # fmt: skip

    begin = config(words)
    async with guarded(tmp_path, begin.pop("guardrails"), '"ok"', **begin) as (gateway, _):

        async def change(name: str, content: str) -> None:
            since = gateway.log.stat().st_size
            (tmp_path / "fresh").write_text(content)
            (tmp_path / "fresh").replace(tmp_path / name)
            await gateway.logged(r"configuration \d+ serves", since)

        async def statuses() -> list[int]:
            return [(await ask(gateway, text)).status for text in ("a rose", "a tulip", "a lily")]

        assert await statuses() == [403, 200, 200]
        await change("words.txt", "tulip\n")
        assert await statuses() == [200, 403, 200]
        await change("words.txt", "lily\n")
        assert await statuses() == [200, 200, 403]
        await gateway.change(yaml.safe_dump({**yaml.safe_load(gateway.config.read_text()), **config(schema)}))
        assert await statuses() == [200, 200, 200]
        await change("answer.json", number)
        assert await statuses() == [403, 403, 403]
        await change("answer.json", text)
        assert await statuses() == [200, 200, 200]


async def test_a_stream_that_goes_on_elsewhere(tmp_path: Path) -> None:
    """One provider dies within a secret, and another goes on with it: for the guard it is one text."""
    rules = {"response": [{"secrets": True, "action": "mask"}]}
    async with begun(Talking()) as other:
        other.words = [SECRET[40:], " it is"]
        async with guarded(tmp_path, rules, "The key ", SECRET[:40], "never") as (gateway, provider):
            provider.cut = 2
            config = yaml.safe_load(gateway.config.read_text())
            for name, one in (("p", provider), ("q", other)):
                url = f"http://127.0.0.1:{one.port}/v1"
                config["providers"][name] = {"kind": "openai", "base_url": url, "api_key": "k", "continues": True}
            targets = [{"provider": "p", "model": "m"}, {"provider": "q", "model": "m", "weight": 0}]
            config["models"] = [{"name": "smart", "targets": targets, "resume": True}]
            await gateway.change(yaml.safe_dump(config))
            answer = await ask(gateway, "hello", stream=True)
            assert b"tollhouse resumed on" in answer.body
            assert said(answer) == "The key [ANTHROPIC] it is"
