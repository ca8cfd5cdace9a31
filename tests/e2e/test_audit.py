"""The audit of a running gateway: what is recorded of whom, and that nothing of it is lost, nor can be taken away."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.test_exchange import IDP, Agent, Idp, guarded
from tests.e2e.test_exchange import config as exchanging
from tests.fixtures.auth_provider import ADA, APP, PASSWORD, Browser, Flow
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, answer_of, free_port, serving
from tests.fixtures.mcp_raw import Old

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[1]
SECRET = "0123456789abcdef0123456789abcdef"
INFO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
CONFIG = """
server: {{listen: "127.0.0.1:{port}", metrics: "127.0.0.1:0", workers: {workers}, shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:tollhouse.db
telemetry: {{access_log: {{path: access.log}}}}
audit: {{arguments: keep, keep_bytes: 64, log: true}}
providers: {{local: {{kind: local}}}}
models: [{{name: small, targets: [{{provider: local}}]}}]
{mcp}
authenticate: {{keys: [{{name: ci, key: caller-secret, user: ci-bot, org: platform, agent: builder}}]}}
authorize:
  rules:
    - {{name: no-pay, deny: 'mcp.tool.name == "echo" && mcp.arguments.message == "pay"'}}
    - {{name: quiet, deny: 'mcp.tool.name == "pid"', shadow: true}}
"""
CALLER = {"accept": "application/json, text/event-stream", "authorization": "Bearer caller-secret"}


def config(port: int = 0, workers: int = 1) -> str:
    child = ROOT / "fixtures" / "mcp_child.py"
    mcp = f'mcp: {{servers: {{tools: {{command: "{sys.executable}", args: ["{child}"]}}}}}}' if workers == 1 else ""
    return CONFIG.format(port=port, workers=workers, mcp=mcp)


def records(where: Path, *arguments: str) -> list[dict[str, Any]]:
    listed = run(where, "audit", "list", "--json", *arguments)
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line) for line in listed.stdout.splitlines()]


def session(gateway: Gateway) -> dict[str, str]:
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INFO}
    status, found, _ = gateway.exchange("POST", "/mcp", body, CALLER)
    assert status == 200
    return CALLER | {"mcp-session-id": found["mcp-session-id"], "mcp-protocol-version": "2025-06-18"}


def call(gateway: Gateway, headers: dict[str, str], name: str, **arguments: Any) -> Any:
    params = {"name": name, "arguments": arguments}
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
    return answer_of(gateway.ask("POST", "/mcp", body, headers)[1])


async def test_who_did_what_and_what_was_said_to_it(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as gateway:

        def use() -> None:
            headers = session(gateway)
            assert "result" in call(gateway, headers, "echo", message="hello")
            assert "error" in call(gateway, headers, "echo", message="pay")
            assert "result" in call(gateway, headers, "pid")
            assert "result" in call(gateway, headers, "echo", message="x" * 100)
            assert gateway.ask("POST", "/mcp", b"{}", {"accept": CALLER["accept"]})[0] == 401
            body = {"model": "small", "messages": [{"role": "user", "content": "Hello"}]}
            assert gateway.ask("POST", "/v1/chat/completions", body, CALLER)[0] == 200

        await asyncio.to_thread(use)
    found = records(tmp_path)
    assert [one["operation"] for one in found if one["operation"].startswith("audit.")] == ["audit.begin", "audit.end"]
    found = [one for one in found if not one["operation"].startswith("audit.")]
    told = [
        (one.get("user", ""), one.get("decision", ""), one.get("rule", ""), one["outcome"], one.get("target", ""))
        for one in found
    ]
    assert told == [
        ("ci-bot", "allow", "", "ok", "echo"),
        ("ci-bot", "deny", "top: no-pay", "denied", "echo"),
        ("ci-bot", "shadow-deny", "top: quiet", "ok", "pid"),
        ("ci-bot", "allow", "", "ok", "echo"),
        ("", "deny", "", "denied", ""),
        ("ci-bot", "allow", "", "ok", "small"),
    ]
    first, refused, _, long, stranger, model = found
    assert (first["operation"], first["server"], first["key"], first["agent"]) == (
        "tools/call",
        "tools",
        "ci",
        "builder",
    )
    assert (first["org"], first["address"], first["status"]) == ("platform", "127.0.0.1", 200)
    assert json.loads(first["arguments"]) == {"message": "hello"}
    assert first["arguments_hash"] != refused["arguments_hash"]
    assert long["arguments"].endswith("…")
    assert len(long["arguments"]) == 65
    assert (stranger["status"], stranger.get("principal")) == (401, None)
    assert model["operation"] == "chat"
    lines = [line for line in gateway.lines() if "audit" in line]
    assert [line["n"] for line in lines] == list(range(2, len(lines) + 2))  # all but the chain's beginning and end
    assert {line["request_id"] for line in lines} <= {line.get("id") for line in gateway.lines()}
    assert "caller-secret" not in json.dumps(found)
    assert [one["target"] for one in records(tmp_path, "--decision", "deny", "--user", "ci-bot")] == ["echo"]
    assert (
        run(tmp_path, "audit", "verify").stdout
        == f"{len(found) + 2} records in 1 chains: all there, as they were written\n"
    )


async def test_what_is_killed_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    port = free_port()
    heads = tmp_path / "heads"
    async with serving(config(port, workers=2), tmp_path) as gateway:
        answered: list[str] = []
        under_way = asyncio.Event()

        async def caller(n: int) -> None:
            async with httpx.AsyncClient(base_url=gateway.url, headers=CALLER, timeout=5) as http:
                for k in range(100_000):
                    body = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": f"{n}.{k}"}]}
                    try:
                        answer = await http.post("/v1/chat/completions", json=body)
                    except httpx.HTTPError:
                        return
                    if answer.status_code == 200:
                        answered.append(answer.headers.get("x-request-id", ""))
                    if len(answered) >= 200:
                        under_way.set()

        for worker in (0, 1):
            await gateway.logged(rf"worker {worker} listens")
        callers = [asyncio.create_task(caller(n)) for n in range(20)]  # each worker has some: the kernel deals them out
        await asyncio.wait_for(under_way.wait(), 30)
        group = os.popen(f"pgrep -P {gateway.pid}").read().split()
        for pid in (gateway.pid, *map(int, group)):
            os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*callers)
        await asyncio.to_thread(gateway.stop)
        count = len(answered)

        verdict = await asyncio.to_thread(run, tmp_path, "audit", "verify", "--heads", str(heads))
        assert verdict.returncode == 0, verdict.stderr
        done = [one for one in records(tmp_path, "--limit", "1000000") if one.get("outcome") == "ok"]
        assert len(done) >= count
        assert len({one["chain"] for one in done}) == 2

        await asyncio.to_thread(gateway.start)  # the chains that begin now name those that were cut off
        body = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "again"}]}
        await asyncio.to_thread(gateway.ask, "POST", "/v1/chat/completions", body, CALLER)
    verdict = await asyncio.to_thread(run, tmp_path, "audit", "verify", "--heads", str(heads))
    assert verdict.returncode == 0, verdict.stderr
    with sqlite3.connect(tmp_path / "tollhouse.db") as db:
        chain = done[-1]["chain"]
        last = max(one["n"] for one in done if one["chain"] == chain)
        db.execute(
            "DELETE FROM audit WHERE n = ? AND journal = (SELECT number FROM journals WHERE journal = ?)", (last, chain)
        )
        db.execute("UPDATE audit_chains SET n = 1")
    broken = await asyncio.to_thread(run, tmp_path, "audit", "verify")
    assert broken.returncode == 1
    assert f"chain {chain}, record {last}: " in broken.stderr


async def test_tokens_that_are_issued(tmp_path: Path) -> None:
    port = free_port()
    text = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:tollhouse.db
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: https://api.example.com, scopes: {{read: Read all}}}}]
  clients: [{{id: robot, secret: {SECRET}, grants: [client_credentials]}}]
"""
    async with serving(text, tmp_path) as gateway:
        form = {"grant_type": "client_credentials", "scope": "read", "resource": "https://api.example.com"}
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            good = await http.post("/oauth/token", data=form, auth=("robot", SECRET))
            bad = await http.post("/oauth/token", data=form, auth=("robot", "wrong"))
        assert (good.status_code, bad.status_code) == (200, 401)
    issued, refused = records(tmp_path, "--operation", "issuer.token")
    assert (issued["client"], issued["audience"], issued["scopes"]) == ("robot", "https://api.example.com", ["read"])
    assert issued["minted"]
    assert good.json()["access_token"] not in json.dumps(issued)
    assert (refused["decision"], refused["status"]) == ("deny", 401)
    assert run(tmp_path, "audit", "verify").returncode == 0


async def test_operators_and_commands_beside_a_gateway_that_runs(tmp_path: Path) -> None:
    """With an admin API and nothing else that asks for an audit."""
    key = "an-operators-key-of-32-characters"
    text = f"""
server: {{listen: 127.0.0.1:0, metrics: null, admin: {{address: "127.0.0.1:0", keys: [{{name: eve, key: {key}}}]}}}}
ledger: sqlite:tollhouse.db
authenticate: {{issued: true}}
providers: {{local: {{kind: local}}}}
models: [{{name: small, targets: [{{provider: local}}]}}]
"""
    async with serving(text, tmp_path) as gateway:
        url = (await gateway.logged(r"admin API on (http\S+)"))[1]
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as operator:
            made = (await operator.post("/api/keys", json={"name": "one"})).json()
            line = ("keys", "create", "two", "--config", "tollhouse.yaml", "--json")
            done = await asyncio.to_thread(run, tmp_path, *line)
            assert done.returncode == 0, done.stderr
            ended = await asyncio.to_thread(run, tmp_path, "keys", "revoke", made["id"], "--config", "tollhouse.yaml")
            assert ended.returncode == 0, ended.stderr
            assert (await operator.delete(f"/api/keys/{made['id']}")).status_code == 200
            (revoked,) = (await operator.get("/api/revocations")).json()["revocations"]
            assert (revoked["kind"], revoked["id"]) == ("jti", made["id"])
    created = await asyncio.to_thread(records, tmp_path, "--operation", "admin.keys.create")
    assert sorted((one["source"], one["target"].split()[1]) for one in created) == [
        ("command", "(two)"), ("operator", "(one)"),
    ]  # fmt: skip
    revoked = await asyncio.to_thread(records, tmp_path, "--operation", "admin.keys.revoke")
    assert sorted(one["source"] for one in revoked) == ["command", "operator"]
    verdict = await asyncio.to_thread(run, tmp_path, "audit", "verify")
    assert verdict.returncode == 0, verdict.stderr


async def test_consents_that_are_given_and_refused(tmp_path: Path) -> None:
    port = free_port()
    text = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:tollhouse.db
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: https://api.example.com, scopes: {{read: Read all}}}}]
  users: [{json.dumps(ADA)}]
  clients: [{json.dumps(APP)}]
"""
    asked = {"client_id": "app", "scope": "openid read", "resource": "https://api.example.com"}
    async with serving(text, tmp_path) as gateway, Browser(gateway) as browser:
        for answer in ("deny", "allow"):
            await browser.get(Flow(gateway, **asked).url)
            if answer == "deny":
                await browser.login()
            await browser.submit(do=answer)
            assert ("code" in browser.answer) is (answer == "allow")
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            answered = await http.post("/oauth/device", data={**asked, "client_secret": APP["secret"]})
        await browser.get(answered.json()["verification_uri_complete"])
        await browser.submit(do="find")
        await browser.submit(do="deny")
        assert "The device gets no access" in browser.page.text
        await browser.get("/oauth/grants")
        await browser.submit(client_id="app")
    (withdrawn,) = await asyncio.to_thread(records, tmp_path, "--operation", "issuer.consent_withdrawn")
    assert (withdrawn["client"], withdrawn["subject"]) == ("app", "ada")
    refused = await asyncio.to_thread(records, tmp_path, "--operation", "issuer.consent_refused")
    (given,) = await asyncio.to_thread(records, tmp_path, "--operation", "issuer.consent")
    assert len(refused) == 2
    for one in (*refused, given):
        assert (one["client"], one["subject"], one["user"]) == ("app", "ada", "ada")
        assert (one["scopes"], one["audience"]) == (["openid", "read"], "https://api.example.com")
        assert one["session"]
    assert PASSWORD not in json.dumps([refused, given])


async def test_the_token_that_was_shown_and_the_one_that_was_made(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    async with guarded(port, Old()) as (guard, server):
        text = exchanging(port, idp, f"    shop: {{url: {server.url}}}", more="ledger: sqlite:tollhouse.db")
        async with serving(text, tmp_path) as gateway:
            await guard.learn()
            actors = {"iss": IDP, "sub": "agent-1", "act": {"iss": IDP, "sub": "planner"}}
            shown = idp.token(f"{gateway.url}/mcp", jti="inbound-1", act=actors)
            async with Agent(gateway, shown) as ada:
                assert "result" in await ada.call()
    (one,) = await asyncio.to_thread(records, tmp_path, "--operation", "tools/call")
    assert (one["jti"], one["minted"]) == ("inbound-1", guard.claims[0]["jti"])
    assert (one["issuer"], one["user"], one["server"], one["target"]) == (IDP, "ada", "shop", "echo")
    assert one["actors"] == [[IDP, "agent-1"], [IDP, "planner"]]
    assert shown not in json.dumps(one)
    assert guard.tokens[0] not in json.dumps(one)
    assert await asyncio.to_thread(records, tmp_path, "--minted", one["minted"]) == [one]


async def test_what_reaches_no_server_is_recorded_too(tmp_path: Path) -> None:
    """Refusals of MCP are answers of status 200; and a program runs in the gateway itself."""
    text = config().replace("mcp: {servers", "mcp: {code_mode: true, servers")
    rules = "    - {name: no-list, deny: 'mcp.method == \"tools/list\"'}\n"

    async with serving(text + rules, tmp_path) as gateway:

        def use() -> None:
            headers = session(gateway)
            body = {"jsonrpc": "2.0", "id": 3, "method": "tools/list"}
            assert "error" in answer_of(gateway.ask("POST", "/mcp", body, headers)[1])
            assert "result" in call(gateway, headers, "run_program", code="print(call_tool('echo', {'message': 'x'}))")

        await asyncio.to_thread(use)
    found = [one for one in records(tmp_path) if not one["operation"].startswith("audit.")]
    told = [(one["operation"], one.get("target", ""), one.get("decision", ""), one["outcome"]) for one in found]
    assert told == [
        ("tools/list", "", "deny", "denied"),
        ("tools/call", "echo", "allow", "ok"),
        ("tools/call", "run_program", "allow", "ok"),
    ]
    assert found[0]["rule"] == "top: no-list"
    assert json.loads(found[2]["arguments"]) == {"code": "print(call_tool('echo', {'message': 'x'}))"}
    assert found[2]["arguments_hash"]
