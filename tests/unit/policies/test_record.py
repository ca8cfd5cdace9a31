"""policies.record: one line and one count a request, however it ends."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tollhouse.core.call import Principal, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, Request, Response, finish
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.families import ExtraLabels, Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.record import Record

pytestmark = pytest.mark.anyio

BINDS = {"main": ("127.0.0.1:8080", "tollhouse", "main")}


def request(target: bytes = b"/v1/chat/completions", *headers: tuple[bytes, bytes], method: bytes = b"POST") -> Request:
    made = Request(method, target, Headers(headers), b"{}", peer="192.0.2.7")
    made.listener = "main"
    return made


class Gate:
    """A Record with its log, and a server's way of ending a request."""

    def __init__(self, path: Path, extra: ExtraLabels | None = None, **options: Any) -> None:
        self.metrics = Metrics()
        self.families = Families(self.metrics, extra)
        self.path = path
        self.log = AccessLog(str(path))
        self.log.start()
        self.record = Record(self.families, self.log, binds=BINDS, **options)

    async def serve(
        self, request: Request, answer: Callable[[Request], Response] | None = None, ending: Ending | None = None
    ) -> Ending:
        async def inner(request: Request) -> Response:
            if answer is not None:
                return answer(request)
            return Response(200, [], b"ok", reason=Reason.UPSTREAM)

        try:
            response = await self.record.handle(request, inner)
        except Failure as failure:
            request.context.error = failure.detail or failure.message
            response = request.render(failure, request)
        if ending is None:
            ending = Ending(response.status, response.reason, len(response.body))
        finish(request.ends, ending)
        return ending

    def lines(self) -> list[dict[str, Any]]:
        self.log.close()
        return [json.loads(text) for text in self.path.read_text().splitlines()]

    def counted(self) -> dict[tuple[str, ...], float]:
        return {values: child.value for values, child in self.families.requests.children.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


async def test_an_answer(path: Path) -> None:
    gate = Gate(path)

    def answer(request: Request) -> Response:
        context = request.context
        context.route, context.backend = "llm", "openai/gpt-4o"
        context.principal = Principal("key:ci", source="key", user="ci-bot", org="platform", key="ci", agent="tester")
        context.operation, context.provider = "chat", "openai"
        context.model_asked, context.model_answered = "smart", "gpt-4o-2024"
        context.usage = Usage(input=12, output=34, cache_read=5)
        context.attempts = 2
        context.upstream_began = monotonic()
        context.upstream_ended = context.upstream_began + 0.25
        context.began -= 0.3
        return Response(200, [], b"12345", reason=Reason.UPSTREAM)

    await gate.serve(request(), answer)
    (line,) = gate.lines()
    assert line.pop("time").endswith("Z")
    assert len(line.pop("id")) == 20
    assert 300 <= line.pop("duration_ms") < 2000
    assert 50 <= line.pop("ours_ms") < 1700
    assert line == {
        "status": 200, "reason": "Upstream", "method": "POST", "path": "/v1/chat/completions", "upstream_ms": 250.0,
        "peer": "192.0.2.7", "listener": "main", "route": "llm", "backend": "openai/gpt-4o", "principal": "key:ci",
        "user": "ci-bot", "org": "platform", "agent": "tester", "key": "ci", "operation": "chat",
        "provider": "openai", "model": "smart", "model_answered": "gpt-4o-2024", "tokens_in": 12, "tokens_out": 34,
        "tokens_cache_read": 5, "retries": 1, "bytes_in": 2, "bytes_out": 5,
    }  # fmt: skip
    labels = ("openai/gpt-4o", "http", "POST", "200", "Upstream", "127.0.0.1:8080", "tollhouse", "main", "llm", "0")
    assert gate.counted() == {labels: 1}
    assert gate.families.response_bytes.child(*labels).value == 5
    gate.metrics.count_noted()
    assert sum(gate.families.request_duration.child(*labels).counts) == 1
    assert 0.04 < gate.families.overhead.child("llm").sum < 1.7


async def test_what_a_call_cost(path: Path) -> None:
    spec = PriceSpec.model_validate({"model": "gpt-4o-2024", "input": 2.5, "output": 10})
    gate = Gate(path, prices=Prices(None, {"openai": Origin("openai")}, [spec]))

    def answer(model: str) -> Callable[[Request], Response]:
        def ended(request: Request) -> Response:
            context = request.context
            context.backend, context.model_answered, context.usage = "openai", model, Usage(1001, 100)
            return Response(200, [], b"12345", reason=Reason.UPSTREAM)

        return ended

    await gate.serve(request(), answer("gpt-4o-2024"))
    await gate.serve(request(), answer("unknown"))
    await gate.serve(request(), lambda _: Response(200, [], b""))
    priced, unknown, none = gate.lines()
    assert priced["cost_usd"] == 0.0035025
    assert "cost_usd" not in unknown
    assert "cost_usd" not in none


async def test_of_the_cache_and_of_a_run(path: Path) -> None:
    gate = Gate(path)

    def answer(request: Request) -> Response:
        request.context.cached, request.context.run_id = "semantic", "key:ci/task-1"
        return Response(200, [], b"ok")

    def missed(request: Request) -> Response:
        request.context.cache, request.context.limit = "miss", "budget month"
        return Response(200, [], b"ok")

    await gate.serve(request(), answer)
    await gate.serve(request())
    await gate.serve(request(), missed)
    first, second, third = gate.lines()
    assert (first["cache"], first["run"], first["reason"]) == ("semantic", "key:ci/task-1", "DirectResponse")
    assert not {"cache", "run", "limit"} & second.keys()
    assert (third["cache"], third["limit"]) == ("miss", "budget month")


async def test_a_failure(path: Path) -> None:
    gate = Gate(path)

    def answer(request: Request) -> Response:
        raise Failure(403, Reason.AUTHORIZATION, "not allowed", detail="rule 3 said no")

    await gate.serve(request(), answer)
    (line,) = gate.lines()
    assert (line["status"], line["reason"], line["error"]) == (403, "Authorization", "rule 3 said no")
    assert [(values[3], values[4], values[8], values[9]) for values in gate.counted()] == [
        ("403", "Authorization", "unknown", "unknown")
    ]


async def test_a_stream_that_died_and_a_client_that_left(path: Path) -> None:
    gate = Gate(path)
    cut = Failure(502, Reason.UPSTREAM_FAILURE, "the upstream closed the connection")
    await gate.serve(request(), ending=Ending(200, Reason.UPSTREAM, 100, cut))
    await gate.serve(request(), ending=Ending(499, Reason.CLIENT_GONE, 50, None, True))
    first, second = gate.lines()
    assert (first["status"], first["reason"], first["error"]) == (
        200, "UpstreamFailure", "the upstream closed the connection",
    )  # fmt: skip
    assert (second["status"], second["reason"], second["gone"]) == (499, "ClientGone", True)


async def test_secrets_and_long_targets(path: Path) -> None:
    gate = Gate(path)
    await gate.serve(request(b"/x?api_key=s3cr3t&a=1", (b"authorization", b"Bearer s3cr3t")))
    await gate.serve(request(b"/" + b"y" * 9000))
    first, second = gate.lines()
    assert "s3cr3t" not in path.read_text()
    assert (first["path"], first["query"]) == ("/x", "api_key=***&a=1")
    assert len(second["path"]) == 2048


async def test_ids_are_ours_and_differ(path: Path) -> None:
    gate = Gate(path)
    asked = [request(b"/", (b"x-request-id", b"from-outside-1")) for _ in range(50)]
    for one in asked:
        await gate.serve(one)
    ids = {one.context.request_id for one in asked}
    assert len(ids) == 50
    assert not any("outside" in one for one in ids)


@pytest.mark.parametrize(
    ("peer", "given", "taken"),
    [
        ("10.0.0.1", b"abcdef-123:4", True),
        ("192.0.2.7", b"abcdef-123:4", False),
        ("10.0.0.1", b"short", False),
        ("10.0.0.1", b"x" * 200, False),
        ("10.0.0.1", b"with space and more", False),
        ("10.0.0.1", b"newline\ninjected", False),
    ],
)
async def test_an_id_is_taken_from_a_trusted_peer(path: Path, peer: str, given: bytes, taken: bool) -> None:
    gate = Gate(path, trusted=lambda request: request.peer == "10.0.0.1")
    one = request(b"/", (b"x-request-id", given))
    one.peer = peer
    await gate.serve(one)
    assert (one.context.request_id == given.decode()) == taken


async def test_extra_labels_and_fields(path: Path) -> None:
    def org(request: Request, context: Any) -> str:
        return (request.header(b"x-org") or b"").decode()

    gate = Gate(
        path,
        ExtraLabels([("org", org)], limit=2),
        fields=[("user", lambda r, c: "ada@example.com"), ("team", org), ("bad", lambda r, c: 1 / 0)],
    )
    for name in (b"a", b"b", b"c", b"d", b"a"):
        await gate.serve(request(b"/", (b"x-org", name)))
    lines = gate.lines()
    assert [line["team"] for line in lines] == ["a", "b", "c", "d", "a"]
    assert {line["user"] for line in lines} == {"ada@example.com"}
    assert {line["bad"] for line in lines} == {""}
    assert path.read_text().count('"user"') == 5
    assert {values[-1]: n for values, n in gate.counted().items()} == {"a": 2, "b": 1, "other": 2}


async def test_the_clients_address_is_the_one_that_trusted_proxies_tell(path: Path) -> None:
    gate = Gate(path)
    one = request()
    one.context.client = "203.0.113.9"
    await gate.serve(one)
    await gate.serve(request())
    assert [line["peer"] for line in gate.lines()] == ["203.0.113.9", "192.0.2.7"]


async def test_what_callers_choose_is_not_remembered_without_bound(path: Path) -> None:
    gate = Gate(path)

    def answer(request: Request) -> Response:
        request.context.model_asked = "m" * 5000
        return Response(404, [])

    await gate.serve(request(), answer)
    await gate.serve(request())
    assert len(gate.record._rows) == 1
    assert [len(line.get("model", "")) for line in gate.lines()] == [5000, 0]


async def test_method_label_is_bounded(path: Path) -> None:
    gate = Gate(path)
    await gate.serve(request(method=b"PROPFIND"))
    assert [values[2] for values in gate.counted()] == ["other"]


async def test_without_a_log() -> None:
    families = Families(Metrics())
    record = Record(families)
    one = request()

    async def inner(request: Request) -> Response:
        return Response(200, [])

    await record.handle(one, inner)
    finish(one.ends, Ending(200, Reason.UPSTREAM))
    assert len(families.requests.children) == 1


async def test_leaves_no_cycle(path: Path) -> None:
    gate = Gate(path)

    def refuse(request: Request) -> Response:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    await gate.serve(request())
    gc.collect()
    for _ in range(20):
        await gate.serve(request())
        await gate.serve(request(), refuse)
    assert gc.collect() == 0
