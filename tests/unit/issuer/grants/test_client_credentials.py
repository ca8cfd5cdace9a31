"""Clients that ask for themselves."""

import pytest
from tests.fixtures.issuer import API, CLIENTS, MCP, SECRET, claims_of, issuing

pytestmark = pytest.mark.anyio


async def test_a_token_of_a_clients_own() -> None:
    async with issuing() as node:
        response = await node.token("robot", grant_type="client_credentials", resource=MCP, scope="mcp")
        answer = response.json()
        assert response.status_code == 200, answer
        assert "refresh_token" not in answer
        claims = claims_of(answer["access_token"])
        assert (claims["sub"], claims["client_id"], claims["aud"], claims["scope"]) == ("robot", "robot", MCP, "mcp")
        assert not {"auth_time", "sid", "gid", "groups", "act"} & claims.keys()


async def test_a_secret_may_come_in_the_form() -> None:
    async with issuing() as node:
        form = {"grant_type": "client_credentials", "client_id": "robot", "client_secret": SECRET, "audience": API}
        response = await node.token(**form)
        assert response.json()["scope"] == "read"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "invalid_target"),
        ({"resource": [MCP, API]}, "invalid_target"),
        ({"resource": "https://other.example.com"}, "invalid_target"),
        ({"resource": MCP + "#tool"}, "invalid_target"),
        ({"resource": "mcp"}, "invalid_target"),
        ({"resource": MCP, "scope": "admin"}, "invalid_scope"),
        ({"resource": API, "scope": "mcp"}, "invalid_scope"),
        ({"resource": MCP, "scope": "openid"}, "invalid_scope"),
        ({"resource": MCP, "scope": 'a"b'}, "invalid_scope"),
    ],
)
async def test_what_the_client_may_not_have(form: dict[str, str], error: str) -> None:
    async with issuing() as node:
        refused = await node.token("robot", grant_type="client_credentials", **form)
        assert (refused.status_code, refused.json()["error"]) == (400, error)


async def test_the_only_resource_goes_without_saying() -> None:
    clients = [{"id": "robot", "secret": SECRET, "grants": ["client_credentials"], "audiences": [API]}]
    async with issuing(clients=clients) as node:
        answer = (await node.token("robot", grant_type="client_credentials")).json()
        assert claims_of(answer["access_token"])["aud"] == API
        assert answer["scope"] == "read write"


async def test_other_clients_do_not_have_the_grant() -> None:
    async with issuing(clients=[*CLIENTS]) as node:
        refused = await node.token("app", grant_type="client_credentials")
        assert refused.json()["error"] == "unauthorized_client"
        refused = await node.token("robot", grant_type="password")
        assert refused.json()["error"] == "unsupported_grant_type"
        refused = await node.token("robot")
        assert refused.json()["error"] == "invalid_request"
