"""A gateway whose ledger is in PostgreSQL: what is recorded, and that it goes on while the database does not."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fixtures.fault_proxy import Fault, FaultProxy
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, gateway, serving, within
from tests.fixtures.postgres import PASSWORD, WRITTEN, Postgres, postgres
from tests.fixtures.valkey import valkey

from tollhouse.config.load import load_config
from tollhouse.gateway.ledger import NothingRecorded, alone, ledger_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
server: {{listen: "127.0.0.1:0", metrics: "127.0.0.1:0", shutdown: {{min: 0s, max: 5s}}}}
ledger: {{url: "{url}", timeout: 1s}}
mcp: {{rest: true, servers: {{tools: {{command: "{python}", args: ["{child}"]}}}}}}
authenticate: {{issued: true, keys: [{{name: ci, key: caller-secret, user: ci-bot, org: platform}}]}}
authorize: {{rules: [{{name: no-pay, deny: 'mcp.tool.name == "echo" && mcp.arguments.message == "pay"'}}]}}
"""
CALLER = {"authorization": "Bearer caller-secret"}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one


@pytest.fixture
def database(server: Postgres) -> str:
    return server.fresh()


def config(url: str) -> str:
    child = ROOT / "fixtures" / "mcp_child.py"
    return CONFIG.format(url=url, python=sys.executable, child=child)


def call(running: Gateway, message: str, headers: dict[str, str] = CALLER) -> int:
    return running.ask("POST", "/tools/tools/echo", {"message": message}, headers)[0]


def recorded(server: Postgres, database: str) -> int:
    try:
        return int(server.do(database, "SELECT count(*) FROM usage WHERE tool = 'echo'")[0][0])
    except Exception:  # noqa: BLE001 there are no tables yet
        return -1


def settled(server: Postgres, database: str, count: int) -> None:
    """All calls are recorded, each once, and the sums say the same."""
    within(20, lambda: recorded(server, database) >= count)
    assert recorded(server, database) == count
    query = "SELECT sum(requests) FROM usage_hour WHERE tool = 'echo'"
    assert server.do(database, query) == [(count,)]
    assert server.do(database, "SELECT count(DISTINCT request_id) FROM usage WHERE tool = 'echo'") == [(count,)]
    assert server.do(database, "SELECT count(*) FROM rejected") == [(0,)]


def test_what_is_done_is_recorded_and_can_be_asked(server: Postgres, database: str, tmp_path: Path) -> None:
    with gateway(config(server.url(database)), tmp_path) as running:
        assert [call(running, "hello"), call(running, "pay")] == [200, 403]
        settled(server, database, 2)
        told = json.loads(run(tmp_path, "usage", "--by", "user,tool,outcome", "--json").stdout.splitlines()[0])
        assert (told["user"], told["tool"], told["outcome"], told["requests"]) == ("ci-bot", "echo", "denied", 1)

        made = run(tmp_path, "keys", "create", "mine", "--user", "ada")
        assert made.returncode == 0, made.stderr
        key = re.search(r"thk_\w{58}", made.stdout)
        assert key is not None
        own = {"authorization": f"Bearer {key[0]}"}
        within(5, lambda: call(running, "hello", own) == 200)
        assert "mine" in run(tmp_path, "keys", "list").stdout
        assert run(tmp_path, "keys", "revoke", "mine").returncode == 0
        within(5, lambda: call(running, "hello", own) == 401)

        within(10, lambda: "admin.keys.revoke" in run(tmp_path, "audit", "list").stdout)
        listed = [json.loads(line) for line in run(tmp_path, "audit", "list", "--json").stdout.splitlines()]
        assert {one["operation"] for one in listed} >= {"tools/call", "admin.keys.create", "admin.keys.revoke"}
        denied = {one.get("rule") for one in listed if one.get("decision") == "deny"}
        assert denied == {"top: no-pay", None}  # none: the key that had ended
        metrics = running.metrics()
        assert re.search(r'tollhouse_ledger_records_total{kind="usage",sink="postgres"} [1-9]', metrics)
    verified = run(tmp_path, "audit", "verify")
    assert "all there, as they were written" in verified.stdout, verified.stdout + verified.stderr
    server.do(database, "UPDATE audit SET body = replace(body, 'ci-bot', 'eve') WHERE body LIKE '%%ci-bot%%'")
    assert run(tmp_path, "audit", "verify").returncode == 1
    assert not list(tmp_path.glob("*.db"))
    assert {path.name for path in tmp_path.glob("tollhouse.*")} >= {"tollhouse.journal", "tollhouse.audit-key"}
    assert PASSWORD not in running.text()
    assert WRITTEN not in running.text()


def test_calls_go_on_while_the_database_is_killed_and_restarted(
    server: Postgres, database: str, tmp_path: Path
) -> None:
    done = 0
    with gateway(config(server.url(database)), tmp_path) as running:
        for _ in range(2):
            for _ in range(20):
                assert call(running, "hello") == 200
                done += 1
            server.kill()
            try:
                within(10, lambda: "the ledger cannot be used, records stay in the journal" in running.text())
                for _ in range(20):
                    assert call(running, "hello") == 200
                    done += 1
            finally:
                server.start()
        settled(server, database, done)

        server.kill()  # and now the gateway is killed as well, with records that only its journal has
        try:
            for _ in range(10):
                assert call(running, "hello") == 200
                done += 1
            os.kill(running.pid, signal.SIGKILL)
            running.stop()
        finally:
            server.start()
        running.start()
        assert call(running, "hello") == 200
        settled(server, database, done + 1)
        assert PASSWORD not in running.text()
    assert len([path for path in (tmp_path / "tollhouse.journal").iterdir() if path.suffix == ".seg"]) == 0


def test_it_starts_and_answers_without_its_database(server: Postgres, database: str, tmp_path: Path) -> None:
    server.kill()
    try:
        running = Gateway(config(server.url(database)), tmp_path)
        running.start()
        assert call(running, "hello") == 200
        asked = run(tmp_path, "usage")
        assert asked.returncode == 1
        assert "the ledger cannot be" in asked.stderr
        assert "Traceback" not in asked.stderr
    finally:
        server.start()
    try:
        settled(server, database, 1)
        assert run(tmp_path, "keys", "create", "late").returncode == 0
    finally:
        running.stop()


def test_a_wrong_password_is_said_without_it_and_loses_nothing(server: Postgres, database: str, tmp_path: Path) -> None:
    with gateway(config(server.url(database, password="not-hunter2")), tmp_path) as running:
        assert call(running, "hello") == 200
        within(10, lambda: "password authentication failed" in running.text())
        assert "hunter2" not in running.text() + run(tmp_path, "usage").stderr
        running.stop()
        running.config.write_text(config(server.url(database)))
        running.start()
        settled(server, database, 1)


def test_a_database_that_takes_no_writes_is_waited_for(server: Postgres, database: str, tmp_path: Path) -> None:
    """As a disk that is full, or a server that has become a standby."""
    with gateway(config(server.url(database)), tmp_path) as running:
        assert call(running, "hello") == 200
        settled(server, database, 1)
        server.do("postgres", f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        server.do("postgres", end, (database,))
        for _ in range(5):
            assert call(running, "hello") == 200
        within(10, lambda: "read-only transaction" in running.text())
        server.do("postgres", f"ALTER DATABASE {database} RESET default_transaction_read_only")
        server.do("postgres", end, (database,))
        settled(server, database, 6)


@pytest.mark.anyio
async def test_a_line_that_goes_dead_is_given_up(server: Postgres, database: str, tmp_path: Path) -> None:
    """Nothing passes any more and nobody is told: after the timeout it is connected anew."""
    holes = [Fault("black_hole", after=2_000)] * 2
    async with (
        FaultProxy(server.port, holes) as proxy,
        serving(config(server.url(database, port=proxy.port)), tmp_path) as running,
    ):
        for _ in range(10):
            assert await asyncio.to_thread(call, running, "hello") == 200
        await asyncio.to_thread(settled, server, database, 10)
        assert proxy.struck
        assert "the server does not answer" in running.text()


def test_two_gateways_share_one_ledger(server: Postgres, database: str, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for where in places:
        where.mkdir()
    with (
        gateway(config(server.url(database)), places[0]) as one,
        gateway(config(server.url(database)), places[1]) as two,
    ):
        made = run(places[0], "keys", "create", "shared", "--user", "ada")
        key = re.search(r"thk_\w{58}", made.stdout)
        assert key is not None
        own = {"authorization": f"Bearer {key[0]}"}
        for running in (one, two):
            within(5, lambda running=running: call(running, "first", own) == 200)  # type: ignore[misc]
        for n in range(20):
            assert call((one, two)[n % 2], "hello", own) == 200
        within(20, lambda: recorded(server, database) >= 22)
        query = "SELECT count(*), count(DISTINCT journal) FROM usage WHERE \"user\" = 'ada' AND outcome = 'ok'"
        assert server.do(database, query) == [(22, 2)]
        assert server.do(database, "SELECT count(*) FROM usage_labels WHERE \"user\" = 'ada' AND outcome = 'ok'") == [
            (1,)
        ]


def test_who_corrects_is_alone_on_all_machines(server: Postgres, database: str, tmp_path: Path) -> None:
    configs = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f'ledger: {{url: "{server.url(database)}", files: {tmp_path}/{name}}}\n')
        configs.append(load_config(file).config)
    with pytest.raises(NothingRecorded), alone(configs[0]):
        pass
    ledger = ledger_of(configs[0])
    ledger.open()
    ledger.close()
    here: list[int] = []

    def work(n: int) -> None:
        for _ in range(3):
            with alone(configs[n % 2]):
                here.append(n)
                time.sleep(0.01)
                assert here == [n]
                here.clear()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, n) for n in range(4)]:
            done.result(30)


BUDGET = "budgets: [{per: user, calls: 5, window: month, name: few}]\n"


def test_a_budget_is_what_the_ledger_says_also_after_a_kill(server: Postgres, database: str, tmp_path: Path) -> None:
    """The counter is in the gateway's memory: killed, it has only the ledger, and the journal it left."""
    with gateway(config(server.url(database)) + BUDGET, tmp_path) as running:
        assert [call(running, "hello") for _ in range(3)] == [200] * 3
        os.kill(running.pid, signal.SIGKILL)
        running.stop()
        running.start()
        assert [call(running, "hello") for _ in range(4)] == [200, 200, 429, 429]
        within(20, lambda: recorded(server, database) == 7)
        spent = server.do(
            database, "SELECT count(*), sum(amount) FROM draws WHERE field LIKE 'calls:%%few%%' AND amount > 0"
        )
        assert spent == [(5, 5)]


def test_nodes_spend_from_one_budget_in_redis_that_is_what_the_database_says(
    server: Postgres, database: str, tmp_path: Path
) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for where in places:
        where.mkdir()
    with valkey(tmp_path / "valkey") as state:
        shared = f'state: {{url: "{state.url}", encryption_key: "0123456789abcdef0123456789abcdef"}}\n'
        text = config(server.url(database)) + shared + BUDGET.replace("calls: 5", "calls: 8")
        with gateway(text, places[0]) as one, gateway(text, places[1]) as two:
            assert [call((one, two)[n % 2], "hello") for n in range(6)] == [200] * 6
            os.kill(two.pid, signal.SIGKILL)
            two.stop()
            two.start()  # and what it left is shipped
            state.do("FLUSHALL")
            assert [call((one, two)[n % 2], "hello") for n in range(4)] == [200, 200, 429, 429]
            within(20, lambda: recorded(server, database) == 10)
            checked = run(places[0], "budgets", "check")
            assert (checked.returncode, checked.stdout) == (0, "1 accounts: none differed from the ledger\n")
            table = state.do("KEYS", "*:d")[0]
            for field in state.do("HKEYS", table):
                if field[-1:].isdigit():
                    state.do("HINCRBY", table, field, 3)
            checked = run(places[0], "budgets", "check", "--json")
            assert checked.returncode == 1, checked.stderr
            (drift,) = json.loads(checked.stdout)["drifts"]
            assert (drift["whose"], drift["unit"], drift["by"]) == ("ci-bot", "calls", "3")
            assert run(places[1], "budgets", "check").returncode == 0
            within(10, lambda: "admin.budgets.check" in run(places[0], "audit", "list").stdout)
