"""Heads of HTTP/1.1 messages: what is accepted beyond the parser's own checks, and what a refusal looks like.

Rule (RFC 9112): a request whose end could be read in two ways is refused, never repaired. llhttp refuses bare CR and
LF, folded lines, spaces before the colon, NUL, several lengths, a length beside chunked and bad chunk sizes; what it
lets through and we do not is refused here.
"""

import re
from http import HTTPStatus

import httptools
import msgspec

from tollhouse.core.errors import Reason
from tollhouse.core.http import Headers, Known

__all__ = [
    "STATUS_LINES",
    "TOO_SLOW",
    "Fault",
    "Head",
    "Limits",
    "Seen",
    "full",
    "head_fault",
    "large_head",
    "long_target",
    "parser_fault",
    "refusal",
]

_PHRASES = {s.value: s.phrase for s in HTTPStatus} | {  # RFC 9110; the interpreter's may be those of 1999
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode()) for status, phrase in _PHRASES.items()}

# RFC 3986 section 3.2.2, without user information and without what only a generic URI may have
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+;=%]+)(?::\d*)?|")
_LONGEST_HOST = 255 + 6  # a name as DNS has it, and a port
_LONGEST_PATH = 256  # worth remembering
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


class Fault(msgspec.Struct, frozen=True, gc=False):
    """Why something never became a request. message: what is wrong and what would be right, for the caller."""

    status: int
    message: str
    reason: Reason = Reason.INVALID_REQUEST


TOO_SLOW = Fault(408, "the request's head did not come in time", Reason.TIMEOUT)
_NO_HOST = Fault(400, "the header Host is missing")
_TWO_HOSTS = Fault(400, "there is more than one header Host")
_BAD_HOST = Fault(400, "the host is not valid: write a name or an address, and perhaps a port")
_CODING = Fault(501, "the transfer coding is not understood; only chunked is")
_CHUNKED_1_0 = Fault(400, "HTTP/1.0 has no transfer codings; send a Content-Length")
_EXPECTATION = Fault(417, "only the expectation 100-continue is understood")
_VERSION = Fault(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
_CONNECT = Fault(405, "this server is not a forward proxy")
_TARGET = Fault(
    400, "the request target is not valid: write a path, or a URL of http or https, in ASCII, with % for what is not"
)
_FRAGMENT = Fault(400, "the request target has a fragment; what follows # is not sent")
_UPGRADE = Fault(400, "a request that asks to leave HTTP may not have a body")


_VERSIONS = frozenset(("Invalid HTTP version", "Pause on PRI/Upgrade"))  # what llhttp says, also to HTTP/2's preface


def full(limits: Limits) -> Fault:
    """One connection more than may be."""
    return Fault(503, f"there are {limits.connections} connections already; try again later", Reason.OVERLOADED)


def long_target(limits: Limits) -> Fault:
    return Fault(414, f"the request target is longer than {limits.target} bytes")


def large_head(limits: Limits) -> Fault:
    return Fault(431, f"the request's head is larger than {limits.head} bytes")


def parser_fault(error: httptools.HttpParserError) -> Fault:
    """What llhttp does not accept, mostly in its own words."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Fault(400, "the method is not known here")
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return _TARGET
    said = str(error)
    if said in _VERSIONS:
        return _VERSION
    if isinstance(error, httptools.HttpParserCallbackError) or not said.isprintable():
        said = ""
    return Fault(400, f"the request is malformed: {said[:1].lower()}{said[1:]}" if said else "the request is malformed")


def refusal(fault: Fault, start: bytes, request_id: str) -> bytes:
    """A whole answer to what never became a request; the connection closes after it. start: status line and Date."""
    body = msgspec.json.encode({"title": fault.message, "status": fault.status})
    return (
        b"%bcontent-type: application/problem+json\r\nconnection: close\r\nx-tollhouse-reason: %b\r\n%b"
        b"content-length: %d\r\n\r\n%b"
        % (
            start,
            fault.reason.encode(),
            b"x-request-id: %b\r\n" % request_id.encode("latin-1") if request_id else b"",
            len(body),
            body,
        )
    )


class Seen:
    """What was looked at before and found right: most requests repeat it. Bounded in number and in length, and begun
    anew when full, so that nobody fills it for good."""

    __slots__ = ("hosts", "paths")

    def __init__(self) -> None:
        self.hosts: set[bytes] = set()
        self.paths: set[bytes] = set()

    def host(self, value: bytes) -> bool:
        """Whether it is a valid Host."""
        if len(value) > _LONGEST_HOST or _HOST.fullmatch(value) is None:
            return False
        if len(self.hosts) >= _REMEMBERED:
            self.hosts.clear()
        self.hosts.add(value)
        return True

    def path(self, target: bytes) -> None:
        """A target that is a path and nothing else."""
        if len(target) > _LONGEST_PATH:
            return
        if len(self.paths) >= _REMEMBERED:
            self.paths.clear()
        self.paths.add(target)


class Head(msgspec.Struct, gc=False):
    """A request's line and fields. `head_fault` takes the target apart, and says how the body comes.

    length: of the body, as announced; 0 where it is not. known: for a head that comes again.
    """

    method: bytes
    target: bytes
    version: str
    headers: Headers
    keep_alive: bool
    path: bytes = b""
    query: bytes = b""
    chunked: bool = False
    expects: bool = False
    upgrade: bool = False
    length: int = 0
    known: Known | None = None


def head_fault(head: Head, limits: Limits, segment: int, upgrades: bool, seen: Seen) -> Fault | None:
    """What llhttp accepts and we do not. Takes the target apart.

    segment: bytes read, at most, from the head's first to its last. upgrades: the parser stops after this one. seen: of
    this server. The length is no fault: who answers knows how long a body may be, and in which dialect to say so.
    """
    headers = head.headers
    count = len(headers)
    if count > limits.headers:
        return Fault(431, f"there are more than {limits.headers} header fields")
    if segment > limits.head and sum(len(n) + len(v) + 4 for n, v in headers) + len(head.target) > limits.head:
        return large_head(limits)
    version = head.version
    if version != "1.1" and version != "1.0":
        return _VERSION
    fields = dict(headers)
    host = fields.get(b"host")
    if len(fields) != count:  # a name came twice
        names = [name for name, _ in headers]
        if names.count(b"host") > 1:
            return _TWO_HOSTS
        if names.count(b"transfer-encoding") > 1:
            return _CODING
    length = fields.get(b"content-length")
    if length is not None:  # llhttp lets one through, of digits only
        head.length = int(length)
    elif b"transfer-encoding" in fields:
        if fields[b"transfer-encoding"].lower() != b"chunked":
            return _CODING
        if version == "1.0":
            return _CHUNKED_1_0
        head.chunked = True
    if b"expect" in fields:
        if fields[b"expect"].lower() != b"100-continue":
            return _EXPECTATION
        head.expects = version == "1.1" and (length is not None or head.chunked)
    if host is None:
        if version == "1.1":
            return _NO_HOST
    elif host not in seen.hosts and not seen.host(host):
        return _BAD_HOST
    method = head.method
    if method == b"CONNECT":
        return _CONNECT
    target = head.target
    if target in seen.paths:
        head.path = target
    else:
        fault = _take_apart(head, host, seen)
        if fault is not None:
            return fault
    if upgrades:
        if head.length or head.chunked:
            return _UPGRADE  # its body cannot be told from what follows it
        upgrade = headers.get(b"upgrade")
        head.upgrade = upgrade is not None and upgrade.lower() == b"websocket" and version == "1.1"
    return None


def _take_apart(head: Head, host: bytes | None, seen: Seen) -> Fault | None:
    """Set path and query from the target (RFC 9112 section 3.2)."""
    target = head.target
    if target[:1] != b"/":
        if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
            # absolute-form: its authority replaces Host (section 3.2.2)
            authority, slash, rest = target.partition(b"://")[2].partition(b"/")
            authority, question, query = authority.partition(b"?")
            if not authority or not seen.host(authority):
                return _BAD_HOST
            if host is None:
                head.headers.append((b"host", authority))
            else:
                head.headers[:] = [(n, authority if n == b"host" else v) for n, v in head.headers]
            target = head.target = b"/" + rest if slash else b"/" + question + query
        elif target != b"*" or head.method != b"OPTIONS":
            return _TARGET
    if b"#" in target:
        return _FRAGMENT
    head.path, question, head.query = target.partition(b"?")
    if not question and target != b"*":  # which is no target for another method
        seen.path(target)
    return None
