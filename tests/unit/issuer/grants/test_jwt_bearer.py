"""A company's identity provider vouches for its people (ID-JAG): for this client, this issuer, once (attack 43)."""

import secrets
import time
from typing import Any

import pytest
from tests.fixtures.issuer import API, CLIENTS, MCP, SECRET, Node, claims_of, issuing, new_key, signed

pytestmark = pytest.mark.anyio

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
IDP = new_key("idp-1")
TRUSTED = {"issuer": "https://idp.example.com", "jwks": {"keys": [IDP.jwk]}, "grants": ["id_jag", "jwt_bearer"]}
AGENT = {"id": "agent", "secret": SECRET, "grants": ["jwt_bearer"], "scopes": ["read", "mcp"]}
SECOND = {**AGENT, "id": "second"}
SPEC: dict[str, Any] = {"clients": [*CLIENTS, AGENT, SECOND], "trusted": [TRUSTED]}


def claims(node: Node, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": "https://idp.example.com",
        "sub": "eve",
        "aud": node.url,
        "client_id": "agent",
        "resource": API,
        "scope": "read",
        "jti": secrets.token_hex(8),
        "iat": now,
        "exp": now + 300,
        "email": "eve@example.com",
        "groups": ["dev"],
        **changed,
    }
    return {name: value for name, value in made.items() if value is not None}


async def bear(node: Node, assertion: str, client: str = "agent", **form: str) -> tuple[int, dict[str, Any]]:
    response = await node.token(client, grant_type=GRANT, assertion=assertion, **form)
    return response.status_code, response.json()


async def test_a_token_for_the_resource_that_was_vouched_for() -> None:
    async with issuing(**SPEC) as node:
        status, answer = await bear(node, signed(IDP, claims(node), "oauth-id-jag+jwt"))
        assert status == 200, answer
        assert "refresh_token" not in answer
        said = claims_of(answer["access_token"])
        assert (said["aud"], said["scope"], said["client_id"], said["groups"]) == (API, "read", "agent", ["dev"])
        assert said["sub"].startswith("u_")
        _, again = await bear(node, signed(IDP, claims(node), "oauth-id-jag+jwt"))
        assert claims_of(again["access_token"])["sub"] == said["sub"]


async def test_an_assertion_is_good_once() -> None:
    async with issuing(**SPEC) as node:
        assertion = signed(IDP, claims(node), "oauth-id-jag+jwt")
        assert (await bear(node, assertion))[0] == 200
        status, answer = await bear(node, assertion)
        assert (status, answer["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "second"},
        {"client_id": None},
        {"aud": "https://other.example.com"},
        {"aud": None},
        {"iss": "https://evil.example.com"},
        {"resource": "https://other.example.com"},
        {"resource": [API, MCP]},
        {"resource": None},
        {"resource": 5},
        {"scope": ["read"]},
        {"jti": None},
        {"jti": "x\n"},
        {"exp": 1},
        {"exp": int(time.time()) + 3600},
        {"sub": None},
        {"sub": ""},
    ],
)
async def test_one_that_does_not_fit(changed: dict[str, Any]) -> None:
    """Attack 43, and more."""
    async with issuing(**SPEC) as node:
        status, answer = await bear(node, signed(IDP, claims(node, **changed), "oauth-id-jag+jwt"))
        assert (status, answer["error"]) == (400, "invalid_grant")


async def test_the_audience_may_be_a_list_of_us_alone() -> None:
    async with issuing(**SPEC) as node:
        assert (await bear(node, signed(IDP, claims(node, aud=[node.url]), "oauth-id-jag+jwt")))[0] == 200
        both = claims(node, aud=[node.url, "https://other.example.com"])
        assert (await bear(node, signed(IDP, both, "oauth-id-jag+jwt")))[0] == 400


@pytest.mark.parametrize("typ", ["at+jwt", "dpop+jwt", "logout+jwt"])
async def test_another_kind_of_token(typ: str) -> None:
    async with issuing(**SPEC) as node:
        status, answer = await bear(node, signed(IDP, claims(node), typ))
        assert (status, answer["error"]) == (400, "invalid_grant")


async def test_another_key_and_another_client() -> None:
    async with issuing(**SPEC) as node:
        forged = signed(new_key("idp-1"), claims(node), "oauth-id-jag+jwt")
        assert (await bear(node, forged))[1]["error"] == "invalid_grant"
        stolen = signed(IDP, claims(node), "oauth-id-jag+jwt")
        assert (await bear(node, stolen, client="second"))[1]["error"] == "invalid_grant"
        limited = {**SPEC, "trusted": [{**TRUSTED, "clients": ["second"]}]}
    async with issuing(**limited) as node:
        assertion = signed(IDP, claims(node), "oauth-id-jag+jwt")
        assert (await bear(node, assertion))[1]["error"] == "invalid_grant"


async def test_not_more_than_was_vouched_for() -> None:
    async with issuing(**SPEC) as node:
        status, answer = await bear(node, signed(IDP, claims(node), "oauth-id-jag+jwt"), scope="write")
        assert (status, answer["error"]) == (400, "invalid_scope")
        status, answer = await bear(node, signed(IDP, claims(node), "oauth-id-jag+jwt"), resource=MCP)
        assert (status, answer["error"]) == (400, "invalid_target")


async def test_nothing_vouched_for_is_nothing() -> None:
    async with issuing(**SPEC) as node:
        _, answer = await bear(node, signed(IDP, claims(node, scope=""), "oauth-id-jag+jwt"))
        assert "scope" not in answer
        _, answer = await bear(node, signed(IDP, claims(node, scope=None), "oauth-id-jag+jwt"))
        assert answer["scope"] == "read"


async def test_a_workload_that_its_platform_vouches_for() -> None:
    async with issuing(**SPEC) as node:
        plain = claims(node, client_id=None, resource=None, scope=None)
        status, answer = await bear(node, signed(IDP, plain), resource=API)
        assert status == 200, answer
        assert answer["scope"] == "read"


async def test_only_where_somebody_is_trusted() -> None:
    async with issuing(clients=[*CLIENTS, AGENT]) as node:
        status, answer = await bear(node, "x.y.z")
        assert (status, answer["error"]) == (400, "unsupported_grant_type")
        assert GRANT not in node.issuer.metadata["grant_types_supported"]
