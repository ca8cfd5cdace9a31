"""Origin: whose pages are refused where nobody had to say who he is, that hostile values are nobody's, and by which
names a gateway of this machine alone may be called."""

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
        assert known.origin is policy.__self__  # type: ignore[attr-defined]
    known = Known()
    for header in ((b"origin", b"https://evil.example"), (b"host", b"evil.example:8080")):
        for _ in range(2):
            asked = request(b"POST", b"/x", header, principal=who("anonymous", "anonymous"))
            asked.listener = "127.0.0.1:8080"
            asked.known = known
            with pytest.raises(Failure, match=r"pages of this origin|called by this name"):
                await compose((policy,), respond)(asked)


async def test_another_configuration_looks_again() -> None:
    known = Known()
    for hosts, passes in ((("proxy.internal",), True), ((), False), (("proxy.internal",), True)):
        policy = ORIGIN.make((), parts(entrance="mcp", public_url=OWN, hosts=hosts))
        assert policy is not None
        asked = request(b"GET", b"/x", (b"host", b"proxy.internal"), principal=who("anonymous", "anonymous"))
        asked.known, asked.listener = known, "127.0.0.1:8080"
        if passes:
            await compose((policy,), respond)(asked)
        else:
            with pytest.raises(Failure, match="called by this name"):
                await compose((policy,), respond)(asked)


async def called(
    *hosts: bytes,
    listener: str = "127.0.0.1:8080",
    entrance: Any = "llm",
    source: str = "anonymous",
    origin: bytes | None = None,
    more: tuple[str, ...] = ("proxy.internal", "*.dev.example", "[2001:db8::1]"),
) -> bool:
    """Whether a request with this field Host passes."""
    policy = ORIGIN.make((), parts(entrance=entrance, public_url=OWN, hosts=more))
    assert policy is not None
    fields = [(b"host", host) for host in hosts] + ([(b"origin", origin)] if origin is not None else [])
    asked: Request = request(b"GET", b"/x", *fields, principal=who(source))
    asked.listener = listener
    said = ""
    try:
        await compose((policy,), respond)(asked)
    except Failure as failure:
        said = f"{failure.status} {failure.reason.value} {failure.code} {failure.message}"
    assert not said or (said.startswith("403 Authorization permission_denied") and "server.hosts" in said)
    assert "evil" not in said
    return not said


@pytest.mark.parametrize("entrance", ["llm", "mcp"])
@pytest.mark.parametrize(
    "host",
    [
        b"localhost:8080",
        b"LOCALHOST",
        b"localhost.",
        b"app.localhost:3000",
        b"127.0.0.1:8080",
        b"127.0.0.1",
        b"127.8.8.8:1",
        b"[::1]:8080",
        b"[::1]",
        b"ai.example.com",
        b"AI.EXAMPLE.COM.:443",
        b"proxy.internal:8080",
        b"a.dev.example",
        b"a.b.dev.example:1",
        b"[2001:db8::1]:8080",
    ],
)
async def test_names_of_this_machine_and_those_that_are_given(entrance: Any, host: bytes) -> None:
    assert await called(host, entrance=entrance)


@pytest.mark.parametrize("entrance", ["llm", "mcp"])
@pytest.mark.parametrize(
    "host",
    [
        b"evil.example:8080",
        b"evil.example",
        b"",
        b":8080",
        b"localhost.evil.example",
        b"evil-localhost",
        b"127.0.0.1.evil.example",
        b"evil.127.0.0.1",
        b"127.0.0.1@evil.example",
        b"0.0.0.0:8080",
        b"192.0.2.7",
        b"[::2]",
        b"[::1]evil.example",
        b"dev.example",
        b"evildev.example",
        b"a.proxy.internal",
        b"ai.example.com.evil.example",
        b"ai.example.com..",
        b"localhost\xff",
        b"localhost:8080:8080",
        b"*.dev.example.evil",
    ],
)
async def test_names_that_were_made_to_lead_here(entrance: Any, host: bytes) -> None:
    assert not await called(host, entrance=entrance)


async def test_where_the_name_does_not_matter() -> None:
    evil = b"evil.example:8080"
    for listener in ("0.0.0.0:8080", ":8080", "[::]:8080", "10.0.0.7:8080", "gateway.internal:8080", ""):
        assert await called(evil, listener=listener)  # others reach it, by names that are not known here
    for listener in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080"):
        assert not await called(evil, listener=listener)
    for source in ("key", "jwt"):
        for entrance in ("llm", "mcp"):
            assert await called(evil, source=source, entrance=entrance)  # no page knows a credential
    assert await called()  # HTTP/1.0: no browser
    assert await called(evil, origin=b"http://localhost:3000")  # the page is one that may, whatever it calls us
    assert not await called(b"proxy.internal", more=())


async def test_names_that_were_looked_at_are_kept_within_bounds() -> None:
    policy: Any = ORIGIN.make((), parts(entrance="llm", public_url=OWN, hosts=("*.dev.example",)))
    for n in range(5000):
        asked = request(b"GET", b"/x", (b"host", b"h%d.dev.example" % n), principal=who("anonymous"))
        asked.listener = "127.0.0.1:8080"
        await compose((policy,), respond)(asked)
    assert 0 < len(policy.__self__._called) <= 1024


def test_plain_routes_have_pages_of_their_own() -> None:
    assert ORIGIN.make((), parts(entrance="http")) is None
