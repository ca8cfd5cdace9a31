"""policies.meter: one record a call, however it ends, before the end; and the model's and tool's metrics."""

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from tollhouse.core.call import Call, ModelCall, Principal, ToolCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, Request, finish
from tollhouse.core.reply import Reply
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.ledger.records import Outcome, UsageRecord
from tollhouse.ledger.segment import Reader
from tollhouse.observe.families import ExtraLabels, Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.meter import Meter
from tollhouse.policies.outcomes import outcome_of

pytestmark = pytest.mark.anyio

OK = Ending(200, Reason.UPSTREAM, 704)


def end(call: Call, reply: Reply | None, ending: Ending) -> None:
    """What the server does at the end of a request."""
    ends = call.request.ends if reply is None else reply.ends + call.request.ends
    call.request.ends = []
    finish(ends, ending)


class Bench:
    def __init__(
        self, directory: Path, extra: ExtraLabels | None = None, prices: Prices | None = None, **options: Any
    ) -> None:
        self.journal = Journal(directory, **options)
        self.journal.open()
        self.families = Families(Metrics(), extra)
        self.meter = Meter(self.families, self.journal, prices)

    async def run(self, call: Call, act: Callable[[Call], Any] | None = None, ending: Ending = OK) -> Reply:
        async def inner(call: Call) -> Reply:
            if act is not None:
                await act(call)
            return Reply(200, [], b"{}")

        try:
            reply = await self.meter.handle(call, inner)
        except Failure as failure:
            end(call, None, Ending(failure.status, failure.reason))
            raise
        except BaseException as error:
            internal = isinstance(error, Exception)
            end(
                call, None, Ending(500, Reason.INTERNAL) if internal else Ending(499, Reason.CLIENT_GONE, 0, None, True)
            )
            raise
        end(call, reply, ending)
        return reply

    def records(self) -> list[UsageRecord]:
        reader = Reader(self.journal.directory, self.journal.id, 0, live=True)
        found = [msgspec.json.decode(e.body, type=UsageRecord) for e in reader.read(1000)]
        reader.close()
        return found

    def shown(self, family: Any) -> dict[tuple[str, ...], Any]:
        self.families.metrics.count_noted()
        return {v: (c.value if hasattr(c, "value") else (sum(c.counts), c.sum)) for v, c in family.children.items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "journal")


def request() -> Request:
    made = Request(b"POST", b"/v1/chat/completions", Headers([(b"x-org", b"shop")]), b"x" * 1205)
    context = made.context
    context.request_id, context.began, context.route = "req-1", monotonic(), "llm"
    context.principal = Principal("key:ci", source="key", user="ci-bot", org="platform", key="ci", agent="tester")
    return made


def model_call(*, stream: bool = False, operation: str = "chat") -> ModelCall:
    made = request()
    context = made.context
    context.operation, context.dialect, context.model_asked, context.stream = operation, "openai", "smart", stream
    return ModelCall(
        made, context, dialect=None, operation=operation, model="smart", label="smart", stream=stream, fields={},
        body=b"", reserve=100,
    )  # fmt: skip


def tool_call(method: str = "tools/call", name: str = "buy") -> ToolCall:
    made = request()
    context = made.context
    context.operation, context.mcp_method, context.server, context.tool = "mcp", method, "shop", name
    return ToolCall(made, context, server="shop", method=method, name=name, params=b"{}")


async def upstream(call: Call) -> None:
    context = call.context
    context.provider, context.backend, context.model_answered = "openai", "openai/gpt-4o", "gpt-4o-2024"
    context.attempts = 1
    context.upstream_began = monotonic() - 0.5
    context.first_event = context.upstream_began + 0.2
    context.upstream_ended = context.upstream_began + 0.5
    context.usage = Usage(input=12, output=31, cache_read=5, reasoning=7)


async def test_an_answered_call(bench: Bench) -> None:
    await bench.run(model_call(), upstream)
    (record,) = bench.records()
    assert record.admitted_at > 1_700_000_000_000_000
    assert record.ended_at == record.admitted_at + record.total_us
    shown = msgspec.to_builtins(record)
    for name in ("admitted_at", "ended_at", "total_us", "outcome"):
        shown.pop(name, None)
    assert 499_000 <= shown.pop("upstream_us") <= 500_001
    assert shown.pop("ttft_us") < 0  # the fake's first event is before the call
    assert shown == {
        "request_id": "req-1", "org": "platform", "user": "ci-bot", "key": "ci", "agent": "tester", "route": "llm",
        "dialect": "openai", "operation": "chat", "model_asked": "smart", "model_answered": "gpt-4o-2024",
        "provider": "openai", "backend": "openai/gpt-4o", "reason": "Upstream", "status": 200, "input": 12,
        "output": 31, "cache_read": 5, "reasoning": 7, "bytes_in": 1205, "bytes_out": 704,
    }  # fmt: skip
    assert record.outcome == "ok"
    assert record.cost_nano is None
    labels = ("chat", "openai", "smart", "gpt-4o-2024", "llm")
    assert bench.shown(bench.families.token_usage) == {
        ("input", *labels): (1, 12),
        ("output", *labels): (1, 31),
        ("cache_read", *labels): (1, 5),
        ("reasoning", *labels): (1, 7),
    }
    assert bench.shown(bench.families.server_duration) == {labels: (1, pytest.approx(0.5))}
    assert bench.families.ledger_records.child("usage", "journal").value == 1
    assert sum(bench.families.first_token.child(*labels).counts) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_the_cache_is_recorded_and_no_model_has_given_it(bench: Bench, stream: bool) -> None:
    async def kept(call: Call) -> None:
        call.context.cached, call.context.usage, call.context.saved_nano = "exact", Usage(), 35
        call.context.provider, call.context.model_answered = "openai", "gpt-4o-2024"

    await bench.run(model_call(stream=stream), kept, Ending(200, Reason.DIRECT_RESPONSE, 704))
    (record,) = bench.records()
    assert (record.outcome, record.reason, record.cached, record.saved_nano) == ("ok", "DirectResponse", "exact", 35)
    families = bench.families
    for family in (families.token_usage, families.server_duration, families.first_token, families.per_token):
        assert bench.shown(family) == {}
    assert families.price_lookups.child("hit").value == 0


async def test_a_stream_has_time_to_first_token_at_the_commit(bench: Bench) -> None:
    call = model_call(stream=True)

    async def inner(call: Call) -> Reply:
        await upstream(call)
        return Reply(200, [], b"data: {}\n\n")

    reply = await bench.meter.handle(call, inner)
    labels = ("chat", "openai", "smart", "gpt-4o-2024", "llm")
    assert sum(bench.families.first_token.child(*labels).counts) == 1
    assert bench.records() == []
    end(call, reply, OK)
    assert bench.shown(bench.families.per_token)[labels] == (1, pytest.approx(0.3 / 30))
    assert [r.stream for r in bench.records()] == [True]


async def test_an_answer_of_a_session_has_its_times_though_nobody_waits_for_it(bench: Bench) -> None:
    call = model_call(operation="realtime.response")
    call.context.stream = True
    await bench.run(call, upstream)
    labels = ("chat", "openai", "smart", "gpt-4o-2024", "llm")
    assert sum(bench.families.first_token.child(*labels).counts) == 1
    assert bench.shown(bench.families.per_token)[labels] == (1, pytest.approx(0.3 / 30))


async def test_operation_names(bench: Bench) -> None:
    for operation in ("chat", "messages", "embeddings"):
        await bench.run(model_call(operation=operation), upstream)
    assert {v[1] for v in bench.families.token_usage.children} == {"chat", "embeddings"}
    assert [r.operation for r in bench.records()] == ["chat", "messages", "embeddings"]


@pytest.mark.parametrize(
    ("reason", "status", "outcome"),
    [
        (Reason.AUTHORIZATION, 403, "denied"),
        (Reason.RATE_LIMIT, 429, "denied"),
        (Reason.GUARDRAIL, 403, "denied"),
        (Reason.NOT_FOUND, 404, "invalid"),
        (Reason.INVALID_REQUEST, 400, "invalid"),
        (Reason.TIMEOUT, 504, "timeout"),
        (Reason.UPSTREAM_FAILURE, 502, "upstream_error"),
        (Reason.NO_HEALTHY_BACKEND, 503, "upstream_error"),
        (Reason.UPSTREAM, 429, "upstream_error"),
        (Reason.INTERNAL, 500, "error"),
        (Reason.CLIENT_GONE, 499, "client_gone"),
    ],
)
async def test_failures_before_the_answer(bench: Bench, reason: Reason, status: int, outcome: str) -> None:
    failure = Failure(status, reason, "no")

    async def fail(call: Call) -> None:
        raise failure

    with pytest.raises(Failure) as caught:
        await bench.run(model_call(), fail)
    assert caught.value is failure
    (record,) = bench.records()
    assert (record.outcome, record.status, record.reason) == (outcome, status, reason)
    assert outcome_of(failure.reason) == outcome


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (Ending(200, Reason.UPSTREAM, 1, Failure(502, Reason.UPSTREAM_FAILURE, "died")), "cut"),
        (Ending(200, Reason.UPSTREAM, 1, Failure(504, Reason.TIMEOUT, "idle")), "timeout"),
        (Ending(200, Reason.UPSTREAM, 1, Failure(403, Reason.GUARDRAIL, "masked")), "denied"),
        (Ending(499, Reason.CLIENT_GONE, 1, None, True), "client_gone"),
        (Ending(400, Reason.UPSTREAM, 1), "invalid"),  # what the provider itself says of the request
        (Ending(422, Reason.UPSTREAM, 1), "invalid"),
        (Ending(429, Reason.UPSTREAM, 1), "upstream_error"),
        (Ending(403, Reason.UPSTREAM, 1), "upstream_error"),
        (Ending(500, Reason.UPSTREAM, 1), "upstream_error"),
        (Ending(200, Reason.UPSTREAM, 1), "ok"),
    ],
)
async def test_ends_after_the_answer_began(bench: Bench, ending: Ending, outcome: str) -> None:
    await bench.run(model_call(stream=True), upstream, ending)
    (record,) = bench.records()
    assert record.outcome == outcome
    assert record.output == 31
    assert record.outcome in set(Outcome)


async def test_cancelled_because_the_client_left(bench: Bench) -> None:
    async def hang(call: Call) -> None:
        await asyncio.sleep(60)

    task = asyncio.ensure_future(bench.run(model_call(), hang))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(r.outcome, r.status) for r in bench.records()] == [("client_gone", 499)]


async def test_a_bug_is_recorded_and_passed_on(bench: Bench) -> None:
    async def bug(call: Call) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bench.run(model_call(), bug)
    assert [(r.outcome, r.status) for r in bench.records()] == [("error", 500)]


async def test_a_full_journal_refuses_what_is_billable(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_size=500)
    await bench.run(model_call(), upstream)
    while not bench.journal.full:
        await bench.run(tool_call("tools/list", ""))
    before = bench.journal.seq
    for call in (model_call(), tool_call()):
        with pytest.raises(Failure) as caught:
            await bench.run(call, upstream)
        assert (caught.value.status, caught.value.code) == (503, "ledger_full")
    assert bench.journal.seq == before
    await bench.run(tool_call("tools/list", ""))
    assert bench.journal.seq == before + 1


async def test_a_record_that_cannot_be_written_fails_the_answer(bench: Bench) -> None:
    async def seal(call: Call) -> None:
        bench.journal.seal()

    with pytest.raises(Failure) as caught:
        await bench.run(model_call(), seal)
    assert caught.value.status == 503

    async def fail(call: Call) -> None:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    with pytest.raises(Failure) as caught:
        await bench.run(model_call(), fail)
    assert caught.value.status == 403  # it fails for its own reason


async def test_without_a_journal() -> None:
    families = Families(Metrics())
    meter = Meter(families)

    async def inner(call: Call) -> Reply:
        await upstream(call)
        return Reply(200, [], b"{}")

    call = model_call()
    end(call, await meter.handle(call, inner), OK)
    assert len(families.token_usage.children) == 4


async def test_extra_labels(tmp_path: Path) -> None:
    extra = ExtraLabels([("org", lambda r, c: r.header(b"x-org").decode())])
    bench = Bench(tmp_path, extra)
    await bench.run(model_call(), upstream)
    await bench.run(tool_call())
    assert {v[-1] for v in bench.families.token_usage.children} == {"shop"}
    assert {v[-1] for v in bench.families.mcp_requests.children} == {"shop"}
    assert {v[-1] for v in bench.families.mcp_duration.children} == {"shop"}


async def test_models_that_answer_under_many_names(bench: Bench) -> None:
    for n in range(600):

        async def answer(call: Call, n: int = n) -> None:
            await upstream(call)
            call.context.model_answered = f"m-{n}"

        await bench.run(model_call(), answer)
    assert len({v[4] for v in bench.families.token_usage.children}) == 501


async def test_what_callers_choose_is_not_remembered_without_bound(bench: Bench) -> None:
    call = model_call()
    call.context.model_asked = "m" * 5000
    await bench.run(call, upstream)
    await bench.run(model_call(), upstream)
    assert len(bench.meter._rows) == 1
    assert [r.model_asked for r in bench.records()] == ["other", "smart"]


async def test_names_under_a_wildcard_become_labels_once_somebody_answered_and_so_many(bench: Bench) -> None:
    async def asked(name: str, act: Any) -> None:
        call = model_call()
        call.context.model_asked = name
        await bench.run(call, act)

    async def refuse(call: Call) -> None:
        raise Failure(404, Reason.UPSTREAM, "what model is that?")

    with pytest.raises(Failure):
        await asked("m-0", refuse)
    for n in range(300):
        await asked(f"m-{n}", upstream)
    with pytest.raises(Failure):
        await asked("m-0", refuse)
    names = [r.model_asked for r in bench.records()]
    assert names == ["other", *(f"m-{n}" for n in range(256)), *["other"] * 44, "m-0"]


async def test_the_ledger_keeps_so_many_names_of_what_answered(bench: Bench) -> None:
    for n in range(600):

        async def answer(call: Call, n: int = n) -> None:
            await upstream(call)
            call.context.model_answered = f"m-{n}" + "x" * 1000

        await bench.run(model_call(), answer)
    answered = {r.model_answered for r in bench.records()}
    assert len(answered) == 501
    assert max(map(len, answered)) == 128


# ---- tools
def said(outcome: str) -> Callable[[Call], Any]:
    async def act(call: Call) -> None:
        call.context.mcp_outcome = outcome

    return act


async def test_a_tool_call(bench: Bench) -> None:
    await bench.run(tool_call(), said("ok"))
    await bench.run(tool_call(), said("tool_error"))
    assert bench.shown(bench.families.mcp_requests) == {("tools/call", "Tool", "shop", "buy", "llm"): 2}
    assert {v: n for v, (n, _) in bench.shown(bench.families.mcp_duration).items()} == {
        ("shop", "buy", "ok"): 1,
        ("shop", "buy", "tool_error"): 1,
    }
    first, second = bench.records()
    assert (first.server, first.tool, first.outcome, first.operation) == ("shop", "buy", "ok", "mcp")
    assert second.outcome == "tool_error"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("tools/list", "Tool"),
        ("prompts/get", "Prompt"),
        ("resources/read", "Resource"),
        ("resources/templates/list", "ResourceTemplates"),
        ("ping", ""),
    ],
)
async def test_types(bench: Bench, method: str, kind: str) -> None:
    await bench.run(tool_call(method, ""))
    assert list(bench.families.mcp_requests.children) == [(method, kind, "shop", "", "llm")]


async def test_names_from_callers_become_labels_once_the_server_knows_them(bench: Bench) -> None:
    async def refuse(call: Call) -> None:
        call.context.mcp_outcome = "protocol_error"
        raise Failure(404, Reason.MCP, "unknown tool")

    for n in range(20):
        with pytest.raises(Failure):
            await bench.run(tool_call(name=f"made-up-{n}"), refuse)
    await bench.run(tool_call(method="made/up", name="x" * 500))
    assert list(bench.families.mcp_requests.children) == [
        ("tools/call", "Tool", "shop", "other", "llm"),
        ("other", "", "shop", "other", "llm"),
    ]
    await bench.run(tool_call(name="real"))
    with pytest.raises(Failure):
        await bench.run(tool_call(name="real"), refuse)
    assert bench.families.mcp_requests.child("tools/call", "Tool", "shop", "real", "llm").value == 2
    tools = [r.tool for r in bench.records()]  # the ledger keeps its labels for ever
    assert tools == ["other"] * 21 + ["real"] * 2


async def test_tools_that_are_configured_have_their_names_from_the_first_call_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.meter = Meter(bench.families, bench.journal, tools=[("shop", "buy")])

    async def late(call: Call) -> None:
        raise Failure(504, Reason.TIMEOUT, "too late")

    for name in ("buy", "made-up"):
        with pytest.raises(Failure):
            await bench.run(tool_call(name=name), late)
    assert [record.tool for record in bench.records()] == ["buy", "other"]


async def test_denied_tools(bench: Bench) -> None:
    async def refuse(call: Call) -> None:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    with pytest.raises(Failure):
        await bench.run(tool_call(), refuse)
    assert list(bench.families.mcp_duration.children) == [("shop", "other", "denied")]
    assert bench.records()[0].outcome == "denied"


async def test_leaves_no_cycle(bench: Bench) -> None:
    async def fail(call: Call) -> None:
        raise Failure(502, Reason.UPSTREAM_FAILURE, "no")

    await bench.run(model_call(), upstream)
    gc.collect()
    for _ in range(20):
        await bench.run(model_call(stream=True), upstream)
        await bench.run(tool_call(), said("ok"))
        try:
            await bench.run(model_call(), fail)
        except Failure:
            pass
    assert gc.collect() == 0


# ---- cost
def priced() -> Prices:
    spec = PriceSpec.model_validate({"model": "gpt-4o-2024", "input": 2, "output": 8, "cache_read": 1, "reasoning": 8})
    return Prices(None, {"openai/gpt-4o": Origin("openai"), "here": Origin("local")}, [spec])


async def test_a_call_at_a_known_price(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", prices=priced())
    for _ in range(2):
        await bench.run(model_call(), upstream)
    cost = 12 * 2_000 + 31 * 8_000 + 5 * 1_000
    assert [record.cost_nano for record in bench.records()] == [cost, cost]
    assert bench.shown(bench.families.cost) == {("openai", "smart", "llm", "platform"): pytest.approx(2 * cost / 1e9)}
    assert bench.shown(bench.families.price_lookups) == {("hit",): 2, ("miss",): 0}


async def test_a_call_at_no_known_price_has_no_cost(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", prices=priced())

    async def another(call: Call) -> None:
        await upstream(call)
        call.context.model_answered = "another"

    await bench.run(model_call(), another)
    assert [record.cost_nano for record in bench.records()] == [None]
    assert bench.shown(bench.families.cost) == {}
    assert bench.shown(bench.families.price_lookups) == {("hit",): 0, ("miss",): 1}


async def test_the_local_model_costs_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", prices=priced())

    async def here(call: Call) -> None:
        await upstream(call)
        call.context.backend, call.context.provider, call.context.model_answered = "here", "local", "smollm2"

    await bench.run(model_call(), here)
    assert [record.cost_nano for record in bench.records()] == [0]
    assert bench.shown(bench.families.cost) == {("local", "smart", "llm", "platform"): 0}


async def test_a_call_that_used_nothing_is_not_looked_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", prices=priced())

    async def refuse(call: Call) -> None:
        raise Failure(429, Reason.RATE_LIMIT, "later")

    with pytest.raises(Failure):
        await bench.run(model_call(), refuse)
    await bench.run(tool_call())
    assert [record.cost_nano for record in bench.records()] == [None, None]
    assert bench.shown(bench.families.price_lookups) == {("hit",): 0, ("miss",): 0}


async def test_every_kind_of_token_is_recorded(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal")

    async def rich(call: Call) -> None:
        await upstream(call)
        call.context.usage = Usage(1, 2, 3, 4, 5, False, 6, 7, 8, 9, 10)

    await bench.run(model_call(), rich)
    (record,) = bench.records()
    kinds = [name for name in Usage.__struct_fields__ if name != "tier"]
    assert [getattr(record, name) for name in kinds] == [1, 2, 3, 4, 5, False, 6, 7, 8, 9, 10]


async def test_an_own_label_named_org_takes_the_place_of_the_callers(tmp_path: Path) -> None:
    extra = ExtraLabels([("org", lambda request, context: "shop")])
    bench = Bench(tmp_path / "journal", extra, priced())
    await bench.run(model_call(), upstream)
    assert list(bench.shown(bench.families.cost)) == [("openai", "smart", "llm", "shop")]
