"""The case study in `examples/` as it stands there, with its issuers, servers and provider on this machine.

Two MCP servers as one endpoint, behind tokens that agents can find out how to get; models for verified addresses at
example.com only; metrics labelled by a claim, a header and a tool's argument; calls that may take 300 seconds.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.provider import Provider, provider
from tests.fixtures.service import service
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "case-study"
PUBLIC = "https://gateway.example.com"
GOOGLE = "https://accounts.google.com"
IDP = "https://auth.example.com"


@dataclass
class Company:
    gateway: Gateway
    provider: Provider
    key: ECKey
    google: ECKey

    def agent(self, **claims: Any) -> str:
        """A token for MCP."""
        return token(self.key, iss=IDP, aud=f"{PUBLIC}/mcp", sub="support-agent", **claims)

    def person(self, email: str, verified: Any = True, **claims: Any) -> str:
        """An identity token."""
        return token(self.google, iss=GOOGLE, aud="client-1", sub="1", email=email, email_verified=verified, **claims)

    async def mcp(self, credential: str | None, method: str, path: str = "/mcp", **params: Any) -> Answer:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": method,
            "x-org": "support",
        }
        if "name" in params:
            headers["mcp-name"] = params["name"]
        if credential is not None:
            headers["authorization"] = f"Bearer {credential}"
        return await once(self.gateway.url, "POST", path, json.dumps(message).encode(), headers)

    async def ask(self, credential: str, model: str = "claude-sonnet-4-5") -> Answer:
        body = {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"x-api-key": credential, "x-org": "research", "anthropic-version": "2023-06-01"}
        return await once(self.gateway.url, "POST", "/v1/messages", json.dumps(body).encode(), headers)


def token(key: ECKey, **claims: Any) -> str:
    now = int(time.time())
    header = {"alg": "ES256", "kid": key.kid, "typ": "JWT"}
    return jwt.encode(header, {"iat": now, "exp": now + 600, **claims}, key, algorithms=["ES256"])


def result(answer: Answer) -> Any:
    """The result of a JSON-RPC answer, which may come as an event."""
    data = answer.body
    if answer.headers["content-type"].startswith("text/event-stream"):
        data = re.findall(rb"^data: (.+)$", answer.body, re.MULTILINE)[-1]
    return json.loads(data)["result"]


@asynccontextmanager
async def company(where: Path) -> AsyncIterator[Company]:
    agents, people = (ECKey.generate_key("P-256", {"kid": name}) for name in ("a", "p"))
    (where / "google.json").write_text(json.dumps({"keys": [people.as_dict(private=False, kid="p")]}))
    with http_server() as knowledge, http_server() as slack:
        async with provider() as models, service() as idp:
            idp.documents["/jwks.json"] = {"keys": [agents.as_dict(private=False, kid="a")]}
            config = (EXAMPLE / "tollhouse.yaml").read_text()
            for there, here in (
                ("listen: 0.0.0.0:3000", "listen: 127.0.0.1:0\n  metrics: 127.0.0.1:0"),
                ("jwks: https://auth.example.com/.well-known/jwks.json", f"jwks: {idp.url}/jwks.json"),
                ("jwks: https://www.googleapis.com/oauth2/v3/certs", "jwks: google.json"),
                ("kind: anthropic, ", f"kind: anthropic, base_url: http://127.0.0.1:{models.port}, "),
                ("  access_log:\n", "  access_log:\n    path: access.log\n"),
            ):
                assert config.count(there) == 1, there
                config = config.replace(there, here)
            env = {
                **os.environ,
                "PUBLIC_URL": PUBLIC,
                "GOOGLE_CLIENT_ID": "client-1",
                "KNOWLEDGE_URL": knowledge,
                "SLACK_URL": slack,
                "ANTHROPIC_API_KEY": "upstream-secret",
            }
            async with serving(config, where, env) as gateway:
                yield Company(gateway, models, agents, people)
                assert "Traceback" not in gateway.text()


async def test_the_case_study(tmp_path: Path) -> None:
    async with company(tmp_path) as here:
        await agents_find_out_where_to_get_a_token(here)
        await two_servers_are_one_endpoint(here)
        await models_are_for_verified_addresses_of_the_company(here)
        await metrics_say_who_used_what_for_which_product(here)


async def agents_find_out_where_to_get_a_token(here: Company) -> None:
    refused = await here.mcp(None, "tools/list")
    assert refused.status == 401
    challenge = refused.headers["www-authenticate"]
    assert challenge.startswith("Bearer ")
    where = re.search(r'resource_metadata="([^"]+)"', challenge)
    assert where is not None
    assert where[1] == f"{PUBLIC}/.well-known/oauth-protected-resource/mcp"
    assert 'scope="mcp.read"' in challenge
    told = await once(here.gateway.url, "GET", where[1].removeprefix(PUBLIC))
    assert told.status == 200
    said = told.json()
    assert said["resource"] == json.loads((EXAMPLE / "mcp.json").read_text())["mcpServers"]["company"]["url"]
    assert said["authorization_servers"] == [IDP]
    assert said["scopes_supported"] == ["mcp.read"]
    assert said["resource_name"] == "Company knowledge"

    stranger = ECKey.generate_key("P-256", {"kid": "a"})
    for bad in (
        "nonsense",
        here.agent(exp=int(time.time()) - 3600),
        token(here.key, iss=IDP, aud="https://elsewhere.example.com", sub="x"),
        token(here.key, iss="https://evil.example.com", aud=f"{PUBLIC}/mcp", sub="x"),
        token(stranger, iss=IDP, aud=f"{PUBLIC}/mcp", sub="x"),
        token(here.google, iss=IDP, aud=f"{PUBLIC}/mcp", sub="x"),
        here.agent().rpartition(".")[0] + ".",
    ):
        refused = await here.mcp(bad, "tools/list")
        assert refused.status == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
        assert "resource_metadata=" in refused.headers["www-authenticate"]


async def two_servers_are_one_endpoint(here: Company) -> None:
    listed = await here.mcp(here.agent(), "tools/list")
    assert listed.status == 200, listed.body
    names = {tool["name"] for tool in result(listed)["tools"]}
    assert {"knowledge__echo", "slack__echo"} <= names
    for server in ("knowledge", "slack"):
        arguments = {"message": server, "product": f"{server}-product"}
        called = await here.mcp(
            here.agent(email="bot@example.com"), "tools/call", name=f"{server}__echo", arguments=arguments
        )
        assert result(called)["content"][0]["text"] == server
    alone = await here.mcp(here.agent(), "tools/list", "/mcp/slack")
    assert "echo" in {tool["name"] for tool in result(alone)["tools"]}


async def models_are_for_verified_addresses_of_the_company(here: Company) -> None:
    answer = await here.ask(here.person("ada@example.com"))
    assert answer.status == 200, answer.body
    assert here.provider.seen[-1].body["model"] == "claude-sonnet-4-5"
    assert here.provider.seen[-1].headers["x-api-key"] == "upstream-secret"
    for credential in (
        here.person("ada@example.com", verified=False),
        here.person("ada@example.com", verified="true"),
        here.person("ada@evil.com"),
        here.person("ada@example.com.evil.com"),
        here.agent(),
        here.agent(email="bot@example.com"),
    ):
        refused = await here.ask(credential)
        assert (refused.status, refused.headers["x-tollhouse-reason"]) == (403, "Authorization"), refused.body
        assert refused.json()["type"] == "error"
        listed = await once(here.gateway.url, "GET", "/v1/models", None, {"x-api-key": credential})
        assert listed.json()["data"] == []
    assert len(here.provider.seen) == 1


async def metrics_say_who_used_what_for_which_product(here: Company) -> None:
    text = await asyncio.to_thread(here.gateway.metrics)

    def series(name: str, **labels: str) -> list[str]:
        """The values of a metric's series that have these labels."""
        found = []
        for line in text.splitlines():
            if line.startswith(name + "{"):
                have = dict(re.findall(r'(\w+)="([^"]*)"', line))
                if labels.items() <= have.items():
                    found.append(line.rsplit(" ", 1)[1])
        return found

    for server in ("knowledge", "slack"):
        labels = {"user_email": "bot@example.com", "org": "support", "product": f"{server}-product"}
        assert series("tollhouse_mcp_requests", method="tools/call", server=server, resource="echo", **labels) == ["1"]
        assert series("tollhouse_requests_total", status="200", **labels) == ["1"]
    ada = {"user_email": "ada@example.com", "org": "research", "product": ""}
    assert series("tollhouse_gen_ai_client_token_usage_sum", gen_ai_token_type="output", **ada) == ["6"]
    assert sum(map(int, series("tollhouse_requests_total", status="403", reason="Authorization"))) == 6
    await until(lambda: any(line.get("user") == "ada@example.com" for line in here.gateway.lines()))
    records = await asyncio.to_thread(here.gateway.records, 9)
    kinds = sorted((record["server"], record["outcome"]) for record in records)
    assert kinds == [("", "denied")] * 6 + [("", "ok"), ("knowledge", "ok"), ("slack", "ok")]
    assert any(record["model_answered"] == "claude-sonnet-4-5-2026" for record in records)
