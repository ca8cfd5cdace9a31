"""The public MCP conformance suite for authorization: our issuer's metadata and a whole code grant; and every scenario
for clients, the client being the gateway that connects a user's account at the suite's server (`oauth: on`)."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import yaml
from tests.fixtures.auth_provider import HASH, Browser, Flow, Provider, registered
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.mcp_suite import NODE, NODE_FILES, PROGRAM, ROOT, needs_suite, read

pytestmark = [pytest.mark.anyio, needs_suite]

API = "https://api.example.com"
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{hash}"}}]
  registration: {{dynamic: loopback}}
  resources: [{{uri: {api}}}]
  clients: [{{id: suite, redirect_uris: ["http://127.0.0.1:{callback}/callback"]}}]
"""


async def test_the_suite_for_authorization_servers_passes_whole(tmp_path: Path) -> None:
    # A public client: the suite takes `none` wherever that is offered, also of a client that has a secret.
    callback = free_port()
    config = CONFIG.format(port=free_port(), hash=HASH, api=API, callback=callback)
    async with serving(config, tmp_path) as gateway:
        command = [
            str(NODE), str(PROGRAM), "authorization", "--url", gateway.url, "--client-id", "suite",
            "--resource", API, "--port", str(callback), "-o", str(tmp_path / "out"),
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2, cwd=NODE_FILES)
        said = ""
        try:
            assert process.stdout is not None
            async with asyncio.timeout(50), Browser(cast("Provider", SimpleNamespace(url=gateway.url))) as browser:
                while (url := re.search(r"(http\S+/oauth/authorize\S+)\s", said)) is None or "started" not in said:
                    line = await process.stdout.readline()
                    assert line, said
                    said += line.decode()
                await browser.get(url[1])
                await browser.login()
                await browser.submit(do="allow")
                async with httpx.AsyncClient() as http:
                    await http.get(browser.left)
                said += (await process.stdout.read()).decode()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        checks = read(tmp_path / "out")
        assert process.returncode == 0, said
        assert {check.status for check in checks.values()} == {"SUCCESS"}, (checks, said)
        assert {name.rpartition(":")[2] for name in checks} >= {
            "authorization-server-metadata", "authorization-server-metadata-cimd", "authorization-code-grant",
        }  # fmt: skip


# ---- the gateway as a client

CIMD = "https://conformance-test.local/client-metadata.json"
"""Who the suite's issuer knows by a document; who we are by ours, tests/e2e/test_accounts_providers.py shows."""
REFUSED = {
    # Here the right client does not get through, and says so.
    "auth/resource-mismatch", "auth/metadata-issuer-mismatch", "auth/scope-retry-limit", "auth/iss-supported-missing",
    "auth/iss-wrong-issuer", "auth/iss-unexpected", "auth/iss-normalized",
}  # fmt: skip
LEFT_OUT = {
    "auth/2025-03-26-oauth-endpoint-fallback": "an issuer without metadata does not say that it can do PKCE; the "
    "operator names its endpoints",
    **dict.fromkeys(
        ("auth/client-credentials-jwt", "auth/client-credentials-basic", "auth/wif-jwt-bearer"),
        "extension: a client for itself, and accounts are of users",
    ),
    "auth/enterprise-managed-authorization": "extension: our issuer takes such assertions; the gateway shows none",
    **dict.fromkeys(("auth/dpop", "auth/dpop-nonce"), "extension: tokens of accounts are bearer tokens"),
}
"""Of the suite's scenarios for clients, those that are not run, and why."""


class Told:
    """A scenario that waits for its client. server: its name in our configuration."""

    def __init__(self, said: dict[str, Any], out: Path, process: asyncio.subprocess.Process) -> None:
        self.scenario: str = said["scenario"]
        self.server = f"at-{self.scenario.removeprefix('auth/')}"
        self.url: str = said["url"]
        self.out = out
        self.process = process
        self._context = said["context"]

    @property
    def settings(self) -> Any:
        if self.scenario == "auth/basic-cimd":
            return {"client_id": CIMD}
        known = {name: self._context[name] for name in ("client_id", "client_secret") if name in self._context}
        return known or "on"


async def scenarios() -> dict[str, str]:
    """Each of the suite's for clients that have to log in, with the newest revision that it is of: what it looks at is
    the same in all of them."""
    process = await asyncio.create_subprocess_exec(str(NODE), str(PROGRAM), "list", stdout=-1, cwd=NODE_FILES)
    said = (await process.communicate())[0].decode()
    found = dict(re.findall(r"- (auth/\S+) \[(.*)\]", said))
    assert found.keys() > LEFT_OUT.keys()
    return {name: max(of.split(",")) for name, of in found.items() if name not in LEFT_OUT}


@asynccontextmanager
async def suite(where: Path) -> AsyncIterator[list[Told]]:
    """All at once, for they mostly wait. Afterwards each is told that it is done with."""
    said: asyncio.Queue[tuple[dict[str, Any], asyncio.StreamWriter]] = asyncio.Queue()
    processes: dict[str, asyncio.subprocess.Process] = {}

    async def started(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.put_nowait((json.loads(await reader.readline()), writer))

    listener = await asyncio.start_server(started, "127.0.0.1", 0)
    command = f"{sys.executable} {ROOT}/tests/fixtures/suite_client.py {listener.sockets[0].getsockname()[1]}"
    writers = []
    try:
        for name, revision in (await scenarios()).items():
            processes[name] = await asyncio.create_subprocess_exec(
                str(NODE), str(PROGRAM), "client", "--command", command, "--scenario", name, "--spec-version", revision,
                "--timeout", "120000", "-o", str(where / name), stdout=-1, stderr=-2, cwd=NODE_FILES,
            )  # fmt: skip
        found = []
        async with asyncio.timeout(90):
            for _ in processes:
                one, writer = await said.get()
                writers.append(writer)
                found.append(Told(one, where / one["scenario"], processes[one["scenario"]]))
        yield found
        for writer in writers:
            writer.write(b".")
        for told in found:
            (told.out / "said").write_bytes((await told.process.communicate())[0])
    finally:
        for writer in writers:
            writer.close()
        listener.close()
        for process in processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


class Ada:
    """Somebody whose agent calls tools of all servers at `/mcp`, and who follows the links."""

    def __init__(self, gateway: Gateway, http: httpx.AsyncClient, browser: Browser, token: str) -> None:
        self.url = f"{gateway.url}/mcp"
        self.http = http
        self.browser = browser
        self.token = token

    async def call(self, server: str) -> str:
        name = "io.modelcontextprotocol/"
        meta = {f"{name}protocolVersion": "2026-07-28", f"{name}clientCapabilities": {}}
        tool = f"{server}__test-tool"
        params = {"name": tool, "arguments": {}, "_meta": meta}
        headers = {
            "authorization": f"Bearer {self.token}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call",
            "mcp-name": tool,
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return (await self.http.post(self.url, headers=headers, json=body)).text

    async def follow(self, link: str) -> None:
        """To the service, which lets everybody in, and back, as far as it goes."""
        await self.browser.get(link)
        await self.browser.submit(do="connect")
        if self.browser.left:
            answer = await self.http.get(self.browser.left)
            await self.browser.get(answer.headers["location"])

    async def use(self, server: str) -> str:
        """What the tool says, after as many links as a patient user follows."""
        said = await self.call(server)
        for _ in range(2):
            link = re.search(r"http://[^\s\"\\]+/oauth/upstream/start\?l=[\w.-]+", said)
            if link is None:
                break
            await self.follow(link[0])
            said = await self.call(server)
        return said


@asynccontextmanager
async def ada(where: Path, told: list[Told]) -> AsyncIterator[Ada]:
    port = free_port()
    servers: dict[str, Any] = {one.server: {"url": one.url, "oauth": one.settings} for one in told}
    config = {
        "server": {"listen": f"127.0.0.1:{port}", "metrics": None, "shutdown": {"min": "0s", "max": "5s"}},
        "egress": {"allow": ["localhost"]},
        "state": {"url": "file:tollhouse.state", "encryption_key": "8yE2kq0c1nYtqkZfVnX0mJm6c2o5S1d9Qw3Gx7Lh4Ts="},
        "authenticate": {},
        "mcp": {"servers": servers},
        "issuer": {
            "url": f"http://127.0.0.1:{port}",
            "users": [{"name": "ada", "password_hash": HASH}],
            "registration": {"dynamic": "loopback"},
        },
    }
    async with serving(yaml.safe_dump(config), where) as gateway, httpx.AsyncClient(timeout=60) as http:
        provider = cast("Provider", SimpleNamespace(url=gateway.url))
        asked = {"redirect_uri": "http://127.0.0.1:1/cb", "scope": None, "resource": f"{gateway.url}/mcp"}
        id = await registered(provider, redirect_uris=[asked["redirect_uri"]])
        async with Browser(provider) as browser:
            flow = Flow(provider, client_id=id, **asked)
            await browser.get(flow.url)
            await browser.login()
            await browser.submit(do="allow")
            token = (await flow.redeem(browser.answer["code"])).json()["access_token"]
            yield Ada(gateway, http, browser, token)


@pytest.mark.timeout(240)
async def test_the_suite_for_clients_passes_whole(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    answers = {}
    async with suite(tmp_path) as told, ada(tmp_path / "gateway", told) as user:
        for one in told:
            answers[one.server] = await user.use(one.server)
    wrong = []
    for one in told:
        checks = read(one.out)
        bad = {name: check for name, check in checks.items() if check.status not in ("SUCCESS", "INFO")}
        is_through = '"text":"test"' in answers[one.server]
        if one.process.returncode or bad or not checks or is_through == (one.scenario in REFUSED):
            wrong.append(f"{one.server}: {bad or (one.out / 'said').read_text()}: {answers[one.server][:500]}")
    assert not wrong, "\n".join(wrong)
