"""Policies in Rego: real ones, asked of the real engine."""

import asyncio
import json
import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.floor import Shelf, answer, counted, layer, model, parts, tool, who

from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.handler import compose
from tollhouse.policies.authorize import AUTHORIZE, GuardSpec, permitted
from tollhouse.policies.authorize.document import reads
from tollhouse.policies.authorize.rego import BadPolicy, InThread, Rego

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("regopy") is None, reason="the extra `rego` is not installed"),
]

ROLES = """
package tollhouse

default allow := false

allow if {
	some group in input.principal.groups
	input.mcp.tool.name in data.roles[group]
}

allow if input.mcp.method != "tools/call"
"""


def guard(there: Path, policy: str = ROLES, *, more: dict[str, Any] | None = None, **rego: Any) -> Any:
    (there / "policy.rego").write_text(policy)
    (there / "roles.json").write_text(json.dumps({"roles": {"dev": ["search"], "admin": ["search", "delete"]}}))
    settings = {"file": str(there / "policy.rego"), "data": str(there / "roles.json"), **rego}
    return layer(GuardSpec.model_validate({"rego": settings, **(more or {})}))


async def passes(call: Any, *layers: Any, p: Any = None) -> bool:
    policy = AUTHORIZE.make(layers, p or parts(entrance="mcp"))
    assert policy is not None
    try:
        await compose((policy,), answer)(call)
    except Failure as failure:
        return failure.status != 403
    return True


def dev(*groups: str) -> Any:
    return who(groups=groups or ("dev",))


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_policy_with_data(tmp_path: Path, in_thread: bool) -> None:
    p = parts(entrance="mcp")
    policy = guard(tmp_path, in_thread=in_thread)
    assert await passes(tool("search", dev()), policy, p=p)
    call = tool("delete", dev())
    assert not await passes(call, policy, p=p)
    assert call.context.rule == "top: data.tollhouse.allow"
    assert await passes(tool("delete", dev("other", "admin")), policy, p=p)
    assert await passes(tool("", dev(), method="tools/list"), policy, p=p)
    assert counted(p, "authorization_decisions_total") == {("rego", "allow"): 3, ("rego", "deny"): 1}
    shelf = p.shared
    assert isinstance(shelf, Shelf)
    await shelf.close()


@pytest.mark.parametrize("in_thread", [False, True])
async def test_lists_are_filtered(tmp_path: Path, in_thread: bool) -> None:
    p = parts(entrance="mcp")
    made = permitted((guard(tmp_path, in_thread=in_thread),), p)
    assert made is not None
    for _ in range(2):
        assert made.permitted(tool("search", dev()))
        assert not made.permitted(tool("delete", dev()))
    shelf = p.shared
    assert isinstance(shelf, Shelf)
    await shelf.close()


# As long as the caller wants.
LONG = """
package tollhouse
allow if input.listing
allow if count([x | some x in numbers.range(1, input.mcp.arguments.n); x % 7 == 3]) > 0
"""


async def test_a_decision_that_does_not_end_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    rego, lists = (Rego({"p": LONG}, {}, "data.tollhouse.allow") for _ in range(2))
    policy = InThread(rego, lists, longest=0.05)
    assert await policy.refusal(tool("x", dev(), n=10)) == ""
    slow = [asyncio.ensure_future(policy.refusal(tool("x", dev(), n=n))) for n in (200_000, 5)]
    await asyncio.sleep(0.01)
    assert lists.refusal(tool("x", dev()), True) == ""  # a list waits for neither
    for asked in slow:
        with pytest.raises(Failure) as caught:
            await asked
        assert (caught.value.status, caught.value.code) == (503, "authorization_unavailable")
    policy._longest = 30.0  # further ones do not wait at all
    for _ in range(20):
        call = tool("x", dev(), n=5)
        with pytest.raises(Failure):
            await policy.refusal(call)
        assert (call.context.decision, call.context.rule) == ("deny", "data.tollhouse.allow (not decided)")
    policy.shadow = True
    assert await policy.refusal(tool("x", dev(), n=5)) == "data.tollhouse.allow (not decided)"
    while (why := await policy.refusal(tool("x", dev(), n=5))) != "":  # until it has ended after all
        assert why.endswith("(not decided)")
        await asyncio.sleep(0.01)
    assert await policy.refusal(tool("x", dev(), n=2**70)) == "data.tollhouse.allow (in doubt)"
    await policy.close()
    assert not [one for one in caplog.records if one.name == "asyncio"]


@pytest.mark.parametrize(("policy", "apart"), [(LONG, True), (LONG.replace("allow if input.listing", ""), False)])
async def test_lists_have_an_engine_of_their_own(tmp_path: Path, policy: str, apart: bool) -> None:
    """Where they ask at all: an engine works for one at a time, and who waits for it in the loop holds up everybody."""
    p = parts(entrance="mcp")
    assert await passes(tool("x", n=8), guard(tmp_path, policy, in_thread=True), p=p)
    made = permitted((guard(tmp_path, policy, in_thread=True),), p)
    assert made is not None
    assert made.permitted(tool("x"))
    shelf = p.shared
    assert isinstance(shelf, Shelf)
    [threaded] = [part for part in shelf.parts.values() if isinstance(part, InThread)]
    [scope] = made._rules
    assert scope.engines == (threaded.lists,)
    assert (threaded.lists is not threaded.rego) is apart
    await shelf.close()


ENDING = """
import asyncio, sys
from tests.unit.policies.authorize.test_rego import LONG
from tests.unit.policies.floor import tool
from tollhouse.core.errors import Failure
from tollhouse.policies.authorize.rego import InThread, Rego

async def ask():
    policy = InThread(Rego({"p": LONG}, {}, "data.tollhouse.allow"), longest=0.05)
    try:
        await policy.refusal(tool("x", n=30_000_000))
    except Failure:
        print("refused", flush=True)
    await policy.close()

asyncio.run(ask())
"""


def test_a_process_ends_whatever_is_being_decided() -> None:
    command = [sys.executable, "-c", ENDING]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


async def test_who_leaves_before_the_decision_ends_nothing() -> None:
    policy = InThread(Rego({"p": LONG}, {}, "data.tollhouse.allow"))
    leaving = [asyncio.ensure_future(policy.refusal(tool("x", dev(), n=100_000))) for _ in range(3)]
    await asyncio.sleep(0.01)
    for one in leaving:
        one.cancel()
    assert await policy.refusal(tool("x", dev(), n=5)) == ""
    await policy.close()


async def test_rules_and_the_policy_must_agree(tmp_path: Path) -> None:
    both = guard(tmp_path, more={"rules": [{"deny": 'mcp.server == "closed"'}]})
    assert await passes(tool("search", dev()), both)
    assert not await passes(tool("search", dev(), server="closed"), both)
    assert not await passes(tool("delete", dev()), both)


async def test_in_shadow(tmp_path: Path) -> None:
    call = tool("delete", dev())
    p = parts(entrance="mcp")
    assert await passes(call, guard(tmp_path, shadow=True), p=p)
    assert call.context.shadow == "top: data.tollhouse.allow"
    assert counted(p, "authorization_decisions_total") == {("cel", "allow"): 1, ("rego", "shadow_deny"): 1}


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_policy_that_leaves_the_shadow_decides(tmp_path: Path, in_thread: bool) -> None:
    """What is compiled is kept from one configuration to the next, and in one is not what it was in the other."""
    p = parts(entrance="mcp")
    for _ in range(2):
        assert await passes(tool("delete", dev()), guard(tmp_path, shadow=True, in_thread=in_thread), p=p)
        assert not await passes(tool("delete", dev()), guard(tmp_path, in_thread=in_thread), p=p)
        block = guard(tmp_path, in_thread=in_thread, more={"shadow": True})
        assert await passes(tool("delete", dev()), block, p=p)
    made = permitted((guard(tmp_path, in_thread=in_thread),), p)
    assert made is not None
    assert not made.permitted(tool("delete", dev()))
    for hidden in (guard(tmp_path, shadow=True, in_thread=in_thread), block):
        made = permitted((hidden,), p)
        assert made is None or made.permitted(tool("delete", dev()))
    shelf = p.shared
    assert isinstance(shelf, Shelf)
    await shelf.close()


async def test_what_depends_on_names_is_remembered(tmp_path: Path) -> None:
    policy = guard(tmp_path)
    principal = dev()
    assert await passes(tool("search", principal), policy)
    assert True in principal.verdicts.values()
    other = dev()
    amounts = "package tollhouse\nallow if input.mcp.arguments.amount < 100\n"
    policy = guard(tmp_path, amounts)
    assert await passes(tool("pay", other, amount=5), policy)
    assert not await passes(tool("pay", other, amount=500), policy)
    assert not await passes(tool("pay", other), policy)
    assert other.verdicts == {}
    made = permitted((policy,), parts(entrance="mcp"))
    assert made is not None
    assert made.permitted(tool("pay", other))  # it depends on what a list does not know


async def test_a_policy_may_ask_whether_it_is_asked_for_a_list(tmp_path: Path) -> None:
    small = "package tollhouse\nallow if input.mcp.arguments.amount < 100\n"
    text = small + 'allow if {\n input.listing\n input.mcp.tool.name != "hidden"\n}\n'
    made = permitted((guard(tmp_path, text),), parts(entrance="mcp"))
    assert made is not None
    assert made.permitted(tool("pay"))
    assert not made.permitted(tool("hidden"))
    assert not await passes(tool("pay", amount=500), guard(tmp_path, text))


@pytest.mark.parametrize(
    "body, ok, rule",
    [
        ('decision := {"allow": true, "reason": "fine"}', True, ""),
        ('decision := {"allow": false, "reason": "not today"}', False, "top: data.tollhouse.decision: not today"),
        ('decision := {"allow": false}', False, "top: data.tollhouse.decision"),
        ('decision := {"reason": "x"}', False, "top: data.tollhouse.decision: x"),
        ("decision := true if input.none", False, "top: data.tollhouse.decision (undefined)"),
        ('decision := "yes"', False, "top: data.tollhouse.decision (in doubt)"),
        ("decision := 1", False, "top: data.tollhouse.decision (in doubt)"),
        ("decision := {true}", False, "top: data.tollhouse.decision (in doubt)"),
        ('decision := {"allow": "true"}', False, "top: data.tollhouse.decision (in doubt)"),
        ("decision := true if true\ndecision := false if true", False, "top: data.tollhouse.decision (in doubt)"),
    ],
)
async def test_answers(tmp_path: Path, body: str, ok: bool, rule: str) -> None:
    call = tool("x")
    assert await passes(call, guard(tmp_path, f"package tollhouse\n{body}\n", query="data.tollhouse.decision")) is ok
    assert call.context.rule == rule


async def test_several_files(tmp_path: Path) -> None:
    (tmp_path / "lib.rego").write_text('package lib\nis_dev if "dev" in input.principal.groups\n')
    policy = "package tollhouse\nimport data.lib\nallow if lib.is_dev\n"
    (tmp_path / "p.rego").write_text(policy)
    made = guard(tmp_path, file=[str(tmp_path / "p.rego"), str(tmp_path / "lib.rego")])
    assert await passes(model(principal=dev()), made)
    assert not await passes(model(principal=dev("x")), made)


@pytest.mark.parametrize(
    "policy, query, wrong",
    [
        ("package tollhouse\nallow if {", "data.tollhouse.allow", "this is unclosed"),
        ("package other\nallow := true", "data.tollhouse.allow", "no file has `package tollhouse`; there are: other"),
        ("package tollhouse\nallows := true", "data.tollhouse.allow", "has no rule `allow`"),
        ("package tollhouse\nallow if data.tollhouse.b\nb if allow", "data.tollhouse.allow", "Recursion detected"),
        ("package tollhouse\nallow if nosuch(1)", "data.tollhouse.allow", "Function not found: nosuch"),
    ],
)
async def test_a_policy_that_cannot_be_used(tmp_path: Path, policy: str, query: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as caught:
        AUTHORIZE.make((guard(tmp_path, policy, query=query),), parts(entrance="mcp"))
    assert caught.value.problems[0].path == "top: authorize.rego"


async def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    made = guard(tmp_path)
    for text, wrong in (("[1]", "not a JSON object"), ("{", "not JSON")):
        (tmp_path / "bad.json").write_text(text)
        spec = GuardSpec.model_validate(
            {"rego": {"file": str(tmp_path / "policy.rego"), "data": str(tmp_path / "bad.json")}}
        )
        with pytest.raises(ConfigError, match=wrong):
            AUTHORIZE.make((layer(spec),), parts(entrance="mcp"))
    assert made.spec.rego.query == "data.tollhouse.allow"


async def test_a_changed_file_is_another_policy(tmp_path: Path) -> None:
    before = guard(tmp_path).spec
    assert before == guard(tmp_path).spec
    assert before != guard(tmp_path, ROLES + "\nallow if true\n").spec


# ---- nobody speaks the engine's language through the input
NASTY = [
    'a"b', "a\\b", "a\nb", "\t", "\x00", "admin\x00", '"', "\\", '\\"', "\\u0061dmin", "é", "😀", "\u2028", "\x7f",
    "'", "`", "{}", "[", "null", "true", "", " ",
]  # fmt: skip


@pytest.fixture(scope="module")
def echo() -> Rego:
    text = "package e\nallow if input.mcp.tool.name == input.mcp.server\n"
    return Rego({"e.rego": text}, {}, "data.e.allow")


@pytest.fixture(scope="module")
def admin() -> Rego:
    text = 'package e\nallow if input.principal.user == "admin"\nallow if data.names[input.principal.user]\n'
    return Rego({"e.rego": text}, {"n.json": json.dumps({"names": {n: True for n in NASTY if n}})}, "data.e.allow")


@pytest.mark.parametrize("name", NASTY)
async def test_texts_are_what_they_are(echo: Rego, admin: Rego, name: str) -> None:
    assert echo.decide({"mcp": {"server": name, "tool": {"name": name}}}) is True
    assert echo.decide({"mcp": {"server": name, "tool": {"name": name + "x"}}}) is None
    assert admin.decide({"principal": {"user": name}}) is (True if name else None)  # as a key of data, too
    assert admin.decide({"principal": {"user": f"admin{name}"}}) is (
        True if f"admin{name}" in ("admin", *NASTY) else None
    )


@given(st.text(max_size=8), st.text(max_size=8))
async def test_two_texts_are_equal_where_they_are(echo: Rego, one: str, two: str) -> None:
    try:
        document = {"mcp": {"server": one, "tool": {"name": two}}}
        assert echo.decide(document) is (True if one == two else None)
    except ValueError:
        assert not (one + two).isprintable()  # no JSON: a lone surrogate


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
async def test_any_json_is_equal_to_itself_alone(one: Any, two: Any) -> None:
    rego = Rego({"e.rego": "package e\nallow if input.a == input.b\n"}, {}, "data.e.allow")
    try:
        assert rego.decide({"a": one, "b": one}) is True
        if json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True):
            assert rego.decide({"a": one, "b": two}) is None
    except ValueError:
        pass  # a lone surrogate


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, float("inf"), float("nan"), b"x", {1: 2}, "\ud800"])
async def test_what_is_no_json_is_refused(value: Any) -> None:
    rego = Rego({"e.rego": "package e\nallow if true\n"}, {}, "data.e.allow")
    with pytest.raises((ValueError, TypeError)):
        rego.decide({"a": value})


async def test_arguments_that_cannot_be_read_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    call = tool("x")
    call.params["arguments"] = b'{"a":1,"A":2}'  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        assert not await passes(call, guard(tmp_path, "package tollhouse\nallow if not input.mcp.arguments.evil\n"))
    assert call.context.rule == "top: data.tollhouse.allow (in doubt)"


# ---- what a policy reads
@pytest.mark.parametrize(
    "text, names_only, lists",
    [
        ('allow if input.principal.user == "a"', True, True),
        ('allow if input["principal"]["user"] == "a"', True, True),
        ('allow if input.mcp.tool.name == "a"', True, True),
        ("allow if input.mcp.tool.annotations.readOnlyHint", False, True),
        ("allow if input.mcp.tool.arguments.a", False, False),
        ("allow if input.mcp.tool", False, False),
        ("allow if input.request.path", False, False),
        ("allow if not input.llm", True, True),
        ("allow if {\n not input.mcp.tool\n input.llm.model == 1 }", True, True),
        ("allow if not input.mcp.arguments", False, False),
        ("allow if not input.llm == 1", False, False),
        ("x := input.llm", False, False),
        ("allow if input[x] == 1", False, False),
        ("doc := input\nallow if doc.request", False, False),
        ("allow if f(input)", False, False),
        ('allow if input.mcp.tool.name == "a"\nallow if time.now_ns() > 1', False, True),
        ("allow if input.unknown.thing", True, True),
        ("import input.request as r\nallow if r.path", False, False),
    ],
)  # fmt: skip
def test_what_it_reads(text: str, names_only: bool, lists: bool) -> None:
    found = reads([f"package p\n{text}\n"])
    assert (found.names_only, found.lists) == (names_only, lists)


def test_the_input_is_what_is_read() -> None:
    call = tool("x", who(claims={"sub": "s"}), n=1)
    assert reads(["package p\nallow if input.mcp.tool.name"]).document(call) == {"mcp": {"tool": {"name": "x"}}}
    assert reads(["package p\nallow if input.jwt.sub"]).document(call) == {"jwt": {"sub": "s"}}
    whole = reads(["package p\nallow if input"]).document(call)
    assert set(whole) == {"request", "source", "jwt", "key", "principal", "mcp"}
    assert whole["mcp"]["tool"]["arguments"] == {"n": 1}


def test_a_bad_policy_says_where() -> None:
    with pytest.raises(BadPolicy, match=r"^p\.rego: "):
        Rego({"p.rego": "package e\nallow if ("}, {}, "data.e.allow")


@pytest.mark.skipif(find_spec("re2") is None, reason="the extra `guard` is not installed")
@pytest.mark.parametrize("order", [("rego", "guard", "rego"), ("guard", "rego", "guard")])
def test_policies_and_guards_live_in_one_process(order: tuple[str, ...]) -> None:
    """Each of the two packages has a copy of RE2 inside, and of two copies one may free what the other has taken."""
    program = r"""
import sys
from tollhouse.policies.authorize.rego import Rego
from tollhouse.wire.guard.engine import compiled

LONG = "a-text-that-no-string-keeps-inside-of-itself[0-9]+"
for what in sys.argv[1:]:
    if what == "guard":
        text = b"a-text-that-no-string-keeps-inside-of-itself17"
        assert compiled(LONG)(text, 0, len(text))
    else:
        Rego({"a.rego": f"package tollhouse\nallow if regex.match(`{LONG}`, input.path)"}, {}, "data.tollhouse.allow")
print("done")
"""
    command = [sys.executable, "-c", program, *order]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr[-2000:]
