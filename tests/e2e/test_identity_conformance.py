"""The public MCP conformance suite as it tests authorization servers: our issuer's metadata, and a whole code grant."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from tests.fixtures.auth_provider import HASH, Browser, Provider
from tests.fixtures.gateway import free_port, serving
from tests.fixtures.mcp_suite import NODE, NODE_FILES, PROGRAM, needs_suite, read

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
