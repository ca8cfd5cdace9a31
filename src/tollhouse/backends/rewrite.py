"""What changes between the request a client sent and the one an upstream gets, and on the way back.

Rule: a field passes unless there is a reason against it: it belongs to one connection (RFC 9110 section 7.6.1), it
is the gateway's own credential, or it says what only a trusted proxy may say. The path
sent is the one that was matched and authorised, in normal form.
"""

import re
from typing import Self
from urllib.parse import quote, unquote_to_bytes

from pydantic import Field, field_validator, model_validator

from tollhouse.backends.header_fields import HeaderFields, header_lines
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.forwarded import Forwarding, is_provenance
from tollhouse.core.http import Headers, Request
from tollhouse.core.match import Predicate, normal_path
from tollhouse.core.spec import Spec

__all__ = ["HOP_BY_HOP", "QuerySpec", "Rewrite", "RewriteSpec"]

HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"http2-settings", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info",
    )
)  # fmt: skip
"""Header fields that are about a connection (RFC 9110 section 7.6.1), and go no further."""

_REQUEST_DROPPED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"max-forwards"}
_RESPONSE_DROPPED = HOP_BY_HOP | {b"content-length", b"date"}
_SUSPECT = frozenset((b"c", b"f", b"x"))  # how names of provenance begin
_USUAL = frozenset((b"keep-alive", b"close", b"upgrade", b""))  # in Connection, and no field's name
_VIA = b"via: 1.1 tollhouse\r\n"

_QUERY = re.compile(rb"[\x00-\x20\x7f-\xff]")


class QuerySpec(Spec):
    """Changes of query parameters, in this order: remove, set, add. Names and values are plain, not percent-encoded."""

    set: dict[str, str] = Field(default={}, description="parameters that replace any of their name")
    add: dict[str, str] = Field(default={}, description="parameters that come in addition")
    remove: list[str] = Field(default=[], description="names of parameters that are left out")


class RewriteSpec(Spec):
    """What the upstream gets instead of what the client sent."""

    prefix: str | None = Field(default=None, description="in place of the matched prefix")
    path: str | None = Field(default=None, description="in place of the whole path")
    host: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._\-\[\]:]+$", description="in place of the Host header"
    )
    headers: HeaderFields = Field(
        default={}, description="header fields for the upstream alone, in place of any of their name: its credentials"
    )
    query: QuerySpec = Field(default=QuerySpec(), description="changes of the query")

    @field_validator("prefix", "path")
    @classmethod
    def _normal(cls, value: str | None) -> str | None:
        return None if value is None else normal_path(value)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.prefix is not None and self.path is not None:
            raise ValueError("give `prefix` or `path`, not both")
        return self


class Rewrite:
    """The changes of one route, prepared. credentials: lower-case names of header fields that carry the gateway's own
    credentials; they are left out once they have told who the caller is."""

    __slots__ = (
        "_credentials",
        "_cut",
        "_forwarding",
        "_lines",
        "_ours",
        "_put",
        "_query_gone",
        "_query_more",
        "_whole",
        "host",
        "preserve_host",
    )

    def __init__(
        self,
        spec: RewriteSpec,
        predicate: Predicate,
        forwarding: Forwarding,
        *,
        strip_prefix: bool = False,
        preserve_host: bool = False,
        credentials: frozenset[bytes] = frozenset(),
    ) -> None:
        self._forwarding = forwarding
        self._credentials = credentials
        self._whole = spec.path.encode("ascii") if spec.path is not None else None
        self._cut = predicate.path if strip_prefix or spec.prefix is not None else b""
        self._put = (spec.prefix or "").rstrip("/").encode("ascii")
        self._ours = frozenset(name.lower().encode("ascii") for name in spec.headers)
        self._lines = header_lines(spec.headers)
        query = spec.query
        self._query_gone = frozenset(n.encode("utf-8") for n in (*query.remove, *query.set))
        pairs = (*query.set.items(), *query.add.items())
        self._query_more = tuple(f"{quote(n, safe='')}={quote(v, safe='')}".encode("ascii") for n, v in pairs)
        self.host = spec.host.encode("ascii") if spec.host is not None else None
        self.preserve_host = preserve_host

    # ---- there
    def target(self, request: Request, base: bytes) -> bytes:
        """The request target for an upstream whose own path is `base` (no final slash). Raises Failure 400."""
        if self._whole is not None:
            path = base + self._whole
        elif self._cut or self._put:
            path = base + self._put + request.path[len(self._cut) :] or b"/"
        else:
            path = base + request.path
        query = request.query
        if query and _QUERY.search(query):
            raise Failure(400, Reason.INVALID_REQUEST, "the query has a character that must be percent-encoded")
        if self._query_gone or self._query_more:
            pairs = [p for p in query.split(b"&") if p and _name(p) not in self._query_gone]
            query = b"&".join([*pairs, *self._query_more])
        return b"%b?%b" % (path, query) if query else path

    def fields(self, request: Request, *, upgrade: bool) -> bytes:
        """The header lines of the request that are the same for every upstream: all but Host and the framing."""
        headers = request.headers
        dropped = _REQUEST_DROPPED
        named = _named(headers)
        if named:
            dropped |= named
        ours = self._ours
        if ours:
            dropped |= ours
        context = request.context
        principal = context.principal
        if self._credentials and principal is not None and principal.source != "anonymous":
            dropped |= self._credentials
        if context.request_id:
            dropped |= _REQUEST_ID
        kept = [
            pair
            for pair in headers
            if pair[0] not in dropped
            and not (pair[0][:1] in _SUSPECT and is_provenance(pair[0]))
            and not (b"_" in pair[0] and pair[0].replace(b"_", b"-") in dropped)
        ]
        said = self._forwarding.fields(request, self._cut)
        kept += [pair for pair in said if pair[0] not in ours] if ours else said
        lines = [b"%b: %b\r\n" % pair for pair in kept]
        lines.append(_VIA)
        if context.request_id:
            lines.append(b"x-request-id: %b\r\n" % context.request_id.encode("latin-1"))
        lines.append(self._lines)
        if upgrade:
            lines.append(b"connection: upgrade\r\nupgrade: websocket\r\n")
        return b"".join(lines)

    # ---- and back
    def answer(self, headers: Headers, request: Request, root: bytes, base: bytes) -> list[tuple[bytes, bytes]]:
        """The header fields of the answer. root: `http://host:port` of the upstream; a Location on it is turned into
        the path a client would ask for."""
        dropped = _RESPONSE_DROPPED
        named = _named(headers)
        if named:
            dropped |= named
        if request.context.request_id:
            dropped |= _REQUEST_ID  # the server writes ours
        kept = [pair for pair in headers if pair[0] not in dropped]
        for i, (name, value) in enumerate(kept):
            if name in _LOCATIONS and value.startswith(root):
                kept[i] = (name, self._outside(value, root, base))
        return kept

    def _outside(self, location: bytes, root: bytes, base: bytes) -> bytes:
        rest = location[len(root) :]
        if rest[:1] not in (b"", b"/", b"?", b"#") or self._whole is not None:
            return location
        inner = base + self._put
        if rest[: len(inner)] != inner or rest[len(inner) : len(inner) + 1] not in (b"", b"/", b"?", b"#"):
            return location
        outer = self._cut + rest[len(inner) :]
        return outer if outer[:1] == b"/" else b"/" + outer


_REQUEST_ID = frozenset((b"x-request-id",))
_LOCATIONS = frozenset((b"location", b"content-location"))


def _named(headers: Headers) -> frozenset[bytes]:
    """The fields that Connection names as belonging to this connection."""
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            value = value.lower()
            if value not in _USUAL:
                named.update(part.strip() for part in value.split(b","))
    return frozenset(named - _USUAL) if named else _NONE


_NONE: frozenset[bytes] = frozenset()


def _name(pair: bytes) -> bytes:
    name = pair.partition(b"=")[0].replace(b"+", b" ")
    return unquote_to_bytes(name)
