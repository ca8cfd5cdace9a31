"""What is told of a call that guards have acted on: the strongest of both phases, and of each phase its own."""

import itertools
from typing import Any

import pytest
from tests.unit.policies.floor import counted, parts

from tollhouse.core.call import Context
from tollhouse.core.errors import Failure
from tollhouse.policies.guardrails.acts import Acts, Counts, Guard
from tollhouse.policies.guardrails.spec import GuardRuleSpec

DONE = ("flag", "mask", "failopen", "reject")


def act(acts: Acts, done: str, name: str) -> None:
    rule: dict[str, Any] = {"keywords": ["x"], "action": "mask" if done == "mask" else "flag", "name": name}
    if done == "failopen":
        rule = {"webhook": {"url": "http://127.0.0.1:9/"}, "on_failure": "open", "name": name}
    elif done == "reject":
        rule = {"keywords": ["x"], "name": name}
    guard = Guard(GuardRuleSpec.model_validate(rule))
    if done == "failopen":
        acts.unable(guard, "away")
    elif done == "reject":
        with pytest.raises(Failure):
            acts.refuse(guard, "found")
    else:
        acts.note(guard, guard.action)


@pytest.mark.parametrize(("first", "then"), list(itertools.product(DONE, DONE)))
def test_the_strongest_of_both_phases_is_told(first: str, then: str) -> None:
    made = parts()
    context = Context()
    counts = Counts(made.families)
    for phase, done in (("request", first), ("response", then)):
        acts = Acts(context, phase, counts)  # type: ignore[arg-type]
        act(acts, done, phase)
        acts.done()
    strongest = max(first, then, key=DONE.index)
    assert context.guard_action == strongest
    assert context.guard == ("response" if then == strongest else "request")
    names = {"flag": "Flag", "mask": "Mask", "failopen": "FailOpen", "reject": "Reject"}
    assert counted(made, "guardrail_checks") == {("Request", names[first]): 1, ("Response", names[then]): 1}


def test_what_no_guard_could_see_is_told_where_it_is_refused() -> None:
    context = Context()
    acts = Acts(context, "request", Counts(parts().families))
    act(acts, "mask", "first")
    acts.unseen("an image", passes=True)
    assert (context.guard, context.guard_action) == ("first", "mask")
    with pytest.raises(Failure):
        acts.unseen("an image", passes=False)
    assert (context.guard, context.guard_action) == ("", "reject")
