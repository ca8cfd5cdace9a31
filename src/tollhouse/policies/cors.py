"""CORS (Fetch standard, section 3.2): which web pages may read the answers.

Rule: CORS never refuses a request; it tells the browser what the page may see. A preflight is answered here, before
anybody asks for credentials, because browsers send none with it. Every answer says `Vary: Origin`, also to requests
without one, or a cache would serve it to the wrong page.
"""

import re
from functools import partial
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.base import Kind, Layer, Parts, shown

__all__ = ["CORS", "Cors", "CorsSpec"]

_ORIGIN = re.compile(
    r"\*|(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<any>\*\.)?(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUESTED = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_REMEMBERED = 1024
_VARY = (b"vary", b"origin")
_PREFLIGHT_VARY = (b"vary", b"origin, access-control-request-method, access-control-request-headers")


def _origin(value: str) -> str:
    if value != "null" and _ORIGIN.fullmatch(value) is None:
        raise ValueError(
            f"not an origin: {value!r}; write it as browsers do, in lower case without a path, like "
            "https://app.example.com, https://*.example.com, or * for every one"
        )
    return value


def _token(value: str) -> str:
    if _TOKEN.fullmatch(value) is None:
        raise ValueError(f"not a name of a method or header: {value!r}")
    return value


Origin = Annotated[str, AfterValidator(_origin), Field(examples=["https://app.example.com", "https://*.example.com"])]
Token = Annotated[str, AfterValidator(_token)]


class CorsSpec(Spec):
    """Which web pages may call, and what they may send and read."""

    origins: tuple[Origin, ...] = Field(min_length=1, description="of the pages; *.example.com has all names below it")
    methods: tuple[Token, ...] = Field(
        default=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"), description="that pages may use"
    )
    headers: tuple[Token, ...] = Field(default=("*",), description="that pages may send; * is whatever they ask for")
    expose: tuple[Token, ...] = Field(
        default=(
            "mcp-session-id", "mcp-protocol-version", "x-request-id", "x-tollhouse-reason", "retry-after",
            "ratelimit", "ratelimit-policy", "www-authenticate",
        ),
        description="headers of answers that pages may read",
    )  # fmt: skip
    credentials: bool = Field(default=False, description="pages may send cookies and client certificates")
    max_age: Duration = Field(default=600.0, ge=0.0, description="how long a browser remembers the preflight's answer")

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.credentials and "*" in self.origins:
            raise ValueError("with `credentials`, name the origins: `*` would let every page act as its visitor")
        return self


class Cors:
    """One CORS policy, its headers ready-made."""

    def __init__(self, spec: CorsSpec) -> None:
        self._any = "*" in spec.origins
        self._exact = frozenset(o.encode() for o in spec.origins if "*" not in o)
        self._below = tuple(_below(o) for o in spec.origins if "*." in o)
        self._known: dict[bytes, bool] = {}
        credentials = [(b"access-control-allow-credentials", b"true")] if spec.credentials else []
        expose = [(b"access-control-expose-headers", ", ".join(spec.expose).encode())] if spec.expose else []
        self._actual = [*credentials, *expose, _VARY]
        self._methods = frozenset(m.encode() for m in spec.methods)
        self._headers = None if "*" in spec.headers else ", ".join(spec.headers).encode()
        self._preflight = [
            *credentials,
            (b"access-control-allow-methods", ", ".join(spec.methods).encode()),
            (b"access-control-max-age", b"%d" % spec.max_age),
            _PREFLIGHT_VARY,
        ]
        # A page of any origin gets the same answer, unless credentials make browsers insist on its name.
        self._named = b"*" if self._any else None

    async def handle(self, request: Request, next: Handler[Request, Response]) -> Response:
        origin = request.header(b"origin")
        change = _vary
        if origin is not None:
            allowed = self.allows(origin)
            if request.method == b"OPTIONS":
                method = request.header(b"access-control-request-method")
                if method is not None:
                    return self._answer(request, origin, method) if allowed else Response(204, [_PREFLIGHT_VARY])
            if allowed:
                change = partial(self._show, origin)
        shown(request, change)
        response = await next(request)
        change(response)
        return response

    def _show(self, origin: bytes, response: Response) -> None:
        passed = [pair for pair in response.headers if not pair[0].startswith(b"access-control-")]
        response.headers = [*passed, (b"access-control-allow-origin", self._named or origin), *self._actual]

    def _answer(self, request: Request, origin: bytes, method: bytes) -> Response:
        headers = [(b"access-control-allow-origin", self._named or origin)]
        if method in self._methods:
            asked = b", ".join(request.headers.get_all(b"access-control-request-headers"))
            if self._headers is not None:
                headers.append((b"access-control-allow-headers", self._headers))
            elif asked and len(asked) <= 4096 and _REQUESTED.fullmatch(asked):
                headers.append((b"access-control-allow-headers", asked))
        return Response(204, headers + self._preflight)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of this origin (as the header says it) may call."""
        if self._any or origin in self._exact:
            return True
        if not self._below:
            return False
        known = self._known.get(origin)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = any(pattern.fullmatch(origin) for pattern in self._below)
            if len(origin) <= 300:
                self._known[origin] = known
        return known


def _vary(response: Response) -> None:
    response.headers = [*response.headers, _VARY]


def _below(origin: str) -> re.Pattern[bytes]:
    """`https://*.example.com` as a pattern: one or more labels in place of the star."""
    before, _, after = origin.encode().partition(b"*")
    return re.compile(re.escape(before) + rb"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*" + re.escape(after))


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return Cors(layers[-1].spec).handle


CORS: Kind[Request, Response] = Kind("cors", frozenset(("top", "route")), adds=False, build=_build)
