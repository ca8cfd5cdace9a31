"""Only who serves what a token is for hears what it says."""

import pytest
from tests.fixtures.issuer import API, CLIENTS, MCP, SECRET, basic, issuing

pytestmark = pytest.mark.anyio
SERVER = {"id": "api", "secret": SECRET, "grants": ["client_credentials"], "serves": [API]}
ALL = [*CLIENTS, SERVER]


async def test_who_serves_it_hears_all_of_it() -> None:
    async with issuing(clients=ALL) as node:
        token = (await node.login(scopes=("read",)))["access_token"]
        response = await node.post("introspect", {"token": token}, "api")
        answer = response.json()
        assert answer["active"] is True
        assert (answer["sub"], answer["aud"], answer["client_id"], answer["scope"]) == ("ada", API, "app", "read")
        assert (answer["token_type"], answer["username"], answer["iss"]) == ("Bearer", "ada", node.url)
        assert response.headers["cache-control"] == "no-store"


async def test_anybody_else_hears_nothing() -> None:
    async with issuing(clients=ALL) as node:
        login = await node.login(resources=(API,))
        robot = (await node.token("robot", grant_type="client_credentials", resource=MCP)).json()["access_token"]
        for client, token in (
            ("gateway", login["access_token"]),
            ("app", login["access_token"]),
            ("api", robot),
            ("api", login["refresh_token"]),
            ("api", login["access_token"][:-2] + ("AQ" if login["access_token"].endswith("AA") else "AA")),
            ("api", "x"),
            ("api", "ä"),
        ):
            response = await node.post("introspect", {"token": token}, client)
            assert (response.status_code, response.json()) == (200, {"active": False})


async def test_a_token_that_is_over() -> None:
    async with issuing(clients=ALL) as node:
        token = (await node.login())["access_token"]
        node.wait(606)
        assert (await node.post("introspect", {"token": token}, "api")).json() == {"active": False}


async def test_who_does_not_say_who_it_is_hears_less() -> None:
    async with issuing(clients=ALL) as node:
        assert (await node.post("introspect", {"token": "x"})).status_code == 401
        public = await node.post("introspect", {"token": "x", "client_id": "native"})
        assert public.json()["error"] == "unauthorized_client"
        missing = await node.post("introspect", {"x": "y"}, "api")
        assert missing.json()["error"] == "invalid_request"
        shown = {"authorization": basic("api")}
        query = await node.http.post(f"{node.url}/oauth/introspect?token=x", data={"token": "x"}, headers=shown)
        assert query.json()["error"] == "invalid_request"
