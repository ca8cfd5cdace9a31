"""The two tuples: every policy is in one of them, and can be written where it is looked for."""

from typing import Any

import pytest
from tests.unit.policies.floor import layer, parts

from tollhouse.policies import CALL, REQUEST, CallScope, EntranceScope, Scope
from tollhouse.policies.base import ENTRANCES, EVERYWHERE, Kind

KINDS: tuple[Kind[Any, Any], ...] = (*REQUEST, *CALL)


def test_the_order() -> None:
    assert [kind.name for kind in REQUEST] == [
        "cors", "address", "authenticate", "authorize", "limits", "timeout", "headers",
    ]  # fmt: skip
    assert [kind.name for kind in CALL] == ["authorize", "limits", "retry"]


def test_every_policy_can_be_written_at_the_top_and_nothing_else() -> None:
    assert set(Scope.model_fields) == {kind.name for kind in KINDS}


@pytest.mark.parametrize(
    "scope, levels", [(CallScope, ("model", "server", "tool")), (EntranceScope, ("route", "endpoint"))]
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
    for entrance in ENTRANCES:
        names = [kind.name for kind in KINDS if entrance in kind.entrances]
        assert len(names) == len(set(names))


def test_what_is_not_configured_is_not_in_the_chain() -> None:
    for entrance in ENTRANCES:
        made = [kind.name for kind in KINDS if kind.make((), parts(entrance=entrance)) is not None]
        assert made == ["authenticate"]  # which then makes everybody anonymous


def test_a_policy_is_not_built_where_it_is_of_no_use() -> None:
    spec = Scope.model_validate({"retry": {"attempts": 3}})
    [retry] = [kind for kind in CALL if kind.name == "retry"]
    assert retry.make((layer(spec.retry),), parts(entrance="http")) is None
