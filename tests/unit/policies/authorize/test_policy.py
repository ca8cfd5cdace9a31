"""Rules: deny wins, doubt denies, scopes add up, lists are filtered by the same rules."""

import gc
from typing import Any

import msgspec
import pytest
from tests.unit.policies.floor import answer, counted, layer, model, parts, request, respond, tool, who

from tollhouse.core.call import Actor, Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.policies.authorize import AUTHORIZE, AUTHORIZE_ROUTE, Authorize, AuthorizeSpec, GuardSpec, permitted
from tollhouse.policies.base import Layer

pytestmark = pytest.mark.anyio

ADA = {"email": "ada@example.com", "email_verified": True, "groups": ["dev"]}


def rules(*rules: dict[str, Any], level: Any = "top", name: str = "") -> Layer:
    return layer(AuthorizeSpec.model_validate({"rules": rules}), level, name)


def ada(**claims: Any) -> Any:
    return who(claims=ADA | claims)


async def passes(call: Call, *layers: Layer) -> bool:
    policy = AUTHORIZE.make(layers, parts(entrance="mcp"))
    assert policy is not None
    try:
        await compose((policy,), answer)(call)
    except Failure as failure:
        return (failure.status, failure.reason) != (403, Reason.AUTHORIZATION)
    return True


async def test_the_example_of_the_design() -> None:
    both = rules(
        {"allow": 'jwt.email.endsWith("@example.com") && jwt.email_verified'},
        {"deny": 'mcp.tool.name == "delete_repo" && !("admin" in jwt.groups)'},
    )
    assert await passes(model(principal=ada()), both)
    assert await passes(tool("search", ada()), both)
    assert await passes(tool("", ada(), method="tools/list"), both)
    assert not await passes(tool("delete_repo", ada()), both)
    assert await passes(tool("delete_repo", ada(groups=["admin"])), both)
    assert not await passes(model(principal=ada(email="eve@evil.com")), both)
    assert not await passes(model(principal=ada(email_verified=False)), both)
    assert not await passes(model(principal=who(claims={})), both)
    nobody_knows = {k: v for k, v in ADA.items() if k != "groups"}
    assert await passes(model(principal=who(claims=nobody_knows)), both)  # the deny rule is not about models
    assert not await passes(tool("delete_repo", who(claims=nobody_knows)), both)


@pytest.mark.parametrize(
    "written, ok",
    [
        ([{"allow": "true"}], True),
        ([{"allow": "false"}], False),
        ([{"allow": "jwt.none"}], False),
        ([{"allow": "jwt.email"}], False),
        ([{"allow": "false"}, {"allow": "true"}], True),
        ([{"deny": "false"}], True),
        ([{"deny": "true"}], False),
        ([{"deny": "jwt.none == 1"}], False),  # doubt
        ([{"deny": "has(jwt.none) && jwt.none == 1"}], True),
        ([{"deny": "jwt.email"}], False),
        ([{"allow": "true"}, {"deny": "true"}], False),
        ([{"deny": "llm.stream"}], True),
        ([{"allow": 'mcp.tool.name == "x"'}], False),
    ],
)
async def test_allow_and_deny(written: list[dict[str, str]], ok: bool) -> None:
    assert await passes(model(principal=ada()), rules(*written)) is ok


async def test_every_scope_must_agree() -> None:
    top, narrow = rules({"allow": 'llm.model == "a"'}, {"allow": 'llm.model == "b"'}), "model"
    assert await passes(model("a"), top, rules({"allow": "true"}, level=narrow, name="a"))
    assert not await passes(model("a"), top, rules({"allow": "false"}, level=narrow, name="a"))
    assert not await passes(model("c"), top, rules({"allow": "true"}, level=narrow, name="c"))
    assert await passes(model("a"), top, rules({"deny": "false"}, level=narrow, name="a"))
    assert not await passes(model("a"), rules({"deny": "true"}), rules({"allow": "true"}, level=narrow, name="a"))


@pytest.mark.parametrize("method", ["initialize", "tools/list", "ping", "prompts/list"])
async def test_requests_that_name_nothing_pass_allow_rules_about_names(method: str) -> None:
    about_tools = rules({"allow": 'mcp.tool.name == "x" && "dev" in jwt.groups'})
    assert await passes(tool("", ada(), method=method), about_tools)
    assert not await passes(tool("", ada(groups=["dev"]), method=method), rules({"allow": '"admin" in jwt.groups'}))
    assert not await passes(tool("x", ada(), method="prompts/get"), about_tools)
    assert not await passes(model(principal=ada()), about_tools)


async def test_so_do_requests_for_models_that_name_none() -> None:
    about_models = rules({"allow": 'llm.model == "a" && "dev" in jwt.groups'})
    assert await passes(model("", ada()), about_models)
    assert await passes(model("", ada()), rules({"deny": 'llm.model == "b"'}, {"deny": "llm.tokens > 5"}))
    assert await passes(model("", ada()), rules({"allow": 'llm.operation == "chat"'}))
    assert not await passes(model("", ada()), rules({"allow": '"admin" in jwt.groups'}))
    assert not await passes(model("", ada()), rules({"deny": "!has(llm.model)"}))
    assert not await passes(model("", ada()), rules({"deny": 'request.ip == "10.0.0.7"'}))


async def test_a_refusal_names_the_rule_to_us_and_not_to_the_caller() -> None:
    scopes = (
        rules({"allow": "true"}),
        rules({"deny": "false"}, {"deny": 'llm.model == "secret"', "name": "no-secret"}, level="model", name="secret"),
    )
    p = parts(entrance="llm")
    policy = AUTHORIZE.make(scopes, p)
    assert policy is not None
    call = model("secret")
    with pytest.raises(Failure) as caught:
        await compose((policy,), answer)(call)
    assert call.context.rule == "model secret: no-secret"
    assert caught.value.detail == "refused by model secret: no-secret"
    assert "secret" not in caught.value.message
    await compose((policy,), answer)(model("other"))
    await compose((policy,), answer)(model("other"))
    decisions = counted(p, "authorization_decisions_total")
    assert decisions == {("cel", "deny"): 1, ("cel", "allow"): 2}


@pytest.mark.parametrize(
    "written, rule",
    [
        ([{"deny": "false"}, {"deny": "true"}], "top: rule 2"),
        ([{"deny": "jwt.none"}], "top: rule 1 (in doubt)"),
        ([{"allow": "false"}], "top: no allow rule matches"),
    ],
)
async def test_how_a_rule_is_called(written: list[dict[str, str]], rule: str) -> None:
    call = model()
    assert not await passes(call, rules(*written))
    assert call.context.rule == rule


async def test_what_is_remembered_is_not_asked_again_and_a_refusal_still_names_its_rule() -> None:
    policy = AUTHORIZE.make((rules({"deny": 'llm.model == "x"'}),), parts(entrance="llm"))
    assert policy is not None
    ada = who()
    for _ in range(2):
        with pytest.raises(Failure):
            await compose((policy,), answer)(model("x", ada))
        await compose((policy,), answer)(model("y", ada))
    assert set(ada.verdicts.values()) == {True, False}
    again = model("x", ada)
    with pytest.raises(Failure):
        await compose((policy,), answer)(again)
    assert again.context.rule == "top: rule 1"


async def test_rules_over_arguments_are_asked_each_time() -> None:
    policy = AUTHORIZE.make((rules({"deny": "mcp.arguments.amount > 100"}),), parts(entrance="mcp"))
    assert policy is not None
    handler, principal = compose((policy,), answer), who()
    await handler(tool("pay", principal, amount=5))
    with pytest.raises(Failure):
        await handler(tool("pay", principal, amount=500))
    await handler(tool("pay", principal, amount=5))
    assert principal.verdicts == {}


async def test_lists_are_filtered_by_the_same_rules() -> None:
    layers = (
        rules(
            {"deny": 'mcp.tool.name.startsWith("delete") && !("admin" in jwt.groups)'},
            {"deny": 'mcp.tool.name == "pay" && mcp.arguments.amount > 100'},
            {"deny": 'request.headers["x-zone"] == "red" && mcp.tool.name == "zone"'},
        ),
        rules({"allow": 'mcp.server == "shop"'}, level="server", name="shop"),
    )
    guard = permitted(layers, parts(entrance="mcp"))
    assert isinstance(guard, Authorize)
    names = ("search", "delete_all", "pay", "zone")

    def listed(principal: Any, server: str = "shop") -> list[str]:
        return [name for name in names if guard.permitted(tool(name, principal, server=server))]

    principal = ada()
    for _ in range(2):  # the second time from memory
        assert listed(principal) == ["search", "pay", "zone"]
    assert listed(ada(groups=["admin"])) == list(names)
    assert listed(who(claims={})) == ["search", "pay", "zone"]  # in doubt: refused when called, so not listed
    assert listed(principal, "other") == []
    assert permitted((), parts()) is None


async def test_models_are_filtered() -> None:
    guard = permitted((rules({"allow": 'llm.model.startsWith("small") || llm.tokens < 100'}),), parts(entrance="llm"))
    assert guard is not None
    assert guard.permitted(model("small-1"))
    assert guard.permitted(model("big"))  # depends on its size: decided when it is called
    guard = permitted((rules({"allow": 'llm.model.startsWith("small") && llm.tokens < 100'}),), parts(entrance="llm"))
    assert guard is not None
    assert not guard.permitted(model("big"))


async def test_plain_routes() -> None:
    layers = (
        rules({"deny": 'mcp.tool.name == "x"'}, {"deny": 'request.path.startsWith("/admin")'}),
        rules({"allow": 'request.method == "GET"'}, level="route", name="r"),
    )
    policy = AUTHORIZE_ROUTE.make(layers, parts(entrance="http"))
    assert policy is not None
    handler = compose((policy,), respond)
    assert (await handler(request(b"GET", b"/x", principal=who()))).status == 200
    for refused in (request(b"GET", b"/admin/x", principal=who()), request(b"POST", b"/x", principal=who())):
        with pytest.raises(Failure) as caught:
            await handler(refused)
        assert caught.value.status == 403
    assert AUTHORIZE_ROUTE.make(layers, parts(entrance="llm")) is None
    assert AUTHORIZE.make(layers, parts(entrance="http")) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"allow": "true", "deny": "true"},
        {"allow": "true", "approve": "true"},
        {"allow": "1 +"},
        {"allow": "llm.provider == 'x'"},
        {"deny": "true", "by": "user"},
        {"require": "true", "remember": "1h"},
        {"approve": "true", "by": "nobody"},
        {"approve": "true", "remember": "0s"},
    ],
)
def test_bad_rules_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="rules"):
        AuthorizeSpec.model_validate({"rules": [wrong]})


# ---- what must be so, and what is in shadow
@pytest.mark.parametrize(
    "source, ok",
    [
        ("true", True),
        ("false", False),
        ("jwt.none == 1", False),  # doubt
        ("jwt.email", False),
        ('"dev" in jwt.groups', True),
        ('mcp.tool.name != "x"', True),  # says nothing of models
        ('"admin" in jwt.groups && mcp.tool.name != "x"', False),
        ("llm.tokens < 100", True),
    ],
)
async def test_require(source: str, ok: bool) -> None:
    assert await passes(model(principal=ada()), rules({"require": source})) is ok
    assert await passes(model(principal=ada()), rules({"allow": "true"}, {"require": source})) is ok
    assert not await passes(model(principal=ada()), rules({"deny": "true"}, {"require": source}))


async def test_require_holds_in_every_scope_and_for_requests_that_name_nothing() -> None:
    signed = {"require": 'jwt.amr == "mfa"', "name": "mfa"}
    narrow = rules(signed, level="server", name="shop")
    assert await passes(tool("x", ada(amr="mfa")), rules({"allow": "true"}), narrow)
    call = tool("x", ada(amr="pwd"))
    assert not await passes(call, rules({"allow": "true"}), narrow)
    assert call.context.rule == "server shop: mfa (required)"
    assert not await passes(tool("", ada(), method="tools/list"), rules(signed))
    guard = permitted((rules({"require": 'mcp.tool.name == "x" || mcp.arguments.a == 1'}),), parts(entrance="mcp"))
    assert guard is not None
    assert guard.permitted(tool("x"))
    assert guard.permitted(tool("y"))  # depends on its arguments
    guard = permitted((rules({"require": 'mcp.tool.name == "x"'}),), parts(entrance="mcp"))
    assert guard is not None
    assert not guard.permitted(tool("y"))


async def test_a_rule_in_shadow_refuses_nothing_and_says_what_it_would() -> None:
    p = parts(entrance="mcp")
    written = rules({"allow": "true"}, {"deny": 'mcp.tool.name == "x"', "name": "no-x", "shadow": True})
    policy = AUTHORIZE.make((written,), p)
    assert policy is not None
    for _ in range(2):
        call = tool("x")
        await compose((policy,), answer)(call)
        assert (call.context.decision, call.context.rule, call.context.shadow) == ("allow", "", "top: no-x")
    other = tool("y")
    await compose((policy,), answer)(other)
    assert other.context.shadow == ""
    counts = {("cel", "allow"): 3, ("cel", "shadow_deny"): 2, ("cel", "shadow_allow"): 1}
    assert counted(p, "authorization_decisions_total") == counts
    guard = permitted((written,), p)
    assert guard is not None
    assert guard.permitted(tool("x"))


async def test_a_block_in_shadow() -> None:
    block = layer(GuardSpec.model_validate({"rules": [{"allow": "false"}], "shadow": True}))
    assert await passes(tool("x"), block)
    assert not await passes(tool("x"), block, rules({"deny": "true"}, level="server", name="shop"))
    assert permitted((block,), parts(entrance="mcp")) is None
    with pytest.raises(ValueError, match="pointless"):
        AuthorizeSpec.model_validate({"rules": [{"allow": "false", "shadow": True}], "shadow": True})


async def test_a_shadow_allow_permits_nothing_and_asks_for_nothing() -> None:
    shadow = {"allow": "true", "shadow": True}
    assert not await passes(tool("x"), rules({"allow": "false"}, shadow))
    assert await passes(tool("x"), rules({"allow": "false", "shadow": True}))


# ---- what servers say of their tools
def described(name: str, hints: Any, principal: Any = None) -> Any:
    call = tool(name, principal)
    call.definition = msgspec.json.encode({"name": name, "annotations": hints} if hints is not None else {"name": name})
    return call


@pytest.mark.parametrize(
    "hints, ok",
    [
        ({"readOnlyHint": True, "destructiveHint": False}, True),
        ({"readOnlyHint": True, "destructiveHint": True}, True),
        ({"destructiveHint": False}, True),
        ({"destructiveHint": True}, False),
        ({}, False),  # as MCP has it: destructive where nobody says otherwise
        (None, False),
        ({"destructiveHint": "no"}, False),  # doubt
    ],
)
async def test_rules_over_annotations(hints: Any, ok: bool) -> None:
    source = "mcp.tool.annotations.destructiveHint && !mcp.tool.annotations.readOnlyHint"
    written = rules({"deny": source})
    assert await passes(described("x", hints), written) is ok
    guard = permitted((written,), parts(entrance="mcp"))
    assert guard is not None
    principal = ada()
    assert guard.permitted(described("x", hints, principal)) is ok
    changed = {"readOnlyHint": True}  # nothing that a server may change is remembered
    assert guard.permitted(described("x", changed, principal))
    assert await passes(model(), written)


async def test_an_unknown_tool_counts_as_destructive() -> None:
    assert not await passes(tool("x"), rules({"deny": "mcp.tool.annotations.destructiveHint"}))


async def test_variables_of_the_token() -> None:
    principal = who(
        scopes=frozenset(("b", "a")), actors=(Actor("https://idp", "agent-1"), Actor("", "agent-2")), client="c-1",
        issuer="https://idp", subject="s",
    )  # fmt: skip
    source = (
        'principal.scopes == ["a", "b"] && "a" in principal.scopes && principal.actors[0].sub == "agent-1" && '
        'principal.actors.exists(a, a.sub == "agent-2") && principal.client == "c-1" && '
        'principal.issuer == "https://idp" && principal.subject == "s"'
    )
    assert await passes(model(principal=principal), rules({"allow": source}))


async def test_what_was_decided_is_in_the_context() -> None:
    call = tool("x")
    assert await passes(call, rules({"allow": "true"}))
    assert (call.context.decision, call.context.rule) == ("allow", "")
    call = tool("x")
    assert not await passes(call, rules({"deny": "true"}))
    assert (call.context.decision, call.context.rule) == ("deny", "top: rule 1")


async def test_no_cycles() -> None:
    policy = AUTHORIZE.make((rules({"deny": 'mcp.tool.name == "x" || jwt.none'}),), parts(entrance="mcp"))
    assert policy is not None
    handler, principal = compose((policy,), answer), who()

    async def ask() -> None:
        for name in ("x", "y"):
            try:
                await handler(tool(name, principal))
            except Failure as failure:
                failure.__traceback__ = None

    await ask()
    gc.collect()
    await ask()
    assert gc.collect() == 0


async def test_one_rule_over_arguments_has_not_all_others_asked_again() -> None:
    written = rules(
        {"deny": 'mcp.tool.name == "gone"'},
        {"require": '"dev" in jwt.groups'},
        {"allow": 'mcp.server == "shop"'},
        {"deny": "mcp.arguments.amount > 100"},
    )
    principal = ada()
    policy = AUTHORIZE.make((written,), parts(entrance="mcp"))
    assert policy is not None
    handler = compose((policy,), answer)
    for _ in range(2):
        await handler(tool("pay", principal, amount=5))
        with pytest.raises(Failure):
            await handler(tool("pay", principal, amount=500))
        with pytest.raises(Failure):
            await handler(tool("gone", principal, amount=5))
        with pytest.raises(Failure):
            await handler(tool("pay", principal, server="other", amount=5))
    assert len(principal.verdicts) == 5  # of names alone: no verdict knows an amount
    assert set(principal.verdicts.values()) == {True, False}
