"""What the tests of guards stand on: real parts, services over sockets, and one way to ask."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

from tests.fixtures.guard_services import GuardServices, guard_services
from tests.unit.policies.floor import Shelf, model, parts, who

from tollhouse.core.call import Call
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.policies.base import Parts, Service
from tollhouse.policies.guardrails.check import CannotCheck, Check, Finding, Phase
from tollhouse.policies.guardrails.checks.remote import OwnService


class World:
    """services: that judge. parts: what guards are made with; `services` of it leads there, whatever the provider."""

    def __init__(self, services: GuardServices, parts: Parts) -> None:
        self.services = services
        self.wanted: list[tuple[str, tuple[str, ...], str]] = []
        self.parts = replace(parts, services=self._service)

    def _service(self, provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
        self.wanted.append((provider, kinds, url))
        return OwnService(self.parts.client, self.services.url, connections=connections)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    clock = Clock()
    timer, client, shelf = Timer(clock), Client(clock), Shelf()
    timer.start()
    try:
        async with guard_services() as services:
            yield World(services, replace(parts(entrance="llm", client=client, shared=shelf), clock=clock))
            await shelf.close()
    finally:
        await client.close()
        timer.stop()


async def look(check: Check, *texts: str, phase: Phase = "request", call: Call | None = None) -> Sequence[Finding]:
    """What it finds."""
    return await check.check(texts, call or model(principal=who(org="acme")), phase)


async def cannot(check: Check, *texts: str, phase: Phase = "request") -> CannotCheck:
    """Why it cannot look."""
    try:
        found = await look(check, *texts, phase=phase)
    except CannotCheck as error:
        return error
    raise AssertionError(f"it could: {found}")


def masked(texts: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """The texts with every span replaced as the findings say."""
    out = [list(text) for text in texts]
    for finding in findings:
        for number, (index, start, end) in enumerate(finding.spans):
            assert 0 <= start < end <= len(texts[index]), finding
            out[index][start] = finding.replaces[number] if finding.replaces else f"[{finding.rule}]"
            for place in range(start + 1, end):
                out[index][place] = ""
    return ["".join(letters) for letters in out]


def said(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


async def longest_turn(work: Awaitable[Any]) -> float:
    """Seconds that the loop stands still, at most, while `work` is done."""
    longest, going = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while going:
            began = perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, perf_counter() - began)

    ticking = asyncio.ensure_future(tick())
    await work
    going = False
    await ticking
    return longest
