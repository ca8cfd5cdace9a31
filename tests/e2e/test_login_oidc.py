"""A person in a browser before a plain route of a gateway that runs: to the provider, back, and to the page."""

import json
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from tests.fixtures.gateway import Gateway, free_port
from tests.fixtures.issuer import challenge_of
from tests.unit.policies.authenticate.door import KEY, idp, jwks, token

pytestmark = pytest.mark.anyio

PAGE = {"accept": "text/html", "sec-fetch-mode": "navigate"}


async def test_from_the_page_to_the_provider_and_back(tmp_path: Path) -> None:
    port = free_port()
    async with idp() as (it, _):
        asked: dict[str, str] = {}

        def give(head: bytes, body: bytes) -> Any:
            form = parse_qs(body.decode())
            assert challenge_of(form["code_verifier"][0]) == asked["code_challenge"]
            said = {"iss": it.url, "aud": "gate", "nonce": asked["nonce"], "iat": int(time())}
            return {"id_token": token(**said, email="ada@example.com").decode()}

        it.documents = {
            "/.well-known/openid-configuration": {
                "issuer": it.url, "authorization_endpoint": f"{it.url}/authorize", "token_endpoint": f"{it.url}/token",
                "jwks_uri": f"{it.url}/keys",
            },
            "/keys": jwks(KEY),
            "/token": give,
            "/reports/july": {"page": "july"},
        }  # fmt: skip
        config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null}}
routes:
  - name: reports
    path: /reports/
    to: {it.url}
    authenticate: {{oidc: {{issuer: "{it.url}", client_id: gate, claims: {{user: email}}}}}}
    headers: {{request: {{set: {{x-user: {{cel: principal.user}}}}}}}}
"""
        with Gateway(config, tmp_path) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, headers=PAGE) as browser:
                away = await browser.get("/reports/july?x=1")
                assert away.status_code == 303
                where = urlsplit(away.headers["location"])
                asked.update({name: values[0] for name, values in parse_qs(where.query).items()})
                assert asked["redirect_uri"] == f"http://127.0.0.1:{port}/.login/callback"
                # Another browser cannot finish it.
                back = f"/.login/callback?code=c&state={asked['state']}"
                async with httpx.AsyncClient(base_url=gateway.url) as other:
                    assert (await other.get(back)).status_code == 400
                home = await browser.get(back)
                assert (home.status_code, home.headers["location"]) == (303, "/reports/july?x=1")
                browser.cookies.set("theirs", "1")
                page = await browser.get(home.headers["location"])
                assert (page.status_code, page.json()) == (200, {"page": "july"})
                target, head, _ = it.requests[-1]
                assert target == "/reports/july?x=1"
                assert b"x-user: ada@example.com" in head.lower()
                assert b"cookie: theirs=1\r\n" in head.lower()
                assert (await browser.get("/.login/callback")).status_code == 400
            assert (await httpx.AsyncClient(base_url=gateway.url).get("/reports/july")).status_code == 401
        assert json.dumps(asked["state"]) not in gateway.log.read_text()
