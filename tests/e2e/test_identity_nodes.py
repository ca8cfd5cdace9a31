"""Two nodes of one auth provider, each `tollhouse serve` in a process of its own, with their state on a Valkey server:
what one has begun the other ends, what one takes back is nothing at the other, and neither is missed when it is killed.
"""

import asyncio
import base64
import json
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from tests.fixtures.auth_provider import HASH, PASSWORD, Page
from tests.fixtures.gateway import Gateway, free_port, serving, until
from tests.fixtures.issuer import challenge_of
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.valkey import Valkey, valkey

from tollhouse.core.clock import Clock
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.spec import KeysSpec
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio

ENCRYPTION = "0123456789abcdef0123456789abcdef"
USER = "ada.of.the.analytical.engine"  # so long that no cipher text holds it by chance
SECRET = "a-secret-of-more-than-thirty-two-characters"
REDIRECT = "https://app.example.com/cb"
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null, public_url: "{url}", shutdown: {{min: 0s, max: 5s}}}}
state: {{url: "{state}", encryption_key: {encryption}, timeout: 1s}}
authenticate: {{}}
mcp: {{servers: {{one: {{url: "{server}"}}}}}}
issuer:
  url: {url}
  users: [{{name: {user}, password_hash: "{hash}"}}]
  clients:
    - id: app
      secret: {secret}
      redirect_uris: ["{redirect}"]
      grants: [authorization_code, refresh_token, client_credentials]
"""
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}  # fmt: skip


class House:
    """url: of the issuer, which is also where the first node is."""

    def __init__(self, nodes: list[Gateway], store: Valkey) -> None:
        self.nodes = nodes
        self.store = store
        self.url = nodes[0].url
        self.resource = f"{self.url}/mcp"
        self.verifier = secrets.token_urlsafe(32)
        self.http = httpx.AsyncClient(timeout=30)

    def at(self, node: int, path: str) -> str:
        return self.nodes[node].url + path

    async def get(self, node: int, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(self.at(node, path), **more)

    async def form(self, node: int, path: str, fields: dict[str, str]) -> httpx.Response:
        return await self.http.post(self.at(node, path), data=fields, headers={"origin": self.url})

    @property
    def asked(self) -> dict[str, str]:
        """An authorization request."""
        challenge = challenge_of(self.verifier)
        return {
            "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "scope": "openid offline_access",
            "resource": self.resource, "code_challenge": challenge, "code_challenge_method": "S256",
            "prompt": "consent",
        }  # fmt: skip

    async def begin(self, node: int) -> httpx.Response:
        """To the first page."""
        return await self.follow(node, await self.get(node, "/oauth/authorize", params=self.asked))

    async def follow(self, node: int, response: httpx.Response) -> httpx.Response:
        while response.is_redirect:
            where = urlsplit(response.headers["location"])
            assert where.netloc in ("", urlsplit(self.url).netloc), response.headers["location"]
            response = await self.get(node, f"{where.path}?{where.query}")
        assert response.status_code == 200, response.text
        return response

    async def login(self, node: int, page: httpx.Response) -> httpx.Response:
        fields = {**Page(page.text).fields, "username": USER, "password": PASSWORD, "do": "login"}
        return await self.follow(node, await self.form(node, "/oauth/login", fields))

    async def allow(self, node: int, page: httpx.Response) -> str:
        """The code."""
        answer = await self.form(node, "/oauth/consent", {**Page(page.text).fields, "do": "allow"})
        return dict(parse_qsl(urlsplit(Page(answer.text).refresh).query))["code"]

    async def redeem(self, node: int, code: str) -> httpx.Response:
        return await self.token(
            node, grant_type="authorization_code", code=code, code_verifier=self.verifier, redirect_uri=REDIRECT
        )

    async def token(self, node: int, **form: str) -> httpx.Response:
        return await self.http.post(self.at(node, "/oauth/token"), data=form, auth=("app", SECRET))

    async def tokens(self, login: int = 0, consent: int = 0, redeem: int = 0) -> dict[str, Any]:
        """A whole grant, each part of it at that node."""
        page = await self.login(login, await self.begin(login))
        answer = await self.redeem(redeem, await self.allow(consent, page))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def use(self, node: int, access_token: str) -> int:
        """The status of an MCP request with a token."""
        headers = {"authorization": f"Bearer {access_token}", "accept": "application/json, text/event-stream"}
        answer = await self.http.post(self.at(node, "/mcp"), json=INITIALIZE, headers=headers)
        return answer.status_code

    async def modern(self, node: int, access_token: str) -> httpx.Response:
        """Of a request that has no session."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
        headers = {
            "authorization": f"Bearer {access_token}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/list",
        }
        return await self.http.post(self.at(node, "/mcp"), json=body, headers=headers)

    async def refused(self, node: int, access_token: str, seconds: float) -> float:
        """How long it takes until a token is refused."""
        began = time.monotonic()
        while await self.use(node, access_token) != 401:
            assert time.monotonic() - began < seconds, "the token is still taken"
            await asyncio.sleep(0.02)
        return time.monotonic() - began


@asynccontextmanager
async def two_nodes(where: Path, own: Valkey | None = None) -> AsyncIterator[House]:
    with ExitStack() as outer:
        store = outer.enter_context(valkey(where / "valkey")) if own is None else own
        server = outer.enter_context(http_server())
        ports = [free_port(), free_port()]
        async with AsyncExitStack() as stack:
            nodes = []
            for index, port in enumerate(ports):
                (where / str(index)).mkdir()
                config = CONFIG.format(
                    port=port, url=f"http://127.0.0.1:{ports[0]}", state=store.url, encryption=ENCRYPTION,
                    server=server, hash=HASH, secret=SECRET, redirect=REDIRECT, user=USER,
                )  # fmt: skip
                nodes.append(await stack.enter_async_context(serving(config, where / str(index))))
            house = House(nodes, store)
            async with house.http:
                yield house
            for node in nodes:
                assert "Traceback" not in node.text()


async def test_what_one_begins_the_other_ends(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as house:
        tokens = await house.tokens(login=0, consent=1, redeem=0)
        assert await house.use(1, tokens["access_token"]) == 200
        assert await house.use(0, tokens["access_token"]) == 200
        # Eight at once, four at each: one gets tokens.
        code = await house.allow(0, await house.begin(1))
        answers = await asyncio.gather(*(house.redeem(n % 2, code) for n in range(8)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 400: 7}
        assert {answer.json()["error"] for answer in answers if answer.status_code == 400} == {"invalid_grant"}
        # And because a code that comes again was stolen from somebody, its tokens end, everywhere.
        (won,) = (answer.json() for answer in answers if answer.status_code == 200)
        for node in (0, 1):
            await house.refused(node, won["access_token"], 1.0)
        again = await house.token(1, grant_type="refresh_token", refresh_token=won["refresh_token"])
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        # The same refresh token at both nodes at once is a lost answer: no second line of tokens begins.
        both = await asyncio.gather(
            *(house.token(n, grant_type="refresh_token", refresh_token=tokens["refresh_token"]) for n in (0, 1))
        )
        assert {answer.status_code for answer in both} == {200}
        assert len({answer.json()["refresh_token"] for answer in both}) == 1
        # What is taken back at one is nothing at the other, within a second.
        for token in (both[0].json()["access_token"], both[0].json()["refresh_token"]):
            form = {"token": token}
            done = await house.http.post(house.at(0, "/oauth/revoke"), data=form, auth=("app", SECRET))
            assert done.status_code == 200
            assert await house.refused(1, both[0].json()["access_token"], 1.0) < 1.0
        assert await house.refused(1, both[1].json()["access_token"], 1.0) < 1.0
        keys = house.store.do("KEYS", "*")
        assert not [key for key in keys if code.encode() in key or USER.encode() in key]
        values = [house.store.do("GET", key) for key in keys if house.store.do("TYPE", key) == b"string"]
        assert not [value for value in values if value is not None and USER.encode() in value]  # None: just expired


async def test_the_key_changes_under_load_and_no_token_fails(tmp_path: Path) -> None:
    days = [2.0]
    with valkey(tmp_path / "valkey") as store:
        state = RedisState(StateSpec.model_validate({"url": store.url, "encryption_key": ENCRYPTION}), Clock())
        # Made two days ago, so verifiers have known the next one for long.
        operator = SigningKeys(state.values, KeysSpec(), lambda: time.time() - days[0] * 86400)
        await operator.load()
        days[0] = 0.0
        async with two_nodes(tmp_path, store) as house:
            kids: Counter[str] = Counter()
            wrong: list[Any] = []
            stop = asyncio.Event()

            async def load(made: int, used: int) -> None:
                while not stop.is_set():
                    answer = await house.token(made, grant_type="client_credentials", resource=house.resource)
                    if answer.status_code != 200:
                        wrong.append(answer.text)
                        continue
                    token = answer.json()["access_token"]
                    status = await house.use(used, token)
                    if status != 200:
                        wrong.append(status)
                    header = token.split(".")[0]
                    kids[json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]] += 1

            loads = [asyncio.create_task(load(0, 0))]
            try:
                await until(lambda: sum(kids.values()) >= 10)
                assert await operator.rotate() <= time.time()
                # One that starts anew signs with the new key at once, the other goes on with the one that it has read;
                # each takes what the other has signed.
                await asyncio.to_thread(house.nodes[1].stop, signal.SIGKILL)
                await asyncio.to_thread(house.nodes[1].start)
                loads += [asyncio.create_task(load(0, 1)), asyncio.create_task(load(1, 0))]
                await until(lambda: len(kids) == 2 and min(kids.values()) >= 10)
            finally:
                stop.set()
                await asyncio.gather(*loads)
            assert wrong == []
            signs = {what: kid for kid, _, what, _ in operator.described()}
            assert set(kids) == {signs["active"], signs["retired"]}
        await state.close()


async def test_one_is_killed_in_the_middle(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as house:
        before = await house.tokens()
        house.http.cookies.clear()
        page = await house.begin(0)
        await asyncio.to_thread(house.nodes[0].stop, signal.SIGKILL)
        page = await house.login(1, page)
        answer = await house.redeem(1, await house.allow(1, page))
        assert answer.status_code == 200, answer.text
        assert await house.use(1, answer.json()["access_token"]) == 200
        assert await house.use(1, before["access_token"]) == 200
        renewed = await house.token(1, grant_type="refresh_token", refresh_token=before["refresh_token"])
        assert renewed.status_code == 200
        gone = await house.http.post(
            house.at(1, "/oauth/revoke"), data={"token": answer.json()["refresh_token"]}, auth=("app", SECRET)
        )
        assert gone.status_code == 200
        # It comes back: it knows what was made and taken back while it was not there.
        await asyncio.to_thread(house.nodes[0].start)
        assert await house.use(0, renewed.json()["access_token"]) == 200
        assert await house.use(0, answer.json()["access_token"]) == 401


async def test_while_the_store_is_gone_what_needs_none_goes_on(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as store:
        async with two_nodes(tmp_path, store) as house:
            tokens = await house.tokens()
            page = await house.begin(0)
            store.pause()
            try:
                made = await house.token(0, grant_type="client_credentials", resource=house.resource)
                assert made.status_code == 200, made.text
                # Checking what was made needs no store, on either node.
                for node in (0, 1):
                    answer = await house.modern(node, made.json()["access_token"])
                    assert answer.status_code == 200, answer.text
                form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
                for answer in await asyncio.gather(
                    house.token(1, **form),
                    house.redeem(1, "x" * 43),
                    house.get(0, "/oauth/authorize", params=house.asked),
                    house.form(0, "/oauth/consent", {**Page(page.text).fields, "do": "allow"}),
                    house.get(1, "/oauth/grants"),
                ):
                    assert answer.status_code == 503, (answer.url, answer.text)
                    assert int(answer.headers["retry-after"]) > 0
                    assert answer.headers["cache-control"] == "no-store"
                    if answer.headers["content-type"] == "application/json":
                        assert answer.json()["error"] == "temporarily_unavailable"
                    assert "set-cookie" not in answer.headers
            finally:
                store.go_on()
            # Nothing was lost by that.
            end = time.monotonic() + 15
            while (renewed := await house.token(1, **form)).status_code == 503:
                assert time.monotonic() < end, renewed.text
                await asyncio.sleep(0.05)
            assert renewed.status_code == 200, renewed.text
            while (await house.get(0, "/oauth/authorize", params=house.asked)).status_code == 503:  # finds it itself
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            code = await house.allow(0, page)
            assert (await house.redeem(1, code)).status_code == 200


async def test_a_proof_counts_once_wherever_it_is_shown(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256")

    def proof(path: str, access_token: str = "") -> str:
        said = {
            "jti": secrets.token_urlsafe(12), "htm": "POST", "htu": f"{house.url}{path}", "iat": int(time.time()),
        }  # fmt: skip
        if access_token:
            said["ath"] = base64.urlsafe_b64encode(sha256(access_token.encode()).digest()).decode().rstrip("=")
        header = {"alg": "ES256", "typ": "dpop+jwt", "jwk": key.as_dict(private=False)}
        return str(jwt.encode(header, said, key))

    async def show(node: int, token: str, shown: str, scheme: str = "DPoP") -> int:
        headers = {
            "authorization": f"{scheme} {token}", "dpop": shown, "accept": "application/json, text/event-stream",
        }  # fmt: skip
        return (await house.http.post(house.at(node, "/mcp"), json=INITIALIZE, headers=headers)).status_code

    async with two_nodes(tmp_path) as house:
        form = {"grant_type": "client_credentials", "resource": house.resource}

        async def asked(node: int, shown: str) -> httpx.Response:
            where = house.at(node, "/oauth/token")
            return await house.http.post(where, data=form, auth=("app", SECRET), headers={"dpop": shown})

        shown = proof("/oauth/token")
        answers = await asyncio.gather(*(asked(n % 2, shown) for n in range(6)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 400: 5}
        assert {answer.json().get("error") for answer in answers} == {None, "invalid_dpop_proof"}
        (token,) = (answer.json()["access_token"] for answer in answers if answer.status_code == 200)
        shown = proof("/mcp", token)
        assert sorted(await asyncio.gather(*(show(n % 2, token, shown) for n in range(6)))) == [200] + [401] * 5
        for node in (0, 1):
            assert await show(node, token, proof("/mcp", token)) == 200
            assert await show(node, token, proof("/mcp", token), "Bearer") == 401
            assert await show(node, token, proof("/mcp")) == 401
            assert await show(node, token, proof("/oauth/token", token)) == 401
