"""What an endpoint says of itself at the opening, in either era: the join of what its servers say.

Rule: it is said from what is known, so that no opening waits for a server; and a caller is told nothing of a server
of which it may use nothing.
"""

from collections.abc import Mapping
from typing import Any

from tollhouse.core.http import Request
from tollhouse.endpoints.mcp_lists import Lists, Server

__all__ = ["capabilities", "instructions"]


def capabilities(servers: Mapping[str, Server], *, new: bool) -> dict[str, Any]:
    """ServerCapabilities (2025-11-25, Lifecycle). A server that was never reached counts as having everything."""
    known = [server.upstream.features for server in servers.values()]

    def any_has(name: str) -> bool:
        return any(features is None or name in features.capabilities for features in known)

    offered: dict[str, Any] = {}
    for name in ("tools", "prompts", "resources"):
        if any_has(name):
            offered[name] = {"listChanged": True}
    if "resources" in offered and not new:
        offered["resources"]["subscribe"] = True
    for name in ("completions", "logging"):
        if any_has(name):
            offered[name] = {}
    return offered


def instructions(servers: Mapping[str, Server], lists: Lists, request: Request, agent: Any) -> str:
    """Those of the servers of which this caller may see something; "" for none."""
    said = []
    for server in servers.values():
        features = server.upstream.features
        if features is not None and features.instructions and lists.sees(server, request, agent):
            said.append(f"# {server.name}\n\n{features.instructions}" if len(servers) > 1 else features.instructions)
    return "\n\n".join(said)
