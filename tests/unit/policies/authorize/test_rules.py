"""The algebra of rules, against a model of it that fits on a page."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.floor import layer, model, parts, tool, who

from tollhouse.core.errors import Failure
from tollhouse.policies.authorize import Authorize, AuthorizeSpec, permitted
from tollhouse.policies.authorize.policy import AUTHORIZE, _make
from tollhouse.policies.authorize.rules import rules_of, steps

Said = Literal["yes", "no", "doubt", "apart", "unsure"]
# What each expression says of a call of tool t by somebody with groups [g]; of a listing of t; of a listing of tools.
SAYS: dict[str, tuple[Said, Said, Said]] = {
    "true": ("yes", "yes", "yes"),
    "false": ("no", "no", "no"),
    "jwt.none": ("doubt", "doubt", "doubt"),
    '"g" in jwt.groups': ("yes", "yes", "yes"),
    'mcp.tool.name == "t"': ("yes", "yes", "apart"),
    'mcp.tool.name == "other"': ("no", "no", "apart"),
    'llm.model == "m"': ("apart", "apart", "apart"),
    "mcp.tool.arguments.n > 1": ("yes", "unsure", "apart"),
    "mcp.tool.arguments.n > 9": ("no", "unsure", "apart"),
    "mcp.tool.arguments.none > 9": ("doubt", "unsure", "apart"),
    "mcp.tool.annotations.readOnlyHint": ("no", "no", "apart"),
}
EFFECTS = ("allow", "deny", "require")
KINDS = ("call", "listed", "list")

rule_ = st.fixed_dictionaries(
    {"effect": st.sampled_from(EFFECTS), "source": st.sampled_from(sorted(SAYS)), "shadow": st.booleans()}
)
scope_ = st.fixed_dictionaries({"rules": st.lists(rule_, min_size=1, max_size=4), "shadow": st.booleans()})


def refuses(rules: list[tuple[str, Said]], *, listing: bool, named: bool) -> bool:
    """The algebra: deny wins, doubt denies, everything required, one allowed."""
    says = {effect: [said for other, said in rules if other == effect] for effect in EFFECTS}
    if any(said in ("yes", "doubt") for said in says["deny"]):
        return True
    if any(said in ("no", "doubt") for said in says["require"]):
        return True
    fine = {"yes"} | ({"unsure"} if listing else set()) | (set() if named else {"apart"})
    return bool(says["allow"]) and not any(said in fine for said in says["allow"])


def of(scopes: list[dict[str, Any]], kind: str, *, shadow: bool) -> bool:
    """Whether any scope refuses. shadow: with what is in shadow."""
    at = KINDS.index(kind)
    return any(
        refuses(
            [
                (r["effect"], SAYS[r["source"]][at])
                for r in scope["rules"]
                if shadow or not (r["shadow"] or scope["shadow"])
            ],
            listing=kind == "listed",
            named=kind != "list",
        )
        for scope in scopes
    )


def layers_of(scopes: list[dict[str, Any]]) -> Any:
    made = []
    for n, scope in enumerate(scopes):
        rules = [
            {r["effect"]: r["source"]} | ({"shadow": True} if r["shadow"] and not scope["shadow"] else {})
            for r in scope["rules"]
        ]
        spec = AuthorizeSpec.model_validate({"rules": rules, "shadow": scope["shadow"]})
        made.append(layer(spec, "top" if not n else "server", "" if not n else f"s{n}"))
    return tuple(made)


def caller() -> Any:
    return who(claims={"groups": ["g"]})


@given(st.lists(scope_, min_size=1, max_size=3))
def test_any_combination_obeys_the_algebra(scopes: list[dict[str, Any]]) -> None:
    layers = layers_of(scopes)
    p = parts(entrance="mcp")
    made = _make(layers, p)
    assert made is not None
    principal = caller()
    for _ in range(2):  # the second time from memory
        for kind in ("call", "list"):
            call = tool("t", principal, n=5) if kind == "call" else tool("", principal, method="tools/list")
            refused = False
            try:
                made.check(call)
            except Failure as failure:
                refused = failure.status == 403
            assert refused is of(scopes, kind, shadow=False)
            assert bool(call.context.rule) is refused
            assert call.context.decision == ("deny" if refused else "allow")
            hidden = any(r["shadow"] or s["shadow"] for s in scopes for r in s["rules"])
            assert bool(call.context.shadow) is (hidden and not refused and of(scopes, kind, shadow=True))
        guard = permitted(layers, p)
        listed = guard is None or guard.permitted(tool("t", principal))
        assert listed is not of(scopes, "listed", shadow=False)
        if not of(scopes, "call", shadow=False):
            assert listed  # what may be called is listed


@given(st.lists(scope_, min_size=1, max_size=2), st.randoms())
def test_order_and_repetition_say_nothing(scopes: list[dict[str, Any]], random: Any) -> None:
    shuffled = [{**scope, "rules": [*scope["rules"], *scope["rules"]]} for scope in scopes]
    for scope in shuffled:
        random.shuffle(scope["rules"])
    random.shuffle(shuffled)
    assert decided(scopes) is decided(shuffled)


@given(scope_, scope_)
def test_a_further_scope_forbids_more_and_never_permits_more(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert decided([one, two]) is (decided([one]) and decided([two]))


def decided(scopes: list[dict[str, Any]]) -> bool:
    made = _make(layers_of(scopes), parts(entrance="mcp"))
    assert made is not None
    try:
        made.check(tool("t", caller(), n=5))
    except Failure:
        return False
    return True


@given(st.lists(scope_, min_size=1, max_size=2))
def test_the_steps_tell_the_decision(scopes: list[dict[str, Any]]) -> None:
    call = tool("t", caller(), n=5)
    told = [step for layer in layers_of(scopes) for step in steps(rules_of(layer), call)]
    assert [step.source for step in told] == [r["source"] for s in scopes for r in s["rules"]]
    assert any(step.refuses for step in told) is of(scopes, "call", shadow=False)


@pytest.mark.parametrize("source", sorted(SAYS))
def test_what_the_expressions_say(source: str) -> None:
    """The table that the model stands on."""
    [layer] = layers_of([{"rules": [{"effect": "deny", "source": source, "shadow": False}], "shadow": False}])
    expression = rules_of(layer)[0].expression
    said = expression.ask(tool("t", caller(), n=5)).value
    listed = expression.ask(tool("t", caller()), listing=True).value
    bare = expression.ask(tool("", caller(), method="tools/list")).value
    assert (said, listed, bare) == SAYS[source]


def test_models_too() -> None:
    assert AUTHORIZE.make(layers_of([]), parts(entrance="llm")) is None
    made = _make(
        layers_of([{"rules": [{"effect": "require", "source": 'llm.model == "m"', "shadow": False}], "shadow": False}]),
        parts(),
    )
    assert isinstance(made, Authorize)
    made.check(model("m"))
    with pytest.raises(Failure):
        made.check(model("n"))
