"""What identity counts, as a scrape of a running gateway shows it: each number moves when the thing happens."""

import asyncio
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.fixtures.auth_provider import ADA, APP, MCP, Browser, Flow
from tests.fixtures.foreign_issuer import Asked, foreign_issuer
from tests.fixtures.gateway import Gateway, free_port, serving, until
from tests.fixtures.issuer import dpop_proof, new_key, signed
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

SECRET = "a-secret-of-more-than-thirty-two-characters"
ISSUER = "https://elsewhere.example.com"
AGENT, FOREIGN = new_key("agent"), new_key("foreign")


def config(port: int, jwks: str, more: str = "") -> str:
    clients = [
        APP,
        {"id": "robot", "secret": SECRET, "grants": ["client_credentials"]},
        {"id": "signing", "jwks": {"keys": [AGENT.jwk]}, "grants": ["client_credentials", "jwt_bearer"]},
    ]
    trusted = [{"issuer": ISSUER, "jwks": jwks, "grants": ["jwt_bearer"]}]
    return f"""
server: {{listen: 127.0.0.1:{port}, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 5s}}}}
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: {json.dumps(MCP)}, scopes: {{mcp: Use tools}}}}]
  users: [{json.dumps(ADA)}]
  clients: {json.dumps(clients)}
  trusted: {json.dumps(trusted)}
authenticate:
  jwt: [{{issuer: {ISSUER}, audiences: [gateway], jwks: "{jwks}"}}]
  basic: {{failures: 2, users: [{{name: probe, secret_hash: {"f" * 64}}}]}}
providers: {{local: {{kind: local}}}}
models: [{{name: small, targets: [{{provider: local}}]}}]
{more}
"""


class Scrape:
    """The samples of a scrape."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, name: str, **labels: str) -> float:
        pairs = ",".join(f'{name}="{value}"' for name, value in labels.items())
        said = f"{{{pairs}}}" if pairs else ""
        found = re.search(rf"^tollhouse_{re.escape(name + said)} (\S+)$", self._text, re.MULTILINE)
        return float(found[1]) if found else 0.0


async def scraped(gateway: Gateway) -> Scrape:
    return Scrape(await asyncio.to_thread(gateway.metrics))


@asynccontextmanager
async def house(where: Path, more: str = "") -> AsyncIterator[tuple[Gateway, httpx.AsyncClient, list[Any]]]:
    """A gateway, and what the keys' server elsewhere answers."""
    answers: list[Any] = [{"keys": [FOREIGN.jwk]}]

    def says(_: Asked) -> Any:
        return (200, answers[0], {}) if answers[0] is not None else (500, b"", {})

    async with foreign_issuer(says) as elsewhere:
        text = config(free_port(), f"{elsewhere.url}/jwks", more)
        async with serving(text, where) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
            yield gateway, http, answers


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": ISSUER, "sub": "bob", "aud": "gateway", "iat": now, "exp": now + 300, **more}


async def test_tokens_by_grant_and_what_comes_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, http, _):
        robot = {"grant_type": "client_credentials", "resource": MCP}
        for secret, status in ((SECRET, 200), (SECRET, 200), ("x" * 40, 401)):
            assert (await http.post("/oauth/token", data=robot, auth=("robot", secret))).status_code == status
        proofs = SimpleNamespace(url=gateway.url, parts=SimpleNamespace(now=time.time))
        proof = dpop_proof(new_key(), proofs, "token")  # type: ignore[arg-type]
        for status in (200, 400):
            answer = await http.post("/oauth/token", data=robot, auth=("robot", SECRET), headers={"dpop": proof})
            assert answer.status_code == status
        own = claims(iss="signing", sub="signing", aud=gateway.url, jti="once")
        said = {
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": signed(AGENT, own),
        }
        for status in (200, 401):
            assert (await http.post("/oauth/token", data=robot | said)).status_code == status
        grant = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": signed(FOREIGN, claims(aud=gateway.url, jti="one", client_id="signing")),
            "resource": MCP,
        }
        for n, status in enumerate((200, 400)):
            fresh = said | {"client_assertion": signed(AGENT, own | {"jti": f"again {n}".replace(" ", "-")})}
            assert (await http.post("/oauth/token", data=grant | fresh)).status_code == status, n
        async with Browser(gateway) as browser:
            flow = Flow(gateway)
            await browser.get(flow.url)
            await browser.login()
            await browser.submit(do="allow")
            code = browser.answer["code"]
        for status in (200, 400):
            assert (await flow.redeem(code)).status_code == status
        count = await scraped(gateway)
        assert count("issuer_tokens_total", grant="client_credentials", outcome="ok") == 4
        assert count("issuer_tokens_total", grant="", outcome="invalid_client") == 2
        assert count("issuer_tokens_total", grant="client_credentials", outcome="invalid_dpop_proof") == 1
        assert count("issuer_tokens_total", grant="jwt-bearer", outcome="ok") == 1
        assert count("issuer_tokens_total", grant="jwt-bearer", outcome="invalid_grant") == 1
        assert count("issuer_tokens_total", grant="authorization_code", outcome="ok") == 1
        for kind in ("dpop", "client_assertion", "assertion", "code"):
            assert count("replays_total", kind=kind) == 1, kind
        assert count("revocations") >= 1  # what the code had given
        assert count("revocation_lag_seconds") == 0  # nobody else writes


async def test_keys_of_others_that_are_read(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, http, answers):

        async def ask(key: Any = FOREIGN) -> int:
            headers = {"authorization": f"Bearer {signed(key, claims())}"}
            return (await http.get("/v1/models", headers=headers)).status_code

        assert await ask() == 200
        assert (await scraped(gateway))("jwks_refreshes_total", outcome="changed") == 1
        assert await ask(new_key("unknown-1")) == 401
        assert (await scraped(gateway))("jwks_refreshes_total", outcome="unchanged") == 1
        answers[0] = None
        for n in range(2, 6):
            assert await ask(new_key(f"unknown-{n}")) == 401
        count = await scraped(gateway)
        assert count("jwks_refreshes_total", outcome="failed") == 2
        assert count("jwks_refreshes_total", outcome="limited") == 2


async def test_who_had_to_wait(tmp_path: Path) -> None:
    async with house(tmp_path) as (gateway, http, _):
        async with Browser(gateway) as browser:
            await browser.get(Flow(gateway).url)
            for _ in range(6):
                await browser.login("ada", "wrong")
        basic = {"authorization": "Basic " + b64encode(b"probe:wrong").decode()}
        said = [(await http.get("/v1/models", headers=basic)).status_code for _ in range(4)]
        assert said == [401, 401, 429, 429]
        robot = {"grant_type": "client_credentials", "resource": MCP}
        while (await http.post("/oauth/token", data=robot, auth=("robot", "x" * 40))).status_code != 429:
            pass
        count = await scraped(gateway)
        assert count("logins_throttled_total", kind="password") == 1
        assert count("logins_throttled_total", kind="basic") == 2
        assert count("logins_throttled_total", kind="client") == 1


async def test_the_key_that_signs_and_how_old_the_news_is(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        more = f"state: {{url: '{server.url}', encryption_key: {'k' * 32}}}\n"
        async with house(tmp_path, more) as (gateway, _, _):
            count = await scraped(gateway)
            assert 0 < count("issuer_signing_key_age_seconds") < 900
            assert 29 * 86400 < count("issuer_signing_key_rotation_seconds") <= 30 * 86400
            assert count("revocation_lag_seconds") < 5
            assert count("revocations") == 0
            server.pause()
            try:
                await until(lambda: Scrape(gateway.metrics())("revocation_lag_seconds") > 2.0)
            finally:
                server.go_on()
            await until(lambda: Scrape(gateway.metrics())("revocation_lag_seconds") < 1.5)
