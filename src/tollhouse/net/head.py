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

__all__ = ["STATUS_LINES", "Limits", "head_fault", "refusal"]

STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}

# RFC 3986 section 3.2.2, without user information and without what only a generic URI may have
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+;=%]+)(?::\d*)?|")


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


def head_fault(request: Head, limits: Limits, segment: int, upgrades: bool) -> int:
    """What llhttp accepts and we do not: the status to refuse with, or 0. Takes the target apart.

    segment: bytes read at once, at most, while the head came in one piece. upgrades: the parser stops after this one.
    """
    headers = request.headers
    if len(headers) > limits.headers:
        return 431
    if segment > limits.head and sum(len(n) + len(v) + 4 for n, v in headers) + len(request.target) > limits.head:
        return 431
    if request.version != "1.1" and request.version != "1.0":
        return 505
    host: bytes | None = None
    length: bytes | None = None
    for name, value in headers:
        size = len(name)
        if size == 4:
            if name == b"host":
                if host is not None:
                    return 400
                host = value
        elif size == 14:
            if name == b"content-length":
                length = value
        elif size == 17:
            if name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    return 501
                if request.version == "1.0":
                    return 400
                request.chunked = True
        elif size == 6 and name == b"expect":
            if value.lower() != b"100-continue":
                return 417
            request.expects = request.version == "1.1"
    if length is not None and int(length) > limits.body:
        return 413
    if length is None and not request.chunked:
        request.expects = False
    target = request.target
    if request.method == b"CONNECT":
        return 405
    if target[:1] != b"/":
        if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
            # absolute-form: its authority replaces Host (RFC 9112 section 3.2.2)
            authority, slash, rest = target.partition(b"://")[2].partition(b"/")
            authority, question, query = authority.partition(b"?")
            if not authority or (host is None and request.version == "1.1"):
                return 400
            if host is None:
                headers.append((b"host", authority))
            else:
                headers[:] = [(n, authority if n == b"host" else v) for n, v in headers]
            host = authority
            target = request.target = b"/" + rest if slash else b"/" + question + query
        elif target != b"*" or request.method != b"OPTIONS":
            return 400
    if b"#" in target:
        return 400
    if host is None:
        if request.version == "1.1":
            return 400
    elif not _HOST.fullmatch(host):
        return 400
    at = target.find(b"?")
    if at < 0:
        request.path = target
        request.query = b""
    else:
        request.path = target[:at]
        request.query = target[at + 1 :]
    if upgrades:
        if (length is not None and int(length)) or request.chunked:
            return 400  # the body of a request that asks to leave HTTP cannot be told from what follows it
        upgrade = headers.get(b"upgrade")
        request.upgrade = upgrade is not None and upgrade.lower() == b"websocket" and request.version == "1.1"
    return 0
