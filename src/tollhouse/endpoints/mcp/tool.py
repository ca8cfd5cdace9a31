"""A tool that is called in a caller's name without a message of its agent: by its server and its name there.

Rule: it is the same tool. The call goes through the server's whole chain, as if an agent had made it; but nobody can be
asked anything within it.
"""

from typing import Any

import msgspec

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.errors import Failure
from tollhouse.core.http import Request
from tollhouse.endpoints.mcp.listen import final
from tollhouse.endpoints.mcp.request import outcome_of
from tollhouse.endpoints.mcp.server import Server
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import KINDS, Entry

__all__ = ["call_of", "carried_out"]

_TOOLS = KINDS["tools/list"]


def call_of(
    server: Server,
    name: str,
    arguments: msgspec.Raw,
    request: Request,
    context: Context,
    *,
    session: Any = None,
    profile: int = 0,
    ours: bool = False,
) -> tuple[ToolCall, Entry | None]:
    """The call of a tool by its server's own name, noted in `context`; and what its server says of it, None while that
    is not known. arguments: by the names that agents know. session, profile: of the caller's lists. ours: as in
    `lists.Found`. Raises Malformed for arguments that the tool cannot have."""
    context.server = context.backend = server.name
    context.tool = name
    fields = {"name": msgspec.Raw(msgspec.json.encode(name)), "arguments": arguments}
    entry: Entry | None
    if ours:
        entry = server.connect.entry if server.connect is not None else None
    else:
        if server.overrides is not None:
            fields["arguments"] = msgspec.Raw(server.overrides.to_server(name, arguments))
        known = server.upstream.known(_TOOLS, session, profile, context.principal)
        entry = known.index.get(name) if known is not None else None
    call = ToolCall(
        request,
        context,
        server=server.name,
        method="tools/call",
        name=name,
        params=fields,
        session=session,
        idempotent=entry is not None and entry.repeatable,
        definition=entry.raw if entry is not None else b"",
        connects=ours,
    )
    context.arguments = call.arguments
    return call, entry


async def carried_out(server: Server, call: ToolCall) -> jsonrpc.Message:
    """The server's response to it, through its chain. Raises Failure."""
    try:
        return await final(call, await (server.tools.get(call.name) or server.chain)(call))
    except Failure as failure:
        call.context.mcp_outcome = outcome_of(failure)
        raise
