"""Credentials of providers in a running gateway: renewed while it serves, and taken from where platforms put them."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import provider
from tests.fixtures.wire import Answer, once
from tests.unit.backends.tokens import Asked, endpoint, token

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null}}
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", {credential}}}}}
models: [{{name: smart, targets: [{{provider: one, model: ok}}]}}]
"""
BODY = json.dumps({"model": "smart", "messages": [{"role": "user", "content": "hi"}]}).encode()


async def ask(gateway: Gateway) -> Answer:
    return await once(gateway.url, "POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})


async def test_renewing_delays_no_request(tmp_path: Path) -> None:
    """The token lasts six seconds, is renewed after three, and that takes one."""
    count = 0

    async def given(_: Asked) -> bytes:
        nonlocal count
        count += 1
        number = count
        if number > 1:
            await asyncio.sleep(1)
        return token(f"token-{number}", 6)

    async with provider() as models, endpoint({"/token": given}) as idp:
        auth = f'auth: {{token_url: "{idp.url}/token", client_id: gateway, client_secret: hush}}'
        async with serving(CONFIG.format(port=models.port, credential=auth), tmp_path) as gateway:
            assert (await ask(gateway)).status == 200
            slowest = 0.0
            async with asyncio.timeout(15):
                while models.seen[-1].headers["authorization"] != "Bearer token-2":
                    began = time.monotonic()
                    assert (await ask(gateway)).status == 200
                    slowest = max(slowest, time.monotonic() - began)
                    await asyncio.sleep(0.02)
            assert slowest < 0.8
            assert {one.headers["authorization"] for one in models.seen} == {"Bearer token-1", "Bearer token-2"}
            assert "hush" not in gateway.text()
            assert "token-" not in gateway.text()


async def test_a_kubernetes_secret_is_swapped(tmp_path: Path) -> None:
    """A mounted Secret: each file is a link through `..data`, a link to a directory that is replaced."""
    volume = tmp_path / "secret"
    volume.mkdir()

    def put(number: int) -> None:
        (volume / f"..{number}").mkdir()
        (volume / f"..{number}" / "key").write_text(f"key-of-the-provider-{number}")
        (volume / "..data_tmp").symlink_to(f"..{number}")
        (volume / "..data_tmp").rename(volume / "..data")

    put(1)
    (volume / "key").symlink_to("..data/key")
    async with provider() as models:
        credential = 'api_key: "${file:secret/key}"'
        async with serving(CONFIG.format(port=models.port, credential=credential), tmp_path) as gateway:
            assert (await ask(gateway)).status == 200
            put(2)
            await gateway.logged(r"configuration 2 serves", 0)
            assert (await ask(gateway)).status == 200
            assert [one.headers["authorization"] for one in models.seen] == [
                "Bearer key-of-the-provider-1",
                "Bearer key-of-the-provider-2",
            ]
            assert "key-of-the-provider" not in gateway.text()


async def test_a_platforms_token_is_read_again(tmp_path: Path) -> None:
    """Workload identity: the file is no setting, so that its change is no change of the configuration."""
    (tmp_path / "platform").write_text("platform-token-1")
    answers = {"/tenant-1/oauth2/v2.0/token": lambda asked: token(f"entra-for-{asked.form['client_assertion']}", 4)}
    config = CONFIG.replace("kind: openai", "kind: azure").replace("/v1", "")
    async with provider() as models, endpoint(answers) as idp:
        auth = f'auth: {{tenant: tenant-1, client_id: app, token_file: platform, authority: "{idp.url}"}}'
        async with serving(config.format(port=models.port, credential=auth), tmp_path) as gateway:
            assert (await ask(gateway)).status == 200
            (tmp_path / "platform").write_text("platform-token-2")
            await until(lambda: len(idp.asked) > 1)
            await until(lambda: idp.asked[-1].form["client_assertion"] == "platform-token-2")
            await asyncio.sleep(0.2)
            assert (await ask(gateway)).status == 200
            assert models.seen[0].headers["authorization"] == "Bearer entra-for-platform-token-1"
            assert models.seen[-1].headers["authorization"] == "Bearer entra-for-platform-token-2"
            assert "configuration 2" not in gateway.text()
