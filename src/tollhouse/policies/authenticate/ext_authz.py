"""An HTTP service that decides who may call.

Rule: it is told the head of the request and no body, and asked about those whom no other kind of credential has made
known. A status of 2xx lets the request pass; 401 and 403 are passed on; everything else, and silence, is a no. Who it
is, it says in fields of its answer; such fields of the caller's own never count.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from time import monotonic, time
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.client import Origin, Pool, Until
from tollhouse.policies.authenticate.claims import scopes_of
from tollhouse.policies.base import Parts

__all__ = ["ExtAuthz", "ExtAuthzSpec"]

_MAX_ANSWER = 64 << 10
_REMEMBERED = 10_000
_LONGEST = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN = re.compile(r"^[a-z0-9!#$%&'*+.^_`|~-]{1,64}$")
_FRAMING = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te", "trailer", "keep-alive")
)
_PASSED_ON = (b"www-authenticate", b"retry-after")


def _url(value: str) -> str:
    Origin.of(value)
    return value


def _fields(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if _TOKEN.fullmatch(value) is None:
            raise ValueError(f"{value!r} is not the name of a header field in lower case")
        if value in _FRAMING:
            raise ValueError(f"{value!r} is of the caller's connection, and means nothing on another")
        if value.startswith("x-forwarded-"):
            raise ValueError(f"{value!r} is for us to say, and the service would not know which of two is ours")
    return values


class ExtAuthzSpec(Spec):
    """An HTTP service that decides who may call."""

    url: Annotated[str, AfterValidator(_url)] = Field(description="asked with GET, for each request")
    headers: Annotated[tuple[str, ...], AfterValidator(_fields)] = Field(
        default=("authorization", "cookie", "x-api-key", "user-agent"),
        description="fields of the request that it is told; method, host, path and address it gets as x-forwarded-*",
    )
    timeout: Duration = Field(default=2.0, gt=0.0, le=30.0, description="for an answer; then the caller is refused")
    cache: Duration = Field(
        default=0.0, ge=0.0, le=300.0, description="how long a yes is remembered for the same head and address"
    )
    connections: int = Field(default=32, ge=1, le=1024, description="most connections to it")
    user_header: str = Field(
        default="x-auth-user", pattern=_TOKEN.pattern, description="the answer's field that says who it is"
    )
    org_header: str = Field(default="x-auth-org", pattern=_TOKEN.pattern, description="the organisation")
    email_header: str = Field(default="x-auth-email", pattern=_TOKEN.pattern, description="the address")
    groups_header: str = Field(
        default="x-auth-groups", pattern=_TOKEN.pattern, description="names with commas between them"
    )
    scopes_header: str = Field(default="x-auth-scopes", pattern=_TOKEN.pattern, description="words")


class ExtAuthz:
    """Asks one service. now: unix seconds."""

    def __init__(self, spec: ExtAuthzSpec, parts: Parts, now: Callable[[], float] = time) -> None:
        self._spec = spec
        self._now = now
        origin, self._target = Origin.of(spec.url)
        self._host = origin.authority
        self._names = tuple(name.encode() for name in spec.headers)
        self._pool: Pool = parts.shared(
            ("ext_authz", spec.fingerprint()), lambda: parts.client.pool(origin, spec.connections), _retired
        )
        self._yes: dict[bytes, tuple[float, Principal]] = {}

    async def ask(self, request: Request) -> Principal:
        """Who it is. Raises Failure: the service's 401 or 403, or 403 where there is no answer."""
        told = self._told(request)
        digest = sha256(b"\n".join(told)).digest() if self._spec.cache else b""
        if digest:
            known = self._yes.get(digest)
            if known is not None and known[0] > self._now():
                return known[1]
        status, headers = await self._exchange(told)
        if not 200 <= status < 300:
            raise _refused(status, headers)
        principal = self._principal(headers)
        if digest:
            if len(self._yes) >= _REMEMBERED:
                for old in list(islice(self._yes, _REMEMBERED // 10)):
                    del self._yes[old]
            self._yes[digest] = (self._now() + self._spec.cache, principal)
        return principal

    def _told(self, request: Request) -> list[bytes]:
        """Header lines of the question."""
        lines = [b"%b: %b" % (name, value) for name, value in request.headers if name in self._names]
        address = request.context.client or request.peer
        host = request.header(b"host") or b""
        return [
            *lines,
            b"x-forwarded-method: " + request.method,
            b"x-forwarded-host: " + host,
            b"x-forwarded-uri: " + quote(request.target, safe="!$%&'()*+,-./:;=?@_~[]").encode("ascii"),
            b"x-forwarded-proto: " + request.scheme.encode("ascii"),
            b"x-forwarded-for: " + address.encode("latin-1", "replace"),
        ]

    async def _exchange(self, told: list[bytes]) -> tuple[int, Headers]:
        spec = self._spec
        head = b"\r\n".join((b"GET %b HTTP/1.1" % self._target, b"host: " + self._host, *told, b"", b""))
        try:
            exchange = await self._pool.exchange(
                head,
                b"",
                method=b"GET",
                until=Until.WHOLE,
                deadline=monotonic() + spec.timeout,
                first_byte=spec.timeout,
                idle=spec.timeout,
                connect=spec.timeout,
                limit=_MAX_ANSWER,
                resend=True,
            )
        except Failure as failure:
            raise Failure(
                403,
                Reason.EXT_AUTH,
                "whether you may do this cannot be found out at the moment; try again later",
                code="authorization_unavailable",
                detail=f"ext_authz: {failure.detail or failure.message}",
            ) from None
        exchange.take()
        return exchange.status, exchange.headers

    def _principal(self, headers: Headers) -> Principal:
        spec = self._spec
        user = _said(headers, spec.user_header)
        groups = tuple(name.strip() for name in _said(headers, spec.groups_header, 4096).split(",") if name.strip())
        return Principal(
            f"ext:{user}" if user else "ext",
            source="ext",
            user=user,
            org=_said(headers, spec.org_header),
            email=_said(headers, spec.email_header),
            groups=groups,
            scopes=scopes_of(_said(headers, spec.scopes_header, 4096)),
            subject=user,
        )


async def _retired(pool: Pool) -> None:
    pool.retire()


def _said(headers: Headers, name: str, longest: int = _LONGEST) -> str:
    try:
        text = (headers.get(name.encode()) or b"").decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
    return "" if len(text) > longest or _CONTROL.search(text) else text


def _refused(status: int, headers: Headers) -> Failure:
    fields = tuple((name, value) for name, value in headers if name in _PASSED_ON)
    if status == 401:
        return Failure(401, Reason.EXT_AUTH, "a credential is needed", code="credential_required", headers=fields)
    detail = f"ext_authz answered {status}"
    return Failure(403, Reason.EXT_AUTH, "you are not permitted to do this", code="permission_denied", detail=detail)
