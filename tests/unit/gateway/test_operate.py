"""What operators are told: alive, ready, draining, and why not ready."""

from pathlib import Path

import pytest

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.gateway.operate import Operations
from tollhouse.ledger.journal import Journal
from tollhouse.observe.metrics import Metrics
from tollhouse.observe.share import Share

pytestmark = pytest.mark.anyio


def get(path: bytes, method: bytes = b"GET", *headers: tuple[bytes, bytes]) -> Request:
    return Request(method, path, Headers(headers))


def said(response: Response) -> tuple[int, bytes]:
    return response.status, response.body


async def test_alive_ready_and_draining() -> None:
    operations = Operations(Metrics())
    assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok"}')
    assert said(await operations.readiness(get(b"/ready"))) == (503, b'{"status":"starting"}')
    operations.ready = True
    assert said(await operations.readiness(get(b"/ready"))) == (200, b'{"status":"ready"}')
    operations.draining = True
    assert said(await operations.status(get(b"/status"))) == (503, b'{"status":"draining"}')
    assert said(await operations.readiness(get(b"/ready"))) == (503, b'{"status":"draining"}')


async def test_a_full_journal_is_not_ready_but_alive(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_size=1, spare=0)
    journal.open()
    try:
        operations = Operations(Metrics(), journal=journal)
        operations.ready = True
        assert journal.full
        assert said(await operations.readiness(get(b"/ready"))) == (503, b'{"status":"ledger full"}')
        assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok"}')
    finally:
        journal.close()


async def test_a_journal_that_fills_up_is_told(tmp_path: Path) -> None:
    alarm = [""]
    operations = Operations(Metrics(), alarm=lambda: alarm[0])
    assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok"}')
    alarm[0] = "filling"
    assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok","journal":"filling"}')


async def test_a_guard_that_cannot_run_is_told() -> None:
    operations = Operations(Metrics())
    why = [""]
    operations.guards = {"judge": [lambda: why[0], str], "other": [str]}
    assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok"}')
    why[0] = "no answer within 2 s"
    assert said(await operations.status(get(b"/status"))) == (200, b'{"status":"ok","guardrails":["judge"]}')


async def test_the_metrics_listener() -> None:
    metrics = Metrics()
    metrics.counter("things_total", "Things.", ("kind",)).child("a").inc(3)
    operations = Operations(metrics)
    operations.ready = True
    answer = await operations.serve_metrics(get(b"/metrics"))
    assert answer.status == 200
    assert b'tollhouse_things_total{kind="a"} 3\n' in answer.body
    assert dict(answer.headers)[b"content-type"].startswith(b"text/plain; version=0.0.4")
    answer = await operations.serve_metrics(get(b"/metrics", b"HEAD", (b"accept", b"application/openmetrics-text")))
    assert dict(answer.headers)[b"content-type"].startswith(b"application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")
    assert said(await operations.serve_metrics(get(b"/status"))) == (200, b'{"status":"ok"}')
    assert said(await operations.serve_metrics(get(b"/ready"))) == (200, b'{"status":"ready"}')
    for request, status in ((get(b"/"), 404), (get(b"/metrics", b"POST"), 405)):
        with pytest.raises(Failure) as refused:
            await operations.serve_metrics(request)
        assert refused.value.status == status


async def test_metrics_of_several_workers_are_one_answer(tmp_path: Path) -> None:
    shares = []
    for worker in ("0", "1"):
        metrics = Metrics(worker=worker)
        metrics.counter("things_total", "Things.", ("kind",)).child("a").inc(2)
        share = Share(tmp_path, metrics)
        share.flush()
        shares.append(share)
    answer = await Operations(Metrics(), shares[0]).serve_metrics(get(b"/metrics"))
    assert b'tollhouse_things_total{kind="a"} 4\n' in answer.body
