"""Retry: what is made again, how often, and what stops it."""

import asyncio
import gc
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest
from tests.unit.policies.floor import Shelf, counted, layer, model, parts, tool

from tollhouse.core.backoff import RetryBudget
from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.reply import Reply
from tollhouse.policies.retry import RETRY, RetrySpec, cause

pytestmark = pytest.mark.anyio

CONNECT = Failure(502, Reason.UPSTREAM_FAILURE, "x", retry=True, reached=False)
DIED = Failure(502, Reason.UPSTREAM_FAILURE, "x", retry=True, sent=True)
TIMEOUT = Failure(504, Reason.TIMEOUT, "x", retry=True, sent=True)
BUSY = Failure(429, Reason.UPSTREAM, "x", retry=True)
NOBODY = Failure(503, Reason.NO_HEALTHY_BACKEND, "x", retry=True)
REFUSED = Failure(502, Reason.UPSTREAM_FAILURE, "x", code="upstream_credentials", retry=True, sent=True)
FINAL = Failure(502, Reason.UPSTREAM_FAILURE, "x", sent=True)


class Backend:
    """Fails as it is told, then answers."""

    def __init__(self, *failures: Failure) -> None:
        self.failures = list(failures)
        self.asked = 0

    async def handle(self, call: Call) -> Reply:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return Reply(200, [], b"")


async def tries(*failures: Failure, call: Call | None = None, p: Any = None, **spec: Any) -> tuple[int, bool]:
    """How often the backend was asked, and whether it answered in the end."""
    values = {"backoff": "1ms"} | spec
    policy = RETRY.make((layer(RetrySpec.model_validate(values)),), p or parts(entrance="llm"))
    backend = Backend(*failures)
    handler = compose((policy,), backend.handle) if policy is not None else backend.handle
    try:
        await handler(call or model())
    except Failure:
        return backend.asked, False
    return backend.asked, True


@pytest.mark.parametrize(
    "failures, spec, expected",
    [
        ([], {}, (1, True)),
        ([CONNECT], {}, (2, True)),
        ([DIED], {}, (2, True)),
        ([TIMEOUT], {}, (2, True)),
        ([BUSY], {}, (2, True)),
        ([NOBODY], {}, (2, True)),
        ([FINAL], {}, (1, False)),
        ([CONNECT, CONNECT], {}, (2, False)),
        ([CONNECT, CONNECT], {"attempts": 3}, (3, True)),
        ([CONNECT, FINAL], {"attempts": 5}, (2, False)),
        ([CONNECT], {"attempts": 1}, (1, False)),
        ([CONNECT], {"on": ["timeout"]}, (1, False)),
        ([TIMEOUT], {"on": ["timeout"]}, (2, True)),
        ([TIMEOUT], {"on": ["5xx"]}, (1, False)),
        ([BUSY], {"on": [429]}, (2, True)),
        ([BUSY], {"on": ["5xx"]}, (1, False)),
        ([DIED], {"on": [502]}, (2, True)),
        ([DIED], {"on": [503]}, (1, False)),
        ([DIED], {"on": ["connect"]}, (1, False)),
        ([NOBODY], {"on": ["connect"]}, (1, False)),  # it answered, though it did nothing: not the absence of `sent`
        ([NOBODY], {"on": [503]}, (2, True)),
        ([REFUSED], {}, (1, False)),
        ([REFUSED], {"on": ["connect", "502", "5xx"]}, (1, False)),
    ],
)
async def test_what_is_made_again(failures: list[Failure], spec: dict[str, Any], expected: tuple[int, bool]) -> None:
    assert await tries(*failures, **spec) == expected


@pytest.mark.parametrize(
    "failure, idempotent, asked", [(CONNECT, False, 2), (DIED, False, 1), (DIED, True, 2), (TIMEOUT, False, 1)]
)
async def test_a_tool_that_may_have_run_is_not_run_again(failure: Failure, idempotent: bool, asked: int) -> None:
    call = tool()
    call.idempotent = idempotent
    assert (await tries(failure, call=call))[0] == asked


async def test_nothing_starts_that_cannot_end_in_time() -> None:
    call = model()
    call.context.deadline = monotonic() - 1
    assert await tries(CONNECT, call=call) == (1, False)
    call.context.deadline = monotonic() + 5
    assert await tries(Failure(429, Reason.UPSTREAM, "x", retry=True, retry_after=6.0), call=call) == (1, False)


async def test_an_upstream_that_wants_a_long_wait_is_not_waited_for() -> None:
    assert await tries(Failure(429, Reason.UPSTREAM, "x", retry=True, retry_after=31.0)) == (1, False)


async def test_what_the_upstream_asked_for_is_waited() -> None:
    began = monotonic()
    assert await tries(Failure(429, Reason.UPSTREAM, "x", retry=True, retry_after=0.05)) == (2, True)
    assert monotonic() - began >= 0.049  # the loop may wake a clock tick early


async def test_a_storm_is_not_multiplied() -> None:
    p = parts(entrance="llm")
    budget = p.shared(("retry budget", "top"), lambda: RetryBudget(clock=lambda: 0.0))
    asked = 0
    for _ in range(1000):
        asked += (await tries(CONNECT, CONNECT, CONNECT, CONNECT, p=p, attempts=4))[0]
    assert 1000 * 1.19 <= asked <= 1000 * 1.2 + 11
    assert not budget.retry()


async def test_retries_are_counted() -> None:
    p = parts(entrance="llm")
    call = model()
    call.context.route, call.context.backend = "chat", "openai"
    await tries(CONNECT, TIMEOUT, DIED, BUSY, call=call, p=p, attempts=5)
    counts = counted(p, "retries_total")
    assert counts == {("chat", "openai", why): 1 for why in ("connect", "timeout", "502", "429")}
    words = [cause(failure) for failure in (CONNECT, DIED, TIMEOUT, BUSY, NOBODY, REFUSED)]
    assert words == ["connect", "502", "timeout", "429", "503", "credentials"]


async def test_who_leaves_while_waiting_is_gone() -> None:
    policy = RETRY.make((layer(RetrySpec.model_validate({"backoff": "1m"})),), parts(entrance="llm"))
    assert policy is not None
    backend = Backend(*[Failure(429, Reason.UPSTREAM, "x", retry=True, retry_after=20.0)])
    task = asyncio.ensure_future(compose((policy,), backend.handle)(model()))
    while not backend.asked:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.asked == 1


def test_the_budget_outlives_a_configuration() -> None:
    shelf = Shelf()
    for attempts in (2, 3):
        RETRY.make((layer(RetrySpec(attempts=attempts)),), parts(entrance="llm", shared=shelf))
    assert list(shelf.parts) == [("retry budget", "top")]


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"attempts": 11}, {"on": ["4xx"]}, {"backoff": "0s"}])
def test_bad_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RetrySpec"):
        RetrySpec.model_validate(wrong)


async def test_no_cycles() -> None:
    policy = RETRY.make((layer(RetrySpec.model_validate({"backoff": "1ms"})),), parts(entrance="llm"))
    assert policy is not None

    async def down(call: Call) -> Reply:
        raise Failure(502, Reason.UPSTREAM_FAILURE, "x", retry=True)

    async def ask() -> None:
        with suppress(Failure):
            await compose((policy,), down)(model())

    await ask()
    gc.collect()
    await ask()
    assert gc.collect() == 0
