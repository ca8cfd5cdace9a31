"""observe.metrics: what was counted is shown, in both formats, and bounded."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.observe.scraped import OM, samples, value

from tollhouse.observe.metrics import OTHER, Metrics, Spread


@given(st.lists(st.lists(st.one_of(st.sampled_from([0.5, 1.0, 4.0]), st.floats(0, 10)))))
def test_what_is_noted_counts_as_what_is_observed(turns: list[list[float]]) -> None:
    noted, observed = Spread((0.5, 1.0, 4.0)), Spread((0.5, 1.0, 4.0))
    for values in turns:
        for one in values:
            noted.note(one)
            observed.observe(one)
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
