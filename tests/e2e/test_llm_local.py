"""The local model answers a real question through every API, unary and streamed: no key, no network."""

import json
from collections.abc import Iterator

import pytest
from tests.fixtures.gateway import Gateway, gateway
from tests.fixtures.llm_sdks import SAYING
from tests.fixtures.wire import once

from tollhouse.backends.local import LocalSpec, find_weights
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio

CONFIG = """
server: {listen: 127.0.0.1:0, metrics: null}
ledger: sqlite:tollhouse.db
providers:
  here: {kind: local}
  gone: {kind: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  - {name: small, targets: [{provider: here}]}
  - name: chain
    targets: [{provider: gone, model: m}]
    fallback: [{provider: gone, model: n}, {provider: here, notice: true}]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    try:
        find_weights(LocalSpec(kind="local"))
    except Failure as missing:
        pytest.skip(missing.message)
    with gateway(CONFIG, tmp_path_factory.mktemp("gateway")) as one:
        yield one


@pytest.mark.parametrize("api", SAYING)
def test_the_capital_of_italy(api: str, running: Gateway) -> None:
    before = len(running.records(0))
    for stream in (False, True):
        text, output = SAYING[api](running.url, "small", "What is the capital of Italy? Answer in English.", stream)
        assert "Rome" in text
        assert 0 < output <= 21
    records = running.records(before + 2)[-2:]
    assert [(r["provider"], r["operation"], r["outcome"], r["estimated"]) for r in records] == [
        ("local", api, "ok", False)
    ] * 2


async def test_the_end_of_the_chain(running: Gateway) -> None:
    body = {"model": "chain", "max_tokens": 8, "messages": [{"role": "user", "content": "Say yes."}]}
    headers = {"content-type": "application/json"}
    for _ in range(2):
        found = await once(running.url, "POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        assert found.status == 200
        assert found.json()["choices"][0]["message"]["content"]
        assert found.headers["x-tollhouse-fallback"] == "here"
