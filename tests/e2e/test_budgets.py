"""Budgets in a gateway that serves: nested, refused, warned, another model instead; and what is spent is the ledger."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import Provider, begun, provider
from tests.fixtures.valkey import Valkey, valkey
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
EACH = 15_000_000  # nano-dollars of one answer: 9 tokens in and 6 out, at a thousandth of a dollar

BASE = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: {workers}, shutdown: {{min: 0s, max: 5s}}}}
state: {state}
ledger: sqlite:tollhouse.db
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k}}}}
prices: [{{model: "ok*", input: 1000, output: 1000}}]
authenticate:
  keys:
    - {{name: ada, key: key-of-ada, user: ada, org: o, team: t}}
    - {{name: bob, key: key-of-bob, user: bob, org: o, team: t}}
models:
  - {{name: ok, targets: [{{provider: one, model: ok}}]}}
  - {{name: cheap, targets: [{{provider: one, model: free}}], budgets: [{{per: all, calls: 100, window: year}}]}}
  - name: capped
    targets: [{{provider: one, model: ok}}]
    budgets: [{{per: user, usd: 1.2, window: year, reserve: cap, name: cap}}]
  - name: careful
    targets: [{{provider: one, model: ok}}]
    budgets: [{{per: user, usd: 0.05, window: year, on_exceed: fallback, fallback: cheap, name: dear}}]
{budgets}
"""


def config(port: int, budgets: str, state: str = "memory", workers: int = 1) -> str:
    return BASE.format(port=port, budgets=budgets, state=state, workers=workers)


async def ask(
    gateway: Gateway, model: str = "ok", user: str = "ada", *, most: int = 6, headers: dict[str, str] | None = None
) -> Answer:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    if most:
        body["max_tokens"] = most
    fields = {"authorization": f"Bearer key-of-{user}", **(headers or {})}
    return await once(gateway.url, "POST", CHAT, json.dumps(body).encode(), fields)


def recorded(gateway: Gateway) -> tuple[int, dict[str, int]]:
    """The ledger's sum of costs, and what its records drew of each allowance."""
    with sqlite3.connect(f"file:{gateway.where / 'tollhouse.db'}?mode=ro", uri=True, timeout=5) as db:
        cost = db.execute("select coalesce(sum(cost_nano), 0) from usage").fetchone()[0]
        drawn: Counter[str] = Counter()
        for field, amount in db.execute("select field, amount from draws"):
            drawn[field.partition("|")[0]] += amount
    return cost, dict(drawn)


def lost(gateway: Gateway) -> tuple[int, int]:
    """How many calls died with their worker, and what they cost."""
    with sqlite3.connect(f"file:{gateway.where / 'tollhouse.db'}?mode=ro", uri=True, timeout=5) as db:
        query = "select count(*), coalesce(sum(cost_nano), 0) from usage where outcome = 'lost'"
        count, cost = db.execute(query).fetchone()
        return count, cost


async def test_a_hard_budget_is_not_passed_and_says_what_is_left(tmp_path: Path) -> None:
    answered = asyncio.Event()

    class Waiting(Provider):
        async def _answer(self, asked: Any, writer: asyncio.StreamWriter) -> bool:
            await answered.wait()
            return await super()._answer(asked, writer)

    async with begun(Waiting()) as upstream:
        budgets = "budgets: [{per: user, usd: 1.4, window: year, name: user-year}, {per: org, calls: 100, window: 1d}]"
        async with serving(config(upstream.port, budgets), tmp_path) as gateway:
            # A call is held at what it may come to: the bytes of its body as tokens, and 6 of an answer.
            asking = [asyncio.create_task(ask(gateway)) for _ in range(20)]
            async with asyncio.timeout(30):
                while len(upstream.seen) + sum(one.done() for one in asking) < 20:
                    await asyncio.sleep(0.01)
            answered.set()
            answers = await asyncio.gather(*asking)
            statuses = Counter(answer.status for answer in answers)
            assert set(statuses) == {200, 429}
            refused = next(answer for answer in answers if answer.status == 429)
            assert refused.headers["x-tollhouse-reason"] == "Budget"
            assert refused.headers["x-tollhouse-budget"].startswith('"user-year";unit=usd;left=')
            told = refused.json()["error"]
            assert told["code"] == "budget_exceeded"
            assert "user-year" in told["message"]
            assert "USD left" in told["message"]
            assert (await ask(gateway, user="bob")).status == 200  # another user
            served = statuses[200] + 1
            gateway.records(21)
            cost, drawn = recorded(gateway)
            assert cost == served * EACH
            assert drawn == {"usd:top/user-year:year": cost, "calls:top/org:day": served}
            assert "Traceback" not in gateway.text()
            # One after the other the budget is used up to less than one call's bound.
            while (answer := await ask(gateway)).status == 200:
                served += 1
            assert answer.headers["x-tollhouse-budget"].startswith('"user-year"')
            assert 1 < served * EACH / 1e9 <= 1.4 + EACH / 1e9


async def test_what_was_spent_is_known_after_kill_9(tmp_path: Path) -> None:
    async with provider() as upstream:
        text = config(upstream.port, "budgets: [{per: user, calls: 5, window: year, name: five}]")
        for already in (0, 4):
            async with serving(text, tmp_path) as gateway:
                for _ in range(4 if already < 4 else 1):
                    assert (await ask(gateway)).status == 200
                if already == 4:
                    answer = await ask(gateway)
                    assert answer.status == 429
                    assert "left=0;of=5" in answer.headers["x-tollhouse-budget"]
                assert gateway.process is not None
                gateway.process.kill()
                gateway.process.wait()
                gateway.process = None


async def test_a_ledger_that_takes_nothing_keeps_nobody_out_and_forgets_nothing(tmp_path: Path) -> None:
    """Its file is locked: known and new accounts go on, also when the process is killed meanwhile."""
    async with provider() as upstream:
        budgets = "budgets: [{per: org, calls: 6, window: year}, {per: user, usd: 5, window: year}]"
        text = config(upstream.port, budgets)
        async with serving(text, tmp_path) as gateway:
            assert (await ask(gateway)).status == 200
            gateway.records(1)
            with sqlite3.connect(tmp_path / "tollhouse.db", isolation_level=None) as db:
                db.execute("BEGIN IMMEDIATE")
                assert [(await ask(gateway, user=user)).status for user in ("ada", "bob", "bob")] == [200] * 3
                assert gateway.process is not None
                gateway.process.kill()
                gateway.process.wait()
                gateway.process = None
                async with serving(text, tmp_path) as again:
                    assert [(await ask(again, user="bob")).status for _ in range(3)] == [200, 200, 429]
                    assert (await ask(again)).status == 429
                    db.execute("ROLLBACK")
                    again.records(8)
                    assert recorded(again)[1]["calls:top/org:year"] == 6
        db.close()


async def test_what_is_counted_in_memory_is_compared_by_the_admin_api(tmp_path: Path) -> None:
    async with provider() as upstream:
        text = config(upstream.port, "budgets: [{per: user, usd: 5, window: year, name: five}]")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = text.replace("server: {", f'server: {{admin: {{address: "127.0.0.1:{port}"}}, ', 1)
        async with serving(text, tmp_path) as gateway:
            for user in ("ada", "bob", "ada"):
                assert (await ask(gateway, user=user)).status == 200
            gateway.records(3)
            done = await asyncio.to_thread(run, tmp_path, "budgets", "check", str(gateway.config))
            assert (done.returncode, done.stdout) == (0, "2 accounts: none differed from the ledger\n"), done.stderr
            assert "budgets.check by admin" in gateway.text()


async def test_a_budget_that_comes_later_knows_what_was_spent_before(tmp_path: Path) -> None:
    async with provider() as upstream, serving(config(upstream.port, ""), tmp_path) as gateway:
        for _ in range(3):
            assert (await ask(gateway)).status == 200
        assert (await ask(gateway, user="bob")).status == 200
        await gateway.change(config(upstream.port, "budgets: [{per: user, calls: 4, window: year}]"))
        assert [(await ask(gateway)).status for _ in range(2)] == [200, 429]
        assert [(await ask(gateway, user="bob")).status for _ in range(3)] == [200] * 3
        # A raised amount keeps what was spent; another window has its own, and is not spent again.
        await gateway.change(config(upstream.port, "budgets: [{per: user, calls: 5, window: year}]"))
        assert [(await ask(gateway)).status for _ in range(2)] == [200, 429]
        await gateway.change(config(upstream.port, "budgets: [{per: user, calls: 6, window: {rolling: 30d}}]"))
        assert [(await ask(gateway)).status for _ in range(2)] == [200, 429]


async def test_another_model_is_asked_instead(tmp_path: Path) -> None:
    async with provider() as upstream:
        budgets = "budgets: [{per: org, calls: 4, window: year, name: few}]"
        async with serving(config(upstream.port, budgets), tmp_path) as gateway:
            assert (await ask(gateway)).status == 200
            answer = await ask(gateway, "careful")  # what it may come to is more than there is
            assert answer.status == 200
            assert answer.headers["x-tollhouse-fallback"] == "cheap"
            assert answer.json()["model"] == "free-2026"
            assert [(await ask(gateway, "careful", user="bob")).status for _ in range(2)] == [200, 200]
            refused = await ask(gateway, "careful")  # the other model has its own guards, and the top's
            assert refused.status == 429
            rows = gateway.records(5)
            assert [(row["model_asked"], row["outcome"]) for row in rows] == [
                ("ok", "ok"), *[("cheap", "ok")] * 3, ("careful", "denied"),
            ]  # fmt: skip
            assert recorded(gateway)[1] == {"calls:top/few:year": 4, "calls:model cheap/all:year": 3}


async def test_an_answer_is_bounded_by_what_is_left(tmp_path: Path) -> None:
    async with provider() as upstream, serving(config(upstream.port, ""), tmp_path) as gateway:
        assert (await ask(gateway, "capped", most=0)).status == 200
        bound = upstream.seen[-1].body["max_tokens"]  # as servers that are not OpenAI's call it
        assert 800 < bound < 1200
        assert (await ask(gateway, "capped", most=2000)).status == 200
        assert 700 < upstream.seen[-1].body["max_tokens"] < bound
        assert (await ask(gateway, "capped", most=5)).status == 200
        assert upstream.seen[-1].body["max_tokens"] == 5


async def test_warnings_tags_and_calls_at_once(tmp_path: Path) -> None:
    async with provider(pace=0.2) as upstream:
        budgets = """budgets:
  - {per: all, usd: 0.03, window: 1d, on_exceed: warn, soft: 0.4, name: watched}
  - {per: tag, calls: 1, window: year, name: tagged}
limits: [{per: user, concurrent: 2, name: two}]
"""
        async with serving(config(upstream.port, budgets), tmp_path) as gateway:
            tag = {"x-tollhouse-tags": "red, blue,not a tag"}
            assert (await ask(gateway, headers=tag)).status == 200
            refused = await ask(gateway, headers={"x-tollhouse-tags": "blue"})
            assert (refused.status, refused.headers["x-tollhouse-budget"][:8]) == (429, '"tagged"')
            answers = [await ask(gateway) for _ in range(3)]
            assert [answer.status for answer in answers] == [200] * 3
            assert answers[-1].headers["x-tollhouse-budget"].startswith('"watched";unit=usd;left=0;of=0.03;until=')
            row = next(row for row in gateway.records(5) if row["tags"] and row["outcome"] == "ok")
            assert json.loads(row["tags"]) == ["blue", "red"]
            assert row["team"] == "t"
            body = json.dumps({"model": "ok", "stream": True, "messages": [], "max_tokens": 9}).encode()
            fields = {"authorization": "Bearer key-of-ada"}
            streams = await asyncio.gather(*(once(gateway.url, "POST", CHAT, body, fields) for _ in range(5)))
            assert Counter(answer.status for answer in streams) == {200: 2, 429: 3}
            assert (await ask(gateway)).status == 200  # they have ended
            text = gateway.metrics()
            assert 'tollhouse_budget_checks_total{budget="tagged",outcome="refused"} 1' in text
            assert "tollhouse_budget_holds 0" in text
            assert re.search(r"^tollhouse_budget_accounts [1-9]", text, re.MULTILINE)
            assert re.search(r"^tollhouse_budget_account_bytes [1-9]", text, re.MULTILINE)
            assert "tollhouse_budget_accounts_full_total 0" in text


async def test_a_price_that_is_not_known(tmp_path: Path) -> None:
    async with provider() as upstream:
        text = config(upstream.port, "budgets: [{per: user, usd: 5, window: 1d}]")
        async with serving(text, tmp_path) as gateway:
            refused = await ask(gateway, "cheap")
            assert (refused.status, refused.json()["error"]["code"]) == (429, "price_unknown")
            assert (await ask(gateway)).status == 200
            await gateway.change(config(upstream.port, "budgets: [{per: user, usd: 5, window: 1d, unpriced: allow}]"))
            assert (await ask(gateway, "cheap")).status == 200


async def test_a_long_answer_holds_more_as_it_grows_and_is_cut_where_there_is_no_more(tmp_path: Path) -> None:
    class Talker(Provider):
        async def _answer(self, asked: Any, writer: asyncio.StreamWriter) -> bool:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            delta = {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
            event = b"data: " + json.dumps(delta).encode() + b"\n\n"
            for n in range(5000):
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                if n % 50 == 0:  # a model does not say it all at once, and what is read at once counts at once
                    await asyncio.sleep(0.005)
            return False

    async with begun(Talker()) as upstream:
        text = config(upstream.port, "budgets: [{per: user, usd: 3, window: year, name: three}]")
        async with serving(text, tmp_path) as gateway:
            body = json.dumps({"model": "ok", "stream": True, "messages": []}).encode()
            answer = await once(gateway.url, "POST", CHAT, body, {"authorization": "Bearer key-of-ada"})
            assert answer.status == 200
            assert b"budget_exceeded" in answer.body
            assert 1000 < answer.body.count(b"word") < 3000
            (row,) = gateway.records(1)
            assert 1_000_000_000 < row["cost_nano"] <= 3_000_000_000
            assert (recorded(gateway)[1]) == {"usd:top/three:year": row["cost_nano"]}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as one:
        yield one


async def test_a_state_that_is_emptied_while_the_ledger_takes_nothing(tmp_path: Path, own: Valkey) -> None:
    """Each worker tells again what it has counted, and what others have is read from their journals."""
    async with provider() as upstream:
        text = config(upstream.port, "budgets: [{per: all, calls: 12, window: year}]", own.url, workers=2)
        async with serving(text, tmp_path) as gateway:
            assert [(await ask(gateway)).status for _ in range(3)] == [200] * 3
            gateway.records(3)
            with sqlite3.connect(tmp_path / "tollhouse.db", isolation_level=None) as db:
                db.execute("BEGIN IMMEDIATE")
                assert [(await ask(gateway)).status for _ in range(5)] == [200] * 5
                own.do("FLUSHALL")
                statuses = [(await ask(gateway, user="bob")).status for _ in range(8)]
                assert statuses == [200] * 4 + [429] * 4
                db.execute("ROLLBACK")
            db.close()
            gateway.records(16)
            assert recorded(gateway)[1]["calls:top/all:year"] == 12


async def test_two_workers_spend_from_one_and_who_is_killed_loses_nothing(tmp_path: Path, own: Valkey) -> None:
    """200 calls at once, and a worker killed: the ledger's sum is what the budget says."""
    async with provider() as upstream:
        state = f'{{url: "{own.url}", encryption_key: "0123456789abcdef0123456789abcdef", timeout: 1s}}'
        budgets = "budgets: [{per: org, usd: 100, window: year, name: all-year}, {per: user, calls: 230, window: year}]"
        async with serving(config(upstream.port, budgets, state, workers=2), tmp_path) as gateway:
            await until(lambda: gateway.text().count("listens") >= 2)
            first = await asyncio.gather(*(ask(gateway) for _ in range(100)))
            assert Counter(answer.status for answer in first) == {200: 100}
            many = [asyncio.ensure_future(ask(gateway)) for _ in range(100)]
            victim = gateway.children()[0]
            await asyncio.sleep(0)
            os.kill(victim, signal.SIGKILL)
            results = await asyncio.gather(*many, return_exceptions=True)
            answered = sum(1 for one in results if isinstance(one, Answer) and one.status == 200)
            await until(lambda: gateway.text().count("listens") >= 3)
            left = 0
            while (answer := await ask(gateway)).status == 200:
                left += 1
            assert answer.headers["x-tollhouse-budget"].startswith('"user-calls-year"')
            served = len(gateway.records(100 + answered + left + 1))
            await until(lambda: recorded(gateway)[1]["calls:top/user:year"] == 230)
            cost, drawn = recorded(gateway)
            dead, charged = lost(gateway)
            assert cost == drawn["usd:top/all-year:year"] == (230 - dead) * EACH + charged
            assert served >= 230
            assert 100 + answered + left <= 230
            # Emptied: it is filled again from the ledger.
            own.do("FLUSHALL")
            assert (await ask(gateway)).status == 429
            assert (await ask(gateway, user="bob")).status == 200
            assert "Traceback" not in gateway.text()


SECONDS = float(os.environ.get("TOLLHOUSE_BUDGETS_SECONDS", "0"))


@pytest.mark.skipif(not SECONDS, reason="set TOLLHOUSE_BUDGETS_SECONDS to how long it may take")
async def test_200_clients_4_workers_and_one_killed_every_second(tmp_path: Path, own: Valkey) -> None:
    """The ledger's sum is what was spent, to the nano-dollar, and a hard budget is not passed."""
    async with provider() as upstream:
        state = f'{{url: "{own.url}", encryption_key: "0123456789abcdef0123456789abcdef", timeout: 2s}}'
        budgets = """budgets:
  - {per: org, usd: 9000, window: year, name: money}
  - {per: user, calls: 3000, window: year, name: calls}
limits: [{per: user, concurrent: 150}]
"""
        async with serving(config(upstream.port, budgets, state, workers=4), tmp_path) as gateway:
            await until(lambda: gateway.text().count("listens") >= 4)
            seen: Counter[Any] = Counter()
            over = False

            async def client(user: str) -> None:
                while not over:
                    try:
                        seen[(await ask(gateway, user=user)).status] += 1
                    except (OSError, EOFError, TimeoutError) as error:
                        seen[type(error).__name__] += 1
                        await asyncio.sleep(0.05)

            clients = [asyncio.ensure_future(client("ada" if n % 2 else "bob")) for n in range(200)]
            kills = 0
            for _ in range(int(SECONDS)):
                await asyncio.sleep(1.0)
                children = gateway.children()
                if children:
                    os.kill(children[kills % len(children)], signal.SIGKILL)
                    kills += 1
            over = True
            await asyncio.gather(*clients)
            print(dict(seen), "kills", kills)
            # Holds of the dead last until they lapse; what is spent is there when the adopted journals are.
            wanted = 0

            def settled() -> bool:
                nonlocal wanted
                cost, drawn = recorded(gateway)
                dead, charged = lost(gateway)
                wanted = drawn.get("calls:top/calls:year", 0)
                return cost == drawn.get("usd:top/money:year") == (wanted - dead) * EACH + charged

            await until(settled, 60)
            left: dict[str, int] = {}
            for user in ("ada", "bob"):
                for _ in range(4000):
                    answer = await ask(gateway, user=user)
                    if answer.status == 429 and '"calls"' in answer.headers.get("x-tollhouse-budget", ""):
                        break
                left[user] = answer.status
            assert left == {"ada": 429, "bob": 429}
            await until(lambda: settled() and wanted <= 6000, 60)
            with sqlite3.connect(gateway.where / "tollhouse.db") as db:
                rows = db.execute("select user, count(*) from usage where outcome = 'ok' group by user").fetchall()
            print(rows, wanted)
            assert all(count <= 3000 for _, count in rows)
            assert "Traceback" not in gateway.text()
