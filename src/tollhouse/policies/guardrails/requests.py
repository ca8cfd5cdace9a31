"""What goes out, to models and to servers: the part that both have in common.

Rule: a request is looked at whole before anything of it is sent, and goes out as guards have left it. Guards that run
beside the call (`beside`) hold its answer alone.
"""

from collections.abc import Awaitable
from typing import Any, Generic, TypeVar

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.asking import entries_of
from tollhouse.policies.guardrails.beside import beside
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.guardrails.turned_back import Making, TurnedBack
from tollhouse.wire.guard.llm.texts import FieldTexts

__all__ = ["Requests"]

C = TypeVar("C", bound=Call)


class Requests(Generic[C]):
    """Guards of one chain. making, back: for masks that are turned back."""

    def __init__(self, plan: Plan, counts: Counts, making: Making, back: TurnedBack | None) -> None:
        self._plan = plan
        self._counts = counts
        self._making = making
        self._back = back
        self._first = tuple(check for check in plan.checks if not check.parallel)
        self._beside = tuple(check for check in plan.checks if check.parallel)

    # ---- what differs
    def _read(self, call: C) -> FieldTexts:
        """The texts of a request. Raises ValueError for what cannot be read."""
        raise NotImplementedError

    def _put(self, call: C, fields: dict[str, Any]) -> None:
        """Have these fields go out in the place of what is there."""
        raise NotImplementedError

    def _is_followed(self, acts: Acts) -> bool:
        """Whether something is done with the answer."""
        raise NotImplementedError

    async def _followed(self, call: C, answer: Awaitable[Reply], acts: Acts) -> Reply:
        """The answer, with what is told or turned back in it."""
        raise NotImplementedError

    # ---- a request
    def _looked_at(self, call: C, next: Handler[Any, Reply], acts: Acts) -> Awaitable[Reply]:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        plan = self._plan
        try:
            texts, changed = plan.looked_at(acts, self._read, call)
            if plan.checks and texts.pieces:
                return self._asked(call, next, acts, texts, changed)
            self._put(call, texts.replaced(changed))
        except Failure:
            acts.done()
            raise
        acts.done()
        return self._followed(call, next(call), acts) if self._is_followed(acts) else next(call)

    async def _asked(
        self, call: C, next: Handler[Any, Reply], acts: Acts, texts: FieldTexts, changed: dict[Any, str]
    ) -> Reply:
        try:
            entries = entries_of(texts, changed)
            if self._first:
                changed |= await self._plan.ask(self._first, entries, acts, call)
            self._put(call, texts.replaced(changed))
            if self._beside:
                asked = self._plan.ask(self._beside, entries, acts, call)
                return await self._followed(call, beside(asked, next, call), acts)
        finally:
            acts.done()
        return await self._followed(call, next(call), acts)
