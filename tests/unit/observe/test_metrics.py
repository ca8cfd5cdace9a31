"""observe.metrics: what was counted is shown, in both formats, bounded, and as a sum over workers."""

import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tollhouse.observe.metrics import OTHER, Metrics, Share, Spread, merged

OM = "application/openmetrics-text"


def samples(body: bytes, *, openmetrics: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parse = parse_openmetrics if openmetrics else parse_text
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(body.decode()) for s in family.samples
    }


def value(body: bytes, name: str, **labels: str) -> float:
    return samples(body)[name, tuple(sorted(labels.items()))]


@given(st.lists(st.lists(st.one_of(st.sampled_from([0.5, 1.0, 4.0]), st.floats(0, 10)))))
def test_what_is_noted_counts_as_what_is_observed(turns: list[list[float]]) -> None:
    noted, observed = Spread((0.5, 1.0, 4.0)), Spread((0.5, 1.0, 4.0))
    for values in turns:
        for value in values:
            noted.note(value)
            observed.observe(value)
        noted.count_noted()
        assert noted.counts == observed.counts
        assert noted.sum == pytest.approx(observed.sum)


def test_what_is_noted_is_shown() -> None:
    metrics = Metrics()
    family = metrics.histogram("x_seconds", "X.", (), (1.0,))
    note = family.child().note
    note(0.5)
    note(2)
    assert b"x_seconds_count 2" in metrics.render()[1]
    note(3)
    metrics.count_noted()
    assert family.child().counts == [1, 2]


def test_counter_gauge_histogram() -> None:
    metrics = Metrics()
    requests = metrics.counter("requests_total", "Requests.", ["route", "status"])
    requests.child("a", "200").inc()
    requests.child("a", "200").inc(2)
    requests.child("b", "500").inc()
    metrics.gauge("open", "Open.", ["side"]).child("agent").set(4.5)
    spread = metrics.histogram("seconds", "Time.", ["route"], (0.1, 1, 10)).child("a")
    for x in (0.05, 0.1, 0.5, 1.0001, 99):
        spread.observe(x)
    kind, body = metrics.render()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert value(body, "tollhouse_requests_total", route="a", status="200") == 3
    assert value(body, "tollhouse_requests_total", route="b", status="500") == 1
    assert value(body, "tollhouse_open", side="agent") == 4.5
    assert value(body, "tollhouse_seconds_bucket", route="a", le="0.1") == 2
    assert value(body, "tollhouse_seconds_bucket", route="a", le="1.0") == 3
    assert value(body, "tollhouse_seconds_bucket", route="a", le="10.0") == 4
    assert value(body, "tollhouse_seconds_bucket", route="a", le="+Inf") == 5
    assert value(body, "tollhouse_seconds_count", route="a") == 5
    assert math.isclose(value(body, "tollhouse_seconds_sum", route="a"), 100.6501)


def test_children_are_remembered() -> None:
    family = Metrics().counter("a_total", "A.", ["x"])
    assert family.child("1") is family.child("1")
    with pytest.raises(ValueError, match="labels"):
        family.child("1", "2")


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("text/plain", False),
        (OM, True),
        (f"{OM};version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        (f"{OM};q=0.1, text/plain;q=0.9", False),
        (f"{OM};q=0", False),
        (f"{OM};q=x, text/plain", False),
    ],
)
def test_negotiation(accept: str, openmetrics: bool) -> None:
    kind, body = Metrics().render(accept)
    assert kind.startswith(OM) == openmetrics
    assert body.endswith(b"# EOF\n") == openmetrics


def test_names_with_and_without_total() -> None:
    metrics = Metrics()
    metrics.counter("mcp_requests", "Without.", ["method"]).child("ping").inc()
    metrics.counter("requests_total", "With.").child().inc()
    text = metrics.render()[1].decode()
    assert "# TYPE tollhouse_mcp_requests counter\n" in text
    assert 'tollhouse_mcp_requests{method="ping"} 1\n' in text
    assert "# TYPE tollhouse_requests_total counter\n" in text
    assert "tollhouse_requests_total 1\n" in text
    strict = metrics.render(OM)[1]
    got = samples(strict, openmetrics=True)
    assert got["tollhouse_mcp_requests", (("method", "ping"),)] == 1
    assert got["tollhouse_requests_total", ()] == 1
    assert b"# TYPE tollhouse_mcp_requests unknown\n" in strict
    assert b"# TYPE tollhouse_requests counter\n" in strict


def test_info() -> None:
    metrics = Metrics()
    metrics.info("build_info", "Build.", {"tag": "v1"})
    assert b"# TYPE tollhouse_build_info gauge\n" in metrics.render()[1]
    strict = metrics.render(OM)[1]
    assert b"# TYPE tollhouse_build info\n" in strict
    assert samples(strict, openmetrics=True)["tollhouse_build_info", (("tag", "v1"),)] == 1


def test_process_and_collector_metrics() -> None:
    names = {name for name, _ in samples(Metrics().render()[1])}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names
    assert "python_gc_collections_total" in names


def test_overflow_goes_to_other_and_is_counted() -> None:
    metrics = Metrics(limit=3)
    family = metrics.counter("a_total", "A.", ["x", "y"])
    for n in range(10):
        family.child(str(n), "y").inc()
    body = metrics.render()[1]
    assert value(body, "tollhouse_a_total", x=OTHER, y=OTHER) == 7
    assert sum(v for (name, _), v in samples(body).items() if name == "tollhouse_a_total") == 10
    assert value(body, "tollhouse_metrics_overflow_total") == 7
    assert len(family.children) == 4


def test_declared_again_is_the_same_family() -> None:
    metrics = Metrics()
    one = metrics.counter("a_total", "A.", ["x"])
    assert metrics.counter("a_total", "A.", ["x"]) is one
    with pytest.raises(ValueError, match="already a counter"):
        metrics.gauge("a_total", "A.", ["x"])
    metrics.histogram("h", "H.", [], (1, 2))
    with pytest.raises(ValueError, match="already a histogram"):
        metrics.histogram("h", "H.", [], (1, 3))


def test_other_labels_after_a_reload() -> None:
    """The old series stay, since their counts have been seen; one name, one HELP and TYPE."""
    metrics = Metrics()
    metrics.counter("a_total", "A.", ["x"]).child("1").inc(5)
    metrics.counter("a_total", "A.", ["x", "org"]).child("1", "o").inc(2)
    for accept in ("", OM):
        body = metrics.render(accept)[1]
        assert body.count(b"# TYPE tollhouse_a") == 1
        got = samples(body, openmetrics=bool(accept))
        assert got["tollhouse_a_total", (("x", "1"),)] == 5
        assert got["tollhouse_a_total", (("org", "o"), ("x", "1"))] == 2
    for n in range(50):
        metrics.counter("a_total", "A.", [f"l{n}"])
    assert len(metrics._families["tollhouse_a_total"]) == 8


def test_namespace_and_other_names() -> None:
    metrics = Metrics("agentgateway", names={"runtime_num_workers": "agentgateway_tokio_num_workers"})
    metrics.gauge("runtime_num_workers", "Q.").child().set(1)
    metrics.gauge("plain", "P.").child().set(1)
    body = metrics.render()[1]
    assert value(body, "agentgateway_tokio_num_workers") == 1
    assert value(body, "agentgateway_plain") == 1


@pytest.mark.parametrize("name", ["a-b", "", "ü", "a b", "a{b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="not a metric"):
        Metrics(name or "a b")
    for labels in ([name], ["le"], ["__x"]):
        with pytest.raises(ValueError, match="not a metric or label name"):
            Metrics().counter("a_total", "A.", labels)
    with pytest.raises(ValueError, match="twice"):
        Metrics().counter("a_total", "A.", ["x", "x"])


def test_buckets_must_rise() -> None:
    for buckets in ((), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="rise"):
            Metrics().histogram("h", "H.", [], buckets)


def test_read_when_scraped() -> None:
    metrics = Metrics()
    now = [3.0]
    metrics.gauge("g", "G.").reads(lambda: now[0])
    metrics.counter("c_total", "C.").reads(lambda: now[0] * 2)
    assert value(metrics.render()[1], "tollhouse_g") == 3
    now[0] = 4
    body = metrics.render()[1]
    assert (value(body, "tollhouse_g"), value(body, "tollhouse_c_total")) == (4, 8)
    with pytest.raises(ValueError, match="histogram"):
        metrics.histogram("h", "H.", [], (1,)).reads(lambda: 1.0)


@given(st.text(), st.text())
def test_any_label_value_and_doc(label: str, doc: str) -> None:
    label, doc = (s.encode("utf-8", "replace").decode() for s in (label, doc))
    metrics = Metrics()
    metrics.gauge("g", doc, ["l"]).child(label).set(1)
    # Whatever is in it, it is one sample on one line.
    lines = [line for line in metrics.render()[1].split(b"\n") if line.startswith(b"tollhouse_g")]
    assert len(lines) == 1
    if "\\" not in label:  # the client library's parser reads \\n as a newline
        got = samples(metrics.render(OM)[1], openmetrics=True) if "\n" not in doc else None
        assert got is None or got["tollhouse_g", (("l", label),)] == 1


@pytest.mark.parametrize(("x", "text"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (1e22, "1e+22")])
def test_numbers(x: float, text: str) -> None:
    metrics = Metrics()
    metrics.gauge("g", "G.").child().set(x)
    assert f"tollhouse_g {text}\n".encode() in metrics.render()[1]


def test_scraped_from_another_thread_while_it_grows() -> None:
    metrics = Metrics(limit=100_000)
    family = metrics.counter("a_total", "A.", ["n"])
    failures: list[Exception] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            try:
                metrics.render()
            except RuntimeError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    for n in range(5000):
        family.child(str(n)).inc()
    done.set()
    thread.join()
    assert failures == []


# ---- several workers


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
from tollhouse.observe.metrics import Metrics, Share
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
