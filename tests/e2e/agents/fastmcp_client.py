"""FastMCP's client as an agent: fastmcp_client.py URL STEPS, as mcp1.py."""

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client


async def elicit(message: str, kind: Any, params: Any, context: Any) -> Any:
    return {"username": "Ada", "email": "ada@example.com", "name": "Ada"}


async def sample(messages: Any, params: Any, context: Any) -> str:
    return "sampled"


async def main(url: str, steps: list[tuple[str, dict[str, Any]]]) -> None:
    out: dict[str, Any] = {"logs": [], "progress": [], "said": {}}

    async def log(message: Any) -> None:
        out["logs"].append(message.data)

    async def progress(done: float, total: float | None, message: str | None) -> None:
        out["progress"].append(done)

    able = {"elicitation_handler": elicit, "sampling_handler": sample, "roots": ["file:///root"], "log_handler": log}
    async with Client(url, progress_handler=progress, **able) as client:  # type: ignore[arg-type]
        out["revision"] = client.session.protocol_version
        out["tools"] = [tool.name for tool in await client.list_tools()]
        out["resources"] = [str(resource.uri) for resource in await client.list_resources()]
        out["prompts"] = [prompt.name for prompt in await client.list_prompts()]
        for name, arguments in steps:
            result = await client.call_tool(name, arguments, raise_on_error=False)
            out["said"][name] = [getattr(part, "text", part.type) for part in result.content]
    sys.stdout.write(json.dumps(out))


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
