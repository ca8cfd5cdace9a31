"""What chooses a model's target and what saves a stream, each once through a running gateway: estimates, hedging,
resuming, latency, sticky users."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import WORDS, Provider, Seen, begun
from tests.fixtures.wire import Answer, Wire, once, request

pytestmark = pytest.mark.anyio

TEXT = "".join(WORDS)


class Late(Provider):
    """A Provider that takes its time before it answers, and goes on with an answer that was begun. delay: seconds."""

    delay = 0.0

    async def _answer(self, asked: Seen, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self.delay)
        last = asked.body.get("messages", [{}])[-1]
        if last.get("role") == "assistant":
            rest = TEXT.removeprefix(last["content"])
            events = [{"index": 0, "delta": {"content": rest}}, {"index": 0, "delta": {}, "finish_reason": "stop"}]
            lines = [f"data: {json.dumps({'id': 'c2', 'choices': [event]})}\n\n" for event in events]
            body = "".join([*lines, "data: [DONE]\n\n"]).encode()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b"
            writer.write(head % (len(body), body))
            return True
        return await super()._answer(asked, writer)


@asynccontextmanager
async def between(where: Path, model: dict[str, Any], **more: Any) -> AsyncIterator[tuple[Gateway, Late, Late]]:
    """A gateway with one model, and its providers `a` and `b`."""
    async with begun(Late()) as a, begun(Late()) as b:
        providers = {
            name: {"kind": "openai", "base_url": f"http://127.0.0.1:{one.port}/v1", "api_key": "k", "continues": True}
            for name, one in (("a", a), ("b", b))
        }
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "ledger": "sqlite:tollhouse.db",
            "providers": providers,
            "models": [{"name": "gpt-4o", **model}],
            **more,
        }
        async with serving(yaml.safe_dump(config), where) as gateway:
            yield gateway, a, b


def targets(a: str, b: str, **more: Any) -> list[dict[str, Any]]:
    """The first is asked; the second only when there is a reason."""
    return [{"provider": "a", "model": a, **more}, {"provider": "b", "model": b, "weight": 0}]


async def ask(gateway: Gateway, text: str = "hi", *, stream: bool = False, key: str = "") -> Answer:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "stream": stream}
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    return await once(gateway.url, "POST", "/v1/chat/completions", json.dumps(body).encode(), headers)


def said(answer: Answer) -> str:
    """The text of a stream."""
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: {")]
    choices = [json.loads(event).get("choices", []) for event in events]
    return "".join(one["delta"].get("content") or "" for some in choices for one in some)


@pytest.mark.skipif(find_spec("bpe_openai") is None, reason="the extra `tokens` is not installed")
@pytest.mark.parametrize("estimates", ["bytes", "bpe"])
async def test_estimates(tmp_path: Path, estimates: str) -> None:
    """Of a stream that its client leaves nobody says what it cost: 3,000 letters are 750 tokens by their bytes, and
    some 500 by the vocabulary."""
    async with between(tmp_path, {"targets": targets("gpt-4o", "gpt-4o")}, estimates=estimates) as (gateway, a, _):
        a.pace = 0.1
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello " * 500}], "stream": True}
        async with Wire(gateway.url) as wire:
            headers = {"content-type": "application/json"}
            await wire.send(request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers))
            assert (await wire.head()).status == 200
            assert b"Hello" in await wire.chunk()
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["estimated"]
        least, most = (740, 850) if estimates == "bytes" else (490, 550)
        assert least < record["input"] < most


async def test_hedge(tmp_path: Path) -> None:
    model = {"targets": targets("hang", "ok"), "hedge": {"after": "100ms"}}
    async with between(tmp_path, model) as (gateway, a, b):
        began = time.monotonic()
        answer = await ask(gateway, stream=True)
        assert (answer.status, said(answer)) == (200, TEXT)
        assert time.monotonic() - began < 10  # the first target never answers
        assert (len(a.seen), len(b.seen)) == (1, 1)
        await until(lambda: a.gone == 1)  # its request was cut
        (record,) = await asyncio.to_thread(gateway.records, 1)
        assert record["status"] == 200


async def test_resume(tmp_path: Path) -> None:
    async with between(tmp_path, {"targets": targets("cut", "ok"), "resume": True}) as (gateway, a, b):
        answer = await ask(gateway, stream=True)
        assert answer.status == 200
        assert b": tollhouse resumed on b/ok\n" in answer.body
        assert said(answer) == TEXT
        assert answer.body.rstrip().endswith(b"data: [DONE]")
        assert (len(a.seen), len(b.seen)) == (1, 1)
        assert b.seen[0].body["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:3])}
    (tmp_path / "off").mkdir()
    async with between(tmp_path / "off", {"targets": targets("cut", "ok")}) as (gateway, a, b):
        answer = await ask(gateway, stream=True)
        assert said(answer) == "".join(WORDS[:3])
        assert b'"error"' in answer.body
        assert not b.seen


async def test_least_latency(tmp_path: Path) -> None:
    both = [{"provider": "a", "model": "ok"}, {"provider": "b", "model": "ok"}]
    async with between(tmp_path, {"targets": both, "balance": "least_latency"}) as (gateway, a, b):
        a.delay = 0.1
        for _ in range(40):
            assert (await ask(gateway)).status == 200
        assert len(a.seen) + len(b.seen) == 40
        assert 1 <= len(a.seen) <= 13  # tried, now and then again, and left to the other


async def test_sticky(tmp_path: Path) -> None:
    """Each user keeps a target; when one goes its users move, and nobody else."""
    users = [f"user-{n}" for n in range(24)]
    keys = [{"name": user, "key": f"key-of-{user}-0123456789", "user": user} for user in users]
    both = [{"provider": "a", "model": "ok"}, {"provider": "b", "model": "ok"}]
    model = {"targets": both, "sticky": "user"}
    async with between(tmp_path, model, authenticate={"keys": keys}) as (gateway, a, b):

        async def where() -> dict[str, str]:
            found = {}
            for key in keys:
                before = len(a.seen)
                assert (await ask(gateway, key=key["key"])).status == 200
                found[key["user"]] = "a" if len(a.seen) > before else "b"
            return found

        first = await where()
        shares = Counter(first.values())
        assert set(shares) == {"a", "b"}
        assert await where() == first
        b.kill()
        moved = await where()
        assert set(moved.values()) == {"a"}
        assert Counter(moved.values())["a"] - shares["a"] == shares["b"]
