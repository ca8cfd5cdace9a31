"""The two tuples: every policy is in one of them, and can be written where it is looked for."""

from typing import Any

import pytest
from tests.unit.policies.floor import layer, parts

from tollhouse.policies import CALL, REQUEST, GuardedScope, ModelScope, RouteScope, Scope, ServerScope
from tollhouse.policies.authenticate import AUTHENTICATE
from tollhouse.policies.base import ENTRANCES, EVERYWHERE, Kind
from tollhouse.policies.origin import ORIGIN

KINDS: tuple[Kind[Any, Any], ...] = (*REQUEST, *CALL)


def test_the_order() -> None:
    assert [kind.name for kind in REQUEST] == [
        "headers", "cors", "address", "authenticate", "cors", "authenticate", "requires", "requires", "authorize",
        "limits", "timeout", "authorize", "exchange", "identity", "headers",
    ]  # fmt: skip
    assert [kind.name for kind in CALL] == [
        "runs", "authenticate", "requires", "authorize", "runs", "budgets", "limits", "guardrails", "authorize",
        "oauth", "transform", "cache", "retry", "identity", "exchange", "guardrails",
    ]  # fmt: skip


def test_every_policy_can_be_written_at_the_top_and_nothing_else() -> None:
    of_servers = {kind.name for kind in KINDS if kind.levels == {"server"}}  # what is different at each of them
    assert of_servers == {"oauth"}
    assert set(Scope.model_fields) == {kind.name for kind in KINDS} - of_servers


@pytest.mark.parametrize(
    "scope, levels",
    [
        (ServerScope, ("server",)),
        (ModelScope, ("model",)),
        (RouteScope, ("route",)),
        (GuardedScope, ("endpoint",)),
    ],
)
def test_what_can_be_written_elsewhere_has_an_effect_there(scope: Any, levels: tuple[Any, ...]) -> None:
    for name in scope.model_fields:
        for level in levels:
            assert any(kind.name == name and level in kind.levels for kind in KINDS), (name, level)
    for kind in KINDS:
        assert kind.levels <= EVERYWHERE
        assert kind.entrances <= ENTRANCES
        if kind.name not in scope.model_fields:
            assert not kind.levels & set(levels), kind.name


def test_one_name_has_one_policy_for_each_entrance() -> None:
    # But for some that stand in two places: who may call is asked elsewhere than a page is told, answers are changed
    # elsewhere than requests, what a key is for is asked where it is known what is called, and people are asked last.
    for entrance in ENTRANCES:
        names = [kind.name for kind in KINDS if entrance in kind.entrances]
        twice = {name for name in names if names.count(name) > 1}
        assert twice <= {"authenticate", "authorize", "cors", "guardrails", "headers", "requires", "runs"}
        assert all(names.count(name) <= 2 for name in names)


def test_what_is_not_configured_is_not_in_the_chain() -> None:
    for entrance in ENTRANCES:
        made = [kind for kind in KINDS if kind.make((), parts(entrance=entrance)) is not None]
        # Everybody is anonymous then, and the pages of a browser on this machine are nobody's.
        assert made == ([AUTHENTICATE] if entrance == "http" else [AUTHENTICATE, ORIGIN])


def test_a_policy_is_not_built_where_it_is_of_no_use() -> None:
    spec = Scope.model_validate({"retry": {"attempts": 3}})
    [retry] = [kind for kind in CALL if kind.name == "retry"]
    assert retry.make((layer(spec.retry),), parts(entrance="http")) is None
