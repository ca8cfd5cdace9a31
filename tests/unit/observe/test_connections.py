"""What a server reports of one listener: counts, handshakes, and what never became a request."""

import json
from pathlib import Path

import pytest

from tollhouse.core.errors import Reason
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_refusal_is_counted_by_its_reason_and_has_a_line_with_the_id_of_its_answer(tmp_path: Path) -> None:
    metrics = Metrics()
    log = AccessLog(str(tmp_path / "access.log"))
    log.start()
    connections = Connections(Families(metrics), "127.0.0.1:80", "http", log)
    told = [
        (400, Reason.INVALID_REQUEST, "the header Host is missing", "192.0.2.1", b"/a?api_key=secret"),
        (408, Reason.TIMEOUT, "the request's head did not come in time", "192.0.2.2", b""),
        (503, Reason.OVERLOADED, "too many", "192.0.2.3", b""),
        (414, Reason.INVALID_REQUEST, "too long", "192.0.2.4", b"/" + b"\xff" * 100_000),
    ]
    ids = [connections.refused(*one) for one in told]
    log.close()
    written = lines(tmp_path / "access.log")
    assert [line["id"] for line in written] == ids
    assert len(set(ids)) == len(told)
    for line, (status, reason, message, peer, _) in zip(written, told, strict=True):
        assert (line["status"], line["reason"], line["peer"]) == (status, reason, peer)
        assert (line["error"], line["method"], line["listener"]) == (message, "other", "127.0.0.1:80")
    assert written[0]["path"] == "/a"
    assert "secret" not in (tmp_path / "access.log").read_text()
    assert max(map(len, (tmp_path / "access.log").read_text().splitlines())) < 20_000
    text = metrics.render()[1].decode()
    for status, reason in ((400, "InvalidRequest"), (408, "Timeout"), (503, "Overloaded")):
        assert [
            line for line in text.splitlines()
            if line.startswith("tollhouse_requests_total{") and f'"{status}"' in line and f'"{reason}"' in line
        ], status  # fmt: skip


def test_without_a_log_it_only_counts() -> None:
    metrics = Metrics()
    connections = Connections(Families(metrics), "x", "https")
    assert connections.refused(400, Reason.INVALID_REQUEST, "no", "192.0.2.1", b"/")
    connections.handshakes(0.01)
    connections.connections.value += 1
    text = metrics.render()[1].decode()
    assert 'protocol="https"' in text
    assert next(
        line for line in text.splitlines() if line.startswith("tollhouse_tls_handshake_duration_seconds_count")
    ).endswith(" 1")


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_labels(protocol: str) -> None:
    assert Connections.labels("a:1", protocol) == ("a:1", "tollhouse", "a:1", protocol)
