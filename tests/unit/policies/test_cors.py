"""CORS: what a browser is told, for preflights, answers and failures."""

import gc
from typing import Any

import pytest
from tests.unit.policies.floor import layer, parts, request, respond

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.http import Request, Response
from tollhouse.policies.cors import CORS, CorsSpec

pytestmark = pytest.mark.anyio

APP = b"https://app.example.com"


def door(handler: Any = respond, **spec: Any) -> Any:
    policy = CORS.make((layer(CorsSpec.model_validate({"origins": ["https://app.example.com"]} | spec)),), parts())
    assert policy is not None
    return compose((policy,), handler)


def preflight(origin: bytes, method: bytes = b"POST", headers: bytes | None = None) -> Request:
    fields = [(b"origin", origin), (b"access-control-request-method", method)]
    if headers is not None:
        fields.append((b"access-control-request-headers", headers))
    return request(b"OPTIONS", b"/x", *fields)


async def never(request: Request) -> Response:
    raise AssertionError("a preflight went through")


def told(response: Response) -> dict[bytes, bytes]:
    assert len(response.headers) == len(dict(response.headers))
    return {name[15:]: value for name, value in response.headers if name.startswith(b"access-control-")}


async def test_a_preflight_is_answered_here() -> None:
    response = await door(never)(preflight(APP, headers=b"authorization, content-type"))
    assert response.status == 204
    assert told(response) == {
        b"allow-origin": APP,
        b"allow-methods": b"GET, HEAD, POST, PUT, PATCH, DELETE",
        b"allow-headers": b"authorization, content-type",
        b"max-age": b"600",
    }
    assert dict(response.headers)[b"vary"] == b"origin, access-control-request-method, access-control-request-headers"


async def test_a_preflight_of_another_page_is_told_nothing() -> None:
    response = await door(never)(preflight(b"https://evil.example.com"))
    assert response.status == 204
    assert told(response) == {}
    assert b"vary" in dict(response.headers)


@pytest.mark.parametrize("asked", [b"x\r\ny: z", b"a b", b"", b"x" * 5000, b"a,,b", b"\xff"])
async def test_strange_headers_are_not_repeated(asked: bytes) -> None:
    assert b"allow-headers" not in told(await door(never)(preflight(APP, headers=asked)))


async def test_a_list_of_headers_is_said_as_it_is() -> None:
    response = await door(never, headers=["x-a", "x-b"], methods=["POST"], max_age="5s")(preflight(APP, headers=b"x-c"))
    assert told(response) == {
        b"allow-origin": APP, b"allow-methods": b"POST", b"allow-headers": b"x-a, x-b", b"max-age": b"5",
    }  # fmt: skip


async def test_options_that_is_no_preflight_goes_through() -> None:
    assert (await door()(request(b"OPTIONS", b"/x", (b"origin", APP)))).status == 200
    assert (await door()(request(b"OPTIONS", b"/x"))).status == 200


@pytest.mark.parametrize(
    "origins, origin, ok",
    [
        (["https://app.example.com"], b"https://app.example.com", True),
        (["https://app.example.com"], b"https://app.example.com.evil.com", False),
        (["https://app.example.com"], b"http://app.example.com", False),
        (["https://app.example.com"], b"https://app.example.com:8443", False),
        (["https://*.example.com"], b"https://a.example.com", True),
        (["https://*.example.com"], b"https://a.b.example.com", True),
        (["https://*.example.com"], b"https://example.com", False),
        (["https://*.example.com"], b"https://evilexample.com", False),
        (["https://*.example.com"], b"https://evil.com/.example.com", False),
        (["https://*.example.com"], b"https://evil.com#.example.com", False),
        (["https://*.example.com"], b"https://a.example.com.evil.com", False),
        (["https://*.example.com"], b"https://a.exampleXcom", False),
        (["https://*.example.com:8443"], b"https://a.example.com:8443", True),
        (["http://localhost:3000", "null"], b"null", True),
        (["http://localhost:3000"], b"null", False),
        (["*"], b"https://anything.example", True),
        (["*"], b"null", True),
    ],
)
async def test_origins(origins: list[str], origin: bytes, ok: bool) -> None:
    handler = door(origins=origins)
    for _ in range(2):
        response = await handler(request(b"GET", b"/x", (b"origin", origin)))
        assert response.status == 200  # CORS refuses nobody
        said = told(response).get(b"allow-origin")
        assert said == (None if not ok else b"*" if origins == ["*"] else origin)
        assert dict(response.headers)[b"vary"] == b"origin"


async def test_without_an_origin_the_answer_still_varies() -> None:
    response = await door()(request(b"GET", b"/x"))
    assert response.headers == [(b"content-type", b"text/plain"), (b"vary", b"origin")]


@pytest.mark.parametrize("origin", [None, APP, b"https://evil.example.com"])
async def test_refusals_vary_too(origin: bytes | None) -> None:
    async def refuse(request: Request) -> Response:
        raise Failure(401, Reason.JWT_AUTH, "no")

    asked = request(b"GET", b"/x", *([(b"origin", origin)] if origin else []))
    with pytest.raises(Failure) as caught:
        await door(refuse)(asked)
    answer = asked.render(caught.value, asked)
    assert dict(answer.headers)[b"vary"] == b"origin"
    assert (b"allow-origin" in told(answer)) is (origin == APP)


async def test_what_pages_may_read() -> None:
    response = await door(expose=["x-a", "x-b"], credentials=True)(request(b"GET", b"/x", (b"origin", APP)))
    assert told(response) == {b"allow-origin": APP, b"allow-credentials": b"true", b"expose-headers": b"x-a, x-b"}


async def test_an_upstreams_own_cors_headers_are_replaced() -> None:
    async def upstream(request: Request) -> Response:
        return Response(200, [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")])

    assert told(await door(upstream, expose=[])(request(b"GET", b"/x", (b"origin", APP)))) == {b"allow-origin": APP}


async def test_a_page_can_read_a_refusal() -> None:
    async def refuse(request: Request) -> Response:
        raise Failure(401, Reason.JWT_AUTH, "no", headers=((b"www-authenticate", b"Bearer"),))

    asked = request(b"GET", b"/x", (b"origin", APP))
    with pytest.raises(Failure) as caught:
        await door(refuse)(asked)
    response = asked.render(caught.value, asked)  # as the server does
    assert response.status == 401
    assert told(response)[b"allow-origin"] == APP
    assert dict(response.headers)[b"www-authenticate"] == b"Bearer"


async def test_shared_header_lists_are_not_changed() -> None:
    shared = [(b"content-type", b"text/plain")]

    async def upstream(request: Request) -> Response:
        return Response(200, shared)

    await door(upstream)(request(b"GET", b"/x", (b"origin", APP)))
    await door(upstream)(request(b"GET", b"/x"))
    assert shared == [(b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"origins": []}, "at least 1"),
        ({"origins": ["https://app.example.com/"]}, "not an origin"),
        ({"origins": ["app.example.com"]}, "not an origin"),
        ({"origins": ["https://App.example.com"]}, "lower case"),
        ({"origins": ["https://a.*.com"]}, "not an origin"),
        ({"origins": ["*"], "credentials": True}, "name the origins"),
        ({"methods": ["GE T"]}, "not a name"),
        ({"headers": ["a:b"]}, "not a name"),
    ],
)
def test_bad_configuration(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CorsSpec.model_validate({"origins": ["https://app.example.com"]} | wrong)


async def test_no_cycles() -> None:
    handler = door()
    await handler(request(b"GET", b"/x", (b"origin", APP)))
    gc.collect()
    await handler(request(b"GET", b"/x", (b"origin", APP)))
    assert gc.collect() == 0
