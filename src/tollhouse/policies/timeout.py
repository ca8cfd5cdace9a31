"""The request's deadline: how long all of it may take, retries and fallbacks included.

Rule: a deadline is an attribute that backends obey; nothing is started or cancelled here. A deadline that is already
nearer stays.
"""

from collections.abc import Awaitable
from time import monotonic
from typing import Any

from pydantic import Field

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["TIMEOUT", "Timeout", "TimeoutSpec"]


class TimeoutSpec(Spec):
    """How long a request may take."""

    total: Duration = Field(gt=0.0, description="from the request's head to the end of the answer")


class Timeout:
    """Sets `Context.deadline`."""

    def __init__(self, total: float) -> None:
        self._total = total

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        context = request.context
        deadline = (context.began or monotonic()) + self._total
        if deadline < context.deadline:
            context.deadline = deadline
        return next(request)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return Timeout(layers[-1].spec.total).handle


TIMEOUT: Kind[Request, Response] = Kind("timeout", frozenset(("top",)), adds=False, build=_build)
