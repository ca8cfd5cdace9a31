"""observe.access_log: lines are whole, private, in order, and never hold up the loop."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.observe.access_log import AccessLine, AccessLog, LineLabels, Shared, redact, stamp


def line(n: int = 0, **fields: Any) -> tuple[AccessLine, Shared]:
    own: dict[str, Any] = {
        "time": "2026-11-22T02:42:11.123Z",
        "id": f"r{n}",
        "path": "/v1/chat/completions",
        "duration_ms": 1.5,
    }
    labels: dict[str, Any] = {"status": 200, "reason": "Upstream", "method": "POST"}
    for name, value in fields.items():
        (own if name in AccessLine.__struct_fields__ else labels)[name] = value
    return AccessLine(**own), Shared(LineLabels(**labels))


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def log(path: Path) -> Iterator[AccessLog]:
    log = AccessLog(str(path))
    log.start()
    yield log
    log.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_line_has_what_is_known(log: AccessLog, path: Path) -> None:
    log.add(*line(user="ada", tokens_in=3))
    log.close()
    assert read(path) == [
        {
            "time": "2026-11-22T02:42:11.123Z",
            "id": "r0",
            "status": 200,
            "reason": "Upstream",
            "method": "POST",
            "path": "/v1/chat/completions",
            "duration_ms": 1.5,
            "user": "ada",
            "tokens_in": 3,
        }
    ]


def test_extra_fields_follow(log: AccessLog, path: Path) -> None:
    log.add(*line(), {"team": 'a "b"', "n": 3, "odd": object})
    log.add(*line(1), {})
    log.close()
    first, second = read(path)
    assert first["team"] == 'a "b"'
    assert first["n"] == 3
    assert first["odd"] == "<class 'object'>"
    assert first["id"] == "r0"
    assert second["id"] == "r1"


def test_order_and_batches(path: Path) -> None:
    log = AccessLog(str(path), lines=10)
    log.start()
    for n in range(9):
        log.add(*line(n))
    assert not path.read_text()
    log.add(*line(9))
    wait_for(lambda: len(read(path)) == 10)
    log.add(*line(10))
    log.flush()
    wait_for(lambda: len(read(path)) == 11)
    log.add(*line(11))
    log.close()
    assert [entry["id"] for entry in read(path)] == [f"r{n}" for n in range(12)]


def test_a_batch_ends_by_size(path: Path) -> None:
    log = AccessLog(str(path), lines=10_000, size=1000)
    log.start()
    for n in range(20):
        log.add(*line(n))
    wait_for(lambda: read(path))
    log.close()
    assert len(read(path)) == 20


def test_reopen_after_a_rename(log: AccessLog, path: Path) -> None:
    log.add(*line(1))
    log.flush()
    wait_for(lambda: len(read(path)) == 1)
    old = path.rename(path.with_suffix(".1"))
    log.reopen()
    wait_for(path.exists)
    log.add(*line(2))
    log.close()
    assert [entry["id"] for entry in read(old)] == ["r1"]
    assert [entry["id"] for entry in read(path)] == ["r2"]


def test_reopen_that_fails_goes_on_in_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AccessLog(str(folder / "a.log"))
    log.start()
    moved = folder.rename(tmp_path / "moved")
    log.reopen()
    log.add(*line(1))
    log.close()
    assert [entry["id"] for entry in read(moved / "a.log")] == ["r1"]


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AccessLog(str(tmp_path / "none" / "a.log")).start()


def test_a_reader_that_stands_still_loses_lines_and_not_time(tmp_path: Path) -> None:
    """A pipe that nobody reads: `add` never waits, the bound holds, and the log says later how much is missing."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(pipe), lines=10, bound=100_000)
    log.start()
    began = time.monotonic()
    sent = 5000
    for n in range(sent):
        log.add(*line(n))
    log.flush()
    assert time.monotonic() - began < 2.0
    assert log.dropped > 1000
    got = bytearray()
    done = threading.Event()

    def drain() -> None:
        os.set_blocking(reader, True)
        while chunk := os.read(reader, 65536):
            got.extend(chunk)
        done.set()

    thread = threading.Thread(target=drain)
    thread.start()
    log.close()
    assert done.wait(5)
    thread.join()
    os.close(reader)
    entries = [json.loads(text) for text in bytes(got).splitlines()]
    missing = sum(entry.get("dropped", 0) for entry in entries)
    assert missing == log.dropped
    assert len([e for e in entries if "id" in e]) + missing == sent


def test_close_gives_up_on_a_pipe_that_takes_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(pipe), lines=10)
    log.start()
    for n in range(5000):
        log.add(*line(n))
    began = time.monotonic()
    log.close(timeout=0.05)
    assert time.monotonic() - began < 2.0
    os.close(reader)  # EPIPE frees the thread


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_counted() -> None:
    log = AccessLog("/dev/full")
    log.start()
    for n in range(5):
        log.add(*line(n))
    log.close()
    assert log.dropped == 5


class Pipe:
    """A file that takes so many bytes and then none, until it is emptied: a disk that is full for a while."""

    def __init__(self, where: Path) -> None:
        self.path = where / "pipe"
        os.mkfifo(self.path)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.log = AccessLog(str(self.path), lines=100_000, size=1 << 20)
        self.log.start()
        os.set_blocking(self.log._fd, False)  # a full pipe is then an OSError, as a full disk is

    def read(self) -> bytes:
        got = b""
        with suppress(BlockingIOError):
            while chunk := os.read(self.reader, 1 << 20):
                got += chunk
        return got


def test_a_line_that_was_cut_is_alone_and_what_was_written_is_not_missing(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path)
    log, sent = pipe.log, 2000
    for n in range(sent):
        log.add(*line(n))
    log.flush()
    wait_for(lambda: log.dropped > 0)
    wait_for(lambda: log._waiting == 0)
    before = pipe.read()
    assert not before.endswith(b"\n")
    log.add(*line(sent))
    log.flush()
    wait_for(lambda: log._waiting == 0)
    log.close()
    lines = (before + pipe.read()).split(b"\n")
    os.close(pipe.reader)
    whole = [json.loads(text) for text in lines if text.startswith(b"{") and text.endswith(b"}")]
    assert [text for text in lines if text and not (text.startswith(b"{") and text.endswith(b"}"))] == [
        before.rpartition(b"\n")[2]
    ]
    ids = [entry["id"] for entry in whole if "id" in entry]
    assert ids[-1] == f"r{sent}"
    assert len(ids) + log.dropped == sent + 1  # the one that was cut is missing
    assert sum(entry.get("dropped", 0) for entry in whole) == log.dropped


@pytest.mark.parametrize("text", [False, True])
def test_a_line_that_cannot_be_encoded_leaves_no_half_of_it(path: Path, text: bool) -> None:
    log = AccessLog(str(path), format="text" if text else "json")
    log.start()
    log.add(*line(1))
    log.add(*line(2), {"team": "\ud800"})
    own, shared = line(3)
    own.error = "\ud800"
    log.add(own, shared)
    log.add(*line(4))
    log.close()
    said = path.read_text().splitlines()
    assert [n for n in range(5) if any(f'r{n}"' in one or f"=r{n} " in one for one in said)] in ([1, 4], [1, 2, 3, 4])
    if not text:
        assert [json.loads(one).get("id") for one in said if "dropped" not in one] == ["r1", "r4"]
        assert log.dropped == 2


def test_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("-")
    log.start()
    log.add(*line())
    log.close()
    assert json.loads(capfd.readouterr().out)["id"] == "r0"


def test_text(path: Path) -> None:
    log = AccessLog(str(path), format="text")
    log.start()
    log.add(*line(user="ada", tokens_in=3, query="a=1", error="no such model"), {"team": "x y"})
    log.close()
    assert path.read_text() == (
        '2026-11-22T02:42:11.123Z 200 POST "/v1/chat/completions?a=1" 1.5ms id=r0 tokens_in=3 '
        'error="no such model" reason=Upstream user=ada team="x y"\n'
    )


@given(st.text(), st.text())
def test_text_is_always_one_line(user: str, extra: str) -> None:
    from tollhouse.observe.access_log import _text

    own, shared = line(user=user, path="/" + user)
    data = _text(own, shared.labels, {"e": extra})
    assert data.count(b"\n") == 1
    assert data.decode().isprintable() or data.endswith(b"\n")
    assert all(byte >= 32 for byte in data[:-1])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("a=1&b=2", "a=1&b=2"),
        ("key=abc", "key=***"),
        ("a=1&api_key=abc&b=2", "a=1&api_key=***&b=2"),
        ("API-KEY=abc", "API-KEY=***"),
        ("access_token=abc", "access_token=***"),
        ("%6bey=abc", "%6bey=***"),
        ("X-Amz-Signature=abc&X-Amz-Credential=d", "X-Amz-Signature=***&X-Amz-Credential=***"),
        ("sig=1&code=2&state=3&jwt=4", "sig=***&code=***&state=***&jwt=***"),
        ("password=a=b=c", "password=***"),
        ("key", "key"),
        ("token=a&token=b", "token=***&token=***"),
        ("a=1;key=2;b=3", "a=1;key=***;b=3"),
        ("q=monkey", "q=monkey"),
        ("pass=1&bearer=2&pin=3", "pass=***&bearer=***&pin=***"),
        ("%2574oken=1&%252574oken=2", "%2574oken=***&%252574oken=2"),
        ("compass=1&spin=2", "compass=1&spin=2"),
        ("user_code=BCDF-GHJK&x=1", "user_code=***&x=1"),
        ("login_hint=ada%40example.com&logout_hint=ada", "login_hint=***&logout_hint=***"),
    ],
)
def test_redact(query: str, expected: str) -> None:
    assert redact(query) == expected


@given(st.text(alphabet="abc=&%;+#", max_size=40), st.sampled_from(["key", "client_secret", "Auth_Token"]))
def test_a_secret_never_passes(noise: str, name: str) -> None:
    assert "s3cr3t" not in redact(f"{noise}&{name}=s3cr3t&{noise}")


def test_stamp() -> None:
    say = stamp()
    assert say(1_795_315_331.5) == "2026-11-22T02:42:11.500Z"
    assert say(1_795_315_331.9999) == "2026-11-22T02:42:11.999Z"
    assert say(1_795_315_332.0) == "2026-11-22T02:42:12.000Z"


@pytest.mark.parametrize("text", [False, True])
def test_an_audit_record_is_a_line(path: Path, text: bool) -> None:
    log = AccessLog(str(path), format="text" if text else "json")
    log.start()
    log.add(*line())
    log.add_record("abcd", b'{"n":1,"user":"ada\\n\\"x","scopes":["a","b"]}')
    log.add(*line(1))
    log.close()
    found = path.read_text().splitlines()
    assert len(found) == 3
    if text:
        when, rest = found[1].split(" ", 1)
        assert rest == 'audit=abcd n=1 user="ada\\n\\"x" scopes="[\'a\', \'b\']"'
    else:
        record = json.loads(found[1])
        when = record.pop("time")
        assert record == {"audit": "abcd", "n": 1, "user": 'ada\n"x', "scopes": ["a", "b"]}
    assert when.endswith("Z")
