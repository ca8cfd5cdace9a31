"""Origin: whose pages are refused where nobody had to say who he is, and that hostile values are nobody's."""

from typing import Any

import pytest
from tests.unit.policies.floor import layer, parts, request, respond, who

from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.core.http import Known, Request
from tollhouse.policies.cors import CorsSpec
from tollhouse.policies.origin import ORIGIN

pytestmark = pytest.mark.anyio

OWN = "https://AI.example.com:443/gateway"
CORS = {"origins": ["https://app.example.com", "https://*.pages.example.com"]}


async def passes(
    origin: bytes | None, *, entrance: Any = "llm", cors: Any = CORS, principal: Any = None, own: str = OWN
) -> bool:
    layers = (layer(CorsSpec.model_validate(cors)),) if cors else ()
    policy = ORIGIN.make(layers, parts(entrance=entrance, public_url=own))
    assert policy is not None
    fields = [(b"origin", origin)] if origin is not None else []
    asked: Request = request(b"POST", b"/x", *fields, principal=principal or who("anonymous", "anonymous"))
    said = ""
    try:
        await compose((policy,), respond)(asked)
    except Failure as failure:
        said = f"{failure.status} {failure.reason.value} {failure.code} {failure.message}"
    assert not said or (said.startswith("403 Authorization permission_denied") and "cors.origins" in said)
    return not said


@pytest.mark.parametrize("entrance", ["llm", "mcp"])
@pytest.mark.parametrize(
    "origin",
    [
        None,  # not a page, or a page of ours that reads
        b"http://localhost:5173",
        b"https://localhost",
        b"http://127.0.0.1:8080",
        b"http://127.9.9.9",
        b"http://[::1]:3000",
        b"HTTP://LOCALHOST:5173",
        b"https://ai.example.com",
        b"https://AI.EXAMPLE.COM",
        b"https://app.example.com",
        b"https://a.pages.example.com",
    ],
)
async def test_pages_that_may(entrance: Any, origin: bytes | None) -> None:
    assert await passes(origin, entrance=entrance)


@pytest.mark.parametrize("entrance", ["llm", "mcp"])
@pytest.mark.parametrize(
    "origin",
    [
        b"https://evil.example",
        b"",
        b"null",
        b"://",
        b"http://",
        b"localhost",
        b"http://[::1",
        b"http://[::1]evil.example",
        b"http://[::2]",
        b"http://127.0.0.1.evil.example.com",
        b"http://127.0.0.1@evil.example",
        b"http://localhost.evil.example",
        b"http://localhost:80@evil.example",
        b"http://evil.example#http://localhost",
        b"http://127.1",
        b"http://2130706433",
        b"file://localhost",
        b"chrome-extension://localhost",
        b"https://ai.example.com:8443",
        b"http://ai.example.com",
        b"https://ai.example.com.evil.example",
        b"https://app.example.com:8443",
        b"https://pages.example.com",
        b"http://localhost\xff",
        b"https://ai.example.com, https://evil.example",
    ],
)
async def test_pages_that_may_not(entrance: Any, origin: bytes) -> None:
    assert not await passes(origin, entrance=entrance)


async def test_who_has_said_who_he_is_is_not_bothered_but_by_mcp() -> None:
    for source in ("key", "jwt"):
        assert await passes(b"https://evil.example", principal=who(source))
        assert not await passes(b"https://evil.example", principal=who(source), entrance="mcp")


async def test_without_cors_and_without_a_name() -> None:
    assert not await passes(b"https://app.example.com", cors=None)
    assert not await passes(b"://", cors=None, own="")
    assert await passes(b"http://localhost:1", cors=None, own="")
    assert await passes(b"https://evil.example", cors={"origins": ["*"]})  # as the operator says


async def test_a_head_that_comes_again_is_looked_at_once_and_never_let_through() -> None:
    policy = ORIGIN.make((), parts(entrance="llm", public_url=OWN))
    assert policy is not None
    known = Known()
    for _ in range(2):
        asked = request(b"POST", b"/x", principal=who("anonymous", "anonymous"))
        asked.known = known
        await compose((policy,), respond)(asked)
        assert not known.origin
    known = Known()
    for _ in range(2):
        asked = request(b"POST", b"/x", (b"origin", b"https://evil.example"), principal=who("anonymous", "anonymous"))
        asked.known = known
        with pytest.raises(Failure, match="pages of this origin"):
            await compose((policy,), respond)(asked)


def test_plain_routes_have_pages_of_their_own() -> None:
    assert ORIGIN.make((), parts(entrance="http")) is None
