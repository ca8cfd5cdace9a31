"""What guards that are services have in common: how they are asked, and what becomes of a service that fails.

Rule: an answer counts only if it is 200, JSON, of a bounded size and of the form that was promised, all within the
rule's time; anything else is CannotCheck. A request is repeated once, and only where it is known that nothing of it
left. So many questions are under way at most; who comes later waits, within the same time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import TypeVar

import msgspec

from tollhouse.core.call import Call
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers
from tollhouse.net.client import TLS, Client, Origin, Until
from tollhouse.policies.base import Service
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase

__all__ = ["Labels", "OwnService", "RemoteCheck", "all_of"]

T = TypeVar("T")

_LARGEST = 4 << 20
_PARALLEL = 8  # questions of one call at once
_MOST_LABELS = 200


class OwnService:
    """A `Service` at an address of its own. lines: header lines of every request, each with CRLF. signed: further ones,
    from the body. ca: PEM file of roots to trust instead of the system's."""

    def __init__(
        self,
        client: Client,
        url: str,
        *,
        connections: int,
        lines: bytes = b"",
        signed: Callable[[bytes], bytes] | None = None,
        ca: str | None = None,
    ) -> None:
        """Raises OriginError."""
        origin, base = Origin.of(url, tls=TLS(ca=ca) if ca else None)
        self._base = base.rstrip(b"/")
        self._lines = b" HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\naccept: application/json\r\n%b" % (
            origin.authority,
            lines,
        )
        self._signed = signed
        self._pool = client.pool(origin, connections)

    async def post(self, target: bytes, body: bytes, *, deadline: float, limit: int) -> tuple[int, Headers, bytes]:
        left = max(deadline - monotonic(), 0.0)
        more = b"" if self._signed is None else self._signed(body)
        exchange = await self._pool.exchange(
            b"POST %b%b%bcontent-length: %d\r\n\r\n" % (self._base + target or b"/", self._lines, more, len(body)),
            body,
            method=b"POST",
            until=Until.HEAD,
            deadline=deadline,
            first_byte=left,
            idle=left,
            connect=left,
            resend=True,
        )
        return exchange.status, exchange.headers, await exchange.read(limit)

    async def close(self) -> None:
        self._pool.retire()


class Labels:
    """Names from outside as what metrics may be labelled with: short, plain, and not too many of them."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, *words: str) -> str:
        """The words as one name: `topic:medical_advice`."""
        name = ":".join("".join(c if c.isascii() and c.isalnum() else "_" for c in word.lower())[:40] for word in words)
        if name not in self._known:
            if len(self._known) >= _MOST_LABELS:
                return "other"
            self._known.add(name)
        return name


class RemoteCheck:
    """Base of checks that ask a service. name: the key of its kind. timeout: seconds for one check, all its questions
    together. at_once: questions under way of all calls together."""

    name = ""
    masks = False
    whole = False
    phases: frozenset[Phase] = frozenset(("request", "response"))

    def __init__(self, service: Service, *, timeout: float, at_once: int) -> None:
        self._service = service
        self._timeout = timeout
        self._turns = asyncio.Semaphore(at_once)
        self._trouble = ""

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        """As of `Check`."""
        try:
            async with asyncio.timeout(self._timeout):
                found = await self.look(texts, call, phase)
        except TimeoutError:
            self._trouble = f"it did not answer within {self._timeout:g} seconds"
            raise CannotCheck(f"{self.name}: {self._trouble}") from None
        except CannotCheck as error:
            self._trouble = str(error).removeprefix(f"{self.name}: ")
            raise error.with_traceback(None) from None
        self._trouble = ""
        return found

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        """What the service says. Raises CannotCheck."""
        raise NotImplementedError

    def health(self) -> str:
        return self._trouble

    async def close(self) -> None:
        """The service is closed by who made it."""

    async def ask(self, target: bytes, question: object, answer: msgspec.json.Decoder[T], limit: int = _LARGEST) -> T:
        """The service's answer. Raises CannotCheck."""
        try:
            body = msgspec.json.encode(question)
        except (UnicodeEncodeError, ValueError) as error:
            raise self.cannot(f"the question cannot be written: {type(error).__name__}") from None
        async with self._turns:
            status, headers, said = await self._post(target, body, limit)
        if status != 200:
            raise self.cannot(_refusal(status), retry_after=_seconds(headers) if status in (429, 503) else None)
        try:
            return answer.decode(said)
        except UNREADABLE:
            # The error's own text may hold parts of the answer, and that of what was asked.
            raise self.cannot("its answer is not what its API promises") from None

    async def _post(self, target: bytes, body: bytes, limit: int) -> tuple[int, Headers, bytes]:
        deadline = monotonic() + self._timeout
        try:
            return await self._service.post(target, body, deadline=deadline, limit=limit)
        except Failure as failure:
            if failure.reached or failure.code == "pool_exhausted":
                raise self.cannot(_why(failure)) from None
        try:
            return await self._service.post(target, body, deadline=deadline, limit=limit)
        except Failure as failure:
            raise self.cannot(_why(failure)) from None

    def cannot(self, why: str, *, retry_after: float | None = None) -> CannotCheck:
        """What is raised. why: without texts and secrets."""
        return CannotCheck(f"{self.name}: {why}", retry_after=retry_after)


async def all_of(questions: Iterable[Awaitable[T]]) -> list[T]:
    """The answers to several questions, in their order, a few asked at once. The first failure ends them all."""
    waiting = iter(list(enumerate(questions)))
    answers: dict[int, T] = {}

    async def work() -> None:
        for index, question in waiting:
            answers[index] = await question

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_PARALLEL):
                group.create_task(work())
    except BaseExceptionGroup as several:
        first = next((error for error in several.exceptions if isinstance(error, CannotCheck)), several.exceptions[0])
        raise first from None
    finally:
        for _, left in waiting:
            if asyncio.iscoroutine(left):
                left.close()
    return [answers[index] for index in sorted(answers)]


def _why(failure: Failure) -> str:
    return f"{failure.message} ({failure.detail})" if failure.detail else failure.message


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"it answers with a redirect ({status}), which is not followed"
    if status in (401, 403):
        return f"it refuses the credentials ({status})"
    if status == 429:
        return "it is asked too often (429)"
    return f"it answers with status {status}"


def _seconds(headers: Headers) -> float | None:
    value = headers.get(b"retry-after") or b""
    return min(float(value), 3600.0) if value.isdigit() and len(value) < 10 else None
