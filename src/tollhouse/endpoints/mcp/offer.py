"""What an endpoint says of itself at the opening, in either era: the join of what its servers say.

Rule: it is said from what is known, so that no opening waits for a server (though it may for guards, once for what a
server says); and a caller is told nothing of a server of which it may use nothing.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from tollhouse.core.http import Request
from tollhouse.endpoints.mcp.lists import Lists
from tollhouse.endpoints.mcp.server import Features, Server
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.capabilities import UI_EXTENSION

__all__ = ["capabilities", "instructions"]


def capabilities(servers: Mapping[str, Server], revision: str) -> dict[str, Any]:
    """ServerCapabilities (2025-11-25, Lifecycle). A server that was never reached counts as having everything."""
    known = [server.upstream.features for server in servers.values()]

    def any_has(name: str) -> bool:
        return any(features is None or name in features.capabilities for features in known)

    offered: dict[str, Any] = {}
    for name in ("tools", "prompts", "resources"):
        if any_has(name) or (name == "tools" and any(server.connect is not None for server in servers.values())):
            offered[name] = {"listChanged": True}
    if "resources" in offered:
        offered["resources"]["subscribe"] = True
    for name in ("completions", "logging"):
        if any_has(name):
            offered[name] = {}
    has = any(
        features is not None and (tasks.offers if server.upstream.new else tasks.runs)(features.capabilities)
        for features, server in zip(known, servers.values(), strict=True)
    )
    extensions = _extensions(known)
    if has and revisions.is_new(revision):
        extensions[tasks.EXTENSION] = {}
    if extensions:
        offered["extensions"] = extensions
    if has and revisions.has_tasks(revision):
        offered["tasks"] = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    return offered


def _extensions(known: Sequence[Features | None]) -> dict[str, Any]:
    """Those of the servers, but for tasks. One that only one server of several has is nothing to say of all: but what
    is drawn is drawn by tool and resource."""
    found: dict[str, Any] = {}
    for features in known:
        raw = features.capabilities.get("extensions", b"") if features is not None else b""
        try:
            own = jsonrpc.decode_fields(raw)
        except jsonrpc.Malformed:
            continue
        for name, settings in own.items():
            if name != tasks.EXTENSION and (len(known) == 1 or name == UI_EXTENSION):
                found.setdefault(name, settings)
    return found


async def instructions(servers: Mapping[str, Server], lists: Lists, request: Request, agent: Any) -> str:
    """Those of the servers of which this caller may see something, once guards have seen them; "" for none."""
    said: dict[str, str] = {}
    asked: dict[str, Awaitable[str]] = {}
    for server in servers.values():
        if not server.says or not lists.sees(server, request, agent):
            continue
        own = server.instructions()
        if isinstance(own, str):
            said[server.name] = own
        else:
            asked[server.name] = own
    if asked:
        said |= zip(asked, await asyncio.gather(*asked.values()), strict=True)
    told = [(name, said[name]) for name in servers if said.get(name)]
    return "\n\n".join([f"# {name}\n\n{own}" if len(servers) > 1 else own for name, own in told])
