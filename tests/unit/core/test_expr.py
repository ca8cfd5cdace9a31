"""Expressions: what is refused when config is read, what a rule says of a call, and what may be remembered."""

import gc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall, Usage
from tollhouse.core.expr import (
    MAX_SOURCE,
    MAX_VERDICTS,
    Cel,
    CelCondition,
    Expression,
    Memo,
    Outcome,
    Undecided,
    check_condition,
    not_bool,
)
from tollhouse.core.facts import FACTS, VARIABLES
from tollhouse.core.http import Headers, Request

YES, NO, DOUBT, APART, UNSURE = Outcome

ADA = {"sub": "ada", "email": "ada@example.com", "email_verified": True, "groups": ["dev"], "n": 5}


def principal(source: str = "jwt", **more: Any) -> Principal:
    claims = more.pop("claims", ADA)
    return Principal(f"{source}:ada", source=source, user="ada", org="acme", claims=claims, **more)


def request(target: bytes = b"/v1/x?page=2&page=3&q=a%20b", *, who: Principal | None = None) -> Request:
    headers = Headers(
        [
            (b"host", b"API.example.com:8080"),
            (b"x-org", b"acme"),
            (b"accept", b"a"),
            (b"accept", b"b"),
            (b"authorization", b"Bearer secret"),
            (b"x-api-key", b"secret"),
            (b"cookie", b"session=secret"),
            (b"x-goog-api-key", b"secret"),
            (b"x-amz-security-token", b"secret"),
        ]
    )
    made = Request(b"POST", target, headers, peer="10.0.0.7")
    made.context.principal = principal() if who is None else who
    return made


def plain(who: Principal | None = None) -> Call:
    made = request(who=who)
    return Call(made, made.context)


def model(name: str = "smart", who: Principal | None = None, **more: Any) -> ModelCall:
    made = request(who=who)
    made.context.dialect = "openai"
    fields = {"operation": "chat", "stream": False, "reserve": 40} | more
    return ModelCall(made, made.context, dialect=None, model=name, label=name, fields={}, body=b"", **fields)


def tool(
    name: str = "search",
    who: Principal | None = None,
    *,
    method: str = "tools/call",
    server: str = "shop",
    **arguments: Any,
) -> ToolCall:
    made = request(who=who)
    params = {"arguments": msgspec.Raw(msgspec.json.encode(arguments))} if arguments else {}
    return ToolCall(made, made.context, server=server, method=method, name=name, params=params)


# ---- when config is read


@pytest.mark.parametrize(
    "source, said",
    [
        ("1 +", "line 1, column 4"),
        ("a ? b", "not a CEL expression"),
        ("", "not a CEL expression"),
        ("jwt.email ==\n  'x' &", "line 2"),
        ("foo == 1", "unknown variable `foo`; there are: request, source, jwt"),
        (".mcp.server == 'x'", "unknown variable `.mcp`"),
        ("now() > timestamp('2020-01-01T00:00:00Z')", "unknown function `now`; there are: size, contains"),
        ("jwt.email.lower() == 'a'", "unknown function `lower`"),
        ("optional.of(1) == 1", "unknown"),
        ("request.hedaers['x'] == 'y'", "unknown field `request.hedaers`; there are: request.method"),
        ("mcp.tool.nam == 'x'", "unknown field `mcp.tool.nam`; there are: mcp.tool.name, mcp.tool.arguments"),
        ("mcp['tol'].name == 'x'", "unknown field `mcp.tol"),
        ("has(mcp.tol)", "unknown field `mcp.tol`"),
        ("llm.model.name == 'x'", "`llm.model` has no fields"),
        ("llm.provider == 'x'", "unknown field `llm.provider`"),
        ("jwt.groups.exists(mcp, mcp == 'x')", "`mcp` is a variable"),
        ("jwt.groups.exists(g, g == 'x') && g == 'y'", "unknown variable `g`"),
        ("jwt.groups.exists(g, h == 'x')", "unknown variable `h`"),
        ("Foo{a: 1} == 1", "not supported"),
        ("mcp{server: 'a'} == 1", "not supported"),
        ("a" * (MAX_SOURCE + 1), "4096 are allowed"),
    ],
)
def test_a_bad_expression_is_refused_and_the_right_one_named(source: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at
        Expression(source)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 800


def test_variables_can_be_fewer() -> None:
    Expression("request.ip == '1'", ("request", "jwt"))
    with pytest.raises(ValueError, match=r"unknown variable `llm` here; there are: request, jwt$"):
        Expression("llm.model == 'x'", ("request", "jwt"))


@pytest.mark.parametrize("depth", [50, 1000])
def test_depth_never_crashes(depth: int) -> None:
    for source in ("(" * depth + "true" + ")" * depth, "!(" * depth + "true" + ")" * depth, "[" * depth + "]" * depth):
        try:
            made = Expression(source)
        except ValueError:
            continue
        assert made.ask(plain()) in (YES, NO, DOUBT)


def test_every_fact_is_documented_once() -> None:
    assert len({fact.path for fact in FACTS}) == len(FACTS)
    assert all(fact.doc for fact in FACTS)
    assert VARIABLES == ("request", "source", "jwt", "key", "principal", "llm", "mcp")


# ---- what it says


@pytest.mark.parametrize(
    "source",
    [
        'jwt.email.endsWith("@example.com") && jwt.email_verified',
        'jwt["email"] == "ada@example.com"',
        '"dev" in jwt.groups',
        'jwt.groups.exists(g, g == "dev") && jwt.groups.all(g, size(g) < 5)',
        'principal.id == "jwt:ada" && principal.user == "ada" && principal.org == "acme" && principal.source == "jwt"',
        'key.name == "" && size(key.metadata) == 0 && principal.groups == []',
        'request.method == "POST" && request.path == "/v1/x" && request.host == "api.example.com"',
        'request.headers["x-org"] == "acme" && request.headers.accept == "a, b"',
        '!("authorization" in request.headers) && !has(request.headers["x-api-key"])'.replace(
            '["x-api-key"]', ".cookie"
        ),
        'request.query.page == "2" && request.query["q"] == "a b"',
        'request.ip == "10.0.0.7" && source.address == request.ip && request.scheme == "http"',
        "request.headers.all(name, name in ['host', 'x-org', 'accept'])",
        "!has(mcp.tool) && !has(llm.model)",
        "// a comment: mcp.arguments\n true",
        "'// no comment' != \"mcp\"",
        r'r"\" == "\\"',
        "true || jwt.missing",
        "jwt.missing || true",
        "!(false && jwt.missing)",
    ],
)
def test_yes(source: str) -> None:
    assert Expression(source).ask(plain()) is YES


def test_credentials_are_not_seen() -> None:
    assert Expression("request.headers.exists(n, request.headers[n].contains('secret'))").ask(plain()) is NO


def test_facts_of_a_model_call() -> None:
    source = (
        'llm.model == "smart" && llm.dialect == "openai" && llm.operation == "chat" && !llm.stream && llm.tokens == 40'
    )
    assert Expression(source).ask(model()) is YES
    assert Expression("has(llm.model) && !has(mcp.server)").ask(model()) is YES


def test_facts_of_a_tool_call() -> None:
    source = (
        'mcp.server == "shop" && mcp.method == "tools/call" && mcp.tool.name == "search" && mcp.arguments.n == 1 '
        '&& mcp.tool.arguments.n == 1 && mcp["arguments"]["n"] == 1 && !has(mcp.prompt) && !has(mcp.resource)'
    )
    assert Expression(source).ask(tool(n=1)) is YES
    assert Expression('mcp.prompt.name == "p"').ask(tool("p", method="prompts/get")) is YES
    assert Expression('mcp.resource.uri == "file:///x"').ask(tool("file:///x", method="resources/read")) is YES
    assert Expression("size(mcp.arguments) == 0").ask(tool()) is YES


def test_facts_of_a_key() -> None:
    who = principal("key", key="ci", claims={"tier": "gold"})
    assert Expression('key.name == "ci" && key.user == "ada" && key.metadata.tier == "gold"').ask(plain(who)) is YES
    assert Expression('size(jwt) == 0 && principal.key == "ci"').ask(plain(who)) is YES


def test_without_a_principal_everybody_is_anonymous() -> None:
    made = Request(b"GET", b"/", Headers())
    assert Expression('principal.source == "anonymous" && size(jwt) == 0').ask(Call(made, made.context)) is YES


@pytest.mark.parametrize(
    "source",
    [
        '"admin" in jwt.roles',
        "jwt.email",
        '"true"',
        "1",
        "jwt.n.endsWith('x')",
        'jwt.email.matches("(")',
        "!jwt.banned",
        'request.headers["x-none"] == ""',
        "1 / 0 == 1",
        "key.metadata.tier == 'free'",
    ],
)
def test_what_fails_or_is_no_bool_is_doubt(source: str) -> None:
    assert Expression(source).ask(plain()) is DOUBT


def test_claims_that_cel_has_no_type_for_are_doubt() -> None:
    who = principal(claims={"x": object()})
    assert Expression("true && has(jwt.x)").ask(plain(who)) is DOUBT
    assert Expression("llm.model == 'x' || jwt.x == 1").ask(model(who=who)) is DOUBT


@pytest.mark.parametrize(
    "raw",
    [
        b'{"repo":"test","Repo":"prod"}',
        b'{"Repo":"prod","repo":"test"}',
        b'{"repo":"prod","repo":"test"}',
        '{"\u017fhop":"prod","shop":"test"}'.encode(),
        b'{"repo":"test","in":[{"a":{"x":1,"x":2}}]}',
        b'{"repo":"test","r\\u0065po":"test"}',
    ],
)
def test_arguments_that_another_decoder_reads_otherwise_are_doubt(raw: bytes) -> None:
    call = tool()
    call.params = {"arguments": msgspec.Raw(raw)}
    assert Expression("mcp.arguments.repo == 'prod'").ask(call) is DOUBT
    assert Expression("has(mcp.tool.arguments.repo)").ask(call) is DOUBT
    assert Expression("mcp.tool.name == 'search'").ask(call) is YES  # says nothing of them


def test_arguments_of_one_meaning_are_read() -> None:
    call = tool()
    call.params = {"arguments": msgspec.Raw(b'{"repo":"prod","a":[{"x":1},{"X":2}],"b":{"repo":1}}')}
    assert Expression("mcp.arguments.repo == 'prod' && mcp.arguments.a[1].X == 2").ask(call) is YES


def test_arguments_that_are_not_json_are_doubt() -> None:
    call = tool()
    for raw in (b"{", b"[" * 5000 + b"]" * 5000, b'{"a": 1e999}', b"[" * 101 + b"]" * 101):
        call.params = {"arguments": msgspec.Raw(raw)}
        assert Expression("mcp.arguments.x == 1 || mcp.tool.name == 'z'").ask(call) is DOUBT
        with pytest.raises(Undecided):
            Expression("mcp.arguments.x").value(call)


# A rule that speaks of something the call is not about. G: the caller has no groups, so `in jwt.groups` is in doubt.
@pytest.mark.parametrize(
    "source, on_model, on_list",
    [
        ('mcp.tool.name == "x"', APART, APART),
        ('mcp.tool.name == "x" && !("admin" in jwt.groups)', APART, APART),
        ('!("admin" in jwt.groups) && mcp.tool.name == "x"', APART, APART),
        ('mcp.tool.name == "x" || !("admin" in jwt.groups)', DOUBT, DOUBT),
        ('mcp.tool.name == "x" || jwt.n == 5', YES, YES),
        ('mcp.tool.name == "x" || jwt.n == 6', NO, NO),
        ('mcp.tool.name == "x" && jwt.n == 6', NO, NO),
        ('!(mcp.tool.name in ["a", "b"])', APART, APART),
        ('!(mcp.tool.name in ["a", "b"]) && jwt.n == 5', APART, APART),
        ('(mcp.tool.name == "x" || "admin" in jwt.groups) && jwt.n == 5', DOUBT, DOUBT),
        ('!(mcp.tool.name == "x" || "admin" in jwt.groups)', DOUBT, DOUBT),
        ("mcp.arguments.amount > 100", APART, APART),
        ('mcp.arguments.amount > 100 && !("admin" in jwt.groups)', APART, APART),
        ('has(mcp.tool) && mcp.tool.name == "x"', NO, NO),
        ('!has(mcp.tool) || mcp.tool.name == "x"', YES, YES),
        ('mcp.server == "shop" && !("admin" in jwt.groups)', APART, DOUBT),
        ('jwt.n == 5 ? mcp.tool.name == "x" : true', APART, APART),
        ('[mcp.tool.name].exists(t, t == "x")', APART, APART),
        ('"admin" in jwt.groups', DOUBT, DOUBT),
    ],
)
def test_a_rule_about_something_else(source: str, on_model: Outcome, on_list: Outcome) -> None:
    who = principal(claims={"n": 5})
    assert Expression(source).ask(model(who=who)) is on_model
    assert Expression(source).ask(tool("", who, method="tools/list")) is on_list


@pytest.mark.parametrize(
    "source, said",
    [
        ('mcp.tool.name == "pay"', YES),
        ('mcp.tool.name == "pay" && mcp.arguments.amount > 100', UNSURE),
        ('mcp.tool.name == "see" && mcp.arguments.amount > 100', NO),
        ('mcp.tool.name == "pay" || mcp.arguments.amount > 100', YES),
        ("!has(mcp.arguments)", UNSURE),
        ("has(mcp.tool)", YES),
        ("size(mcp.tool) == 2", UNSURE),
        ('mcp.arguments.amount > 100 || "admin" in jwt.roles', DOUBT),
        ('mcp.arguments.amount > 100 && "admin" in jwt.roles', UNSURE),
        ('llm.model == "x"', APART),
        ("llm.tokens > 5", APART),
        ('request.headers["x-org"] == "acme"', UNSURE),
        ('mcp.tool.name == "see" && source.address == "10.0.0.7"', NO),
        ('jwt.n == 5 && key.name == ""', YES),
    ],
)
def test_in_a_listing_only_names_are_known(source: str, said: Outcome) -> None:
    assert Expression(source).ask(tool("pay", amount=1), listing=True) is said


# ---- nothing leaks


def test_one_call_does_not_see_another_ones_facts() -> None:
    who = principal()
    about_tool = Expression('mcp.tool.name == "search" && mcp.arguments.n == 1')
    about_model = Expression('llm.model == "smart"')
    assert about_tool.ask(tool(who=who, n=1)) is YES
    assert about_tool.ask(tool(who=who)) is DOUBT
    assert about_model.ask(model(who=who)) is YES
    assert about_model.ask(tool(who=who)) is APART
    assert Expression("has(mcp.server) || has(llm.model)").ask(plain(who)) is NO
    assert who.facts[1] == {}
    with pytest.raises(Undecided):
        Expression("mcp.arguments.zzz").value(tool(who=who, n=1))
    assert who.facts[1] == {}


def test_a_principal_that_is_gone_is_freed() -> None:
    import weakref

    class Watched(Principal):
        __slots__ = ("__weakref__",)

    who = Watched("jwt:x", source="jwt", claims=ADA)
    assert Expression('llm.model == "smart" && jwt.n == 5').ask(model(who=who)) is YES
    gone = weakref.ref(who)
    gc.disable()
    try:
        del who
        assert gone() is None  # no cycle through the context
    finally:
        gc.enable()


# ---- values


def test_values_for_labels() -> None:
    made = request()
    context = made.context
    context.mcp_method, context.server, context.tool = "tools/call", "shop", "search"
    context.arguments = msgspec.Raw(b'{"product": "tea", "n": 2}')
    assert Expression("mcp.arguments.product").evaluate(made, context) == "tea"
    assert Expression('request.headers["x-org"]').evaluate(made, context) == "acme"
    assert Expression("mcp.tool.name + '@' + mcp.server").evaluate(made, context) == "search@shop"
    with pytest.raises(Undecided, match="there is no 'missing'"):
        Expression("mcp.arguments.missing").evaluate(made, context)


def test_late_facts_are_for_labels() -> None:
    made = request()
    made.context.model_asked, made.context.provider, made.context.usage = "smart", "openai", Usage(3, 4)
    made.context.dialect, made.context.operation, made.context.stream = "openai", "chat", True
    assert Expression("llm.provider", late=True).evaluate(made, made.context) == "openai"
    assert Expression("llm.model + llm.dialect + llm.operation").evaluate(made, made.context) == "smartopenaichat"
    assert Expression("llm.stream && llm.tokens == 7").evaluate(made, made.context) is True


@pytest.mark.parametrize(
    "source, text",
    [("jwt.email", "ada@example.com"), ("jwt.n", "5"), ("jwt.n > 1", "true"), ('"x" + "y"', "xy"), ("1.5", "1.5")],
)
def test_text(source: str, text: str) -> None:
    assert Expression(source).text(plain()) == text


@pytest.mark.parametrize("source", ["jwt.groups", "jwt", "null", "jwt.none"])
def test_what_is_no_text(source: str) -> None:
    with pytest.raises(Undecided):
        Expression(source).text(plain())


def test_text_is_bounded() -> None:
    assert len(Expression("jwt.long").text(plain(principal(claims={"long": "x" * 1000})))) == 128


# ---- what may be remembered

NAMES_ONLY = [
    "true",
    'jwt.email.endsWith("@example.com")',
    'llm.model == "smart" && jwt["n"] == 5',
    'llm["model"] == "smart"',
    "mcp.tool.name == 'a' && mcp.server == 'b' && mcp.method == 'c'",
    'mcp["tool"]["name"] == "a"',
    'mcp["tool"].name == "a" || mcp.prompt.name == "b" || mcp.resource.uri.startsWith("file:")',
    "has(mcp.tool)",
    "has(mcp.tool.name)",
    "has(mcp . tool)",
    'jwt.groups.exists(g, g == mcp.tool.name) && principal.org in ["a"] && key.metadata.tier == "x"',
    '"mcp.arguments" == llm.model',
    "'request.ip' != llm.model // request.ip",
    '"""request.ip""" != llm.model',
    r"r'\' != llm.model || r'mcp.arguments' == ''",
    '"\\"" + "mcp.arguments" != llm.model',
]
PER_CALL = [
    "request.ip == '1'",
    "source.address == '1'",
    "llm.tokens > 1",
    "llm.stream",
    "mcp.arguments.x == 1",
    'mcp["arguments"].x == 1',
    'mcp["argu" + "ments"].x == 1',
    'mcp["argu\\u006dents"].x == 1',
    'mcp[r"arguments"].x == 1',
    "mcp[jwt.field].x == 1",
    'mcp["tool"]["arguments"].x == 1',
    'mcp.tool["arguments"].x == 1',
    "mcp.tool[jwt.field] == 1",
    "has(mcp.tool.arguments.x)",
    "has(mcp.arguments)",
    "has(mcp.tool.arguments)",
    "mcp == mcp",
    "mcp.tool == mcp.tool",
    "size(mcp) > 1",
    "size(mcp.tool) > 1",
    "'arguments' in mcp",
    "[mcp].exists(m, m.arguments.x == 1)",
    "[mcp.tool].exists(t, t.arguments.x == 1)",
    '{"a": mcp}.a.arguments.x == 1',
    "{'a': mcp.tool}['a'].arguments.x == 1",
    "dyn(mcp).arguments.x == 1",
    "(mcp).arguments.x == 1",
    "(true ? mcp : mcp).arguments.x == 1",
    "mcp.exists(k, k == 'arguments')",
    "mcp.tool.map(k, mcp.tool[k]).size() > 1",
    "jwt.groups.exists(g, mcp.arguments[g] == 1)",
    "mcp // .tool.name\n .arguments.x == 1",
    'request["headers"]["x"] == "y"',
    "true || request.ip == ''",
]


@pytest.mark.parametrize("source", NAMES_ONLY)
def test_rules_over_names_may_be_remembered(source: str) -> None:
    assert Expression(source).names_only


@pytest.mark.parametrize("source", PER_CALL)
def test_rules_over_more_may_not(source: str) -> None:
    assert not Expression(source).names_only


@pytest.mark.parametrize("source", NAMES_ONLY)
@given(amount=st.integers(), text=st.text(max_size=5), peer=st.ip_addresses().map(str), stream=st.booleans())
def test_remembered_rules_really_do_not_depend_on_more(
    source: str, amount: int, text: str, peer: str, stream: bool
) -> None:
    made = Expression(source)
    for one, other in (
        (tool("a"), tool("a", x=amount, text=text)),
        (model(), model(stream=stream, reserve=abs(amount))),
        (plain(), plain()),
    ):
        other.request.peer = peer
        other.request.path = b"/" + text.encode()
        assert made.ask(one) is made.ask(other)


def test_memo() -> None:
    who = principal()
    memo = Memo([Expression('llm.model == "smart"'), Expression("has(mcp.tool) || jwt.n == 5")])
    assert memo.names_only
    assert memo.get(model(who=who)) is None
    memo.put(model(who=who), True)
    memo.put(tool(who=who), False)
    memo.put(plain(who), True)
    assert memo.get(model(who=who)) is True
    assert memo.get(model("other", who=who)) is None
    assert memo.get(tool(who=who)) is False
    assert memo.get(tool(who=who, method="prompts/get")) is None
    assert memo.get(tool(who=who, server="else")) is None
    assert memo.get(plain(who)) is True
    assert memo.get(model(who=principal())) is None
    assert Memo([Expression('llm.model == "smart"')]).get(model(who=who)) is None  # another configuration's


def test_memo_of_what_depends_on_more_remembers_nothing() -> None:
    who = principal()
    memo = Memo([Expression("true"), Expression("llm.stream")])
    memo.put(model(who=who), True)
    assert memo.get(model(who=who)) is None
    assert who.verdicts == {}


def test_memo_is_bounded() -> None:
    who = principal()
    memo = Memo([Expression("true")])
    for n in range(3 * MAX_VERDICTS):
        memo.put(model(f"m{n}", who=who), True)
        assert len(who.verdicts) <= MAX_VERDICTS
    assert memo.get(model(f"m{3 * MAX_VERDICTS - 1}", who=who)) is True


def test_memo_without_a_principal() -> None:
    made = Request(b"GET", b"/", Headers())
    memo = Memo([Expression("true")])
    memo.put(Call(made, Context()), True)
    assert memo.get(Call(made, Context())) is None


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("llm.tokens", "a number"),
        ("1 + 1", "a number"),
        ("llm.model", "a text"),
        ("'yes'", "a text"),
        ("null", "null"),
        ("[llm.stream]", "a list"),
        ("principal.groups", "a list"),
        ("llm.metadata", "a map"),
        ("jwt", "a map"),
        ("llm.tools ? true : size(llm.model)", "a number"),
    ],
)
def test_a_condition_that_is_no_bool(source: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"this is {what}: compare it"):
        check_condition(Expression(source))
    with pytest.raises(ValidationError):
        TypeAdapter(CelCondition).validate_python(source)
    assert TypeAdapter(Cel).validate_python(source) == source
    assert not_bool(0).endswith("neither true nor false")


@pytest.mark.parametrize(
    "source",
    [
        "llm.stream", "llm.tokens > 5", "true", "jwt.admin", "key.metadata.vip", 'request.headers["x-vip"]',
        'llm.model in ["a"]', "has(jwt.x)", 'jwt.groups.exists(g, g == "a")', "mcp.tool.name", "jwt.n + 1",
    ],
)  # fmt: skip
def test_a_condition_that_may_be_a_bool(source: str) -> None:
    assert TypeAdapter(CelCondition).validate_python(source) == source
    assert not_bool(True) == ""


# ---- only what is named is taken of maps, and nothing is taken twice
@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("mcp.arguments.a", 1),
        ('mcp.arguments["a"]', 1),
        ("mcp.arguments.a + mcp.arguments.b.c", 3),
        ("size(mcp.arguments)", 3),
        ("size(mcp.arguments) + mcp.arguments.a", 4),
        ("has(mcp.arguments.z)", False),
        ("has(mcp.tool.arguments.b) && mcp.tool.arguments.b.c == 2", True),
        ('"d" in mcp.arguments', True),
        ("mcp.arguments[mcp.arguments.d] == 1", True),
        ("mcp.arguments.exists(k, k == 'd')", True),
        ("mcp.tool.arguments == mcp.arguments", True),
        ("mcp.tool.arguments.a == 1 && size(mcp.tool) == 3", True),
        ("has(mcp.tool.arguments) && size(mcp.tool.arguments) == 3", True),
        ("[mcp.arguments].map(x, size(x))[0]", 3),
    ],
)  # fmt: skip
def test_members_that_are_named(source: str, value: object) -> None:
    made = request()
    raw = {"arguments": msgspec.Raw(b'{"a": 1, "b": {"c": 2}, "d": "a"}')}
    call = ToolCall(made, made.context, server="s", method="tools/call", name="t", params=raw)
    assert Expression(source).value(call) == value


@pytest.mark.parametrize(
    ("raw", "fine"),
    [
        (b'{"a": "x:y", "b": ["::"]}', True),
        (b'{"a": {"b": 1}, "c": [{"b": 2}]}', True),
        (b'{"a": 1, "a": 2}', False),
        (b'{"a": 1, "A": 2}', False),
        (b'{"x": {"a": 1, "a": ":"}}', False),
        (b'{"x": [{"a": 1, "\\u0041": 2}]}', False),
        (b'{"x": {"a" : 1, "\\u0061" : 2}}', False),
    ],
)
def test_arguments_that_two_readers_could_read_differently(raw: bytes, fine: bool) -> None:
    made = request()
    params = {"arguments": msgspec.Raw(raw)}
    call = ToolCall(made, made.context, server="s", method="tools/call", name="t", params=params)
    for _ in range(2):
        assert (Expression("size(mcp.arguments) > 0").ask(call) is Outcome.YES) is fine
    call.params["arguments"] = msgspec.Raw(b'{"a": 1}')  # changed on the way
    assert Expression("mcp.arguments.a == 1").ask(call) is Outcome.YES
