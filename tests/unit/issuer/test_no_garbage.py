"""Requests leave nothing behind that only the collector would find."""

import gc
import secrets

import pytest
from tests.fixtures.issuer import API, MCP, Node, basic, issuing

from tollhouse.core.http import Headers, Request

pytestmark = pytest.mark.anyio
FORM = [(b"content-type", b"application/x-www-form-urlencoded")]


async def post(node: Node, name: str, body: str, client: str = "") -> int:
    address = next(one for one in node.issuer.addresses if one.path == f"/oauth/{name}")
    shown = [(b"authorization", basic(client).encode())] if client else []
    request = Request(b"POST", address.path.encode(), Headers([*FORM, *shown]), body.encode())
    return (await address.handler(request)).status


async def test_tokens_and_refusals_leave_no_cycles() -> None:
    async with issuing() as node:
        refresh = (await node.login())["refresh_token"]
        bodies = [
            ("token", f"grant_type=client_credentials&resource={MCP}", "robot", 200),
            ("token", "grant_type=client_credentials&resource=x", "robot", 400),
            (
                "token",
                f"grant_type=authorization_code&code={secrets.token_hex(8)}&code_verifier={'v' * 43}",
                "app",
                400,
            ),
            ("token", "grant_type=client_credentials&client_id=nobody", "", 401),
            ("token", f"grant_type=refresh_token&refresh_token={refresh}&scope=admin", "app", 400),
            ("introspect", "token=x", "gateway", 200),
            ("device", f"scope=read&resource={API}", "app", 200),
        ]
        for name, body, client, status in bodies:
            assert await post(node, name, body, client) == status
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                node.wait(60.0)
                for name, body, client, status in bodies:
                    assert await post(node, name, body, client) == status
            assert gc.collect() == 0
        finally:
            gc.enable()
