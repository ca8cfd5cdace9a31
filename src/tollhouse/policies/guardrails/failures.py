"""What servers and providers say where they fail: it may come to callers, and to the access log, in the words of a
failure.

Rule: patterns look at all of it. Guards that have to be asked are asked about what an API says, which a model reads as
the result of a tool; the rest is for programs, and mostly ours. What a provider says never makes another failure of
the one that it is about: whether somebody else is asked must not depend on its words.
"""

from typing import Any

from tollhouse.core.call import Call
from tollhouse.core.errors import API_FAILED, Failure
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Entry
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.wire.guard.llm.texts import Piece
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.sse import parse

__all__ = ["asked_about", "looked_at", "of_provider"]

_KIND = "results"
_ANY = "other"
_WITHHELD = "a guard withholds what the provider has said"


def looked_at(failure: Failure, plan: Plan, acts: Acts) -> Failure:
    """The same, or one with other words. Raises Failure where that is refused."""
    said = {"message": failure.message, "detail": failure.detail}
    pieces = [Piece((name, _KIND), _KIND, "", text, False) for name, text in said.items() if text]
    return _with(failure, {key[0]: text for key, text in plan.scan(pieces, acts).items()})


def of_provider(failure: Failure, plan: Plan, acts: Acts) -> Failure:
    """A model's failure: the same, or one without what must not be told. The event in which the provider has said it
    (`StreamFailure`) is left out as soon as anything is found in it: ours stands there instead."""
    said = [("message", failure.message, False), ("detail", failure.detail, False)]
    if isinstance(failure, StreamFailure):
        words = failure.words
        said.append(("words", words.decode(errors="replace"), False))
        said.append(("data", parse(words)[1].decode(errors="replace"), True))
    new: dict[Any, str] = {}
    for name, text, json in said:
        key = (name, _ANY)
        try:
            new |= plan.scan([Piece(key, _ANY, "", text, json)], acts) if text else {}
        except Failure:
            new[key] = _WITHHELD
    return _with(failure, {key[0]: text for key, text in new.items()})


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
