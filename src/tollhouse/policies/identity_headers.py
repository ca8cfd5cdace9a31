"""Identity headers: a service that knows nothing of OAuth is told who calls, in a field that only we can have written.

Rule: what a caller has put in that field never arrives. What arrives is signed by the auth provider in this process, is
for that one service, and says no more than the Principal does; of nobody it says nothing.
"""

import re
from collections.abc import Awaitable, Callable
from time import time
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from tollhouse.core.call import Call, Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Minted
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.base import Kind, Layer, Parts, on_or_off, wrong
from tollhouse.policies.exchange import remember

__all__ = ["IDENTITY", "IDENTITY_ROUTE", "Identity", "IdentitySetting", "IdentitySpec"]

_NAME = re.compile(r"x-[a-z0-9-]{1,60}")

_VARIABLE = bytes(byte if chr(byte).isalnum() and byte < 128 else ord("-") for byte in range(256)).lower()
"""Services that read fields as variables (CGI and what came after) take `_`, and some of them every sign, for `-`."""


class IdentitySpec(Spec):
    """A field of requests that says who calls: a JWT of type `identity+jwt`."""

    mode: Literal["on", "off"] = Field(default="on", description="off: not here, although the top says it")
    header: str = Field(default="x-tollhouse-identity", description="its name, which begins with x-")
    ttl: Duration = Field(
        default=60.0, ge=2.0, le=3600.0, description="life of what it says, which the caller's token may shorten"
    )
    audience: str = Field(
        default="server", pattern=r"^[!-~]{1,2048}$", description="server: the URI of the service; or your own value"
    )

    @field_validator("header")
    @classmethod
    def _header(cls, value: str) -> str:
        name = value.lower()
        if _NAME.fullmatch(name) is None or name.startswith(("x-forwarded", "x-request-id", "x-api-key")):
            raise ValueError(f"not a name for it: {value!r}; write one like x-identity")
        return name


IdentitySetting = Annotated[
    IdentitySpec, BeforeValidator(on_or_off, json_schema_input_type=Literal["on", "off"] | IdentitySpec)
]
"""on, off, or {header, ttl, audience}."""


class _For(NamedTuple):
    """What a statement that is remembered is for."""

    audience: str
    ttl: float
    what: str = "identity"


class _Said:
    """A statement. until: unix seconds, half of its life. epoch: of what was revoked when its caller was known good."""

    __slots__ = ("epoch", "generation", "until", "value", "version")

    def __init__(self, minted: Minted, now: float, generation: object, version: int, epoch: int) -> None:
        self.value = minted.token
        self.until = now + (minted.expires - now) / 2.0
        self.generation = generation
        self.version = version
        self.epoch = epoch


class Identity:
    """Of one service. now: unix seconds."""

    def __init__(self, spec: IdentitySpec, layer: Layer, parts: Parts, now: Callable[[], float] = time) -> None:
        """Raises ConfigError where there is nobody to sign."""
        exchangers = parts.exchangers
        own = None if exchangers is None else exchangers.of(None)
        state = None if exchangers is None else exchangers.identity
        if exchangers is None or own is None or state is None:
            raise wrong(layer, "identity", "there is no `issuer` in this configuration to sign it; configure one")
        self._own = own
        self._state = state
        self._generation = exchangers.generation
        self._revocations = parts.revocations
        self._now = now
        name = spec.header.encode("ascii")
        self._line = name + b": %b\r\n"
        self._plain = name
        self._for = _For(spec.audience if spec.audience != "server" else parts.upstream, spec.ttl)

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Nothing of the caller's own request goes to the server, but arguments of tools may become fields: so that of
        nobody is empty, and takes the place of any. Raises Failure 401 and 503."""
        call.identity = self._of(call.principal) or self._line % b""
        return next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 401 and 503."""
        plain, headers = self._plain, request.headers
        if any(name.translate(_VARIABLE) == plain for name, _ in headers):
            headers[:] = [pair for pair in headers if pair[0].translate(_VARIABLE) != plain]
        context = request.context
        context.identity = self._of(context.principal)
        return next(request)

    def _of(self, principal: Principal | None) -> bytes:
        """The header line; b"" for nobody."""
        if principal is None or principal.source == "anonymous":
            return b""
        now, revocations = self._now(), self._revocations
        epoch = 0 if revocations is None else revocations.epoch
        said: _Said | None = principal.minted.get(self._for)
        if (
            said is None
            or now >= said.until
            or said.generation is not self._generation
            or said.version != self._own.version
            or said.epoch != epoch
        ):
            # The call may have waited since its caller was let in.
            if revocations is not None and revocations.revoked(principal):
                message = "what the caller was let in with was revoked"
                raise Failure(401, Reason.JWT_AUTH, message, code="invalid_token")
            try:
                minted = self._state(principal, *self._for[:2])
            except Failure as failure:
                raise failure.with_traceback(None) from None
            said = _Said(minted, now, self._generation, self._own.version, epoch)
            remember(principal, self._for, said)
        return self._line % said.value


def _made(layers: tuple[Layer, ...], parts: Parts) -> Identity | None:
    layer = layers[-1]
    return None if layer.spec.mode == "off" or not parts.upstream else Identity(layer.spec, layer, parts)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _made(layers, parts)
    return None if made is None else made.handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _made(layers, parts)
    return None if made is None else made.handle_request


IDENTITY: Kind[Call, Reply] = Kind(
    "identity", frozenset(("top", "server")), adds=False, build=_build, entrances=frozenset(("mcp",))
)
IDENTITY_ROUTE: Kind[Request, Response] = Kind(
    "identity", frozenset(("top", "route")), adds=False, build=_build_route, entrances=frozenset(("http",))
)
