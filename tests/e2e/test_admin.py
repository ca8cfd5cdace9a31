"""The admin API of gateways that run: what operators do by it counts on every node, and nobody else can do it."""

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from joserfc import jwt
from joserfc.jwk import ECKey
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, serving, until, within
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[1]
SIGNER = ECKey.generate_key("P-256", {"kid": "one"})
SOON = 3.0  # the second that is promised, and what a busy machine adds
OPERATOR = "an-operators-key-of-32-characters"
SERVER = "listen: 127.0.0.1:0, metrics: null, shutdown: {min: 0s, max: 5s}"
CONFIG = """
server: {{{server}}}
ledger: "sqlite:{where}/keys.db"
authenticate: {{issued: true}}
providers: {{local: {{kind: local}}}}
models: [{{name: small, targets: [{{provider: local}}]}}]
"""


def admin_url(gateway: Gateway) -> str:
    found = re.findall(r"admin API on (http\S+)", gateway.text())
    assert found, gateway.text()
    return str(found[-1])


class Operator:
    """key: None for the token in the file that the log names."""

    def __init__(self, gateway: Gateway, key: str | None = None) -> None:
        if key is None:
            said = re.search(r"the admin API's token is in (\S+)", gateway.text())
            assert said, gateway.text()
            key = Path(said[1]).read_text().strip()
        self.gateway, self.key, self.url = gateway, key, admin_url(gateway)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        given = {"authorization": f"Bearer {self.key}"} | headers
        status, data = self.gateway.ask(method, self.url + path, body, given)
        return status, json.loads(data)


MCP = """
mcp:
  servers: {shop: {base_url: "http://127.0.0.1:1", rest: [{name: look, path: /look, description: l}]}}
"""


def lets_in(gateway: Gateway, credential: str) -> bool:
    return gateway.get("/v1/models", {"authorization": f"Bearer {credential}"})[0] == 200


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    """Two gateways on one ledger, each with its admin API; operators have the token that the first one has made."""
    where = tmp_path_factory.mktemp("ledger")
    config = CONFIG.format(server=f"{SERVER}, admin: 127.0.0.1:0", where=where) + MCP
    made = [Gateway(config, tmp_path_factory.mktemp("node")) for _ in range(2)]
    with made[0], made[1]:
        yield made


def test_a_key_counts_and_ends_on_every_node_within_a_second(nodes: list[Gateway]) -> None:
    one, other = (Operator(node) for node in nodes)
    assert one.key == other.key
    status, made = one.ask("POST", "/api/keys", {"name": "ci", "user": "bob"})
    assert status == 201
    for node in nodes:
        within(SOON, lambda node=node: lets_in(node, made["key"]))  # type: ignore[misc]
    assert [key["id"] for key in one.ask("GET", "/api/keys")[1]["keys"]] == [made["id"]]
    status, ended = other.ask("DELETE", f"/api/keys/{made['id']}")
    assert (status, ended["state"]) == (200, "ended")
    assert not lets_in(nodes[1], made["key"])  # where it was ended at once
    within(SOON, lambda: not lets_in(nodes[0], made["key"]))
    for node in nodes:
        assert made["key"] not in node.text()
        assert one.key not in node.text()
    assert f"keys.create by admin from 127.0.0.1: {made['id']} (ci) for user 'bob'" in nodes[0].text()


async def test_what_an_ended_key_has_opened_on_another_node_ends(nodes: list[Gateway]) -> None:
    here, there = nodes
    operator = Operator(here)
    made = (await asyncio.to_thread(operator.ask, "POST", "/api/keys", {"name": "agent"}))[1]
    await until(lambda: lets_in(there, made["key"]))
    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
    headers = {"authorization": f"Bearer {made['key']}", "accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(base_url=there.url, headers=headers, timeout=10) as agent:
        agent.headers["mcp-session-id"] = (await agent.post("/mcp", json=hello)).headers["mcp-session-id"]
        agent.headers["mcp-protocol-version"] = "2025-06-18"
        async with agent.stream("GET", "/mcp", headers={"accept": "text/event-stream"}) as stream:
            assert stream.status_code == 200
            status, _ = await asyncio.to_thread(operator.ask, "DELETE", f"/api/keys/{made['id']}")
            assert status == 200
            async with asyncio.timeout(SOON):
                try:
                    async for _ in stream.aiter_bytes():
                        pass
                except httpx.RemoteProtocolError:  # cut, which ends it too
                    pass


def test_nobody_else_is_answered(nodes: list[Gateway]) -> None:
    operator = Operator(nodes[0])
    _, key = operator.ask("POST", "/api/keys", {"name": "caller"})
    for credential in ("", "x" * 47, key["key"], operator.key[:-1]):
        for path in ("/api/keys", "/openapi.json", "/metrics", "/"):
            assert operator.ask("GET", path, authorization=f"Bearer {credential}")[0] == 401
    # A page of elsewhere, and one whose name was made to lead here.
    assert operator.ask("GET", "/api/keys", origin="https://evil.example.com")[0] == 403
    assert operator.ask("GET", "/api/keys", host="evil.example.com")[0] == 403
    port = operator.url.rpartition(":")[2]
    assert operator.ask("GET", "/api/keys", host=f"localhost:{port}", origin=f"http://localhost:{port}")[0] == 200
    # On the listener for callers there is none of it.
    assert nodes[0].get("/api/keys", {"authorization": f"Bearer {operator.key}"})[0] in (401, 404)
    assert os.stat(re.findall(r"token is in (\S+)", nodes[0].text())[-1]).st_mode & 0o777 == 0o600


async def test_a_call_that_waits_is_approved(tmp_path: Path) -> None:
    config = f"""
server: {{{SERVER}, admin: {{address: "127.0.0.1:0", keys: [{{name: eve, key: {OPERATOR}}}]}}}}
ledger: sqlite:tollhouse.db
mcp: {{servers: {{tools: {{command: "{sys.executable}", args: ["{ROOT / "fixtures" / "mcp_child.py"}"]}}}}}}
authorize: {{rules: [{{name: careful, approve: 'mcp.tool.name == "echo"'}}], approvals: {{timeout: 60s}}}}
audit: on
"""
    async with serving(config, tmp_path) as gateway:
        operator = Operator(gateway, OPERATOR)
        accept = {"accept": "application/json, text/event-stream"}
        info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
        status, found, _ = await asyncio.to_thread(gateway.exchange, "POST", "/mcp", hello, accept)
        assert status == 200
        agent = accept | {"mcp-session-id": found["mcp-session-id"], "mcp-protocol-version": "2025-06-18"}
        call = {"name": "echo", "arguments": {"message": "pay"}}
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
        for action, expected in (("approve", "pay"), ("deny", None)):
            waiting = asyncio.create_task(asyncio.to_thread(gateway.ask, "POST", "/mcp", body, agent))
            listed: list[Any] = []

            def look(listed: list[Any] = listed) -> bool:
                listed[:] = operator.ask("GET", "/api/approvals")[1]["approvals"]
                return bool(listed)

            await until(look)
            assert (listed[0]["what"], json.loads(listed[0]["arguments"])) == ("tools/echo", {"message": "pay"})
            status, said = await asyncio.to_thread(operator.ask, "POST", f"/api/approvals/{listed[0]['id']}/{action}")
            assert (status, said["by"]) == (200, "eve")
            answer = json.loads((await waiting)[1])
            if expected:
                assert answer["result"]["content"][0]["text"] == expected
            else:
                assert answer["error"]["data"]["reason"] == "not_approved"
        assert operator.ask("GET", "/api/approvals")[1]["approvals"] == []
    # What operators did is in the audit, as what agents did is.
    said = run(tmp_path, "audit", "list", "--json")
    assert said.returncode == 0, said.stderr
    records = [json.loads(text) for text in said.stdout.splitlines()]
    done = [(r["operation"], r["principal"]) for r in records if r["operation"].startswith("admin.")]
    assert sorted(done) == [("admin.approvals.approve", "operator:eve"), ("admin.approvals.deny", "operator:eve")]


async def test_one_of_several_workers_serves_it_and_is_replaced(tmp_path: Path) -> None:
    config = CONFIG.format(server=f"{SERVER}, workers: 2, admin: 127.0.0.1:0", where=tmp_path)
    async with serving(config, tmp_path) as gateway:
        await gateway.logged("admin API on")
        operator = Operator(gateway)

        async def all_say(credential: str, status: int) -> None:
            """Both workers: the kernel chooses one for each connection."""
            headers = {"authorization": f"Bearer {credential}"}
            in_a_row = 0

            def look() -> bool:
                nonlocal in_a_row
                in_a_row = in_a_row + 1 if gateway.get("/v1/models", headers)[0] == status else 0
                return in_a_row >= 12

            await until(look)

        _, made = operator.ask("POST", "/api/keys", {"name": "ci"})
        await all_say(made["key"], 200)
        since = len(gateway.log.read_bytes())
        [first, _] = sorted(gateway.children())
        os.kill(first, signal.SIGKILL)
        await gateway.logged("admin API on", since)
        assert admin_url(gateway) == operator.url

        def is_back() -> bool:
            try:
                return operator.ask("DELETE", f"/api/keys/{made['id']}")[0] == 200
            except OSError:
                return False

        await until(is_back)
        await all_say(made["key"], 401)
        status, told = operator.ask("POST", "/api/revocations", {"kind": "sub", "id": "ada"})
        assert (status, "share no memory" in told["title"]) == (409, True)


def test_a_revocation_counts_on_every_node_of_a_state(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [SIGNER.as_dict(private=False)]}))
    with valkey(tmp_path) as store:
        config = f"""
server: {{{SERVER}, admin: {{address: "127.0.0.1:0", keys: [{{name: eve, key: {OPERATOR}}}]}}}}
state: {store.url}
authenticate: {{jwt: [{{issuer: "https://i", audiences: [gw], jwks: "{tmp_path}/jwks.json"}}]}}
providers: {{local: {{kind: local}}}}
models: [{{name: small, targets: [{{provider: local}}]}}]
"""
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with Gateway(config, tmp_path / "a") as one, Gateway(config, tmp_path / "b") as other:
            now = int(time.time())

            def token(sub: str, issued: int) -> str:
                claims = {"iss": "https://i", "aud": "gw", "sub": sub, "iat": issued, "exp": now + 600}
                return str(jwt.encode({"alg": "ES256", "kid": "one"}, claims, SIGNER))

            ada, bob = token("ada", now - 10), token("bob", now - 10)
            for node in (one, other):
                assert lets_in(node, ada)
                assert lets_in(node, bob)
            status, _ = Operator(one, OPERATOR).ask("POST", "/api/revocations", {"kind": "sub", "id": "ada"})
            assert status == 201
            assert not lets_in(one, ada)
            within(SOON, lambda: not lets_in(other, ada))
            for node in (one, other):
                assert lets_in(node, bob)


async def test_by_tls_and_fixed_while_it_runs(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    admin = '{address: "127.0.0.1:0", tls: {cert: cert.pem, key: key.pem}}'
    config = CONFIG.format(server=f"{SERVER}, admin: {admin}", where=tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(config, tmp_path) as gateway:
        url = admin_url(gateway)
        assert url.startswith("https://")
        token = (tmp_path / "keys.db.admin-token").read_text().strip()
        async with httpx.AsyncClient(verify=trusting, headers={"authorization": f"Bearer {token}"}) as operator:
            assert (await operator.get(f"{url}/api/keys")).status_code == 200
        said = await gateway.change(config.replace(f", admin: {admin}", ""), "is refused")
        assert "server.admin.address: cannot change while the gateway runs" in said
        # Operators may be others: the token is none then, and a key that is taken out is none.
        keys = f"keys: [{{name: eve, key: {OPERATOR}}}], hosts: [ops.example.com]"
        async with httpx.AsyncClient(verify=trusting) as operator:

            async def status(key: str, **more: str) -> int:
                headers = {"authorization": f"Bearer {key}", **more}
                return (await operator.get(f"{url}/api/keys", headers=headers)).status_code

            await gateway.change(config.replace('"127.0.0.1:0", tls', f'"127.0.0.1:0", {keys}, tls'))
            assert [await status(key) for key in (token, OPERATOR)] == [401, 200]
            assert await status(OPERATOR, host="ops.example.com") == 200
            (tmp_path / "keys.db.admin-token").chmod(0o644)
            await gateway.change(config)
            assert [await status(key) for key in (token, OPERATOR)] == [503, 503]  # nobody is let in by mistake
            (tmp_path / "keys.db.admin-token").chmod(0o600)
            assert [await status(key) for key in (token, OPERATOR)] == [200, 401]
            (tmp_path / "keys.db.admin-token").chmod(0o644)
    await asyncio.to_thread(refuses_to_start, config, tmp_path)


def refuses_to_start(config: str, where: Path) -> None:
    (where / "tollhouse.yaml").write_text(config)
    line = [sys.executable, "-m", "tollhouse.cli", "serve", "tollhouse.yaml"]
    said = subprocess.run(line, cwd=where, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 2
    assert "not this user's alone" in said.stderr


async def test_the_auth_providers_keys_by_its_own_process(tmp_path: Path) -> None:
    config = f"""
server: {{{SERVER}, admin: 127.0.0.1:0}}
ledger: sqlite:keys.db
issuer:
  url: http://127.0.0.1:9
  clients: [{{id: bot, secret: a-clients-secret-of-32-characters, grants: [client_credentials]}}]
"""
    async with serving(config, tmp_path) as gateway:
        operator = Operator(gateway)

        def published() -> list[str]:
            found = json.loads(gateway.get("/oauth/jwks")[1])
            return sorted(key["kid"] for key in found["keys"])

        _, told = operator.ask("GET", "/api/signing-keys")
        assert sorted(key["kid"] for key in told["keys"]) == published()
        [active] = [key["kid"] for key in told["keys"] if key["state"] == "active"]
        assert operator.ask("POST", "/api/signing-keys/rotate")[0] == 200
        assert operator.ask("POST", "/api/signing-keys/drop", {"kid": active})[0] == 200
        assert active not in published()
        since = gateway.text()
        assert f"signing-keys.drop by admin from 127.0.0.1: {active!r}" in since
        # The configuration that serves is the one that is asked: without an issuer there are no keys.
        changed = config[: config.index("issuer:")] + "routes: [{name: a, path: /, to: 'http://127.0.0.1:9'}]\n"
        await gateway.change(changed)
        assert operator.ask("GET", "/api/signing-keys")[0] == 409
