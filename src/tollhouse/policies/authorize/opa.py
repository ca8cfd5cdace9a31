"""A policy server (Open Policy Agent): asked over HTTP for each call, with the input that Rego policies have here.

Rule: only a clear yes passes. A server that cannot be asked in time refuses with 503, unless `on_failure: allow`. It is
not asked for lists: what it would refuse is listed, and refused when it is called.
"""

import hashlib
import logging
from collections.abc import Callable
from time import monotonic

import msgspec

from tollhouse.core.call import Call
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import TLS, Client, Origin, Until
from tollhouse.policies.authorize.document import ALL
from tollhouse.policies.authorize.rego import Decision, said
from tollhouse.policies.authorize.spec import OpaSpec

__all__ = ["Opa"]

log = logging.getLogger("tollhouse.policies.authorize")

_LARGEST = 64 << 10
_KEPT = 4096
_QUIET = 60.0


class _Answer(msgspec.Struct):
    result: bool | Decision | None = None


_answer = msgspec.json.Decoder(_Answer)


class Opa:
    """spec: which server. unasked: told of each decision that it did not make. Raises OriginError."""

    def __init__(
        self,
        spec: OpaSpec,
        client: Client,
        clock: Clock,
        *,
        shadow: bool = False,
        unasked: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = "opa"
        self.shadow = shadow or spec.shadow
        self._spec = spec
        self._clock = clock
        self._unasked = unasked
        self._what = f"data.{spec.path.replace('/', '.')}"
        origin, base = Origin.of(spec.url, tls=TLS(ca=spec.ca) if spec.ca else None)
        target = base.rstrip(b"/") + b"/v1/data/" + spec.path.encode()
        fields = [b"host: " + origin.authority, b"content-type: application/json", b"accept: application/json"]
        if spec.token is not None:
            fields.append(b"authorization: Bearer " + spec.token.get_secret_value().encode())
        self._head = b"POST %b HTTP/1.1\r\n%b\r\ncontent-length: " % (target, b"\r\n".join(fields))
        self._pool = client.pool(origin, spec.connections)
        self._kept: dict[bytes, tuple[float, str]] = {}
        self._told = -_QUIET

    async def close(self) -> None:
        self._pool.retire()

    async def refusal(self, call: Call) -> str:
        """Why the call is refused, "" where it is not. Raises Failure 503."""
        try:
            body = b'{"input":%b}' % msgspec.json.encode(ALL.document(call))
        except (ValueError, TypeError, RecursionError) as error:
            log.warning("opa: the input of %s cannot be made, which refuses the call: %s", self._what, error)
            return f"{self._what} (in doubt)"
        key = hashlib.blake2b(body, digest_size=16).digest() if self._spec.cache else b""
        if key:
            kept = self._kept.get(key)
            if kept is not None and kept[0] > self._clock.now:
                return kept[1]
        try:
            why = await self._ask(body)
        except Failure as failure:
            return self._failed(failure.with_traceback(None), call)
        if key:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = (self._clock.now + self._spec.cache, why)
        return why

    async def _ask(self, body: bytes) -> str:
        """The server's answer. Raises Failure where there is none that can be read."""
        timeout = self._spec.timeout
        exchange = await self._pool.exchange(
            self._head + b"%d\r\n\r\n" % len(body),
            body,
            method=b"POST",
            until=Until.WHOLE,
            deadline=monotonic() + timeout,
            first_byte=timeout,
            idle=timeout,
            limit=_LARGEST,
            resend=True,  # a question may be asked twice
        )
        answer = await exchange.read(_LARGEST)
        if exchange.status != 200:
            raise _unusable(f"it answers with status {exchange.status}")
        try:
            return said(_answer.decode(answer).result, self._what)
        except msgspec.DecodeError:
            raise _unusable("its answer has no `result` that is true or false, or {allow, reason}") from None

    def _failed(self, failure: Failure, call: Call) -> str:
        self._unasked()
        now = monotonic()
        if now - self._told > _QUIET:
            self._told = now
            log.warning(
                "opa: %s cannot be asked, and calls are %s: %s", self._spec.url,
                "let through" if self._spec.on_failure == "allow" else "refused", failure.detail or failure.message,
            )  # fmt: skip
        if self._spec.on_failure == "allow" or self.shadow:
            return ""
        call.context.rule, call.context.decision = f"{self._what} (not asked)", "deny"
        raise Failure(
            503,
            Reason.AUTHORIZATION,
            "whether this is permitted cannot be decided at the moment; try again in a second",
            code="authorization_unavailable",
            detail=f"opa: {failure.detail or failure.message}",
            retry_after=1.0,
        )


def _unusable(why: str) -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, f"the policy server cannot be used: {why}")
