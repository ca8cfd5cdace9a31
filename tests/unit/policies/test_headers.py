"""Header rules: what they do, and what they may not touch."""

import gc
from typing import Any

import pytest
from tests.unit.policies.floor import layer, parts, request, who

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.http import Request, Response
from tollhouse.policies.headers import HEADERS, RESPONSE_HEADERS, HeadersSpec

pytestmark = pytest.mark.anyio

# What an upstream's handler may give to every answer; policies must not change it.
SHARED = [(b"server", b"x"), (b"x-a", b"1"), (b"x-b", b"2")]


async def echo(request: Request) -> Response:
    return Response(200, SHARED)


async def changed(rules: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    asked = request(b"GET", b"/", (b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"2"))
    response = await door(rules, echo)(asked)
    return list(asked.headers), response.headers


def door(rules: dict[str, Any], handler: Any) -> Any:
    spec = layer(HeadersSpec.model_validate(rules))
    made = [kind.make((spec,), parts()) for kind in (RESPONSE_HEADERS, HEADERS)]
    return compose([policy for policy in made if policy is not None], handler)


@pytest.mark.parametrize(
    "rules, now",
    [
        ({"set": {"X-A": "9"}}, [(b"host", b"h"), (b"x-a", b"9")]),
        ({"add": {"x-a": "9"}}, [(b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"2"), (b"x-a", b"9")]),
        ({"remove": ["X-A", "x-none"]}, [(b"host", b"h")]),
        (
            {"remove": ["x-a"], "set": {"x-c": " v\t"}, "add": {"x-c": "w"}},
            [(b"host", b"h"), (b"x-c", b"v"), (b"x-c", b"w")],
        ),
    ],
)
async def test_of_requests(rules: dict[str, Any], now: list[Any]) -> None:
    asked, answered = await changed({"request": rules})
    assert asked == now
    assert answered == SHARED


async def test_no_other_spelling_of_what_rules_say_passes() -> None:
    sent = [(b"x_user", b"root"), (b"x.user", b"root"), (b"x-user", b"root"), (b"x_gone", b"1"), (b"x_other", b"1")]
    asked = request(b"GET", b"/", *sent)
    await door({"request": {"set": {"x-user": "ada"}, "remove": ["x-gone"]}}, echo)(asked)
    assert list(asked.headers) == [(b"x_other", b"1"), (b"x-user", b"ada")]


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (b"x-user", []),
        (b"close, X-User ,x-more", [(b"connection", b"close")]),
        (b"x-other, upgrade", [(b"connection", b"x-other, upgrade")]),
        (b",", [(b"connection", b",")]),
    ],
)
async def test_the_caller_has_nobody_leave_out_what_rules_say(sent: bytes, left: list[Any]) -> None:
    asked = request(b"GET", b"/", (b"connection", sent))
    await door({"request": {"set": {"x-user": "ada"}, "add": {"x-more": "1"}}}, echo)(asked)
    assert list(asked.headers) == [*left, (b"x-user", b"ada"), (b"x-more", b"1")]


async def test_of_answers() -> None:
    asked, answered = await changed({"response": {"remove": ["server"], "set": {"x-b": "3"}, "add": {"x-a": "2"}}})
    assert len(asked) == 3
    assert answered == [(b"x-a", b"1"), (b"x-b", b"3"), (b"x-a", b"2")]
    assert SHARED == [(b"server", b"x"), (b"x-a", b"1"), (b"x-b", b"2")]


async def test_of_refusals_too() -> None:
    async def refuse(request: Request) -> Response:
        raise Failure(403, Reason.AUTHORIZATION, "no", headers=((b"x-b", b"2"),))

    asked = request(b"GET", b"/")
    with pytest.raises(Failure) as caught:
        await door({"response": {"set": {"strict-transport-security": "max-age=1"}, "remove": ["x-b"]}}, refuse)(asked)
    told = asked.render(caught.value, asked)
    assert (told.status, dict(told.headers)) == (
        403,
        {b"content-type": b"application/problem+json", b"strict-transport-security": b"max-age=1"},
    )


async def test_no_cycles() -> None:
    handler = door({"response": {"set": {"x-b": "3"}}}, echo)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await handler(request(b"GET", b"/"))
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Connection", "Host", "TE", "upgrade", "trailer"]
)
@pytest.mark.parametrize("rule", [lambda n: {"remove": [n]}, lambda n: {"set": {n: "x"}}, lambda n: {"add": {n: "x"}}])
@pytest.mark.parametrize("direction", ["request", "response"])
def test_framing_is_not_a_rules_business(name: str, rule: Any, direction: str) -> None:
    with pytest.raises(ValueError, match="frames the message"):
        HeadersSpec.model_validate({direction: rule(name)})


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key"])
def test_nor_are_credentials(name: str) -> None:
    with pytest.raises(ValueError, match="never goes upstream"):
        HeadersSpec.model_validate({"request": {"set": {name: "x"}}})


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\x00b", "\x7f", "é"])
def test_values_are_safe(value: str) -> None:
    with pytest.raises(ValueError, match="no line breaks"):
        HeadersSpec.model_validate({"response": {"set": {"x-a": value}}})


@pytest.mark.parametrize("name", ["x a", "x:a", "", "x\r\n", "é"])
def test_names_are_tokens(name: str) -> None:
    with pytest.raises(ValueError, match="not a header name"):
        HeadersSpec.model_validate({"response": {"set": {name: "x"}}})


def test_what_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="both removed and set"):
        HeadersSpec.model_validate({"response": {"set": {"X-A": "x"}, "remove": ["x-a"]}})


# ---- CEL


async def request_of(rules: Any, *headers: tuple[bytes, bytes], principal: Any = None) -> list[tuple[bytes, bytes]]:
    asked = request(b"GET", b"/a?b=1", *headers, principal=principal)
    await door({"request": rules}, echo)(asked)
    return list(asked.headers)


async def test_values_of_requests() -> None:
    ada = who(id="ada", org="Zoë & Co", groups=("a", "b"))
    rules = {
        "set": {
            "x-user": {"cel": "principal.user"},
            "x-org": {"cel": "principal.org"},
            "x-size": {"cel": "size(principal.groups)"},
            "x-where": {"cel": 'request.method + " " + request.path'},
            "x-staff": {"cel": '"a" in principal.groups'},
        },
        "add": {"x-a": "fixed"},
    }
    assert await request_of(rules, (b"x-user", b"root"), (b"x-a", b"1"), principal=ada) == [
        (b"x-a", b"1"), (b"x-user", b"ada"), (b"x-org", "Zoë & Co".encode()), (b"x-size", b"2"),
        (b"x-where", b"GET /a"), (b"x-staff", b"true"), (b"x-a", b"fixed"),
    ]  # fmt: skip


async def test_conditions_and_order() -> None:
    rules = [
        {"when": '"x-beta" in request.headers', "set": {"x-route": "beta"}},
        {"when": '!("x-route" in request.headers)', "set": {"x-route": "plain"}},
        {"remove": ["x-beta"]},
    ]
    assert await request_of(rules, (b"x-beta", b"1")) == [(b"x-route", b"beta")]
    assert await request_of(rules) == [(b"x-route", b"plain")]


@pytest.mark.parametrize(
    "rules",
    [
        {"set": {"x-team": {"cel": 'request.headers["x-none"]'}}},
        {"set": {"x-team": {"cel": "principal.groups"}}},
        {"set": {"x-team": {"cel": "'a' + '\\r\\nevil: 1'"}}},
        {"when": "jwt.admin == true", "remove": ["x-team"]},
    ],
)
async def test_what_cannot_be_worked_out_refuses_a_request(rules: Any) -> None:
    with pytest.raises(Failure, match="cannot work out") as caught:
        await request_of(rules, (b"x-team", b"root"))
    assert (caught.value.status, caught.value.code) == (400, "headers_undecided")
    assert "top: headers.request 1" in caught.value.detail
    assert "x-none" not in caught.value.message


async def answer_of(rules: Any, **facts: Any) -> list[tuple[bytes, bytes]]:
    asked = request(b"POST", b"/v1/chat/completions", (b"x-debug", b"1"))

    async def handler(it: Request) -> Response:
        for name, value in facts.items():
            setattr(it.context, name, value)
        return Response(200, SHARED)

    return (await door({"response": rules}, handler)(asked)).headers


async def test_values_and_conditions_of_answers() -> None:
    rules = [
        {"set": {"x-model": {"cel": "llm.model"}, "x-by": {"cel": "llm.provider"}}},
        {"when": 'request.headers["x-debug"] == "1"', "remove": ["server", "x-a", "x-b"]},
    ]
    found = await answer_of(rules, model_asked="smart", provider="openai")
    assert found == [(b"x-model", b"smart"), (b"x-by", b"openai")]
    assert SHARED == [(b"server", b"x"), (b"x-a", b"1"), (b"x-b", b"2")]


async def test_of_an_answer_doubt_only_takes_away() -> None:
    assert await answer_of({"set": {"x-a": {"cel": "llm.model"}, "x-b": "9"}}) == [(b"server", b"x"), (b"x-b", b"9")]
    assert await answer_of({"when": "jwt.admin == true", "set": {"x-a": "9"}, "remove": ["server"]}) == [(b"x-b", b"2")]


async def test_of_refusals_by_cel() -> None:
    async def refuse(request: Request) -> Response:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    asked = request(b"GET", b"/secret")
    with pytest.raises(Failure) as caught:
        await door({"response": {"set": {"x-path": {"cel": "request.path"}}}}, refuse)(asked)
    assert (b"x-path", b"/secret") in asked.render(caught.value, asked).headers


async def test_no_cycles_with_cel() -> None:
    handler = door(
        {"response": {"set": {"x-p": {"cel": "request.path"}}}, "request": {"set": {"x-p": {"cel": "request.path"}}}},
        echo,
    )
    await handler(request(b"GET", b"/"))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await handler(request(b"GET", b"/"))
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "rules, said",
    [
        ({"request": {"set": {"x-a": {"cel": "llm.model"}}}}, "unknown variable `llm` here"),
        ({"request": {"when": "mcp.server == 'a'", "remove": ["x-a"]}}, "unknown variable `mcp` here"),
        ({"request": {"set": {"x-a": {"cel": "1 +"}}}}, "not a CEL expression"),
        ({"request": {"set": {"authorization": {"cel": "principal.user"}}}}, "never goes upstream"),
        ({"request": []}, "at least 1 item"),
        ({"response": {"set": {"x-a": {"cel": "llm.tools"}}}}, "unknown field `llm.tools`"),
        ({"response": {"set": {"x-a": {"sel": "1"}}}}, "Extra inputs"),
    ],
)
def test_wrong_rules_in_cel(rules: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HeadersSpec.model_validate(rules)


@pytest.mark.parametrize(("direction", "source"), [("request", "principal.user"), ("response", "llm.tokens")])
def test_a_condition_is_true_or_false(direction: str, source: str) -> None:
    with pytest.raises(ValueError, match="compare it with something"):
        HeadersSpec.model_validate({direction: {"when": source, "remove": ["x-a"]}})
