"""A policy server (Open Policy Agent): asked over HTTP for each call, with the input that Rego policies have here.

Rule: only a clear yes passes. A server that cannot be asked in time refuses with 503, unless `on_failure: allow`. For
lists it is asked about each name, a few at once and all within a bound: what has no answer by then is not listed.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import msgspec

from tollhouse.core.call import Call, ModelCall, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.facts import FACTS
from tollhouse.net.client import TLS, Client, Origin, Until
from tollhouse.policies.authorize.document import ALL, Reads
from tollhouse.policies.authorize.rego import Decision, said, unavailable
from tollhouse.policies.authorize.spec import OpaSpec

__all__ = ["Opa"]

log = logging.getLogger("tollhouse.policies.authorize")

_LARGEST = 64 << 10
_KEPT = 4096
_QUIET = 60.0
_LISTED = 16_384  # answers about names that are kept: of a thousand tools those for sixteen callers
_AT_ONCE = 16

_CALLER = Reads([fact for fact in FACTS if fact.caller], listing=False)
_NAMES = Reads([f for f in FACTS if (f.name_of_call or f.listed) and not (f.caller or f.late)], listing=True)


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
        self._listed: dict[tuple[object, ...], tuple[float, bool]] = {}
        self._turns = asyncio.Semaphore(min(_AT_ONCE, max(1, spec.connections // 2)))  # calls find the others free
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

    async def shown(self, probes: Sequence[Call]) -> list[bool]:
        """Which of these may be listed, in their order: calls of one caller that have a name and nothing else. Takes
        twice the time of one decision at most. Raises nothing: what has no answer is as `on_failure` says of calls."""
        if not probes:
            return []
        try:
            caller = msgspec.json.encode(_CALLER.document(probes[0]))
        except (ValueError, TypeError, RecursionError) as error:
            log.warning("opa: the input of %s cannot be made, which hides what it is about: %s", self._what, error)
            return [False] * len(probes)
        whose = hashlib.blake2b(caller, digest_size=16).digest()
        keys = [_key(whose, probe) for probe in probes]
        now = self._clock.now
        known: dict[tuple[object, ...], bool] = {}
        unknown: dict[tuple[object, ...], Call] = {}
        for key, probe in zip(keys, probes, strict=True):
            kept = self._listed.get(key)
            if kept is not None and kept[0] > now:
                known[key] = kept[1]
            else:
                unknown[key] = probe
        if unknown:
            await self._ask_all(caller, unknown, known)
        otherwise = self._spec.on_failure == "allow"
        return [known.get(key, otherwise) for key in keys]

    async def _ask_all(
        self, caller: bytes, unknown: Mapping[tuple[object, ...], Call], known: dict[tuple[object, ...], bool]
    ) -> None:
        """Put the answers about all that is `unknown` into `known`, as far as there are any in time."""
        failures: list[Failure] = []
        questions = iter(unknown.items())

        async def work() -> None:
            for key, probe in questions:
                try:
                    names = msgspec.json.encode(_NAMES.document(probe, listing=True))
                except (ValueError, TypeError, RecursionError) as error:
                    log.warning("opa: the input of %s cannot be made, which hides a name: %s", self._what, error)
                    known[key] = False
                    continue
                try:
                    async with self._turns:
                        known[key] = not await self._ask(b'{"input":%b,%b}' % (caller[:-1], names[1:]))
                except Failure as failure:
                    failures.append(failure.with_traceback(None))
                else:
                    self._keep_listed(key, known[key])

        try:
            async with asyncio.timeout(2 * self._spec.timeout), asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(unknown))):
                    group.create_task(work())
        except TimeoutError:
            failures.append(Failure(504, Reason.TIMEOUT, "not all was answered in time for a list"))
        if failures:
            self._tell(failures[0])

    def _keep_listed(self, key: tuple[object, ...], allowed: bool) -> None:
        if not self._spec.cache:
            return
        self._listed.pop(key, None)
        if len(self._listed) >= _LISTED:
            del self._listed[next(iter(self._listed))]  # the oldest
        self._listed[key] = (self._clock.now + self._spec.cache, allowed)

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
        self._tell(failure)
        if self._spec.on_failure == "allow" or self.shadow:
            return ""
        raise unavailable(f"{self._what} (not asked)", f"opa: {failure.detail or failure.message}", call)

    def _tell(self, failure: Failure) -> None:
        """Count it, and log it where that was not done just now."""
        self._unasked()
        now = monotonic()
        if now - self._told > _QUIET:
            self._told = now
            log.warning(
                "opa: %s cannot be asked, and calls are %s: %s", self._spec.url,
                "let through" if self._spec.on_failure == "allow" else "refused", failure.detail or failure.message,
            )  # fmt: skip


def _key(whose: bytes, probe: Call) -> tuple[object, ...]:
    """What the answer about a name depends on."""
    if isinstance(probe, ToolCall):
        return (whose, probe.server, probe.method, probe.name, hash(bytes(probe.definition)))
    return (whose, probe.model) if isinstance(probe, ModelCall) else (whose,)


def _unusable(why: str) -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, f"the policy server cannot be used: {why}")
