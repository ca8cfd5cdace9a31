"""Calls that die with their worker: what they held of a hard budget is charged, once, whoever dies next."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.postgres import Postgres, postgres
from tests.fixtures.provider import Provider, Seen, provider
from tests.fixtures.provider import begun as listening
from tests.fixtures.valkey import Valkey, valkey
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

EACH = 15_000_000  # nano-dollars of an answer: 9 tokens in and 6 out, at a thousandth of a dollar

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: {workers}, shutdown: {{min: 0s, max: 2s}}}}
state: {state}
ledger: {ledger}
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k}}}}
prices: [{{model: "*", input: 1000, output: 1000}}]
authenticate: {{keys: [{{name: ada, key: key-of-ada, user: ada, org: o}}]}}
models:
  - {{name: ok, targets: [{{provider: one, model: ok}}]}}
  - {{name: hang, targets: [{{provider: one, model: hang}}]}}
  - {{name: free, targets: [{{provider: one, model: free-hang}}]}}
budgets:
  - {{per: user, usd: {usd}, window: year, name: money}}
  - {{per: user, tokens: 1000000, window: year, name: tokens}}
  - {{per: user, calls: 100000, window: year, name: calls}}
  - {{per: '"cel"', usd: 9000, window: year, name: cel}}
"""
FIELDS = ("usd:top/money", "tokens:top/tokens", "calls:top/calls", "usd:top/cel")

Ask = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


def config(
    port: int, *, ledger: str = "sqlite:tollhouse.db", state: str = "memory", workers: int = 1, usd: int = 9000
) -> str:
    return CONFIG.format(port=port, ledger=ledger, state=state, workers=workers, usd=usd)


def asking(where: Path) -> Ask:
    def ask(query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{where / 'tollhouse.db'}?mode=ro", uri=True, timeout=5) as db:
            return db.execute(query).fetchall()

    return ask


async def call(gateway: Gateway, model: str, *, stream: bool = False, most: int = 6, text: str = "hi") -> Answer:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    if most:
        body["max_tokens"] = most
    fields = {"authorization": "Bearer key-of-ada"}
    return await once(gateway.url, "POST", "/v1/chat/completions", json.dumps(body).encode(), fields)


async def begun(
    gateway: Gateway, upstream: Provider, model: str, count: int, **more: Any
) -> list["asyncio.Task[Answer]"]:
    before = len(upstream.seen)
    tasks = [asyncio.create_task(call(gateway, model, **more)) for _ in range(count)]
    await until(lambda: len(upstream.seen) >= before + count)
    return tasks


async def ended(tasks: list["asyncio.Task[Answer]"]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, EOFError):
            await task


async def killed(gateway: Gateway) -> None:
    process = gateway.process
    assert process is not None
    process.kill()
    await asyncio.to_thread(process.wait)
    gateway.process = None


def drawn(ask: Ask) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for field, amount in ask("SELECT field, amount FROM draws"):
        sums[field.partition(":year|")[0]] += int(amount)
    return dict(sums)


def agree(ask: Ask) -> dict[str, int]:
    """What was drawn is what the records say."""
    columns = "coalesce(sum(cost_nano), 0), coalesce(sum(input + output), 0), count(*)"
    ((cost, tokens, calls),) = ask(f"SELECT {columns} FROM usage")
    found = drawn(ask)
    assert found == dict(zip(FIELDS, (cost, tokens, calls, cost), strict=True)), (found, cost, tokens, calls)
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_what_was_held_is_charged(database: str, tmp_path: Path, server: Postgres) -> None:
    name = server.fresh()
    ledger = "sqlite:tollhouse.db" if database == "sqlite" else f'"{server.url(name)}"'
    ask = asking(tmp_path) if database == "sqlite" else lambda query: server.do(name, query)
    async with provider() as upstream:
        text = config(upstream.port, ledger=ledger)
        async with serving(text, tmp_path) as gateway:
            assert (await call(gateway, "ok")).status == 200
            tasks = await begun(gateway, upstream, "hang", 3)
            tasks += await begun(gateway, upstream, "hang", 2, stream=True)
            await killed(gateway)
            await ended(tasks)
        async with serving(text, tmp_path) as gateway:
            await until(lambda: len(ask("SELECT 1 FROM usage")) == 6)
            rows = ask('SELECT id, request_id, cost_nano, held_nano, input, output, estimated, status, "user", '
                       "model_asked, hold FROM usage WHERE outcome = 'lost'")  # fmt: skip
            assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == len({row[-1] for row in rows}) == 5
            for _, _, cost, held, given, made, estimated, status, user, model, _ in rows:
                assert cost == held == (given + made) * 1_000_000 > EACH
                assert (made, estimated, status, user, model) == (6, 1, 0, "ada", "hang")
            found = agree(ask)
            assert found["calls:top/calls"] == 6
            # It is spent: in memory that was filled from the ledger, and by its own account.
            assert (await call(gateway, "ok")).status == 200
            await until(lambda: len(ask("SELECT 1 FROM usage")) == 7)
            found = agree(ask)
            told = json.loads(run(tmp_path, "budgets", "--json", "--budget", "money").stdout.splitlines()[0])
            assert told["spent"] == found["usd:top/money"], told
            shown = run(tmp_path, "usage", "--by", "outcome", "--since", "1d", "--format", "csv").stdout
            assert "\nlost,5,5," in shown, shown  # and five errors


async def test_the_first_call_after_a_crash_knows_what_was_lost(tmp_path: Path) -> None:
    """The counter is in memory, and the journal of the dead has to be taken over first."""
    async with provider() as upstream:
        text = config(upstream.port, usd=1)
        async with serving(text, tmp_path) as gateway:
            assert (await call(gateway, "ok")).status == 200
            await ended([task async for task in exhausting(gateway, upstream)])
        for _ in range(2):
            async with serving(text, tmp_path) as gateway:
                answer = await call(gateway, "ok")
                assert answer.status == 429, answer
                assert '"money"' in answer.headers["x-tollhouse-budget"]
                await killed(gateway)


async def exhausting(gateway: Gateway, upstream: Provider) -> AsyncIterator["asyncio.Task[Answer]"]:
    """Calls that wait, until no further one has room; then all of them are killed."""
    while (await call(gateway, "ok")).status == 200:
        (task,) = await begun(gateway, upstream, "hang", 1)
        yield task
    await killed(gateway)


async def test_ends_of_all_kinds_leave_nothing_open(tmp_path: Path) -> None:
    """A worker that lives loses nothing, and one that stops neither."""
    ask = asking(tmp_path)
    async with provider() as upstream:
        async with serving(config(upstream.port), tmp_path) as gateway:
            assert (await call(gateway, "ok")).status == 200
            assert (await call(gateway, "ok", stream=True)).status == 200
            for model, stream in (("hang", False), ("hang", True)):
                await ended(await begun(gateway, upstream, model, 2, stream=stream))  # who asked has gone
            await until(lambda: len(ask("SELECT 1 FROM usage")) == 6)
            cut = await begun(gateway, upstream, "hang", 2)
            upstream.kill()
            answers = await asyncio.gather(*cut)
            assert {answer.status for answer in answers} == {502}
            assert (await call(gateway, "ok")).status == 502  # nobody listens
        await until(lambda: len(ask("SELECT 1 FROM usage")) == 9)
    assert ask("SELECT count(*) FROM usage WHERE outcome = 'lost'") == [(0,)]
    found = drawn(ask)
    ((cost, tokens),) = ask("SELECT sum(coalesce(cost_nano, 0)), sum(input + output) FROM usage")
    assert (found["usd:top/money"], found["tokens:top/tokens"]) == (cost, tokens)
    assert not list((tmp_path / "tollhouse.db.journal").iterdir())


async def test_calls_that_are_stopped_with_their_worker_are_recorded_by_it(tmp_path: Path) -> None:
    ask = asking(tmp_path)
    async with provider() as upstream:
        async with serving(config(upstream.port), tmp_path) as gateway:
            tasks = await begun(gateway, upstream, "hang", 3)
            await asyncio.to_thread(gateway.stop, signal.SIGTERM)
            await ended(tasks)
        assert ask("SELECT count(*), sum(outcome = 'lost') FROM usage") == [(3, 0)]
        assert not list((tmp_path / "tollhouse.db.journal").iterdir())


class Liar(Provider):
    """Tells usage that cannot be."""

    async def _answer(self, asked: Seen, writer: asyncio.StreamWriter) -> bool:
        usage = asked.body["messages"][0]["content"]
        message = {"role": "assistant", "content": "Hello"}
        choices = f'[{{"index":0,"message":{json.dumps(message)},"finish_reason":"stop"}}]'
        body = f'{{"id":"c","object":"chat.completion","model":"m","choices":{choices},"usage":{usage}}}'.encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        return True


@pytest.mark.parametrize("budgets", [True, False])
async def test_what_a_provider_told_and_was_not_believed(budgets: bool, tmp_path: Path) -> None:
    ask = asking(tmp_path)
    lies = (
        '{"prompt_tokens":4000000000,"completion_tokens":4}',
        '{"prompt_tokens":-5}',
        '{"prompt_tokens":9.5}',
        '"x"',
    )
    async with listening(Liar()) as upstream:
        text = config(upstream.port)
        async with serving(text if budgets else text.partition("budgets:")[0], tmp_path) as gateway:
            for lie in lies:
                assert (await call(gateway, "ok", text=lie)).status == 200
            await until(lambda: len(ask("SELECT 1 FROM usage")) == len(lies))
            if budgets:
                agree(ask)
        shown = run(tmp_path, "usage", "records", "--format", "json").stdout.splitlines()
        records = [json.loads(line) for line in shown]
    told = [record["raw_usage"] for record in reversed(records)]
    assert json.loads(told[0]) == {"input": 4_000_000_000, "output": 4}
    assert told[1:] == list(lies[1:])
    for record in records:
        assert record["estimated"]
        assert 0 < record["input"] < 1000
        assert record["cost_nano"] == (record["input"] + record["output"]) * 1_000_000
    assert ask("SELECT count(*) FROM rejected") == [(0,)]


@pytest.mark.parametrize("where", ["memory", "shared", "postgres"])
async def test_who_kills_them_all_again_and_again(where: str, tmp_path: Path, store: Valkey, server: Postgres) -> None:
    """Workers are killed with calls under way, and so is who takes their journals over: what is spent is the sum of the
    ledger, and every call that the provider has seen is in it once."""
    name, ask, ledger = "", asking(tmp_path), "sqlite:tollhouse.db"
    if where == "postgres":
        name = server.fresh()
        ledger = f'{{url: "{server.url(name)}", schema: public}}'
        ask = partial(server.do, name)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    state = f'{{url: "{store.url}", encryption_key: "0123456789abcdef0123456789abcdef", timeout: 2s, prefix: "{seed}"}}'
    rounds, each = 3, 6
    async with provider() as upstream:
        text = config(upstream.port, ledger=ledger, state=state if where == "shared" else "memory")
        for _ in range(rounds):
            async with serving(text, tmp_path) as gateway:
                tasks = await begun(gateway, upstream, "hang", each)
                tasks += [asyncio.create_task(call(gateway, "ok")) for _ in range(each)]
                await asyncio.sleep(chance.random() * 0.05)
                await killed(gateway)
                await ended(tasks)
            async with serving(text, tmp_path) as gateway:  # who adopts what it left, perhaps
                await asyncio.sleep(chance.random() * 0.3)
                await killed(gateway)
        async with serving(text, tmp_path) as gateway:
            assert (await call(gateway, "ok")).status == 200
            seen = len(upstream.seen)
            await until(lambda: len(ask("SELECT 1 FROM usage")) >= seen)
            assert (await call(gateway, "ok")).status == 200
            seen += 1
        found = agree(ask)
        ((rows, requests, hung),) = ask(
            "SELECT count(*), count(DISTINCT request_id), "
            "count(*) FILTER (WHERE outcome = 'lost' AND model_asked = 'hang') FROM usage"
        )
        assert rows == requests
        assert hung == rounds * each
        # Besides what it has seen: what was written down and not sent any more.
        assert seen <= rows <= seen + rounds * each
        assert found["calls:top/calls"] == rows
        assert ask("SELECT count(*) FROM rejected") == [(0,)]
        assert not [path for one in tmp_path.glob("*.journal") for path in one.iterdir()]


async def test_a_worker_that_dies_has_spent_for_the_others(tmp_path: Path, store: Valkey) -> None:
    """One of two workers: what its calls held stays held until it is charged, and then counts for the other."""
    ask = asking(tmp_path)
    store.do("FLUSHALL")
    state = f'{{url: "{store.url}", encryption_key: "0123456789abcdef0123456789abcdef", timeout: 2s}}'
    async with provider() as upstream, serving(config(upstream.port, state=state, workers=2), tmp_path) as gateway:
        await until(lambda: gateway.text().count("listens") >= 2)
        tasks = await begun(gateway, upstream, "hang", 8)
        for child in gateway.children():
            os.kill(child, signal.SIGKILL)
        await ended(tasks)
        await until(lambda: gateway.text().count("listens") >= 4)
        await until(lambda: len(ask("SELECT 1 FROM usage WHERE outcome = 'lost'")) == 8)
        ((cost,),) = ask("SELECT sum(cost_nano) FROM usage")

        async def left() -> str:
            answer = await call(gateway, "ok", most=999_000)  # more than there is
            assert answer.status == 429, answer
            return answer.headers["x-tollhouse-budget"]

        async def is_spent() -> bool:
            told = await left()
            return f"left={1_000_000 - cost // 1_000_000}" in told

        for _ in range(100):
            if await is_spent():
                break
            await asyncio.sleep(0.1)
        assert await is_spent(), (cost, await left())
