"""The access log: one line a request, encoded at once, written in batches by a thread.

Rule: the event loop never waits for the log. Lines are gathered in one buffer; at 200 lines, 64 KiB or the turn of
the clock the buffer goes to the writing thread. When the file (or the pipe behind stdout) does not take them, up to
`bound` bytes wait; what comes then is dropped and counted, and the log itself says how many lines are missing. The
access log may lose lines, also when the process is killed; what must not be lost goes to the ledger.

Never in it: headers, bodies, credentials. Query strings pass `redact`.
"""

import json
import os
import re
from collections import deque
from threading import Condition, Thread
from time import gmtime, strftime, time
from typing import Any, Literal
from urllib.parse import unquote_plus

import msgspec

__all__ = ["AccessLine", "AccessLog", "LineLabels", "Shared", "redact", "stamp"]


class AccessLine(msgspec.Struct, gc=False, omit_defaults=True):
    """What is one request's own. Durations in milliseconds. peer: the client's address. tried: the targets of a model
    that were asked, in their order, once one has failed. approver: who was asked to approve it, or has kept an
    approval. shadow: the rule that would have denied it. integrity: what is wrong with the tool.
    guard, guard_action: the guard that acted on it, and how; withheld_tokens: of the answer, estimated. cache: how it
    was answered without being asked, or what the cache did instead. limit: what refused it, or warned its caller. run:
    the agent run that it is part of.

    What every request has comes first, so that it can be given by position, to `tokens_out`."""

    time: str
    id: str
    path: str
    duration_ms: float
    ours_ms: float = 0.0
    upstream_ms: float = 0.0
    peer: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    tokens_reasoning: int = 0
    tokens_estimated: bool = False
    cost_usd: float | None = None
    ttft_ms: float = 0.0
    query: str = ""
    retries: int = 0
    fallback: str = ""
    tried: str = ""
    rule: str = ""
    approver: str = ""
    shadow: str = ""
    integrity: str = ""
    guard: str = ""
    guard_action: str = ""
    withheld_tokens: int = 0
    cache: str = ""
    limit: str = ""
    run: str = ""
    gone: bool = False
    error: str = ""
    trace: str = ""


class LineLabels(msgspec.Struct, omit_defaults=True):
    """What many requests have in common. agent: the client that acts. key: the key's name, never the secret."""

    status: int
    reason: str
    method: str
    listener: str = ""
    route: str = ""
    backend: str = ""
    principal: str = ""
    user: str = ""
    org: str = ""
    agent: str = ""
    key: str = ""
    operation: str = ""
    provider: str = ""
    model: str = ""
    model_answered: str = ""
    stream: bool = False
    mcp_method: str = ""
    server: str = ""
    tool: str = ""
    outcome: str = ""


class Shared:
    """LineLabels, encoded once for all lines that have them. json: stands in the place of a line's `}`."""

    __slots__ = ("json", "labels")

    def __init__(self, labels: LineLabels) -> None:
        self.labels = labels
        self.json = b"," + msgspec.json.encode(labels)[1:] + b"\n"


_SECRET = (
    "key", "token", "secret", "password", "passwd", "signature", "credential", "assertion", "auth", "session", "bearer",
)  # fmt: skip
_SEPARATOR = re.compile("([&;])")  # some servers still take ; for &
_SECRET_WHOLE = frozenset({
    "code", "sig", "jwt", "pass", "pin", "pwd", "state", "nonce", "code_verifier", "user_code", "login_hint",
    "logout_hint",
})  # fmt: skip


def redact(query: str) -> str:
    """The query string with the values of everything that may be a credential replaced; other bytes are untouched.

    A name counts when it contains (decoded once or twice, as some servers do; in any case) key, token, secret,
    password, signature, credential, assertion, auth, session or bearer, or is code, sig, jwt, pass, pin, pwd, state,
    nonce, user_code, or who somebody is before he has logged in: login_hint, logout_hint.
    """
    parts = _SEPARATOR.split(query)
    for n, part in enumerate(parts):
        name, equals, _ = part.partition("=")
        if equals:
            once = unquote_plus(name).lower()
            twice = unquote_plus(once).lower() if "%" in once or "+" in once else once
            if {once, twice} & _SECRET_WHOLE or any(word in once or word in twice for word in _SECRET):
                parts[n] = f"{name}=***"
    return "".join(parts)


class _Stamp:
    """Wall-clock time as RFC 3339 in milliseconds, made once a millisecond; the seconds' part once a second."""

    __slots__ = ("_milli", "_prefix", "_second", "_text")

    def __init__(self) -> None:
        self._milli = self._second = -1
        self._prefix = self._text = ""

    def __call__(self, now: float) -> str:
        milli = int(now * 1000)
        if milli != self._milli:
            self._milli = milli
            second = milli // 1000
            if second != self._second:
                self._second = second
                self._prefix = strftime("%Y-%m-%dT%H:%M:%S.", gmtime(second))
            self._text = f"{self._prefix}{milli % 1000:03d}Z"
        return self._text


def stamp() -> _Stamp:
    """A function from unix seconds to `2026-11-22T02:42:11.123Z`."""
    return _Stamp()


class AccessLog:
    """A file that takes lines. path: "-" is stdout. bound: bytes that may wait for a slow disk.

    `start` opens the file and the thread (OSError when it cannot), `close` writes what is left and ends them.
    """

    def __init__(
        self,
        path: str = "-",
        *,
        format: Literal["json", "text"] = "json",
        lines: int = 200,
        size: int = 64 << 10,
        bound: int = 8 << 20,
    ) -> None:
        self.path = path
        self.dropped = 0
        """Lines lost because the file did not take them in time."""
        self._text = format == "text"
        self._lines = lines
        self._size = size
        self._bound = bound
        self._stamp = stamp()
        self._encode_into = msgspec.json.Encoder().encode_into
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._buffer = bytearray()
        self._count = 0
        self._fd = -1
        self._batches: deque[tuple[bytearray, int]] = deque()
        self._waiting = 0
        self._reopen = False
        self._within = False  # a line: what the thread wrote last does not end one
        self._ending = False
        self._wake = Condition()
        self._thread: Thread | None = None

    def start(self) -> None:
        self._fd = self._open()
        self._ending = False
        self._thread = Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def add(self, line: AccessLine, shared: Shared, extra: dict[str, Any] | None = None) -> None:
        """Take one line. `extra`: fields of config, none of them named as one of the line's. A line that cannot be
        encoded (half a surrogate pair in a caller's words) is dropped."""
        buffer = self._buffer
        size = len(buffer)
        try:
            if self._text:
                buffer += _text(line, shared.labels, extra)
            else:
                self._encode_into(line, buffer, -1)
                buffer[-1:] = shared.json
                if extra:
                    buffer[-2:] = b"," + self._encode(extra)[1:] + b"\n"
        except (TypeError, ValueError, msgspec.MsgspecError):
            del buffer[size:]  # half a line would run into the next
            with self._wake:
                self.dropped += 1
            return
        self._count += 1
        if self._count >= self._lines or len(buffer) >= self._size:
            self.flush()

    def add_record(self, chain: str, body: bytes) -> None:
        """Take an audit record as a line: its JSON, and the chain that it stands in as `audit`."""
        now = self._stamp(time())
        if self._text:
            words = (f"{name}={_word(value)}" for name, value in msgspec.json.decode(body).items())
            self._buffer += f"{now} audit={chain} {' '.join(words)}\n".encode()
        else:
            self._buffer += b'{"time":"%b","audit":"%b",%b\n' % (now.encode(), chain.encode(), body[1:])
        self._count += 1
        if self._count >= self._lines or len(self._buffer) >= self._size:
            self.flush()

    def flush(self) -> None:
        """Give what was gathered to the thread; for `Clock.every_turn`."""
        if not self._count:
            return
        buffer, count = self._buffer, self._count
        self._buffer, self._count = bytearray(), 0
        with self._wake:
            if self._waiting + len(buffer) > self._bound:
                self.dropped += count
                return
            self._waiting += len(buffer)
            self._batches.append((buffer, count))
            self._wake.notify()

    def reopen(self) -> None:
        """Open the path again before the next batch: the file was renamed (logrotate)."""
        with self._wake:
            self._reopen = True
            self._wake.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Write what is left; give up after `timeout` seconds when the file takes nothing."""
        self.flush()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._ending = True
            self._wake.notify()
        thread.join(timeout)

    def _open(self) -> int:
        if self.path == "-":
            return os.dup(1)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        """The thread: everything that touches the file, but the first open."""
        told = 0
        while True:
            with self._wake:
                while not self._batches and not self._reopen and not self._ending:
                    self._wake.wait()
                batch = self._batches.popleft() if self._batches else None
                reopen = self._reopen and batch is None
                if reopen:
                    self._reopen = False
                ending = self._ending and batch is None
                dropped = self.dropped
            if reopen:
                self._swap()
            if batch is not None:
                self._write(*batch)
            if dropped > told:
                self._write(_missing(dropped - told), 0)
                told = dropped
            if ending:
                os.close(self._fd)
                return

    def _swap(self) -> None:
        try:
            fresh = self._open()
        except OSError:
            return  # better the renamed file than none
        os.close(self._fd)
        self._fd = fresh
        self._within = False

    def _write(self, data: bytearray | bytes, count: int) -> None:
        view = memoryview(data)
        written = 0
        try:
            if self._within:  # a line was cut: what comes now is not to be its end
                os.write(self._fd, b"\n")
                self._within = False
            while written < len(data):
                written += os.write(self._fd, view[written:])
        except OSError:
            # Disk full or a closed pipe: the lines that were not written are gone, the next ones are tried again.
            with self._wake:
                self.dropped += data.count(b"\n", written) if count else 0
        finally:
            if written:
                self._within = data[written - 1] != _NEWLINE
            view.release()
            with self._wake:
                self._waiting -= len(data) if count else 0


def _missing(n: int) -> bytes:
    return b'{"dropped":%d,"why":"the access log was not written in time"}\n' % n


_NEWLINE = ord("\n")
_APART = frozenset(("time", "status", "method", "path", "query", "duration_ms"))
_WORDS = tuple(
    (f.name, f.default, which)
    for which, fields in enumerate((msgspec.structs.fields(AccessLine), msgspec.structs.fields(LineLabels)))
    for f in fields
    if f.name not in _APART
)


def _text(line: AccessLine, labels: LineLabels, extra: dict[str, Any] | None) -> bytes:
    """`time status method path 12.3ms name=value ...`; a value with anything unusual in it is a JSON string, so that
    no caller can write a line of his own."""
    target = f"{line.path}?{line.query}" if line.query else line.path
    words = [line.time, str(labels.status), _word(labels.method), _word(target), f"{line.duration_ms}ms"]
    both = (line, labels)
    for name, default, which in _WORDS:
        value = getattr(both[which], name)
        if value != default:
            words.append(f"{name}={_word(value)}")
    if extra:
        words.extend(f"{name}={_word(value)}" for name, value in extra.items())
    return " ".join(words).encode() + b"\n"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable() and text and not set(text) & {" ", '"', "="}:
        return text
    return json.dumps(text)
