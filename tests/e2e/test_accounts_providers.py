"""Accounts at authorization servers that others have written: oidc-provider (npm) and authlib. All is found out by
discovery, people agree on their pages, and tokens are renewed, used up and given back."""

from base64 import b64encode
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest
from tests.fixtures.auth_provider import Page
from tests.fixtures.authlib_server import authlib_server
from tests.fixtures.foreign_issuer import Asked
from tests.fixtures.gateway import free_port
from tests.fixtures.identity import metadata_document
from tests.fixtures.issuer import claims_of
from tests.fixtures.mcp_suite import needs_node
from tests.fixtures.oidc_provider import oidc_provider
from tests.fixtures.third_party import BINDING, CALLBACK, START, Side, Third, third_party

from tollhouse.backends.accounts import OurAddresses, ThirdParty
from tollhouse.core.errors import Failure
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.wire.oauth import Form

pytestmark = pytest.mark.anyio

LIFE = 3600


class Protected(Third):
    """A server whose users another one lets in."""

    def __init__(self, login: str) -> None:
        super().__init__()
        self.named = login

    def __call__(self, asked: Asked) -> Any:
        self.resource = {"authorization_servers": [self.named]}
        return super().__call__(asked)


def provider_at(port: int, **settings: Any) -> AbstractAsyncContextManager[str]:
    return oidc_provider("third_party.mjs", port, life=LIFE, **settings)


async def agree(url: str, back: str = CALLBACK) -> Form:
    """Through the provider's pages, as who logs in as `grace` and allows what is asked: what comes back."""
    async with httpx.AsyncClient(timeout=30) as http:
        response = await http.get(url)
        for _ in range(30):
            if response.is_redirect:
                url = urljoin(str(response.url), response.headers["location"])
                if url.startswith(back):
                    return Form({name: (value,) for name, value in parse_qsl(urlsplit(url).query)})
                response = await http.get(url)
                continue
            assert response.status_code == 200, response.text
            page = Page(response.text)
            fields = {name: value for name, value in page.fields.items() if name}
            if "login" in fields:
                fields |= {"login": "grace", "password": "any"}
            response = await http.post(urljoin(str(response.url), page.action), data=fields)
    raise AssertionError("the pages go in a circle")


async def connect(side: Side, party: ThirdParty | None = None) -> None:
    party = party or side.party
    await party.finish("ada", BINDING, await agree(await party.begin("ada", "agent-1", BINDING)))


async def introspected(provider: str, token: str) -> bool:
    """Whether the provider takes it, by a client of ours there."""
    async with httpx.AsyncClient() as http:
        asked = {"redirect_uris": ["https://app.example.com/back"], "token_endpoint_auth_method": "client_secret_basic"}
        client = (await http.post(f"{provider}/reg", json=asked)).json()
        who = b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
        answer = await http.post(
            f"{provider}/token/introspection", data={"token": token}, headers={"authorization": f"Basic {who}"}
        )
        return bool(answer.json()["active"])


async def gone(side: Side, party: ThirdParty | None = None) -> None:
    with pytest.raises(Failure) as caught:
        await side.token(party=party)
    assert caught.value.code == ACCOUNT_NEEDED


@needs_node
async def test_oidc_provider_from_discovery_to_revocation() -> None:
    port = free_port()
    protected = Protected(f"http://127.0.0.1:{port}")
    async with (
        third_party(third=protected, allow=["127.0.0.0/8"]) as side,
        provider_at(port, resource=f"{side.third.url}/mcp") as provider,
    ):
        await connect(side)
        first = await side.token()
        claims = claims_of(first)
        assert (claims["iss"], claims["sub"], claims["aud"]) == (provider, "grace", f"{side.third.url}/mcp")
        assert claims["scope"] == "read"
        account = await side.party.account("ada")
        assert account is not None
        assert account.host == urlsplit(provider).netloc
        assert account.scopes == ("read",)
        # Renewed, twice: each refresh token is used once there.
        for _ in range(2):
            before = await side.token()
            side.now.value += LIFE
            after = await side.token()
            assert claims_of(after)["sub"] == "grace"
            assert after != before
        assert await side.party.disconnect("ada")
        await gone(side)
        # Connected anew: the same client, not another one.
        await connect(side)
        assert claims_of(await side.token())["client_id"] == claims["client_id"]


@needs_node
async def test_oidc_provider_ends_what_is_given_back() -> None:
    port = free_port()
    async with (
        third_party(third=Protected(""), allow=["127.0.0.0/8"]) as side,
        provider_at(port, resource=f"{side.third.url}/mcp") as provider,
    ):
        party = side.node(issuer=provider, scopes=("openid", "offline_access"), resource="none")
        await connect(side, party)
        token = await side.token(party=party)
        assert await introspected(provider, token)
        assert await party.disconnect("ada")
        assert not await introspected(provider, token)


@needs_node
async def test_oidc_provider_knows_us_by_our_document(tmp_path: Path) -> None:
    port = free_port()
    protected = Protected(f"http://127.0.0.1:{port}")
    more = {"client_name": "Tollhouse", "response_types": ["code"], "application_type": "web"}
    with metadata_document(tmp_path, CALLBACK, **more) as (document, roots):
        async with third_party(third=protected, allow=["127.0.0.0/8"]) as side:
            settings = {"resource": f"{side.third.url}/mcp", "document": document, "roots": roots}
            async with provider_at(port, **settings):
                party = side.node(ours=OurAddresses(START, CALLBACK, document))
                await connect(side, party)
                assert claims_of(await side.token(party=party))["client_id"] == document
                assert party.client_metadata((CALLBACK,)).items() >= more.items()


async def test_authlib_from_discovery_to_revocation() -> None:
    with authlib_server(LIFE) as (url, server):
        async with third_party(third=Protected(url), allow=["127.0.0.0/8"]) as side:
            await connect(side)
            [client] = server.clients.values()
            assert client.said["client_name"] == "Tollhouse"
            assert client.said["redirect_uris"] == [CALLBACK]
            first = await side.token()
            assert [token.said["access_token"] for token in server.tokens] == [first]
            assert server.tokens[0].get_scope() == "read"
            side.now.value += LIFE
            second = await side.token()
            assert [token.said["access_token"] for token in server.tokens] == [first, second]
            assert server.tokens[0].is_over
            assert await side.party.disconnect("ada")
            assert server.tokens[1].is_over
            await gone(side)


async def test_authlib_ends_an_account_and_forgets_a_client() -> None:
    with authlib_server(LIFE) as (url, server):
        async with third_party(third=Protected(url), allow=["127.0.0.0/8"]) as side:
            await connect(side)
            server.tokens[0].is_over = True  # its user has taken it back there
            side.now.value += LIFE
            await gone(side)
            await connect(side)
            server.clients.clear()
            side.now.value += LIFE
            await gone(side)
            await connect(side)  # registered anew
            assert len(server.clients) == 1
            assert await side.token() == server.tokens[-1].said["access_token"]
