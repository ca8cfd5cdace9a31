"""What is not a chat, through a running gateway: the OpenAI SDK and Anthropic's against an upstream that knows the
forms, transforms on the way, and token counts that the gateway gives itself."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import anyio
import openai
import pytest
from tests.fixtures.gateway import Gateway
from tests.fixtures.wire import once
from tests.unit.net.upstreams import Peer, upstream

pytestmark = pytest.mark.anyio

SOUND = b"RIFF\x00\xff\r\n--not-a-boundary\r\n\r\n" * 50_000  # more than one segment
PICTURE = "A" * (5 << 20)
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null}}
ledger: sqlite:tollhouse.db
providers:
  one: {{kind: openai, base_url: "{url}/v1", api_key: upstream-secret, passthrough: true}}
  two: {{kind: anthropic, base_url: "{url}", api_key: upstream-secret, passthrough: true}}
  closed: {{kind: openai, base_url: "{url}/v1"}}
models:
  - {{name: smart, targets: [{{provider: one, model: inner}}]}}
  - {{name: claude, targets: [{{provider: two, model: opus}}]}}
  - {{name: "*", targets: [{{provider: one}}]}}
transform:
  - {{when: llm.operation == "transcriptions", defaults: {{language: de}}, remove: [prompt]}}
  - when: llm.operation == "chat"
    set: {{user: {{cel: principal.user}}}}
    prompt: {{prefix: "For {{{{ principal.org }}}}."}}
authenticate:
  keys: [{{name: ci, key: caller-secret, user: ci-bot, org: platform}}]
"""


def answer(kind: bytes, body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body)


def json_answer(value: Any, status: int = 200) -> bytes:
    return answer(b"application/json", json.dumps(value).encode(), status)


def events(*values: Any) -> bytes:
    body = b"".join(b"data: %b\n\n" % (v if isinstance(v, bytes) else json.dumps(v).encode()) for v in values)
    return answer(b"text/event-stream", body)


TOKENS = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
TEXT = {"id": "c", "object": "text_completion", "created": 1, "model": "inner"}
WHOLE = {**TEXT, "choices": [{"index": 0, "text": "said", "finish_reason": "stop"}], "usage": TOKENS}
CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "inner", "choices": [], "usage": TOKENS}
DETAILS = {"text_tokens": 5, "image_tokens": 0}
PICTURED = {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105, "input_tokens_details": DETAILS}
HEARD = {"text": "hallo", "usage": {"type": "tokens", "input_tokens": 7, "output_tokens": 1, "total_tokens": 8}}
RANKED = {"model": "inner", "results": [{"index": 1, "relevance_score": 0.9}], "usage": {"total_tokens": 11}}
ANSWERS: dict[bytes, bytes] = {
    b"/v1/completions": json_answer(WHOLE),
    b"/v1/moderations": json_answer({"id": "m", "model": "omni-moderation-latest", "results": []}),
    b"/v1/images/generations": json_answer({"created": 1, "data": [{"b64_json": PICTURE}], "usage": PICTURED}),
    b"/v1/images/edits": json_answer({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": PICTURED}),
    b"/v1/images/variations": json_answer({"created": 1, "data": [{"b64_json": "AAAA"}]}),
    b"/v1/audio/speech": answer(b"audio/mpeg", SOUND),
    b"/v1/audio/transcriptions": json_answer(HEARD),
    b"/v1/audio/translations": answer(b"text/plain", b"hello"),
    b"/v1/rerank": json_answer(RANKED),
    b"/v1/chat/completions": json_answer(CHAT),
    b"/v1/messages/count_tokens": json_answer({"input_tokens": 42}),
    b"/v1/files": json_answer({"object": "list", "data": []}),
    b"/v1/files/f-1/content?limit=1": answer(b"application/octet-stream", SOUND),
    b"/v1/messages/batches": json_answer({"id": "batch-1"}),
    b"/v1/secret": json_answer({}, 401),
}
STREAMS: dict[bytes, bytes] = {
    b"/v1/completions": events(
        {**TEXT, "choices": [{"index": 0, "text": "sa"}]},
        {**TEXT, "choices": [{"index": 0, "text": "id", "finish_reason": "stop"}]},
        {**TEXT, "choices": [], "usage": TOKENS},
        b"[DONE]",
    ),
    b"/v1/images/generations": events(
        {"type": "image_generation.partial_image", "b64_json": PICTURE, "partial_image_index": 0},
        {"type": "image_generation.completed", "b64_json": PICTURE, "usage": PICTURED},
    ),
    b"/v1/images/edits": events({"type": "image_edit.completed", "b64_json": PICTURE, "usage": PICTURED}),
    b"/v1/audio/speech": events(
        {"type": "speech.audio.delta", "audio": "AAAA"},
        {"type": "speech.audio.done", "usage": {"input_tokens": 4, "output_tokens": 9, "total_tokens": 13}},
    ),
    b"/v1/audio/transcriptions": events(
        {"type": "transcript.text.delta", "delta": "hal"}, {"type": "transcript.text.done", **HEARD}
    ),
}


class Up:
    """The upstream's last request: its method, path, header fields, and body."""

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.fields: dict[bytes, bytes] = {}
        self.body = b""

    async def play(self, peer: Peer) -> None:
        while True:
            head, self.body = await peer.request()
            lines = head.rstrip(b"\r\n").split(b"\r\n")
            self.method, self.path = lines[0].split(b" ")[:2]
            self.fields = dict(line.split(b": ", 1) for line in lines[1:])
            streams = (
                b'"stream_format":"sse"' in self.body
                or b'"stream":true' in self.body.replace(b": ", b":")
                or b'name="stream"\r\n\r\ntrue' in self.body
            )
            answers = STREAMS if streams else ANSWERS
            await peer.send(answers.get(self.path, json_answer({"error": {"message": "no such path"}}, 404)))


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[tuple[Gateway, Up]]:
    up = Up()
    async with upstream(up.play) as server:
        gateway = Gateway(CONFIG.format(url=server.url("")), where)
        await anyio.to_thread.run_sync(gateway.start)
        try:
            yield gateway, up
        finally:
            await anyio.to_thread.run_sync(gateway.stop)


async def test_every_operation(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (gateway, up),
        openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="caller-secret", max_retries=0) as client,
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key="caller-secret", max_retries=0) as claude,
    ):
        said = await client.completions.create(model="smart", prompt="p", max_tokens=5)
        assert said.choices[0].text == "said"
        assert json.loads(up.body) == {"model": "inner", "prompt": "p", "max_tokens": 5}
        stream = await client.completions.create(model="smart", prompt="p", stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].text for c in chunks) == "said"  # the usage's chunk is taken out

        assert (await client.moderations.create(input="x")).model == "omni-moderation-latest"
        assert json.loads(up.body)["model"] == "omni-moderation-latest"

        image = await client.images.generate(model="smart", prompt="a cat")
        assert image.data is not None
        assert image.data[0].b64_json == PICTURE
        seen = [e.type async for e in await client.images.generate(model="smart", prompt="a cat", stream=True)]
        assert seen == ["image_generation.partial_image", "image_generation.completed"]
        await client.images.edit(model="smart", prompt="hat", image=[("a.png", SOUND), ("b.png", b"2")])
        assert up.path == b"/v1/images/edits"
        assert SOUND in up.body
        assert b'name="model"\r\n\r\ninner\r\n' in up.body

        varied = await client.images.create_variation(model="smart", image=("a.png", SOUND))
        assert (varied.created, up.path) == (1, b"/v1/images/variations")
        redrawn = await client.images.edit(model="smart", prompt="hat", image=("a.png", b"1"), stream=True)
        assert [e.type async for e in redrawn] == ["image_edit.completed"]

        spoken = await client.audio.speech.create(model="smart", input="hello", voice="alloy", stream_format="sse")
        assert b"speech.audio.done" in spoken.content
        speech = await client.audio.speech.create(model="smart", input="hello", voice="alloy")
        assert speech.content == SOUND
        assert speech.response.headers["content-type"] == "audio/mpeg"

        heard = await client.audio.transcriptions.create(model="smart", file=("a.wav", SOUND), prompt="secret")
        assert heard.text == "hallo"
        kind, _, boundary = up.fields[b"content-type"].partition(b"; boundary=")
        assert kind == b"multipart/form-data"
        assert up.body.startswith(b"--%b\r\n" % boundary)
        assert up.body.count(SOUND) == 1
        assert b'name="model"\r\n\r\ninner\r\n' in up.body
        assert b'name="language"\r\n\r\nde\r\n' in up.body  # by the transform
        assert b"secret" not in up.body
        assert b"smart" not in up.body
        heard_stream = await client.audio.transcriptions.create(model="smart", file=("a.wav", b"R"), stream=True)
        assert [e.type async for e in heard_stream] == ["transcript.text.delta", "transcript.text.done"]
        text = await client.audio.translations.create(model="smart", file=("a.wav", b"R"), response_format="text")
        assert "hello" in str(text)

        await client.chat.completions.create(model="smart", messages=[{"role": "user", "content": "hi"}], user="me")
        assert json.loads(up.body) == {
            "model": "inner",
            "user": "ci-bot",
            "messages": [{"role": "system", "content": "For platform."}, {"role": "user", "content": "hi"}],
        }

        fields = {"content-type": "application/json", "authorization": "Bearer caller-secret"}
        ranked = await once(
            gateway.url, "POST", "/v2/rerank", b'{"model":"smart","query":"q","documents":["a","b"]}', fields
        )
        assert ranked.json()["results"] == [{"index": 1, "relevance_score": 0.9}]
        assert up.path == b"/v1/rerank"

        counted = await claude.messages.count_tokens(model="claude", messages=[{"role": "user", "content": "hi"}])
        assert counted.input_tokens == 42
        assert json.loads(up.body)["model"] == "opus"
        up.path = b""
        raw = await claude.messages.with_raw_response.count_tokens(
            model="smart", messages=[{"role": "user", "content": "hello there"}]
        )
        assert raw.headers["x-tollhouse-estimated"] == "true"
        assert (await raw.parse()).input_tokens == 7
        assert up.path == b""  # nobody was asked

        with pytest.raises(openai.NotFoundError, match="no such path"):
            await client.embeddings.create(model="smart", input="x")
        bad = await once(gateway.url, "POST", "/v1/audio/transcriptions", b"--b\r\nx", fields)
        assert (bad.status, bad.json()["error"]["code"]) == (400, "invalid_form")

        records = await anyio.to_thread.run_sync(gateway.records, 18)
    used = {(r["operation"], r["input"], r["output"]) for r in records}
    assert {
        ("completions", 2, 3), ("images", 5, 100), ("image_edits", 5, 100), ("transcriptions", 7, 1), ("rerank", 11, 0),
        ("count_tokens", 0, 0), ("speech", 4, 9),
    } <= used  # fmt: skip


async def test_a_providers_own_paths(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, up):
        callers = {"authorization": "Bearer caller-secret", "cookie": "a=b", "x-forwarded-for": "10.0.0.1"}

        async def ask(method: str, path: str, body: bytes | None = None, **more: str) -> Any:
            return await once(gateway.url, method, path, body, {**callers, **more})

        listed = await ask("GET", "/providers/one/files", None, **{"openai-beta": "x"})
        assert listed.json() == {"object": "list", "data": []}
        assert (up.method, up.path, up.body) == (b"GET", b"/v1/files", b"")
        assert up.fields[b"authorization"] == b"Bearer upstream-secret"
        assert up.fields[b"openai-beta"] == b"x"
        assert not {b"cookie", b"x-forwarded-for", b"content-length"}.intersection(up.fields)

        content = await ask("GET", "/providers/one/files/f-1/content?key=mine&limit=1")
        assert (content.status, content.body) == (200, SOUND)
        assert content.headers["content-type"] == "application/octet-stream"
        form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--'
        await ask("POST", "/providers/one/files", form, **{"content-type": "multipart/form-data; boundary=b"})
        assert (up.method, up.body) == (b"POST", form)
        assert up.fields[b"content-type"] == b"multipart/form-data; boundary=b"
        assert (await ask("DELETE", "/providers/one/files/f-1")).status == 404

        batch = await ask(
            "POST", "/providers/two/v1/messages/batches", b'{"requests":[]}', **{"anthropic-version": "v"}
        )
        assert batch.json() == {"id": "batch-1"}
        assert up.fields[b"x-api-key"] == b"upstream-secret"
        assert up.fields[b"anthropic-version"] == b"v"
        assert b"authorization" not in up.fields

        # Of an API that is known the usage is read, and nothing is changed.
        asked = b'{"model": "inner", "messages":[]}'
        assert (await ask("POST", "/providers/one/chat/completions", asked)).json() == CHAT
        assert up.body == asked
        told = b'{"model":"inner","prompt":"p","stream":true}'
        stream = await ask("POST", "/providers/one/completions", told)
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert up.body == told

        refused = await ask("GET", "/providers/one/secret")
        assert (refused.status, refused.json()["error"]["code"]) == (502, "upstream_credentials")
        claudes = await ask("OPTIONS", "/providers/two/v1/messages")
        assert (claudes.status, claudes.json()["type"]) == (405, "error")
        for path in ("/providers/closed/files", "/providers/none/files", "/providers"):
            assert (await ask("GET", path)).status == 404
        assert (await once(gateway.url, "GET", "/providers/one/files")).status == 401
        records = await anyio.to_thread.run_sync(gateway.records, 8)
    assert {(r["operation"], r["model_asked"], r["input"], r["output"]) for r in records} == {
        ("native", "providers/one", 0, 0), ("native", "providers/two", 0, 0),
        ("chat", "providers/one/inner", 2, 3), ("completions", "providers/one/inner", 2, 3),
    }  # fmt: skip
