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
from time import gmtime, strftime
from typing import Any, Literal
from urllib.parse import unquote_plus

import msgspec

__all__ = ["AccessLine", "AccessLog", "redact", "stamp"]


class AccessLine(msgspec.Struct, gc=False, omit_defaults=True):
    """One request. Durations in milliseconds. agent: the client that acts. key: the key's name, never the secret.

    What every request has comes first, so that it can be given by position, to `bytes_out`."""

    time: str
    id: str
    status: int
    reason: str
    method: str
    path: str
    duration_ms: float
    ours_ms: float = 0.0
    upstream_ms: float = 0.0
    peer: str = ""
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
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    tokens_reasoning: int = 0
    tokens_estimated: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    ttft_ms: float = 0.0
    query: str = ""
    mcp_method: str = ""
    server: str = ""
    tool: str = ""
    outcome: str = ""
    retries: int = 0
    fallback: str = ""
    rule: str = ""
    gone: bool = False
    error: str = ""
    trace: str = ""


FIELDS = frozenset(AccessLine.__struct_fields__)

_SECRET = ("key", "token", "secret", "password", "passwd", "signature", "credential", "assertion", "auth", "session")
_SEPARATOR = re.compile("([&;])")  # some servers still take ; for &
_SECRET_WHOLE = frozenset({"code", "sig", "jwt", "pwd", "state", "nonce", "code_verifier"})


def redact(query: str) -> str:
    """The query string with the values of everything that may be a credential replaced; other bytes are untouched.

    A name counts when it contains (decoded, in any case) key, token, secret, password, signature, credential,
    assertion, auth or session, or is code, sig, jwt, pwd, state, nonce.
    """
    parts = _SEPARATOR.split(query)
    for n, part in enumerate(parts):
        name, equals, _ = part.partition("=")
        if equals:
            plain = unquote_plus(name).lower()
            if plain in _SECRET_WHOLE or any(word in plain for word in _SECRET):
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
        self._encode_into = msgspec.json.Encoder().encode_into
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._buffer = bytearray()
        self._count = 0
        self._fd = -1
        self._batches: deque[tuple[bytearray, int]] = deque()
        self._waiting = 0
        self._reopen = False
        self._ending = False
        self._wake = Condition()
        self._thread: Thread | None = None

    def start(self) -> None:
        self._fd = self._open()
        self._ending = False
        self._thread = Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def add(self, line: AccessLine, extra: dict[str, Any] | None = None) -> None:
        """Take one line. `extra`: fields of config, none of them named as one of AccessLine's."""
        buffer = self._buffer
        if self._text:
            buffer += _text(line, extra)
        else:
            self._encode_into(line, buffer, -1)
            if extra:
                buffer[-1:] = b","
                buffer += self._encode(extra)[1:]
            buffer += b"\n"
        self._count += 1
        if self._count >= self._lines or len(buffer) >= self._size:
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

    def _write(self, data: bytearray | bytes, count: int) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            # Disk full or a closed pipe: these lines are gone, the next ones are tried again.
            with self._wake:
                self.dropped += count
        finally:
            view.release()
            with self._wake:
                self._waiting -= len(data) if count else 0


def _missing(n: int) -> bytes:
    return b'{"dropped":%d,"why":"the access log was not written in time"}\n' % n


_WORDS = tuple(
    n for n in AccessLine.__struct_fields__ if n not in ("time", "status", "method", "path", "query", "duration_ms")
)
_DEFAULTS = {f.name: f.default for f in msgspec.structs.fields(AccessLine)}


def _text(line: AccessLine, extra: dict[str, Any] | None) -> bytes:
    """`time status method path 12.3ms name=value ...`; a value with anything unusual in it is a JSON string, so that
    no caller can write a line of his own."""
    target = f"{line.path}?{line.query}" if line.query else line.path
    words = [line.time, str(line.status), _word(line.method), _word(target), f"{line.duration_ms}ms"]
    for name in _WORDS:
        value = getattr(line, name)
        if value != _DEFAULTS[name]:
            words.append(f"{name}={_word(value)}")
    if extra:
        words.extend(f"{name}={_word(value)}" for name, value in extra.items())
    return " ".join(words).encode() + b"\n"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable() and text and not set(text) & {" ", '"', "="}:
        return text
    return json.dumps(text)
