"""Usage of a gateway that runs: recorded whatever kills it, asked for by API and command, corrected, and bounded."""

import fcntl
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_admin import OPERATOR, Operator
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, within

CONFIG = """
server:
  {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, admin: {{address: 127.0.0.1:0, keys: [{{name: eve, key: {operator}}}]}},
  shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:usage.db
journal: {journal}
retention: {{usage: 400d, rollup: 2y, audit: 1y}}
providers: {{away: {{kind: openai, base_url: "http://127.0.0.1:1/v1", api_key: x}}}}
models: [{{name: m, targets: [{{provider: away}}]}}]
authenticate: {{keys: [{{name: ci, key: caller-secret-0123, user: ada}}]}}
"""


def config(journal: str = "{max: 16MiB, fsync: group(2ms)}") -> str:
    return CONFIG.format(operator=OPERATOR, journal=journal)


def call(gateway: Gateway) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    status, _ = gateway.ask(
        "POST", gateway.url + "/v1/chat/completions", body, {"authorization": "Bearer caller-secret-0123"}
    )
    return status


def command(gateway: Gateway, *arguments: str) -> str:
    done = run(gateway.where, "usage", *arguments, "--config", str(gateway.config))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_answered_call_is_there_after_a_kill(tmp_path: Path) -> None:
    """Four clients at once, and the process killed in the midst of them, three times."""
    answered: list[int] = []

    def client(gateway: Gateway) -> None:
        try:
            while True:
                answered.append(call(gateway))
        except OSError:
            pass  # it is dead

    for n in range(1, 4):
        gateway = Gateway(config(), tmp_path)
        gateway.start()
        clients = [threading.Thread(target=client, args=(gateway,), daemon=True) for _ in range(4)]
        try:
            for one in clients:
                one.start()
            within(20, lambda: len(answered) >= 60 * n)  # noqa: B023
        finally:
            gateway.stop(signal.SIGKILL)
        for one in clients:
            one.join(10)
            assert not one.is_alive()
    assert set(answered) == {502}
    rows = [json.loads(line) for line in command(gateway, "--by", "user,outcome", "--format", "json").splitlines()]
    assert [(row["user"], row["outcome"]) for row in rows] == [("ada", "upstream_error")]
    assert len(answered) <= rows[0]["requests"] <= len(answered) + 3 * 4  # and those whose answers were under way


def test_the_api_and_the_command_say_the_same(tmp_path: Path) -> None:
    with Gateway(config(), tmp_path) as gateway:
        assert [call(gateway) for _ in range(3)] == [502] * 3
        operator = Operator(gateway, OPERATOR)

        def usage(query: str = "by=model,outcome") -> Any:
            return operator.ask("GET", f"/api/usage?{query}")[1]["usage"]

        within(10, lambda: [row["requests"] for row in usage()] == [3])
        (row,) = usage()
        (line,) = command(gateway, "--by", "model,outcome", "--format", "json").splitlines()
        said = json.loads(line)
        assert row["by"] == {"model": "m", "outcome": "upstream_error"}
        assert {name: said[name] for name in row if name != "by"} == {name: row[name] for name in row if name != "by"}
        id = operator.ask("GET", "/api/usage/records?top=1")[1]["records"][0]["id"]
        assert operator.ask("POST", f"/api/usage/{id}/adjust", {"usd": "0.25"})[0] == 200
        command(gateway, "adjust", id, "--usd", "0.5")
        assert [(row["requests"], row["usd"]) for row in usage()] == [(3, "0.500000")]


def test_a_journal_at_its_bound_is_told_and_refuses(tmp_path: Path) -> None:
    """What another process has there counts; here somebody who lives and does not ship."""
    other = "ab" * 16
    directory = tmp_path / "usage.db.journal"
    directory.mkdir()
    lock = os.open(directory / f"{other}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    segment = directory / f"{other}-00000001-{1:016x}.seg"

    def told(gateway: Gateway) -> Any:
        return json.loads(gateway.get("/status")[1]).get("journal")

    with Gateway(config(), tmp_path) as gateway:
        assert call(gateway) == 502
        assert told(gateway) is None
        with segment.open("wb") as file:
            file.truncate(14 << 20)
        within(10, lambda: told(gateway) == "filling")
        assert call(gateway) == 502
        with segment.open("wb") as file:
            file.truncate(16 << 20)
        within(10, lambda: told(gateway) == "full")
        assert call(gateway) == 503
        assert gateway.get("/ready")[0] == 503
        segment.unlink()
        within(10, lambda: told(gateway) is None)
        assert call(gateway) == 502
        assert "the journal is full (16 of 16 MiB): calls are refused until there is room" in gateway.text()
        _, metrics = gateway.ask("GET", gateway.metrics_url + "/metrics")
        assert (
            b'tollhouse_ledger_journal_limit_bytes{sink="journal"} 1.6777216e+07' in metrics or b"16777216" in metrics
        )
    os.close(lock)


@pytest.mark.parametrize("journal", ["{full: drop}"])
def test_a_configuration_that_would_lose_audit_records_does_not_start(journal: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"journal\.full: the audit's records would be lost as well"):
        Gateway(config(journal), tmp_path).start()
