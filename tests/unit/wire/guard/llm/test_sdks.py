"""wire.guard.llm: what leaves of a guarded stream is an answer to the official SDKs, and says what it should."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import types as google
from tests.fixtures.http_thread import in_thread
from tests.fixtures.llm_sdks import bedrock
from tests.unit.wire.guard.llm.driver import SCENES, Scene, guarded, reference

from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule

KEY = "ghp" + "_2591aivvizm5OfORbfBYVqrzZuK1d6IniB6Z"
TEXT = f"Look at {KEY}, or ask me@example.org – ☔"
BINARY = "application/vnd.amazon.eventstream"


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(named(["github", "email"]))


def mask(rule: Rule, text: str) -> str:
    return f"[{rule.name}]"


class Provider(ThreadingHTTPServer):
    """One that says this to whatever it is asked."""

    said = b""
    kind = "text/event-stream"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", self.server.kind)
        self.send_header("content-length", str(len(self.server.said)))
        self.end_headers()
        self.wfile.write(self.server.said)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), Handler)
    with in_thread(server):
        yield server


def chat(url: str) -> Any:
    with openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
        message: Any = {"role": "user", "content": "x"}
        with client.chat.completions.stream(model="m", messages=[message]) as events:
            list(events)
            return events.get_final_completion().choices[0].message


def responses(url: str) -> Any:
    with (
        openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client,
        client.responses.stream(model="m", input="x") as events,
    ):
        list(events)
        return events.get_final_response().output[0]


def messages(url: str) -> Any:
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        message: Any = {"role": "user", "content": "x"}
        with client.messages.stream(model="m", messages=[message], max_tokens=9) as events:
            return events.get_final_message().content[1]


def generate(url: str) -> Any:
    client = genai.Client(api_key="k", http_options=google.HttpOptions(base_url=url))
    try:
        answers = list(client.models.generate_content_stream(model="m", contents="x"))
        return [part for a in answers for c in a.candidates or () if c.content for part in c.content.parts or ()]
    finally:
        client.close()


def converse(url: str) -> Any:
    with bedrock(url, "") as client:
        message = {"role": "user", "content": [{"text": "x"}]}
        return [
            event["contentBlockDelta"]["delta"]
            for event in client.converse_stream(modelId="m", messages=[message])["stream"]
            if "contentBlockDelta" in event and event["contentBlockDelta"]["contentBlockIndex"] == 1
        ]


ASK: dict[str, Callable[[str], Any]] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "generate": generate,
    "converse": converse,
}
READ: dict[str, Callable[[Any], Any]] = {
    "chat content": lambda message: message.content,
    "chat refusal": lambda message: message.refusal,
    "responses text": lambda item: item.content[0].text,
    "responses refusal": lambda item: item.content[0].refusal,
    "responses reasoning": lambda item: item.content[0].text,
    "responses arguments": lambda item: item.arguments,
    "responses input": lambda item: item.input,
    "messages text": lambda block: block.text,
    "messages thinking": lambda block: block.thinking,
    "messages input": lambda block: json.dumps(block.input, ensure_ascii=False),
    "generate text": lambda parts: "".join(part.text for part in parts),
    "generate thought": lambda parts: "".join(part.text for part in parts if part.thought),
    "generate code": lambda parts: "".join(part.executable_code.code for part in parts),
    "converse text": lambda deltas: "".join(delta["text"] for delta in deltas),
    "converse thought": lambda deltas: "".join(delta["reasoningContent"]["text"] for delta in deltas),
    "converse input": lambda deltas: "".join(delta["toolUse"]["input"] for delta in deltas),
}


@pytest.mark.parametrize("scene", [scene for scene in SCENES if str(scene) in READ], ids=str)
def test_the_sdk_reads_what_leaves(provider: Provider, patterns: PatternSet, scene: Scene) -> None:
    text = json.dumps({"q": TEXT, "n": 1}, ensure_ascii=False) if scene.json else TEXT
    sent = scene.say([text[at : at + 5] for at in range(0, len(text), 5)], "normal")
    out = guarded(scene.operation, patterns, mask, sent)
    expected = reference(patterns, mask, text, "normal", is_json=scene.json)
    assert "[github]" in expected
    provider.said = out
    provider.kind = BINARY if scene.operation == "converse" else "text/event-stream"
    assert READ[str(scene)](ASK[scene.operation](provider.url)) == expected
