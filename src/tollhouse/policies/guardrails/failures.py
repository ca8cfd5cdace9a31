"""What servers say where they fail: it may come to agents in the words of a failure.

Rule: patterns look at all of it. Guards that have to be asked are asked about what an API says, which a model reads as
the result of a tool; the rest is for programs, and mostly ours.
"""

from tollhouse.core.call import Call
from tollhouse.core.errors import API_FAILED, Failure
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Entry
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.wire.guard.llm.texts import Piece

__all__ = ["asked_about", "looked_at"]

_KIND = "results"


def looked_at(failure: Failure, plan: Plan, acts: Acts) -> Failure:
    """The same, or one with other words. Raises Failure where that is refused."""
    said = {"message": failure.message, "detail": failure.detail}
    pieces = [Piece((name, _KIND), _KIND, "", text, False) for name, text in said.items() if text]
    return _with(failure, {key[0]: text for key, text in plan.scan(pieces, acts).items()})


async def asked_about(failure: Failure, plan: Plan, acts: Acts, call: Call) -> Failure:
    """The same, by guards that have to be asked. Raises Failure."""
    if failure.code != API_FAILED or not failure.detail or not plan.checks:
        return failure
    return _with(failure, await plan.ask(plan.checks, [Entry("detail", _KIND, failure.detail)], acts, call))


def _with(failure: Failure, new: "dict[str, str]") -> Failure:
    if not new:
        return failure
    told = failure.copy()
    told.message, told.detail = new.get("message", told.message), new.get("detail", told.detail)
    return told
