"""Two workers, and two gateways, whose limits are one because their state is on a Valkey server."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures.forked import run
from tests.fixtures.gateway import free_port, serving, until
from tests.fixtures.provider import provider
from tests.fixtures.valkey import Valkey, valkey
from tests.fixtures.wire import Wire, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: {workers}, shutdown: {{min: 0s, max: 5s}}}}
state: {{url: "{state}", encryption_key: "0123456789abcdef0123456789abcdef", timeout: 500ms}}
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k}}}}
models:
  - name: counted
    targets: [{{provider: one, model: ok}}]
    limits: [{{per: model, calls: 25, window: 1h}}]
  - name: lenient
    targets: [{{provider: one, model: ok}}]
    limits: [{{per: model, calls: 1000, window: 1h, on_store_failure: allow}}]
  - name: tokens
    targets: [{{provider: one, model: ok}}]
    limits: [{{per: model, tokens: 100000, window: 1h, headers: draft}}]
"""
CHAT = "/v1/chat/completions"


def asked(model: str) -> bytes:
    return json.dumps({"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as one:
        yield one


async def statuses(urls: list[str], model: str, times: int) -> tuple[Counter[int], set[str]]:
    """Of so many requests on connections of their own: the answers, and the workers that gave them."""
    answers = await asyncio.gather(*(once(urls[n % len(urls)], "POST", CHAT, asked(model)) for n in range(times)))
    return Counter(answer.status for answer in answers), {answer.headers["x-request-id"][:12] for answer in answers}


async def test_limits_hold_over_two_workers(tmp_path: Path, own: Valkey) -> None:
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port, workers=2, state=own.url)
        async with serving(config, tmp_path) as gateway:
            await until(lambda: gateway.text().count("listens") >= 2)
            seen: set[str] = set()
            sums: Counter[int] = Counter()
            for _ in range(4):
                counted, workers = await statuses([gateway.url], "counted", 20)
                sums += counted
                seen |= workers
            assert len(seen) == 2
            assert sums == {200: 25, 429: 55}
            assert await asyncio.to_thread(gateway.stop, signal.SIGTERM) == 0
            assert "Traceback" not in gateway.text()
    assert not any(b"ci-bot" in key for key in own.do("KEYS", "*"))


async def test_limits_hold_over_two_gateways_and_a_restart(tmp_path: Path, own: Valkey) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port, workers=1, state=own.url)
        async with serving(config, tmp_path / "a") as one:
            async with serving(config, tmp_path / "b") as other:
                assert (await statuses([one.url, other.url], "counted", 20))[0] == {200: 20}
            async with serving(config, tmp_path / "b") as other:
                assert (await statuses([other.url, one.url], "counted", 20))[0] == {200: 5, 429: 15}


async def test_tokens_are_corrected_after_the_answer(tmp_path: Path, own: Valkey) -> None:
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port, workers=2, state=own.url)
        async with serving(config, tmp_path) as gateway:
            left = []
            for _ in range(30):
                answer = await once(gateway.url, "POST", CHAT, asked("tokens"))
                assert answer.status == 200
                left.append(int(answer.headers["ratelimit"].split("r=")[1].split(";")[0]))
                await asyncio.sleep(0.02)
            # Each takes more than a thousand ahead, and gives back what it did not use.
            assert min(left) > 100_000 - 15 * 1000


async def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, own: Valkey) -> None:
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port, workers=1, state=own.url)
        async with serving(config, tmp_path) as gateway:
            assert (await statuses([gateway.url], "counted", 1))[0] == {200: 1}
            own.kill()
            async with Wire(gateway.url) as wire:
                for _ in range(10):
                    refused = await wire.ask("POST", CHAT, asked("counted"))
                    assert refused.status == 503
                    assert refused.headers["x-tollhouse-reason"] == "Overloaded"
                    assert "state_unavailable" in refused.body.decode()
                    assert str(own.port) not in refused.body.decode()
                    assert (await wire.ask("POST", CHAT, asked("lenient"))).status == 200
            own.start()
            async with asyncio.timeout(10):
                while (await statuses([gateway.url], "counted", 1))[0] != {200: 1}:
                    await asyncio.sleep(0.05)
            text = await asyncio.to_thread(gateway.metrics)
            assert 'tollhouse_state_operation_duration_seconds_count{operation="admit",outcome="failed"}' in text
            assert 'tollhouse_state_operation_duration_seconds_count{operation="admit",outcome="ok"}' in text
            assert 'tollhouse_ratelimit_unasked_total{descriptor="model:lenient/model-calls"} 10' in text
            log = gateway.text()
            assert f"the state at redis://127.0.0.1:{own.port} is not reached" in log
            assert f"the state at redis://127.0.0.1:{own.port} answers again" in log
            assert "Traceback" not in log


async def test_a_gateway_that_starts_before_its_state(tmp_path: Path) -> None:
    own = Valkey(tmp_path / "valkey")
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port, workers=1, state=own.url)
        async with serving(config, tmp_path) as gateway:
            assert (await statuses([gateway.url], "counted", 1))[0] == {503: 1}
            assert (await once(gateway.url, "GET", "/v1/models")).status == 200
            own.start()
            try:
                async with asyncio.timeout(10):
                    while (await statuses([gateway.url], "counted", 1))[0] != {200: 1}:
                        await asyncio.sleep(0.05)
            finally:
                own.kill()


def test_check_says_what_is_wrong_with_state(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    (tmp_path / "t.yaml").write_text(
        f"server: {{listen: 127.0.0.1:{free_port()}, metrics: null}}\n"
        "state: {url: 'rediss://me:hunter2@127.0.0.1', tls: {ca: bad.pem}}\n"
    )
    said = run(tmp_path, "check", "t.yaml")
    assert said.returncode == 2
    assert "t.yaml:2:" in said.stderr
    assert "state.tls: cannot load the CA certificates" in said.stderr
    assert "hunter2" not in said.stderr
