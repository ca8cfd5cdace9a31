"""Both documents say the same, and what is true of this configuration."""

from typing import Any

import pytest
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oidc.discovery import OpenIDProviderMetadata
from tests.fixtures.issuer import CLIENTS, issuing

pytestmark = pytest.mark.anyio
NAMES = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")


@pytest.mark.parametrize("path", ["", "/tenant/one"])
async def test_the_documents_are_where_clients_look(path: str) -> None:
    url = f"https://auth.example.com{path}"
    async with issuing(url=url) as node:
        place = node.url.removesuffix(path)
        places = [place + name + path for name in NAMES]
        if path:
            places += [place + path + name for name in NAMES]
        documents = [(await node.http.get(one)).json() for one in places]
        assert all(document == documents[0] for document in documents)
        assert documents[0]["issuer"] == url
        assert documents[0]["token_endpoint"] == f"{url}/oauth/token"
        assert documents[0]["code_challenge_methods_supported"] == ["S256"]
        assert documents[0]["authorization_response_iss_parameter_supported"] is True
        assert documents[0]["client_id_metadata_document_supported"] is True


async def test_they_are_good_metadata() -> None:
    async with issuing(url="https://auth.example.com", registration={"dynamic": "on"}) as node:
        document: dict[str, Any] = (await node.http.get(node.url + NAMES[0])).json()
        AuthorizationServerMetadata(document).validate()
        # OpenID Connect Discovery wants RS256 to be among the algorithms, which is for who configures it.
        OpenIDProviderMetadata({**document, "id_token_signing_alg_values_supported": ["RS256"]}).validate()


async def test_every_endpoint_that_they_name_is_there() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        document = (await node.http.get(node.url + NAMES[1])).json()
        named = {key for key in document if key.endswith("_endpoint") or key == "jwks_uri"}
        assert len(named) >= 10
        for name in named:
            response = await node.http.options(document[name])
            assert response.status_code == 204, name


async def test_only_grants_that_somebody_could_use() -> None:
    robot = [CLIENTS[2]]
    async with issuing(clients=robot, users=[], registration={"metadata_documents": "off"}) as node:
        metadata = node.issuer.metadata
        assert metadata["grant_types_supported"] == ("client_credentials",)
        for absent in ("authorization_endpoint", "device_authorization_endpoint", "registration_endpoint"):
            assert absent not in metadata
        assert metadata["response_types_supported"] == []


@pytest.mark.parametrize(
    ("spec", "is_listed"),
    [
        ({"clients": [CLIENTS[2]]}, True),  # anybody's metadata document may be of a public client
        ({"clients": [CLIENTS[2]], "registration": {"metadata_documents": "off"}}, False),
        ({"clients": [CLIENTS[2]], "registration": {"metadata_documents": "off", "dynamic": "on"}}, True),
        ({"clients": [CLIENTS[2]], "users": [], "registration": {"dynamic": "on"}}, False),  # nobody could log in
        (
            {
                "clients": [CLIENTS[2], {"id": "native", "redirect_uris": ["http://127.0.0.1/cb"]}],
                "registration": {"metadata_documents": "off"},
            },
            True,
        ),
    ],
)
async def test_clients_that_prove_nothing_are_told_of_where_there_can_be_one(
    spec: dict[str, Any], is_listed: bool
) -> None:
    async with issuing(**spec) as node:
        metadata = node.issuer.metadata
    for endpoint in ("token", "revocation"):
        methods = metadata[f"{endpoint}_endpoint_auth_methods_supported"]
        assert ("none" in methods) is is_listed
        assert {"client_secret_basic", "private_key_jwt"} <= set(methods)
    assert "none" not in metadata["introspection_endpoint_auth_methods_supported"]


@pytest.mark.parametrize("method", ["tls_client_auth", "self_signed_tls_client_auth", ""])
async def test_certificates_are_told_of_where_a_client_shows_one(method: str) -> None:
    shown = {"tls_client_auth": {"tls_subject": "CN=rack"}, "self_signed_tls_client_auth": {"tls_thumbprint": "0" * 64}}
    rack = [{"id": "rack", "grants": ["client_credentials"], **shown[method]}] if method else []
    async with issuing(clients=[CLIENTS[2], *rack], registration={"dynamic": "on"}) as node:
        metadata = node.issuer.metadata
    assert metadata["tls_client_certificate_bound_access_tokens"] is bool(method)
    for endpoint in ("token", "introspection", "revocation"):
        assert ("tls_client_auth" in metadata[f"{endpoint}_endpoint_auth_methods_supported"]) is bool(method)


async def test_the_keys_are_public_and_cached() -> None:
    async with issuing() as node:
        response = await node.http.get(f"{node.url}/oauth/jwks")
        keys = response.json()["keys"]
        assert len(keys) == 2
        assert all(not {"d", "p", "q", "k"} & key.keys() for key in keys)
        assert response.headers["cache-control"] == "public, max-age=300"
        assert response.headers["access-control-allow-origin"] == "*"
        tag = response.headers["etag"]
        again = await node.http.get(f"{node.url}/oauth/jwks", headers={"if-none-match": f'"x", W/{tag}'})
        assert (again.status_code, again.content) == (304, b"")
        await node.parts.keys.rotate()
        other = await node.http.get(f"{node.url}/oauth/jwks", headers={"if-none-match": tag})
        assert other.status_code == 200 or other.headers["etag"] == tag


async def test_scripts_may_ask_where_no_cookie_counts() -> None:
    async with issuing() as node:
        asked = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
        for name, is_open in (("token", True), ("revoke", True), ("introspect", False), ("authorize", False)):
            response = await node.http.options(f"{node.url}/oauth/{name}", headers=asked)
            assert ("access-control-allow-origin" in response.headers) is is_open
        failed = await node.http.post(f"{node.url}/oauth/token", data={"grant_type": "x"}, headers=asked)
        assert failed.headers["access-control-allow-origin"] == "*"
