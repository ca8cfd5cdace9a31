"""Retry: a call that failed before its first event is made again.

Rule: only what may help and can do no harm. The Failure says whether another attempt may help; work that may already
have been done is repeated only where that is harmless (models; tools that say they are idempotent); nothing starts
that cannot end before the deadline; and all retries of a scope, or of a model with several targets, share one budget.
A Reply is the commit: after it nothing is retried.
"""

import asyncio
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tollhouse.core.backoff import Backoff, RetryBudget, cause
from tollhouse.core.call import Call, ModelCall, ToolCall
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.observe.metrics import Count, Family
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["RETRY", "Retry", "RetrySpec", "cause"]

_LONGEST_WAIT = 30.0
"""Seconds an upstream may ask us to wait; more is told to the caller instead."""


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Retried = Annotated[Literal["connect", "timeout", "429", "5xx", "500", "502", "503", "504"], BeforeValidator(_text)]
"""connect: not reached, nothing was sent. timeout: a time has passed. The others are how the upstream answered; 502
also stands for a connection that died before the answer. What is refused for the gateway's own credentials is not
asked again: it would be refused again."""


class RetrySpec(Spec):
    """When a failed call is made again."""

    attempts: int = Field(default=2, ge=1, le=10, description="in all, the first one included; 1 is no retry")
    on: tuple[Retried, ...] = Field(default=("connect", "timeout", "429", "5xx"), description="what is retried")
    backoff: Duration = Field(
        default=0.1, gt=0.0, le=60.0, description="the first wait is up to this, each further one up to twice as long"
    )


class Retry:
    """One scope's retries."""

    def __init__(self, spec: RetrySpec, budget: RetryBudget, retries: Family[Count]) -> None:
        self._attempts = spec.attempts
        self._on = frozenset(spec.on)
        self._backoff = Backoff(spec.backoff)
        self._budget = budget
        self._retries = retries

    async def handle(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        self._budget.request()
        try:
            return await next(call)
        except Failure as failure:
            if not failure.retry:
                raise
            first = failure
        try:
            return await self._again(call, next, first)
        finally:
            del first  # its traceback holds this frame, and would hold itself

    async def _again(self, call: Call, next: Handler[Call, Reply], failure: Failure) -> Reply:
        context = call.context
        try:
            for repetition in range(1, self._attempts):
                why = cause(failure)
                if not failure.retry or not self._covers(why) or (failure.sent and not _repeatable(call)):
                    break
                wait = self._backoff.delay(repetition, failure.retry_after)
                # A model with several targets has a budget of its own, and other targets are asked from it too.
                budget = self._budget if context.budget is None else context.budget
                if wait > _LONGEST_WAIT or monotonic() + wait >= context.deadline or not budget.retry():
                    break
                self._retries.child(context.route, context.backend, why).inc()
                await asyncio.sleep(wait)
                try:
                    return await next(call)
                except Failure as again:
                    failure = again
            raise failure
        finally:
            del failure

    def _covers(self, why: str) -> bool:
        return why in self._on or (why[:1] == "5" and "5xx" in self._on)


def _repeatable(call: Call) -> bool:
    """Whether it may be done twice. A model's answer that nobody saw costs money, and does nothing else."""
    return isinstance(call, ModelCall) or (isinstance(call, ToolCall) and call.idempotent)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    layer = layers[-1]
    if layer.spec.attempts == 1:
        return None
    budget = parts.shared(("retry budget", layer.where), RetryBudget)
    return Retry(layer.spec, budget, parts.families.retries).handle


RETRY: Kind[Call, Reply] = Kind(
    "retry",
    frozenset(("top", "model", "server", "tool")),
    adds=False,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
)
