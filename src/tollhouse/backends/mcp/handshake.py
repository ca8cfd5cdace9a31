"""The beginning of a session with an MCP server, in whichever era it is (2025-11-25, Lifecycle; 2026-07-28, Discovery).

Rule: only a DiscoverResult with a version that we speak proves the new era, and only an answer to `initialize` the old
one; an outage proves nothing. What we declare is what those declared whom the session serves.
"""

from typing import Any, Protocol

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, revisions

__all__ = ["OPEN_TIMEOUT", "Features", "Server", "Stranger", "handshake", "refused"]

OPEN_TIMEOUT = 60.0  # seconds for a server to start and shake hands: `npx` may be downloading
_PROBE_TIMEOUT = 5.0  # seconds after which a server that says nothing to a modern probe is an old one


class Features(msgspec.Struct, frozen=True):
    """What a server says of itself at the handshake. capabilities: member to its raw value."""

    revision: str
    capabilities: dict[str, msgspec.Raw]
    instructions: str = ""

    def tells_changes(self, capability: str) -> bool:
        return b'"listChanged":true' in bytes(self.capabilities.get(capability, b"")).replace(b" ", b"")


class Server(Protocol):
    """The server, as far as the handshake knows it. client: raw JSON of our clientInfo. new: its era, None while
    unknown."""

    name: str
    client: bytes
    new: bool | None


class Stranger(Protocol):
    """A session that is being opened (`session.Session`). new: how its requests are written just now. features:
    the outcome."""

    profile: int
    new: bool
    features: Features | None

    @property
    def upstream(self) -> Server: ...

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message: ...

    def tell(self, message: bytes) -> None: ...

    def opened(self) -> None:
        """The handshake was answered: what follows carries its outcome."""
        ...


class _Supported(msgspec.Struct):
    supported: list[str] = msgspec.field(default_factory=list)


async def handshake(session: Stranger) -> None:
    """Find out the server's era, once for the server, and open `session` in it. Raises Failure."""
    upstream = session.upstream
    probed = upstream.new is not False
    if probed and await _discover(session):
        return
    session.new = False
    answer = await _initialize(session, revisions.NEWEST_OLD)
    if len(answer.error):
        problem = jsonrpc.error_fields(answer.error)
        # It was only slow to start, or is another server than it was.
        if (not probed or problem.code == revisions.UNSUPPORTED_VERSION) and await _discover(session):
            return
        offered = _offered(problem)
        if offered:
            answer = await _initialize(session, offered)
        if len(answer.error):
            raise refused(upstream.name, "initialize", problem)
    fields = jsonrpc.decode_result(answer.result)
    revision = jsonrpc.decode_string(fields.get("protocolVersion")) or ""
    if revision not in revisions.ACCEPTED_FROM_SERVERS:
        why = f"{upstream.name}: the server speaks {revision!r}, which we do not"
        raise Failure(502, Reason.UPSTREAM_FAILURE, why)
    session.features = _features(revision, fields)
    upstream.new = False
    session.opened()
    session.tell(jsonrpc.notification("notifications/initialized"))


async def _initialize(session: Stranger, revision: str) -> jsonrpc.Message:
    return await session.ask(
        "initialize",
        {
            "protocolVersion": revision,
            "capabilities": msgspec.Raw(capabilities.render(session.profile)),
            "clientInfo": msgspec.Raw(session.upstream.client),
        },
        OPEN_TIMEOUT,
    )


async def _discover(session: Stranger) -> bool:
    """Whether the server is of the new era; then the session is open."""
    session.new = True
    try:
        params: dict[str, Any] = {"_meta": revisions.new_meta(b"{}", session.upstream.client, None, "")}
        answer = await session.ask("server/discover", params, _PROBE_TIMEOUT)
    except Failure as failure:
        session.new = False
        if failure.reason == Reason.TIMEOUT:
            return False
        raise
    session.new = False
    if not len(answer.result):
        return False
    try:
        fields = jsonrpc.decode_result(answer.result)
        supported = msgspec.json.decode(fields.get("supportedVersions", b"[]"), type=list[str])
    except (jsonrpc.Malformed, msgspec.DecodeError):
        return False
    if revisions.NEWEST_NEW not in supported:
        return False
    session.new = session.upstream.new = True
    session.features = _features(revisions.NEWEST_NEW, fields)
    session.opened()
    return True


def refused(name: str, method: str, problem: jsonrpc.ErrorObject) -> Failure:
    """A request of our own was answered by an error. name: the server's."""
    return Failure(
        502,
        Reason.UPSTREAM_FAILURE,
        f"{name}: the server refused {method!r}: {problem.message[:200]} ({problem.code})",
    )


def _offered(problem: jsonrpc.ErrorObject) -> str:
    """The newest revision of ours that an error says the server speaks, "" for none (2024-11-05, Lifecycle)."""
    if problem.code != jsonrpc.INVALID_PARAMS or not len(problem.data):
        return ""
    try:
        supported = msgspec.json.decode(problem.data, type=_Supported).supported
    except msgspec.DecodeError:
        return ""
    return next((revision for revision in revisions.ACCEPTED_FROM_SERVERS[1:] if revision in supported), "")


def _features(revision: str, fields: dict[str, msgspec.Raw]) -> Features:
    return Features(
        revision,
        jsonrpc.decode_result(fields.get("capabilities", b"")),
        jsonrpc.decode_string(fields.get("instructions")) or "",
    )
