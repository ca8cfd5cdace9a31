"""The two places of guardrails in a chain: before and behind what answers.

Rule: requests are looked at outside of everything that answers for the upstream (a cache), and what is masked there is
turned back there, last; answers are looked at inside of it, so that nothing is kept that was not.
"""

from typing import Any, Final

from tollhouse.core.call import Call
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Entrance, Kind, Layer, Level, Parts
from tollhouse.policies.guardrails.acts import Counts
from tollhouse.policies.guardrails.continued import continued
from tollhouse.policies.guardrails.models import ModelAnswers, ModelRequests
from tollhouse.policies.guardrails.plan import plan_of
from tollhouse.policies.guardrails.segments import Room
from tollhouse.policies.guardrails.tools import ToolAnswers, ToolRequests
from tollhouse.policies.guardrails.turned_back import making, turned_back

__all__ = ["GUARD_ANSWERS", "GUARD_REQUESTS"]

_LEVELS: Final[frozenset[Level]] = frozenset(("top", "model", "server", "tool", "endpoint"))
_ENTRANCES: Final[frozenset[Entrance]] = frozenset(("llm", "mcp"))


def _requests(layers: tuple[Layer, ...], parts: Parts) -> Any:
    plan = plan_of(layers, "request", parts)
    if plan is None:
        return None
    back = turned_back(parts) if plan.reversible else None
    if parts.entrance == "llm":
        memory = continued(parts) if plan.reversible else None
        return ModelRequests(plan, Counts(parts.families), making(parts), back, memory).handle
    guards = ToolRequests(plan, Counts(parts.families), making(parts), back)
    return parts.shared(("guards of requests", guards), lambda: guards, ToolRequests.close).handle


def _answers(layers: tuple[Layer, ...], parts: Parts) -> Any:
    plan = plan_of(layers, "response", parts)
    if plan is None:
        return None
    if parts.entrance == "llm":
        return ModelAnswers(plan, Counts(parts.families), parts.shared(("guard room",), Room)).handle
    return ToolAnswers(plan, Counts(parts.families)).handle


GUARD_REQUESTS: Final[Kind[Call, Reply]] = Kind("guardrails", _LEVELS, adds=True, build=_requests, entrances=_ENTRANCES)
GUARD_ANSWERS: Final[Kind[Call, Reply]] = Kind("guardrails", _LEVELS, adds=True, build=_answers, entrances=_ENTRANCES)
