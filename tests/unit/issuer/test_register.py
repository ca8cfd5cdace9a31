"""Clients register themselves: no more than they need, and not too many (attacks 8 and 42)."""

import json
import secrets
from typing import Any

import pytest
from tests.fixtures.issuer import API, CLIENTS, Node, issuing

from tollhouse.core.http import Headers, Request
from tollhouse.issuer.scopes import scopes_for
from tollhouse.wire.oauth import OAuthError

pytestmark = pytest.mark.anyio
GOOD = {"redirect_uris": ["http://127.0.0.1/cb"], "token_endpoint_auth_method": "none", "client_name": "A Program"}


async def register(node: Node, **changed: Any) -> tuple[int, dict[str, Any]]:
    metadata = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    response = await node.http.post(f"{node.url}/oauth/register", json=metadata)
    return response.status_code, response.json()


async def test_a_client_gets_an_id_and_can_be_found() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        status, answer = await register(node, grant_types=["authorization_code", "refresh_token", "password"])
        assert status == 201, answer
        assert answer["client_id"].startswith("dyn_")
        assert "client_secret" not in answer
        assert answer["grant_types"] == ["authorization_code", "refresh_token"]
        assert answer["response_types"] == ["code"]
        client = await node.parts.clients.find(answer["client_id"])
        assert client is not None
        assert (client.name, client.source, client.verified, client.native) == ("A Program", "registered", False, True)
        assert "urn:ietf:params:oauth:grant-type:device_code" not in client.grants


async def test_a_secret_is_given_once_and_kept_as_a_digest() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        status, answer = await register(node, token_endpoint_auth_method="client_secret_post")
        assert (status, answer["client_secret_expires_at"]) == (201, 0)
        assert len(answer["client_secret"]) >= 43
        stored = await node.parts.state.values.get(f"iss:cl:{answer['client_id']}")
        assert stored is not None
        assert answer["client_secret"].encode() not in stored
        form = {"client_id": answer["client_id"], "client_secret": answer["client_secret"], "token": "x"}
        assert (await node.post("revoke", form)).status_code == 200
        assert (await node.post("revoke", {**form, "client_secret": "x" * 43})).status_code == 401


async def test_who_says_nothing_has_a_secret() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        _, answer = await register(node, token_endpoint_auth_method=None)
        assert answer["token_endpoint_auth_method"] == "client_secret_basic"
        assert answer["client_secret"]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"redirect_uris": None}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["data:text/html,x"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["http://app.example.com/cb"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["https://app.example.com/cb#x"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["https://a.example/cb", "myapp:/cb"], "application_type": ""}, "invalid_redirect_uri"),
        ({"application_type": "web"}, "invalid_redirect_uri"),
        ({"application_type": "thing"}, "invalid_client_metadata"),
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        ({"response_types": ["token"]}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "tls_client_auth"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"jwks": {"keys": []}}, "invalid_client_metadata"),
        ({"client_name": "a\nb"}, "invalid_client_metadata"),
        ({"scope": 'a"b'}, "invalid_client_metadata"),
    ],
)
async def test_what_is_wrong_is_refused(changed: dict[str, Any], error: str) -> None:
    """Attack 8 among them."""
    async with issuing(registration={"dynamic": "on"}) as node:
        status, answer = await register(node, **changed)
        assert (status, answer["error"]) == (400, error)


async def test_nobody_chooses_an_id() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        _, answer = await register(node, client_id="app", client_secret="mine")
        assert answer["client_id"] != "app"
        assert "client_secret" not in answer


async def test_a_flood_is_refused() -> None:
    """Attack 42."""
    async with issuing(registration={"dynamic": "on", "per_address": 3, "rate": 100}) as node:
        statuses = [(await register(node))[0] for _ in range(4)]
        assert statuses == [201, 201, 201, 429]
        response = await node.http.post(f"{node.url}/oauth/register", json=GOOD)
        assert int(response.headers["retry-after"]) > 0
    async with issuing(registration={"dynamic": "on", "rate": 2}) as node:
        assert [(await register(node))[0] for _ in range(3)] == [201, 201, 429]
    async with issuing(registration={"dynamic": "on", "limit": 1}) as node:
        assert [(await register(node))[0] for _ in range(2)] == [201, 429]


async def test_it_is_off_unless_it_is_on() -> None:
    async with issuing() as node:
        response = await node.http.post(f"{node.url}/oauth/register", json=GOOD)
        assert response.status_code == 404
        assert "registration_endpoint" not in node.issuer.metadata


async def test_on_this_machine_alone() -> None:
    async with issuing(registration={"dynamic": "loopback"}) as node:
        assert (await register(node))[0] == 201
        status, answer = await register(node, redirect_uris=["https://app.example.com/cb"])
        assert (status, answer["error"]) == (400, "invalid_redirect_uri")
        address = next(one for one in node.issuer.addresses if one.path == "/oauth/register")
        fields = Headers([(b"content-type", b"application/json")])
        for peer, client, expected in (
            ("192.0.2.1", "", 403),
            ("::ffff:192.0.2.1", "", 403),
            ("127.0.0.1", "192.0.2.1", 403),  # by a proxy that is trusted to say so
            ("::1", "", 201),
        ):
            request = Request(b"POST", b"/oauth/register", Headers(fields), json.dumps(GOOD).encode(), peer=peer)
            request.context.client = client
            assert (await address.handler(request)).status == expected


async def test_a_form_is_no_registration() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        response = await node.http.post(f"{node.url}/oauth/register", data={"redirect_uris": "x"})
        assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
        response = await node.http.post(f"{node.url}/oauth/register", json={**GOOD, "padding": "x" * 17000})
        assert (response.status_code, response.json()["error"]) == (413, "invalid_request")


async def test_what_such_clients_may_ask_for() -> None:
    async with issuing(registration={"dynamic": "on", "scopes": ["read", "openid"]}, clients=CLIENTS) as node:
        _, answer = await register(node, scope="read write")
        client = await node.parts.clients.find(answer["client_id"])
        assert client is not None
        assert sorted(client.scopes or ()) == ["openid", "read"]
        assert client.default_scopes == ("read", "write")
        assert scopes_for(client, node.parts.resources, "", (API,)) == ("read",)
        with pytest.raises(OAuthError):
            scopes_for(client, node.parts.resources, "write", (API,))


async def test_one_that_acts_for_a_user_lives_on() -> None:
    async with issuing(registration={"dynamic": "on", "unused": "10d"}) as node:
        _, answer = await register(node)
        id, values = answer["client_id"], node.parts.state.values
        key = f"iss:cl:{id}"
        before = await values.get(key)
        first = await node.parts.clients.find(id)

        async def let_in() -> None:
            verifier = secrets.token_urlsafe(32)
            code = await node.code(verifier, client_id=id, redirect_uri=GOOD["redirect_uris"][0])
            assert (await node.redeem(code, verifier, "", client_id=id)).status_code == 200

        node.wait(3600 * 23)
        await let_in()
        assert await values.get(key) == before
        node.wait(3600 * 2)
        await let_in()
        written = await values.get(key)
        assert written != before
        await let_in()
        assert await values.get(key) == written
        assert await node.parts.clients.find(id) is first


async def test_one_that_strangers_ask_for_does_not() -> None:
    async with issuing(registration={"dynamic": "on", "unused": "10d"}) as node:
        _, answer = await register(node)
        id, values = answer["client_id"], node.parts.state.values
        before = await values.get(f"iss:cl:{id}")
        node.wait(86400 * 2)
        sent = {"client_id": id, "redirect_uri": GOOD["redirect_uris"][0], "response_type": "code"}
        await node.http.get(f"{node.url}/oauth/authorize", params=sent)
        await node.token(client_id=id, grant_type="refresh_token", refresh_token="x")
        await node.post("revoke", {"client_id": id, "token": "x"})
        await node.parts.clients.find(id)
        assert await values.get(f"iss:cl:{id}") == before
