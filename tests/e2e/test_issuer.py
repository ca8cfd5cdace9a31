"""`tollhouse serve` as an auth provider: alone, beside what it guards, and over restarts. authlib is the client."""

import json
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from tests.fixtures.gateway import Gateway, free_port, until
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio
SECRET = "0123456789abcdef0123456789abcdef"
API = "https://api.example.com"


def config(port: int, more: str = "", clients: str = "") -> str:
    return f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
{more}
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: {API}, scopes: {{read: Read all}}}}]
  clients:
    - {{id: robot, secret: {SECRET}, grants: [client_credentials]}}
    - {{id: api, secret: {SECRET}, grants: [client_credentials], serves: [{API}]}}
{clients}
"""


async def token(gateway: Gateway, **more: Any) -> dict[str, Any]:
    async with AsyncOAuth2Client("robot", SECRET) as client:
        found: dict[str, Any] = await client.fetch_token(
            f"{gateway.url}/oauth/token", grant_type="client_credentials", **more
        )
        return found


async def claims(gateway: Gateway, access_token: str) -> dict[str, Any]:
    """As a resource server finds them, by what the issuer publishes."""
    async with httpx.AsyncClient() as http:
        document = (await http.get(f"{gateway.url}/.well-known/oauth-authorization-server")).json()
        keys = KeySet.import_key_set((await http.get(document["jwks_uri"])).json())
    read = jwt.decode(access_token, keys, algorithms=["ES256"])
    assert read.header["typ"] == "at+jwt"
    return dict(read.claims)


async def test_alone_and_over_a_restart(tmp_path: Path) -> None:
    with Gateway(config(free_port()), tmp_path) as gateway:
        before = await token(gateway, resource=API, scope="read")
        assert (await claims(gateway, before["access_token"]))["aud"] == API
        async with AsyncOAuth2Client("api", SECRET) as client:
            endpoint = f"{gateway.url}/oauth/introspect"
            told = (await client.introspect_token(endpoint, token=before["access_token"])).json()
            assert (told["active"], told["client_id"]) == (True, "robot")
        kept = tmp_path / "tollhouse.state"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        gateway.stop()
        gateway.start()
        assert (await claims(gateway, before["access_token"]))["sub"] == "robot"
        after = await token(gateway, resource=API)
        assert after["access_token"].split(".")[0] == before["access_token"].split(".")[0]
        assert SECRET not in gateway.log.read_text()
        assert before["access_token"] not in gateway.log.read_text()


async def test_a_client_that_signs(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "k", "use": "sig", "alg": "ES256"})
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    signing = "    - {id: signing, jwks: jwks.json, assertion_audience: token_endpoint, grants: [client_credentials]}"
    with Gateway(config(free_port(), clients=signing), tmp_path) as gateway:
        endpoint = f"{gateway.url}/oauth/token"
        async with AsyncOAuth2Client("signing", key, token_endpoint_auth_method="private_key_jwt") as client:
            soon = {"exp": int(time.time()) + 60}  # an hour, which it takes by itself, is too long
            client.register_client_auth_method(PrivateKeyJWT(endpoint, soon, {"kid": "k"}, "ES256"))
            found = await client.fetch_token(endpoint, grant_type="client_credentials", resource=API)
        assert (await claims(gateway, found["access_token"]))["client_id"] == "signing"


async def test_beside_what_it_guards(tmp_path: Path) -> None:
    with http_server() as url:
        more = f"""
authenticate: {{}}
mcp: {{servers: {{one: {{url: "{url}"}}}}}}
"""
        port = free_port()
        with Gateway(config(port, more), tmp_path) as gateway:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
            headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
            async with httpx.AsyncClient(headers=headers) as http:
                refused = await http.post(f"{gateway.url}/mcp", json=body)
                assert refused.status_code == 401
                where = refused.headers["www-authenticate"].split('resource_metadata="')[1].split('"')[0]
                metadata = (await http.get(where)).json()
                assert metadata["authorization_servers"] == [gateway.url]
                good = await token(gateway, resource=metadata["resource"])
                other = await token(gateway, resource=API)
                who = {"name": "t", "version": "1"}
                params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": who}
                start = {**body, "method": "initialize", "params": params}
                for shown, status in ((good, 200), (other, 401)):
                    sent = {"authorization": f"Bearer {shown['access_token']}"}
                    answer = await http.post(f"{gateway.url}/mcp", json=start, headers=sent)
                    assert answer.status_code == status, answer.text
                # What is taken back is refused at once.
                gone = await http.post(
                    f"{gateway.url}/oauth/revoke", data={"token": good["access_token"]}, auth=("robot", SECRET)
                )
                assert gone.status_code == 200
                sent = {"authorization": f"Bearer {good['access_token']}"}
                assert (await http.post(f"{gateway.url}/mcp", json=start, headers=sent)).status_code == 401


async def test_a_client_comes_while_it_serves(tmp_path: Path) -> None:
    port = free_port()
    with Gateway(config(port), tmp_path) as gateway:
        before = await token(gateway, resource=API)
        more = f"    - {{id: second, secret: {SECRET}, grants: [client_credentials], audiences: [{API}]}}"
        gateway.config.write_text(config(port, clients=more))
        form = {"grant_type": "client_credentials"}

        def second() -> bool:
            return httpx.post(f"{gateway.url}/oauth/token", data=form, auth=("second", SECRET)).status_code == 200

        await until(second)
        after = await token(gateway, resource=API)
        assert after["access_token"].split(".")[0] == before["access_token"].split(".")[0]
        assert (await claims(gateway, before["access_token"]))["sub"] == "robot"


async def test_several_workers_are_one_issuer(tmp_path: Path) -> None:
    with valkey(tmp_path / "state") as server:
        state = f"state: {{url: '{server.url}', encryption_key: {SECRET}}}"
        text = config(free_port(), state).replace("metrics: null", "metrics: null, workers: 2")
        with Gateway(text, tmp_path) as gateway:
            # Each on a connection of its own, so that both are asked.
            tokens = [(await token(gateway, resource=API))["access_token"] for _ in range(12)]
            assert len({one.split(".")[0] for one in tokens}) == 1
            for one in tokens:
                assert (await claims(gateway, one))["aud"] == API
            async with httpx.AsyncClient() as http:
                form = {"token": tokens[0]}
                gone = await http.post(f"{gateway.url}/oauth/revoke", data=form, auth=("robot", SECRET))
                assert gone.status_code == 200

            def is_active() -> bool:
                asked = httpx.post(f"{gateway.url}/oauth/introspect", data=form, auth=("api", SECRET))
                return bool(asked.json()["active"])

            await until(lambda: not any(is_active() for _ in range(6)))
            [stored] = [server.do("get", key) for key in server.do("keys", "*iss:keys")]
            for key in httpx.get(f"{gateway.url}/oauth/jwks").json()["keys"]:
                assert key["kid"].encode() not in stored


def test_headers_and_cors_of_the_whole_gateway_hold_there(tmp_path: Path) -> None:
    more = """
headers: {response: {set: {strict-transport-security: max-age=31536000}}}
cors: {origins: ["https://app.example.com"]}
"""
    metadata, page = "/.well-known/oauth-authorization-server", "/oauth/authorize"
    ours, theirs = {"origin": "https://app.example.com"}, {"origin": "https://evil.example.com"}
    asks = {"access-control-request-method": "POST"}
    user = "  upstream: [{issuer: https://login.example.com, client_id: x}]"
    with Gateway(config(free_port(), more, user), tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
        for path in (metadata, page):
            assert http.get(path).headers["strict-transport-security"] == "max-age=31536000"
        assert http.get(metadata, headers=ours).headers["access-control-allow-origin"] == ours["origin"]
        assert "access-control-allow-origin" not in http.get(metadata, headers=theirs).headers
        refused = http.post("/oauth/token", headers=ours, data={"grant_type": "client_credentials"})
        assert refused.status_code == 401
        assert "strict-transport-security" in refused.headers
        assert refused.headers["access-control-allow-origin"] == ours["origin"]
        assert http.options("/oauth/token", headers=ours | asks).headers["access-control-allow-origin"]
        assert "access-control-allow-origin" not in http.options("/oauth/token", headers=theirs | asks).headers
        for headers in (ours, ours | asks):  # what people see is read by nobody's scripts
            for method in ("GET", "OPTIONS"):
                answer = http.request(method, page, headers=headers)
                assert "access-control-allow-origin" not in answer.headers


def test_addresses_that_are_refused_are_refused_there(tmp_path: Path) -> None:
    more = "address: {deny: [127.0.0.0/8]}"
    with Gateway(config(free_port(), more), tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
        answer = http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=("robot", SECRET))
        assert answer.status_code == 403
        assert answer.headers["x-tollhouse-reason"] == "Authorization"
        assert http.get("/.well-known/oauth-authorization-server").status_code == 403


def test_without_cors_scripts_of_any_page_may_ask_for_tokens(tmp_path: Path) -> None:
    origin = {"origin": "https://app.example.com"}
    with Gateway(config(free_port()), tmp_path) as gateway, httpx.Client(base_url=gateway.url) as http:
        metadata = http.get("/.well-known/oauth-authorization-server", headers=origin)
        assert metadata.headers["access-control-allow-origin"] == "*"
        answer = http.post("/oauth/token", headers=origin, data={"grant_type": "client_credentials"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in http.post("/oauth/introspect", headers=origin).headers
