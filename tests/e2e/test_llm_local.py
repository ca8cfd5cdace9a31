"""The local model answers a real question through every API, unary and streamed: no key, no network."""

from collections.abc import Iterator

import pytest
from tests.fixtures.gateway import Gateway, gateway
from tests.fixtures.llm_sdks import SAYING

from tollhouse.backends.local import LocalSpec, find_weights
from tollhouse.core.errors import Failure

CONFIG = """
server: {listen: 127.0.0.1:0, metrics: null}
ledger: sqlite:tollhouse.db
providers: {here: {kind: local}}
models: [{name: small, targets: [{provider: here}]}]
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
