"""observe.share: the numbers of several workers are one, and never go back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.observe.scraped import OM, samples, value

from tollhouse.observe.metrics import Metrics
from tollhouse.observe.share import Share, merged


def worker(directory: Path, number: str) -> tuple[Metrics, Share, Any, Any, Any]:
    metrics = Metrics(worker=number)
    counter = metrics.counter("requests_total", "R.", ["route"])
    histogram = metrics.histogram("seconds", "S.", ["route"], (1, 2))
    gauge = metrics.gauge("open", "O.")
    metrics.gauge("lag", "L.", merge="max").child().set(float(number))
    return metrics, Share(directory, metrics, period=0.0), counter, histogram, gauge


def test_the_sum_of_workers(tmp_path: Path) -> None:
    _, share1, counter1, histogram1, gauge1 = worker(tmp_path, "1")
    _, share2, counter2, histogram2, gauge2 = worker(tmp_path, "2")
    counter1.child("a").inc(3)
    counter2.child("a").inc(4)
    counter2.child("b").inc(1)
    histogram1.child("a").observe(0.5)
    histogram2.child("a").observe(1.5)
    gauge1.child().set(10)
    gauge2.child().set(5)
    share2.turn()
    for accept in ("", OM):
        body = share1.render(accept)[1]
        got = samples(body, openmetrics=bool(accept))
        assert got["tollhouse_requests_total", (("route", "a"),)] == 7
        assert got["tollhouse_requests_total", (("route", "b"),)] == 1
        assert got["tollhouse_seconds_bucket", (("le", "1.0"), ("route", "a"))] == 1
        assert got["tollhouse_seconds_bucket", (("le", "2.0"), ("route", "a"))] == 2
        assert got["tollhouse_seconds_sum", (("route", "a"),)] == 2
        assert got["tollhouse_open", ()] == 15
        assert got["tollhouse_lag", ()] == 2
        assert got["python_gc_collections_total", (("generation", "0"), ("worker", "2"))] >= 0
        assert got["process_open_fds", (("worker", "1"),)] > 0
        assert got["process_open_fds", (("worker", "2"),)] > 0
    assert samples(merged(tmp_path)[1])["tollhouse_requests_total", (("route", "a"),)] == 7


def test_a_worker_that_takes_a_dead_ones_place_goes_on(tmp_path: Path) -> None:
    _, share1, counter1, histogram1, gauge1 = worker(tmp_path, "1")
    counter1.child("a").inc(3)
    histogram1.child("a").observe(0.5)
    gauge1.child().set(10)
    share1.render()
    counter1.child("a").inc(1)  # never seen by anybody
    del share1  # killed
    _, again, counter, histogram, _ = worker(tmp_path, "1")
    counter.child("a").inc(2)
    histogram.child("a").observe(0.5)
    body = again.render()[1]
    assert value(body, "tollhouse_requests_total", route="a") == 5
    assert value(body, "tollhouse_seconds_count", route="a") == 2
    assert value(body, "tollhouse_open") == 0  # a gauge is of the living
    _, third, counter, _, _ = worker(tmp_path, "1")
    assert value(third.render()[1], "tollhouse_requests_total", route="a") == 5


def test_a_file_of_another_version_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "1.metrics").write_bytes(b"\x93\x01")
    (tmp_path / "2.metrics").write_bytes(b"")
    _, share, counter, _, _ = worker(tmp_path, "1")
    counter.child("a").inc()
    assert value(share.render()[1], "tollhouse_requests_total", route="a") == 1
    Share.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_turn_writes_once_a_period(tmp_path: Path) -> None:
    metrics = Metrics(worker="1")
    share = Share(tmp_path, metrics, period=1000.0)
    share.turn()
    (tmp_path / "1.metrics").unlink()
    share.turn()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_stops_no_clock(tmp_path: Path) -> None:
    share = Share(tmp_path / "run", Metrics(worker="1"), period=0.0)
    (tmp_path / "run").rmdir()
    share.turn()
    with pytest.raises(FileNotFoundError):
        share.render()
    (tmp_path / "run").mkdir()
    share.turn()
    assert (tmp_path / "run" / "1.metrics").exists()


def test_sharing_needs_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number"):
        Share(tmp_path, Metrics())


PROCESS = """
import pathlib, sys
sys.path.insert(0, sys.argv[3])
from tollhouse.observe.metrics import Metrics
from tollhouse.observe.share import Share
metrics = Metrics(worker=sys.argv[2])
share = Share(pathlib.Path(sys.argv[1]), metrics, period=0.0)
child = metrics.counter("requests_total", "R.").child()
for n in range(500):
    child.inc()
    share.turn()
sys.stdin.read()
"""


def test_real_processes_write_while_others_read(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(n), str(Path("src").resolve())], stdin=subprocess.PIPE) for n in range(1, 4)
    ]
    try:
        seen = 0.0
        while seen < 1500:
            now = samples(merged(tmp_path)[1]).get(("tollhouse_requests_total", ()), 0.0)
            assert now >= seen
            seen = now
        assert seen == 1500
        assert ("process_resident_memory_bytes", (("worker", "3"),)) in samples(merged(tmp_path)[1])
    finally:
        for process in running:
            process.communicate()
