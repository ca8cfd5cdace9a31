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


async def test_people_log_out_here_and_the_provider_logs_them_out(tmp_path: Path) -> None:
    port = free_port()
    async with idp() as (it, _):
        asked: dict[str, str] = {}

        def give(head: bytes, body: bytes) -> Any:
            said = {"iss": it.url, "aud": "gate", "nonce": asked["nonce"], "iat": int(time()), "sid": asked["sid"]}
            return {"id_token": token(**said, email="ada@example.com").decode()}

        it.documents = {
            "/.well-known/openid-configuration": {
                "issuer": it.url, "authorization_endpoint": f"{it.url}/authorize", "token_endpoint": f"{it.url}/token",
                "jwks_uri": f"{it.url}/keys", "end_session_endpoint": f"{it.url}/end",
            },
            "/keys": jwks(KEY),
            "/token": give,
            "/page": {"page": "yes"},
        }  # fmt: skip
        config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null}}
routes:
  - name: page
    path: /page
    to: {it.url}
    authenticate:
      oidc: {{issuer: "{it.url}", client_id: gate, claims: {{user: email}}, post_logout_redirect_uri: /bye}}
"""

        async def log_in(browser: httpx.AsyncClient, sid: str) -> None:
            away = await browser.get("/page")
            asked.update(
                {name: values[0] for name, values in parse_qs(urlsplit(away.headers["location"]).query).items()}
            )
            asked["sid"] = sid
            assert (await browser.get(f"/.login/callback?code=c&state={asked['state']}")).status_code == 303
            assert (await browser.get("/page")).status_code == 200

        with Gateway(config, tmp_path) as gateway:
            async with httpx.AsyncClient(base_url=gateway.url, headers=PAGE) as browser:
                await log_in(browser, "one")
                copied = dict(browser.cookies)
                away = await browser.get("/.login/logout", headers={"sec-fetch-site": "same-origin"})
                where = urlsplit(away.headers["location"])
                query = {name: values[0] for name, values in parse_qs(where.query).items()}
                assert f"{where.scheme}://{where.netloc}{where.path}" == f"{it.url}/end"
                assert query["post_logout_redirect_uri"] == f"http://127.0.0.1:{port}/bye"
                assert query["id_token_hint"].count(".") == 2
                assert "tollhouse_login" not in browser.cookies
                async with httpx.AsyncClient(base_url=gateway.url, headers=PAGE, cookies=copied) as thief:
                    assert (await thief.get("/page")).status_code == 303  # to the provider, as anybody
                await log_in(browser, "two")
                now = int(time())
                events: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
                said = {"iss": it.url, "aud": "gate", "iat": now, "exp": now + 60, "jti": "once", "events": events}
                for sid, is_in in (("other", True), ("two", False)):
                    told = token(header={"typ": "logout+jwt"}, **said | {"sid": sid, "jti": sid}).decode()
                    async with httpx.AsyncClient(base_url=gateway.url) as provider:
                        answer = await provider.post("/.login/backchannel", data={"logout_token": told})
                        assert answer.status_code == 200
                        again = await provider.post("/.login/backchannel", data={"logout_token": told})
                        assert (again.status_code, again.json()["error"]) == (400, "invalid_request")
                    assert ((await browser.get("/page")).status_code == 200) is is_in
        log = gateway.log.read_text()
        assert query["id_token_hint"] not in log
        assert told not in log
