"""Scopes that calls need: who lacks some is told all of them at once."""

from typing import Any

import pytest
from tests.unit.policies.floor import answer, layer, model, parts, request, respond, tool, who

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.policies import Scope
from tollhouse.policies.authenticate import REQUIRES, REQUIRES_ENDPOINT, REQUIRES_ROUTE
from tollhouse.policies.authenticate.challenge import canonical, metadata_url

pytestmark = pytest.mark.anyio

GATEWAY = "https://gw.example.com"


def ada(*scopes: str, source: str = "jwt") -> Principal:
    return who(source, "ada", scopes=frozenset(scopes))


def challenge(failure: Failure) -> str:
    return dict(failure.headers)[b"www-authenticate"].decode()


async def test_a_call_needs_what_its_server_and_its_tool_ask_for() -> None:
    layers = (layer(("files",), "server", "files"), layer(("files:write", "files"), "tool", "files/write"))
    policy = REQUIRES.make(layers, parts(entrance="mcp", public_url=GATEWAY))
    assert policy is not None
    chain = compose((policy,), answer)
    assert (await chain(tool("write", ada("files", "files:write", "more")))).status == 200
    for held in ((), ("files",), ("files:write",)):
        call = tool("write", ada(*held))
        call.request.path = b"/mcp/files"
        call.context.requires = ("mcp",)
        with pytest.raises(Failure) as caught:
            await chain(call)
        failure = caught.value
        assert (failure.status, failure.code, failure.reason) == (403, "insufficient_scope", Reason.AUTHORIZATION)
        assert challenge(failure) == (
            'Bearer error="insufficient_scope", scope="files files:write mcp", '
            'resource_metadata="https://gw.example.com/.well-known/oauth-protected-resource/mcp/files", '
            'error_description="this needs a token with the scopes: files files:write mcp"'
        )
        assert call.context.rule == "requires"


async def test_who_has_not_said_who_he_is_gets_a_token_first() -> None:
    policy = REQUIRES.make((layer(("files",), "server", "files"),), parts(entrance="mcp", public_url=GATEWAY))
    assert policy is not None
    with pytest.raises(Failure) as caught:
        await compose((policy,), answer)(tool("write", ada(source="anonymous")))
    assert caught.value.status == 401
    assert challenge(caught.value).startswith('Bearer scope="files", resource_metadata=')


async def test_an_endpoint_asks_before_the_body_and_tells_those_behind_it() -> None:
    layers = (layer(("mcp",)), layer(("support",), "endpoint", "/mcp/support"))
    policy = REQUIRES_ENDPOINT.make(layers, parts(entrance="mcp", public_url=GATEWAY))
    assert policy is not None
    chain = compose((policy,), respond)
    asked = request(b"POST", b"/mcp/support", principal=ada("mcp", "support"))
    assert (await chain(asked)).status == 200
    assert sorted(asked.context.requires) == ["mcp", "support"]
    with pytest.raises(Failure) as caught:
        await chain(request(b"POST", b"/mcp/support", principal=ada("mcp")))
    assert 'scope="mcp support"' in challenge(caught.value)


async def test_models_and_routes_ask_too() -> None:
    policy: Any = REQUIRES.make((layer(("models",), "model", "smart"),), parts(entrance="llm", public_url=GATEWAY))
    chain = compose((policy,), answer)
    assert (await chain(model("smart", ada("models")))).status == 200
    with pytest.raises(Failure) as caught:
        await chain(model("smart", ada()))
    assert "resource_metadata" not in challenge(caught.value)
    route: Any = REQUIRES_ROUTE.make((layer(("r",), "route", "r"),), parts(entrance="http"))
    assert (await compose((route,), respond)(request(principal=ada("r")))).status == 200
    with pytest.raises(Failure, match="scopes: r"):
        await compose((route,), respond)(request(principal=ada()))


@pytest.mark.parametrize("path", [b'/a"b', b"/a\\b", b"/\xff", b"/a\x01b"])
async def test_a_strange_path_stays_out_of_the_challenge(path: bytes) -> None:
    policy: Any = REQUIRES.make((layer(("x",), "server", "s"),), parts(entrance="mcp", public_url=GATEWAY))
    call = tool(principal=ada())
    call.request.path = path
    with pytest.raises(Failure) as caught:
        await compose((policy,), answer)(call)
    assert 'resource_metadata="https://gw.example.com/.well-known/oauth-protected-resource"' in challenge(caught.value)


@pytest.mark.parametrize("scope", ["", "a b", 'a"b', "a\\b", "ä", "a\nb"])
def test_a_scope_is_a_word(scope: str) -> None:
    with pytest.raises(ValueError, match=r"scope|at least 1"):
        Scope.model_validate({"requires": [scope]})


@pytest.mark.parametrize(
    "url, expected",
    [
        ("HTTPS://GW.Example.com/mcp", "https://gw.example.com/mcp"),
        ("https://gw.example.com/", "https://gw.example.com"),
        ("https://gw.example.com:8443/MCP/", "https://gw.example.com:8443/MCP"),
    ],
)
def test_the_canonical_uri(url: str, expected: str) -> None:
    assert canonical(url) == expected


def test_metadata_stands_before_the_path() -> None:
    assert metadata_url("https://gw/a/mcp") == "https://gw/.well-known/oauth-protected-resource/a/mcp"
    assert metadata_url("https://gw") == "https://gw/.well-known/oauth-protected-resource"
