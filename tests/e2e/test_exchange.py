"""`tollhouse serve`: each call reaches its server with a token that was made for it. The servers check it by the keys
that the auth provider publishes, with joserfc."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.mcp_raw import TOOLS, Asked, Old, Upstream, answer, result, upstream

pytestmark = pytest.mark.anyio
SECRET = "0123456789abcdef0123456789abcdef"
IDP = "https://idp.example.net"


class Guarded:
    """A server that asks each request who it is for, a session's opening and its streams too. claims: of each call's
    token. audience: its own URI."""

    def __init__(self, script: Callable[[Asked], Any], issuer: str) -> None:
        self.script = script
        self.issuer = issuer
        self.keys: KeySet | None = None
        self.audience = ""
        self.claims: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.refuse = 0  # so many calls
        self.banned = ""  # the user who is refused, whatever is asked

    async def learn(self) -> None:
        async with httpx.AsyncClient() as http:
            document = (await http.get(f"{self.issuer}/.well-known/oauth-authorization-server")).json()
            self.keys = KeySet.import_key_set((await http.get(document["jwks_uri"])).json())

    def __call__(self, asked: Asked) -> Any:
        assert self.keys is not None
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        try:
            read = jwt.decode(token, self.keys, algorithms=["ES256"])
        except (JoseError, ValueError):
            return answer(401)
        said = read.claims
        good = (
            scheme == "Bearer"
            and read.header["typ"] == "at+jwt"
            and (said["iss"], said["aud"].partition("#")[0]) == (self.issuer, self.audience)
            and said["iat"] - 5 <= time() <= said["exp"] + 5
        )
        who = said.get("sub_id", {}).get("sub", said["sub"])
        if not good or who == self.banned:
            return answer(401)
        asked.headers["x-who"] = who
        if asked.method == "tools/call" or not isinstance(self.script, Old):  # what a plain service is asked are calls
            if self.refuse:
                self.refuse -= 1
                return answer(401)
            self.claims.append(dict(said))
            self.tokens.append(token)
        return self.script(asked)


class Idp:
    """A foreign issuer of the callers' tokens."""

    def __init__(self, where: Path) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "k1", "alg": "ES256", "use": "sig"})
        self.jwks = where / "jwks.json"
        self.jwks.write_text(json.dumps({"keys": [self.key.as_dict(private=False)]}))

    def token(self, audience: str, **more: Any) -> str:
        now = int(time())
        said = {
            "iss": IDP, "sub": "ada", "azp": "agent-1", "aud": audience, "iat": now, "exp": now + 600, "scope": "mcp",
            **more,
        }  # fmt: skip
        return jwt.encode({"alg": "ES256", "kid": "k1"}, said, self.key)


def config(port: int, idp: Idp, servers: str, exchange: str = "{}", more: str = "") -> str:
    return f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 1s}}}}
authenticate: {{jwt: [{{issuer: {IDP}, audiences: ["http://127.0.0.1:{port}/mcp"], jwks: {idp.jwks}}}]}}
issuer:
  url: http://127.0.0.1:{port}
  clients: [{{id: robot, secret: {SECRET}, grants: [client_credentials]}}]
exchange: {exchange}
{more}
mcp:
  servers:
{servers}
"""


@asynccontextmanager
async def guarded(port: int, script: Callable[[Asked], Any]) -> AsyncIterator[tuple[Guarded, Upstream]]:
    guard = Guarded(script, f"http://127.0.0.1:{port}")
    async with upstream(guard) as server:
        guard.audience = server.url
        yield guard, server


class Agent:
    """One of the old era, with a token."""

    def __init__(self, gateway: Gateway, token: str) -> None:
        headers = {"accept": "application/json, text/event-stream", "authorization": f"Bearer {token}"}
        self.http = httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=20)

    async def __aenter__(self) -> "Agent":
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
        opened = await self.post("initialize", params)
        assert opened.status_code == 200, opened.text
        self.http.headers["mcp-session-id"] = opened.headers["mcp-session-id"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def post(self, method: str, params: Any = None) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        return await self.http.post("/mcp", json=body)

    async def ask(self, method: str, params: Any = None) -> Any:
        response = await self.post(method, params)
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        return json.loads(lines[-1] if lines else response.text)

    async def call(self, name: str = "echo") -> Any:
        return await self.ask("tools/call", {"name": name, "arguments": {}})


class New(Old):
    """A stateless server."""

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "server/discover":
            value = {
                "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "raw", "version": "1"}, "resultType": "complete",
            }  # fmt: skip
            return result(asked, value)
        if asked.method == "tools/list":
            return result(asked, {"tools": TOOLS, "resultType": "complete", "ttlMs": 60000, "cacheScope": "public"})
        if asked.method == "tools/call":
            return result(asked, {"content": [{"type": "text", "text": "ok"}], "resultType": "complete"})
        return super().__call__(asked)


async def test_each_sees_what_the_server_shows_him_and_nobody_suffers_for_another(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    script = Old(tools_list=lambda asked: result(asked, {"tools": [{**TOOLS[0], "name": asked.headers["x-who"]}]}))
    async with guarded(port, script) as (guard, server):
        guard.banned = "eve"
        async with serving(config(port, idp, f"    shop: {{url: {server.url}}}"), tmp_path) as gateway:
            await guard.learn()
            who = f"{gateway.url}/mcp"
            async with Agent(gateway, idp.token(who)) as ada, Agent(gateway, idp.token(who, sub="bob")) as bob:
                for agent, name in ((ada, "ada"), (bob, "bob"), (ada, "ada")):
                    assert [tool["name"] for tool in (await agent.ask("tools/list"))["result"]["tools"]] == [name]
                async with Agent(gateway, idp.token(who, sub="eve")) as eve:
                    for _ in range(8):
                        assert "error" in await eve.call()
                    for _ in range(3):
                        async with Agent(gateway, idp.token(who, sub="new")) as new:
                            assert "result" in await new.call()
                async with Agent(gateway, idp.token(who, azp="agent-2")) as other:
                    assert "result" in await other.call()
    assert guard.claims[-1]["act"]["sub"] == "agent-2"
    assert server.asked[-1].headers["mcp-session-id"] not in {
        asked.headers["mcp-session-id"] for asked in server.calls("tools/list")
    }


@pytest.mark.parametrize("script", [Old, New])
async def test_a_call_in_somebodys_name(tmp_path: Path, script: Any) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    async with guarded(port, script()) as (guard, server):
        servers = f"    shop: {{url: {server.url}}}"
        async with serving(config(port, idp, servers), tmp_path) as gateway:
            await guard.learn()
            mine = idp.token(f"{gateway.url}/mcp")
            async with Agent(gateway, mine) as ada, Agent(gateway, idp.token(f"{gateway.url}/mcp", sub="bob")) as bob:
                assert "result" in await ada.call()
                assert "result" in await ada.call()
                assert "result" in await bob.call()
                assert [tool["name"] for tool in (await ada.ask("tools/list"))["result"]["tools"]] == ["echo"]
    first, second, third = guard.claims
    assert first["sub_id"] == {"format": "iss_sub", "iss": IDP, "sub": "ada"}
    assert first["act"] == {"iss": IDP, "sub": "agent-1"}
    assert first["client_id"] == "tollhouse"
    assert first["exp"] - first["iat"] == 5
    assert second["jti"] == first["jti"]
    assert third["sub_id"]["sub"] == "bob"
    assert third["sub"] != first["sub"]
    for asked in server.asked:  # nothing that the gateway was shown goes any further
        assert mine not in json.dumps([asked.headers, asked.body])
    if script is Old:  # and no two share a session
        shown = {asked.headers["mcp-session-id"] for asked in server.calls("tools/call")}
        assert len(shown) == 2


async def test_tools_have_their_own(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    tools = [{**TOOLS[0], "name": name} for name in ("look", "buy")]
    script = Old(tools_list=lambda asked: result(asked, {"tools": tools}))
    async with guarded(port, script) as (guard, server):
        servers = f"""
    shop:
      url: {server.url}
      exchange: {{audience: tool, scopes: {{shop.read: [mcp], shop.write: [mcp, "shop:write"]}}}}
      tools:
        look: {{exchange: {{mints: [shop.read]}}}}
        buy: {{exchange: {{mints: [shop.write], ttl: 30s, reuse: never}}}}
"""
        async with serving(config(port, idp, servers, "{ttl: 10s}"), tmp_path) as gateway:
            await guard.learn()
            async with Agent(gateway, idp.token(f"{gateway.url}/mcp", scope="mcp shop:write")) as ada:
                for name in ("look", "buy", "buy"):
                    assert "result" in await ada.call(name)
            async with Agent(gateway, idp.token(f"{gateway.url}/mcp", sub="bob")) as bob:
                assert "result" in await bob.call("look")
                refused = await bob.post("tools/call", {"name": "buy", "arguments": {}})
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="mcp shop:write"' in refused.headers["www-authenticate"]
    look, buy, again, bobs = guard.claims
    assert (look["aud"], look["scope"], look["exp"] - look["iat"]) == (f"{server.url}#look", "shop.read", 10)
    assert (buy["aud"], buy["scope"], buy["exp"] - buy["iat"]) == (f"{server.url}#buy", "shop.write", 30)
    assert again["jti"] != buy["jti"]
    assert bobs["scope"] == "shop.read"


async def test_a_server_that_refuses_a_remembered_token_gets_another_once(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    async with (
        guarded(port, Old()) as (guard, server),
        serving(config(port, idp, f"    shop: {{url: {server.url}, exchange: {{ttl: 1m}}}}"), tmp_path) as gateway,
    ):
        await guard.learn()
        async with Agent(gateway, idp.token(f"{gateway.url}/mcp")) as ada:
            assert "result" in await ada.call()
            guard.refuse = 1
            assert "result" in await ada.call()
            guard.refuse = 2
            assert "error" in await ada.call()
    assert guard.tokens[0] != guard.tokens[1]


async def test_an_api_as_tools_and_a_plain_service(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    async with guarded(port, lambda asked: answer(200, {"ok": True})) as (guard, server):
        base = server.url.removesuffix("/mcp")
        guard.audience = base
        servers = f"""
    api:
      base_url: {base}
      rest: [{{name: look, description: Look., path: /look}}]
"""
        routes = f"routes: [{{name: plain, path: /plain, to: {base}, exchange: {{ttl: 9s}}}}]"
        async with serving(config(port, idp, servers, more=routes), tmp_path) as gateway:
            await guard.learn()
            mine = idp.token(f"{gateway.url}/mcp")
            async with Agent(gateway, mine) as ada:
                assert (await ada.call("look"))["result"]["structuredContent"] == {"ok": True}
                assert (await ada.http.get("/plain/x")).json() == {"ok": True}
                guard.refuse = 5
                await ada.call("look")
                refused = (await ada.call("look"))["result"]
                assert refused["isError"]
                assert "refused" in refused["content"][0]["text"]
    tool, plain = guard.claims
    assert (tool["aud"], plain["aud"]) == (base, base)
    assert plain["exp"] - plain["iat"] == 9
    for asked in server.asked:
        assert mine not in json.dumps(asked.headers)


async def test_a_plain_service_is_told_who_calls(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    async with upstream(lambda asked: answer(200, {"ok": True})) as server:
        base = server.url.removesuffix("/mcp")
        servers = f"""
    api:
      base_url: {base}
      rest:
        - name: look
          description: Look.
          path: /look
          input: {{type: object, properties: {{who: {{type: string}}}}}}
          headers: {{X_Identity: "{{who}}", x-other: "{{who}}"}}
"""
        routes = f"routes: [{{name: plain, path: /plain, to: {base}}}]\nidentity: {{header: x-identity, ttl: 30s}}"
        async with serving(config(port, idp, servers, more=routes), tmp_path) as gateway:
            guard = Guarded(Old(), gateway.url)
            await guard.learn()
            async with Agent(gateway, idp.token(f"{gateway.url}/mcp")) as ada:
                arguments = {"name": "look", "arguments": {"who": "i-am-root"}}
                assert "result" in await ada.ask("tools/call", arguments)
                forged = {"x-identity": "i-am-root", "x_identity": "i-am-root", "connection": "keep-alive, x-identity"}
                assert (await ada.http.get("/plain/x", headers=forged)).status_code == 200
    assert guard.keys is not None
    for asked in server.asked:
        read = jwt.decode(asked.headers["x-identity"], guard.keys, algorithms=["ES256"])
        assert read.header["typ"] == "identity+jwt"
        assert read.claims["sub_id"]["sub"] == "ada"
        assert (read.claims["aud"], read.claims["exp"] - read.claims["iat"]) == (base, 30)
        assert not {name for name, value in asked.headers.items() if value == "i-am-root"} - {"x-other"}
    assert len(server.asked) == 2


async def test_an_issuer_elsewhere(tmp_path: Path) -> None:
    """Our own auth provider, alone in another process; and what callers are told when it is gone."""
    port, there = free_port(), free_port()
    url, elsewhere = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{there}"
    async with guarded(there, Old()) as (guard, server):
        issuer = f"""
server: {{listen: 127.0.0.1:{there}, metrics: null}}
issuer:
  url: {elsewhere}
  resources: [{{uri: "{url}/mcp"}}]
  clients:
    - {{id: robot, secret: {SECRET}, grants: [client_credentials], scopes: [mcp]}}
    - id: gateway
      secret: {SECRET}
      grants: [token_exchange]
      serves: ["{url}/mcp"]
      token_exchange: {{targets: [{{audience: "{server.url}", scopes: {{shop.read: [mcp]}}}}]}}
"""
        gateway = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 1s}}}}
authenticate:
  jwt: [{{issuer: "{elsewhere}", jwks: "{elsewhere}/oauth/jwks"}}]
  keys: [{{name: ci, key: {SECRET}}}]
exchange: {{issuer: "{elsewhere}", client_id: gateway, client_secret: {SECRET}, scopes: {{shop.read: [mcp]}}}}
mcp: {{servers: {{shop: {{url: "{server.url}"}}}}}}
"""
        for name in ("issuer", "gateway"):
            (tmp_path / name).mkdir()
        async with (
            serving(issuer, tmp_path / "issuer") as provider,
            serving(gateway, tmp_path / "gateway") as running,
        ):
            await guard.learn()
            async with httpx.AsyncClient(auth=("robot", SECRET)) as robot:
                form = {"grant_type": "client_credentials", "resource": f"{url}/mcp", "scope": "mcp"}
                given = (await robot.post(f"{elsewhere}/oauth/token", data=form)).json()["access_token"]
            async with Agent(running, given) as agent, Agent(running, SECRET) as key:
                assert "result" in await agent.call()
                assert "result" in await agent.call()
                refused = (await key.call())["error"]["data"]
                provider.stop()
                await asyncio.sleep(2.6)  # what is remembered is not used in the second half of its life
                gone = (await agent.call())["error"]["data"]
    assert refused == {"reason": "access_denied"}
    assert gone == {"reason": "temporarily_unavailable", "retryAfter": 1.0}
    first, second = guard.claims
    assert first["jti"] == second["jti"]
    assert (first["sub"], first["client_id"], first["scope"]) == ("robot", "gateway", "shop.read")
    assert given not in json.dumps([[asked.headers, asked.body] for asked in server.asked])


async def test_what_was_revoked_is_refused_within_a_second(tmp_path: Path) -> None:
    """A token of our own issuer, that has been exchanged and is remembered."""
    port = free_port()
    idp = Idp(tmp_path)
    async with (
        guarded(port, Old()) as (guard, server),
        serving(config(port, idp, f"    shop: {{url: {server.url}, exchange: {{ttl: 1h}}}}"), tmp_path) as gateway,
    ):
        await guard.learn()
        async with httpx.AsyncClient(auth=("robot", SECRET)) as robot:
            form = {"grant_type": "client_credentials", "resource": f"{gateway.url}/mcp"}
            given = (await robot.post(f"{gateway.url}/oauth/token", data=form)).json()["access_token"]
            async with Agent(gateway, given) as agent:
                assert "result" in await agent.call()
                await robot.post(f"{gateway.url}/oauth/revoke", data={"token": given})
                refused = await agent.post("tools/call", {"name": "echo", "arguments": {}})
    assert refused.status_code == 401
    assert "resource_metadata" in refused.headers["www-authenticate"]
    [said] = guard.claims
    assert said["sub"] == "robot"
    assert "act" not in said  # it acts for itself
    assert said["exp"] - said["iat"] <= 600
