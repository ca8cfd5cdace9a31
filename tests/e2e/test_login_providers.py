"""oidc-provider (npm) before the pages of plain routes: people log in there, and out, begun here and begun there."""

import asyncio
import json
from pathlib import Path
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest
from tests.e2e.test_identity_providers import SECRET, provider_for
from tests.fixtures.auth_provider import ADA, Browser, Page
from tests.fixtures.foreign_issuer import Asked, foreign_issuer
from tests.fixtures.gateway import free_port, serving
from tests.fixtures.mcp_suite import needs_node

pytestmark = pytest.mark.anyio

BROWSER = {"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-site": "none"}


async def walk(http: httpx.AsyncClient, url: str) -> httpx.Response:
    """Through the pages of both, as who logs in as `grace` and says yes: where that ends."""
    response = await http.get(url)
    for _ in range(30):
        if response.is_redirect:
            response = await http.get(urljoin(str(response.url), response.headers["location"]))
            continue
        page = Page(response.text) if "html" in response.headers.get("content-type", "") else None
        if page is None or not page.forms:
            return response
        fields = {name: value for name, value in page.fields.items() if name}
        if "login" in fields:
            fields |= {"login": "grace", "password": "any"}
        if "/session/end" in page.action:
            fields["logout"] = "yes"
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(str(response.url)))
        response = await http.post(urljoin(str(response.url), page.action), data=fields, headers={"origin": origin})
    raise AssertionError("the pages go in a circle")


@needs_node
async def test_logged_out_here_and_there(tmp_path: Path) -> None:
    port, there = free_port(), free_port()

    def service(asked: Asked) -> tuple[int, object, dict[str, str]]:
        return 200, {"user": asked.headers.get("x-user", ""), "cookie": asked.headers.get("cookie", "")}, {}

    async with foreign_issuer(service) as pages:
        config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
routes:
  - name: page
    path: /page
    to: {pages.url}
    authenticate:
      oidc:
        issuer: http://127.0.0.1:{there}
        client_id: pages
        client_secret: {SECRET}
        claims: {{user: sub}}
        post_logout_redirect_uri: /.login/logout
    headers: {{request: {{set: {{x-user: {{cel: principal.user}}}}}}}}
"""
        async with (
            serving(config, tmp_path) as gateway,
            provider_for(there, gateway.url) as provider,
            httpx.AsyncClient(timeout=30, headers=BROWSER) as http,
        ):
            page = await walk(http, f"{gateway.url}/page")
            assert page.json()["user"] == "grace"
            # Begun here: the provider knows who it is by the hint, asks, and leads back.
            away = await http.get(f"{gateway.url}/.login/logout")
            asked = dict(parse_qsl(urlsplit(away.headers["location"]).query))
            assert asked["id_token_hint"].count(".") == 2
            landed = await walk(http, away.headers["location"])
            assert landed.url.path == "/.login/logout"
            assert landed.url.params["state"] == asked["state"]
            assert "You are logged out" in landed.text
            again = await http.get(f"{gateway.url}/page")
            assert again.headers["location"].startswith(provider)
            # They are logged out there, too: it asks for a name.
            form = await http.get(again.headers["location"])
            form = await http.get(urljoin(str(form.url), form.headers["location"]))
            assert "login" in Page(form.text).fields
            # Begun there.
            page = await walk(http, f"{gateway.url}/page")
            assert page.json()["user"] == "grace"
            ended = await walk(http, f"{provider}/session/end")
            assert ended.status_code == 200
            last = await http.get(f"{gateway.url}/page")
            assert last.status_code == 303
            assert last.headers["location"].startswith(provider)
        log = gateway.text()
        assert "Traceback" not in log
        assert SECRET not in log
        assert asked["id_token_hint"] not in log


async def test_our_own_auth_provider_tells_our_own_pages(tmp_path: Path) -> None:
    """Two gateways: people log in at the one before a page of the other."""
    port, other = free_port(), free_port()
    app = {
        "id": "pages", "secret": SECRET, "redirect_uris": [f"http://127.0.0.1:{other}/.login/callback"],
        "backchannel_logout_uri": f"http://127.0.0.1:{other}/.login/backchannel",
    }  # fmt: skip
    provider = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
issuer: {{url: "http://127.0.0.1:{port}", users: [{json.dumps(ADA)}], clients: [{json.dumps(app)}]}}
"""
    (tmp_path / "pages").mkdir()
    async with foreign_issuer(lambda _: (200, {"page": "yes"}, {})) as service:
        pages = f"""
server: {{listen: 127.0.0.1:{other}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
routes:
  - name: page
    path: /page
    to: {service.url}
    authenticate: {{oidc: {{issuer: "http://127.0.0.1:{port}", client_id: pages, client_secret: {SECRET}}}}}
"""
        async with (
            serving(provider, tmp_path) as issuer,
            serving(pages, tmp_path / "pages") as gateway,
            httpx.AsyncClient(headers=BROWSER, base_url=gateway.url) as http,
            Browser(issuer) as browser,
        ):
            away = await http.get("/page")
            await browser.get(away.headers["location"])
            await browser.login()
            await browser.submit(do="allow")
            assert (await http.get(browser.left)).status_code == 303
            assert (await http.get("/page")).json() == {"page": "yes"}
            await browser.get("/oauth/logout")
            await browser.submit(do="logout")
            async with asyncio.timeout(15):
                while (await http.get("/page")).status_code == 200:
                    await asyncio.sleep(0.02)
            assert (await http.get("/page")).headers["location"].startswith(issuer.url)
