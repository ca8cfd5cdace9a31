"""The Python SDK 1.x as an agent: mcp1.py URL STEPS, where STEPS is JSON, a list of [tool, arguments].

Prints one JSON object: what the server is, what it offers, and what each tool said.
"""

import asyncio
import json
import sys
from typing import Any

import mcp.types as types
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def elicit(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"username": "Ada", "email": "ada@example.com", "name": "Ada"})


async def sample(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="sampled")
    return types.CreateMessageResult(role="assistant", content=content, model="m")


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///root")])  # type: ignore[arg-type]


async def main(url: str, steps: list[tuple[str, dict[str, Any]]]) -> None:
    out: dict[str, Any] = {"logs": [], "progress": [], "said": {}}

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        out["logs"].append(params.data)

    async def progress(done: float, total: float | None, message: str | None) -> None:
        out["progress"].append(done)

    able = {
        "elicitation_callback": elicit,
        "sampling_callback": sample,
        "list_roots_callback": roots,
        "logging_callback": log,
    }
    async with (
        streamablehttp_client(url) as (read, write, session_id),
        ClientSession(read, write, **able) as session,  # type: ignore[arg-type]
    ):
        opened = await session.initialize()
        assert session_id()
        out["revision"] = opened.protocolVersion
        await session.set_logging_level("info")
        out["tools"] = [tool.name for tool in (await session.list_tools()).tools]
        out["resources"] = [str(resource.uri) for resource in (await session.list_resources()).resources]
        out["prompts"] = [prompt.name for prompt in (await session.list_prompts()).prompts]
        for name, arguments in steps:
            result = await session.call_tool(name, arguments, progress_callback=progress)
            out["said"][name] = [getattr(part, "text", part.type) for part in result.content]
        await session.send_ping()
    sys.stdout.write(json.dumps(out))


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
