"""`tollhouse serve`: a server that is asked again within one call gets another token, when the first is too old. The
server looks at the time of each."""

import asyncio
import base64
import json
from pathlib import Path
from time import time
from typing import Any

import pytest
from tests.e2e.test_exchange import Agent, Guarded, Idp, config
from tests.fixtures.gateway import Gateway, free_port
from tests.fixtures.mcp_raw import Asked, answer, upstream
from tests.unit.endpoints.mcp.test_bridge import ADA, Stateless

pytestmark = pytest.mark.anyio
NAMES = ("echo", "buy")


class Strict(Guarded):
    """stale: what came with a token that was too old. rounds: the claims that each round of a call came with."""

    def __init__(self, script: Any, issuer: str) -> None:
        super().__init__(script, issuer)
        self.stale: list[str] = []
        self.rounds: list[dict[str, Any]] = []

    def __call__(self, asked: Asked) -> Any:
        token = asked.headers.get("authorization", "..").split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(token + "==")) if token else {}
        if said and said["exp"] < time() - 0.5:
            self.stale.append(asked.method)
            return answer(401)
        if asked.method == "tools/call":
            self.rounds.append(said)
        return super().__call__(asked)


class Form(Agent):
    """One whose user can fill in forms."""

    async def post(self, method: str, params: Any = None) -> Any:
        if method == "initialize":
            params = params | {"capabilities": {"elicitation": {}}}
        return await super().post(method, params)

    async def answered(self, name: str) -> Any:
        """The answer to a call, whose question takes its user a while."""
        body = {"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": {"name": name, "arguments": {}}}
        async with self.http.stream("POST", "/mcp", json=body) as response:
            async for line in response.aiter_lines():
                message = json.loads(line[6:]) if line.startswith("data: {") else {}
                if "method" in message:
                    await asyncio.sleep(2.2)  # longer than any token lives
                    await self.http.post("/mcp", json={"jsonrpc": "2.0", "id": message["id"], "result": ADA})
                elif message:
                    return message
        raise AssertionError("there was no answer")


async def test_rounds_of_a_user_who_takes_his_time(tmp_path: Path) -> None:
    port = free_port()
    idp = Idp(tmp_path)
    script = Stateless()
    script.tools = [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]
    guard = Strict(script, f"http://127.0.0.1:{port}")
    async with upstream(guard) as server:
        guard.audience = server.url
        servers = f"""
    shop:
      url: {server.url}
      exchange: {{ttl: 1s}}
      tools: {{buy: {{exchange: {{audience: tool, reuse: never}}}}}}
    gone:
      url: http://127.0.0.1:1/mcp
      tools: {{echo: {{alternate: shop__buy}}}}
  integrity: {{pins: {tmp_path}/pins.yaml}}
"""
        with Gateway(config(port, idp, servers), tmp_path) as gateway:
            await guard.learn()
            ada = Form(gateway, idp.token(f"{gateway.url}/mcp"))
            async with ada:
                await ada.ask("tools/list")
                told = await asyncio.gather(*(ada.answered(name) for name in ("shop__echo", "shop__buy", "gone__echo")))
    for message in told:
        assert json.loads(message["result"]["content"][0]["text"]) == {"who": ADA}, message
    assert not guard.stale
    audiences = [said["aud"].rpartition("#")[2] for said in guard.rounds]
    assert sorted(audiences) == ["buy"] * 4 + [server.url] * 2
    assert len({said["jti"] for said in guard.rounds}) == 6
