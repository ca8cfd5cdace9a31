"""Heads of HTTP/1.1 messages: what is accepted beyond the parser's own checks, and what a refusal looks like.

Rule (RFC 9112): a request whose end could be read in two ways is refused, never repaired. llhttp refuses bare CR and
LF, folded lines, spaces before the colon, NUL, several lengths, a length beside chunked and bad chunk sizes; what it
lets through and we do not is refused here.
"""

import re
from http import HTTPStatus
from typing import Protocol

import msgspec

from tollhouse.core.errors import Reason
from tollhouse.core.http import Headers

__all__ = ["STATUS_LINES", "Limits", "Seen", "head_fault", "refusal"]

STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}

# RFC 3986 section 3.2.2, without user information and without what only a generic URI may have
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+;=%]+)(?::\d*)?|")


_REMEMBERED = 1024


class Limits(msgspec.Struct, frozen=True, gc=False):
    """Bounds on what a client may make the server hold. Sizes in bytes, times in seconds."""

    target: int = 16_384  # request target
    head: int = 65_536  # request line and headers
    headers: int = 100  # header fields
    body: int = 10 << 20
    connections: int = 20_000
    head_timeout: float = 10.0  # from the first byte (or the connection) to the end of the head
    body_timeout: float = 30.0  # between two reads of a body somebody waits for
    idle_timeout: float = 75.0  # between two requests
    write_timeout: float = 60.0  # while the client does not take what was sent


_FAULTS = {
    400: "the request is malformed",
    405: "this server is not a forward proxy",
    408: "the request did not come in time",
    413: "the request body is too large",
    414: "the request target is too long",
    417: "only the expectation 100-continue is understood",
    431: "the request headers are too large",
    501: "the transfer coding is not understood; only chunked is",
    503: "too many connections; try again later",
    505: "only HTTP/1.1 and HTTP/1.0 are spoken here",
}


def refusal(status: int, date: bytes) -> bytes:
    """A whole answer to what never became a request; the connection closes after it."""
    message = _FAULTS[status]
    body = msgspec.json.encode({"title": message, "status": status})
    return b"%b%bcontent-type: application/problem+json\r\n%bx-tollhouse-reason: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        STATUS_LINES[status], date, b"connection: close\r\n", Reason.INVALID_REQUEST.encode(), len(body), body,
    )  # fmt: skip


class Seen:
    """What was looked at before and found right, remembered boundedly: most requests repeat it."""

    __slots__ = ("hosts", "paths")

    def __init__(self) -> None:
        self.hosts: set[bytes] = set()
        self.paths: set[bytes] = set()

    def host(self, value: bytes) -> bool:
        """Whether it is a valid Host."""
        if _HOST.fullmatch(value) is None:
            return False
        if len(self.hosts) < _REMEMBERED:
            self.hosts.add(value)
        return True

    def path(self, target: bytes) -> None:
        """A target that is a path and nothing else."""
        if len(self.paths) < _REMEMBERED:
            self.paths.add(target)


class Head(Protocol):
    """A request whose head is complete and not yet taken apart."""

    target: bytes
    path: bytes
    query: bytes
    method: bytes
    version: str
    headers: Headers
    chunked: bool
    expects: bool
    upgrade: bool


def head_fault(request: Head, limits: Limits, segment: int, upgrades: bool, seen: Seen) -> int:
    """What llhttp accepts and we do not: the status to refuse with, or 0. Takes the target apart.

    segment: bytes read at once, at most, while the head came in one piece. upgrades: the parser stops after this one.
    seen: of this server.
    """
    headers = request.headers
    count = len(headers)
    if count > limits.headers:
        return 431
    if segment > limits.head and sum(len(n) + len(v) + 4 for n, v in headers) + len(request.target) > limits.head:
        return 431
    version = request.version
    if version != "1.1" and version != "1.0":
        return 505
    fields = dict(headers)
    host = fields.get(b"host")
    if len(fields) != count:  # a name came twice
        names = [name for name, _ in headers]
        if names.count(b"host") > 1:
            return 400
        if names.count(b"transfer-encoding") > 1:
            return 501
    length = fields.get(b"content-length")
    if length is not None:  # llhttp lets one through, of digits only
        if int(length) > limits.body:
            return 413
    elif b"transfer-encoding" in fields:
        if fields[b"transfer-encoding"].lower() != b"chunked":
            return 501
        if version == "1.0":
            return 400
        request.chunked = True
    if b"expect" in fields:
        if fields[b"expect"].lower() != b"100-continue":
            return 417
        request.expects = version == "1.1" and (length is not None or request.chunked)
    if host is None:
        if version == "1.1":
            return 400
    elif host not in seen.hosts and not seen.host(host):
        return 400
    method = request.method
    if method == b"CONNECT":
        return 405
    target = request.target
    if target in seen.paths:
        request.path = target
    else:
        fault = _take_apart(request, host, seen)
        if fault:
            return fault
    if upgrades:
        if (length is not None and int(length)) or request.chunked:
            return 400  # the body of a request that asks to leave HTTP cannot be told from what follows it
        upgrade = headers.get(b"upgrade")
        request.upgrade = upgrade is not None and upgrade.lower() == b"websocket" and version == "1.1"
    return 0


def _take_apart(request: Head, host: bytes | None, seen: Seen) -> int:
    """Set path and query from the target (RFC 9112 section 3.2)."""
    target = request.target
    if target[:1] != b"/":
        if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
            # absolute-form: its authority replaces Host (section 3.2.2)
            authority, slash, rest = target.partition(b"://")[2].partition(b"/")
            authority, question, query = authority.partition(b"?")
            if not authority or not seen.host(authority):
                return 400
            if host is None:
                request.headers.append((b"host", authority))
            else:
                request.headers[:] = [(n, authority if n == b"host" else v) for n, v in request.headers]
            target = request.target = b"/" + rest if slash else b"/" + question + query
        elif target != b"*" or request.method != b"OPTIONS":
            return 400
    if b"#" in target:
        return 400
    request.path, question, request.query = target.partition(b"?")
    if not question:
        seen.path(target)
    return 0
