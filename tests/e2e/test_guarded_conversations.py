"""Masks of a conversation that the provider keeps, through running gateways: turned back in later answers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import Provider, Seen, begun
from tests.fixtures.valkey import valkey
from tests.fixtures.wire import once
from tests.unit.policies.guardrails.test_continued import streamed, text_of, whole

pytestmark = pytest.mark.anyio

ADA = "ada@example.org"


class Keeping(Provider):
    """An API of responses that says all that it was told before."""

    heard: dict[str, str]

    async def _answer(self, asked: Seen, writer: asyncio.StreamWriter) -> bool:
        said = self.heard.get(str(asked.body.get("previous_response_id")), "") + f"{asked.body['input']}; "
        answer = f"resp_{len(self.heard) + 1}"
        self.heard[answer] = said
        if asked.body.get("stream"):
            body, kind = b"".join(streamed(answer, said, 3)), b"text/event-stream"
        else:
            body, kind = whole(answer, said), b"application/json"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (kind, len(body)) + body)
        return True


def config(provider: Provider, **more: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{provider.port}/v1"
    return {
        "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
        "authenticate": {"keys": [{"name": name, "key": f"{name}-secret-0123"} for name in ("ada", "bob")]},
        "providers": {"p": {"kind": "openai", "base_url": url, "api_key": "k", "responses": True}},
        "models": [{"name": "smart", "targets": [{"provider": "p", "model": "m"}]}],
        "guardrails": {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]},
        **more,
    }


async def ask(gateway: Gateway, text: str, before: str = "", *, name: str = "ada", stream: bool = False) -> str:
    body: dict[str, Any] = {"model": "smart", "input": text, "stream": stream}
    if before:
        body["previous_response_id"] = before
    fields = {"content-type": "application/json", "authorization": f"Bearer {name}-secret-0123"}
    answer = await once(gateway.url, "POST", "/v1/responses", json.dumps(body).encode(), fields)
    assert answer.status == 200, answer.body
    return text_of(answer.body)


async def turned_back(
    gateway: Gateway, provider: Keeping, text: str, before: str, expected: str, *, stream: bool = False
) -> str:
    """The id of an answer that says what is expected. A state that is slow is not waited for, and then a mask stays."""
    async with asyncio.timeout(60):
        while await ask(gateway, text, before, stream=stream) != expected:
            pass
    return f"resp_{len(provider.heard)}"


async def test_a_conversation_goes_on_across_a_new_configuration(tmp_path: Path) -> None:
    async with begun(Keeping()) as provider:
        provider.heard = {}
        async with serving(yaml.safe_dump(config(provider)), tmp_path) as gateway:
            assert await ask(gateway, f"I am {ADA}") == f"I am {ADA}; "
            assert await ask(gateway, "hi", "resp_1", stream=True) == f"I am {ADA}; hi; "
            models = [{"name": name, "targets": [{"provider": "p", "model": "m"}]} for name in ("smart", "other")]
            await gateway.change(yaml.safe_dump(config(provider, models=models)))
            assert await ask(gateway, "bye", "resp_2") == f"I am {ADA}; hi; bye; "
            assert ADA not in await ask(gateway, "and?", "resp_3", name="bob")
        assert not any(ADA in said for said in provider.heard.values())


async def test_a_conversation_goes_on_at_another_gateway(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as server:
        async with begun(Keeping()) as provider:
            provider.heard = {}
            state = {"url": server.url, "encryption_key": "a2V5LW9mLXRoZS1zdGF0ZS1pbi10aGlzLXRlc3QtMDE="}
            text = yaml.safe_dump(config(provider, state=state))
            (tmp_path / "b").mkdir()
            async with serving(text, tmp_path) as one, serving(text, tmp_path / "b") as other:
                await ask(one, f"I am {ADA}")
                second = await turned_back(other, provider, "hi", "resp_1", f"I am {ADA}; hi; ", stream=True)
                with server.client() as plain:  # written beside the stream, which is shorter here than any real one
                    await until(lambda: len(list(plain.scan_iter("*guards:masks:*"))) == 2)
                await turned_back(one, provider, "bye", second, f"I am {ADA}; hi; bye; ")
            with server.client() as plain:
                kept = [plain.get(name) for name in plain.scan_iter("*guards:masks:*")]
            assert len(kept) == 3
            assert not any(b"example.org" in value for value in kept)
