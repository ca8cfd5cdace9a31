"""MCP for agents: Streamable HTTP at revisions 2025-03-26 to 2025-11-25 (sessions) and 2026-07-28 (stateless).

Rule: the era is settled first, from this request alone; after that both eras walk the same way: name to server, a
ToolCall through that server's chain, and the answer told in the agent's words. What reaches no chain is put to `admit`
first, so that rules and limits see every request. An answer is JSON when the first message is the last one, and an
event stream otherwise. What the methods do is in `methods`.
"""

import logging
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp import batch
from tollhouse.endpoints.mcp.bridge import Retry
from tollhouse.endpoints.mcp.methods import TARGETS, Admit, Methods
from tollhouse.endpoints.mcp.offer import capabilities, instructions
from tollhouse.endpoints.mcp.request import (
    JSON,
    LONGEST_METHOD,
    Asking,
    Refused,
    as_stream,
    failed,
    plain,
    refusal,
    render,
)
from tollhouse.endpoints.mcp.rounds import Pending
from tollhouse.endpoints.mcp.server import Permitted, Server, Upstream
from tollhouse.endpoints.mcp.session import Session
from tollhouse.endpoints.mcp.shared import Left
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.capabilities import profile_of
from tollhouse.wire.mcp.headers import NAMED, request_fault
from tollhouse.wire.mcp.messages import LEVELS

__all__ = ["Admit", "McpEndpoint", "Permitted", "Server", "Upstream", "render"]

log = logging.getLogger("tollhouse.endpoints.mcp")

# What a server answers, through its own chain.
_THROUGH = frozenset((*TARGETS, *tasks.METHODS, *tasks.OLD_METHODS, "completion/complete"))


class Aside(Exception):
    """Why a message that has no answer is not taken."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class McpEndpoint(Methods):
    """Several servers as one, or one alone; `handle` is a Handler of the request floor."""

    # ---- HTTP
    async def handle(self, request: Request) -> Response:
        """Answer one request. Raises Failure for a body that cannot be read, and for a GET or DELETE that `admit`
        refuses."""
        headers = dict(request.headers)
        request.context.operation = "mcp"
        if request.method == b"POST":
            response = await self._post(request, headers)
            accept = headers.get(b"accept")
            return as_stream(response) if accept is not None and accept.startswith(b"text/event-stream") else response
        if request.method not in (b"GET", b"DELETE"):
            return plain(405, "use POST", (b"allow", b"GET, POST, DELETE"))
        if headers.get(b"mcp-protocol-version") == revisions.NEWEST_NEW.encode():
            return plain(405, f"revision {revisions.NEWEST_NEW} has only POST", (b"allow", b"POST"))
        await self._ask(request, "GET" if request.method == b"GET" else "DELETE")
        return await (self._get(request, headers) if request.method == b"GET" else self._delete(request, headers))

    async def _post(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        json, stream = self._accepted.of(headers.get(b"accept"))
        if not (json and stream):
            return plain(406, "accept both application/json and text/event-stream")
        if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            return plain(415, "send content-type: application/json")
        body = await request.read(self._max_body)
        context = request.context
        context.bytes_in = len(body)
        if body[:1] != b"{" and body.lstrip()[:1] == b"[":
            return await self._batch(request, headers, body)
        id = b"null"
        new = False
        due = ""  # the method, while neither a chain nor `admit` was asked
        try:
            message = jsonrpc.decode(body)
            id = bytes(message.id) or id
            version = _version(headers)
            method = message.method
            if len(method) > LONGEST_METHOD:
                what = f"there is no method of more than {LONGEST_METHOD} characters"
                raise Refused(jsonrpc.METHOD_NOT_FOUND, what, status=None if message.is_request else 400)
            context.mcp_method = method
            if message.is_request:
                due = method
                if method not in _THROUGH:
                    due = ""
                    await self._ask(request, method)
            new = method != "initialize" and revisions.is_new(version)
            fields = jsonrpc.decode_fields(message.params)
            raw_meta = fields.pop("_meta", None)
            meta = jsonrpc.decode_fields(raw_meta) if raw_meta is not None else None
            stated = meta is not None and revisions.PROTOCOL_VERSION in meta
            handshake = method == "initialize" and not stated
            new = new or stated
            if new:
                if not message.is_request:
                    return await self._new_aside(request, message, version)
                asking = Asking(request, id, method, None, new=True)
                asking.fields = fields
                asking.endpoint = self.path
                self._check_new(asking, meta)
                answer = self._new.get(method)
            else:
                session = None if handshake else self._session(headers, version, context.principal)
                if session is None and not handshake:
                    session = await self._load(headers, context.principal)
                if not message.is_request:
                    return await self._old_aside(request, message, fields, session)
                if handshake:
                    asking = Asking(request, id, method, None, new=False)
                    asking.fields = fields
                    return await self._initialize(asking)
                asking = Asking(request, id, method, session, new=False)
                asking.fields = fields
                asking.endpoint = self.path
                if session is not None:
                    asking.level = session.level
                    asking.extensions = session.extensions
                answer = self._old.get(method)
            if meta is not None:
                self._read_meta(asking, meta)
            if answer is None:
                self._count(asking)
                raise Refused(jsonrpc.METHOD_NOT_FOUND, f"there is no method {method!r} here")
            response: Response = await answer(asking)
            return response
        except jsonrpc.Malformed as problem:
            status = 400 if problem.code != jsonrpc.INTERNAL_ERROR else 200
            if problem.code == jsonrpc.INVALID_PARAMS and not new:
                status = 200
            told = refusal(id, problem.code, problem.message, None, status)
        except Refused as refused:
            status = refused.status if refused.status is not None else revisions.status_of(refused.code, new=new)
            told = refusal(id, refused.code, refused.message, refused.data, status)
        except Aside as aside:
            raise aside.failure from None
        except Failure as failure:
            return failed(id, failure, context)
        context.mcp_outcome = "protocol_error"
        if due:  # it was refused before its server's chain: guessing names is not free
            try:
                await self._ask(request, due)
            except Failure as failure:
                return failed(id, failure, context)
        return told

    # ---- the old era
    def _session(self, headers: dict[bytes, bytes], version: str, principal: Any) -> Session | None:
        """The session that the headers name; None where it is not in memory (`_load`)."""
        if version and version not in revisions.SESSIONS:
            raise Refused(
                revisions.UNSUPPORTED_VERSION,
                f"revision {version[:40]!r} is not spoken here",
                {"supported": list(revisions.SERVED), "requested": version[:40]},
                status=400,
            )
        id = headers.get(b"mcp-session-id")
        if id is None:
            raise Refused(
                jsonrpc.INVALID_REQUEST, "the header Mcp-Session-Id is missing: begin with initialize", status=400
            )
        session = self._sessions.find(id.decode("latin-1"), _principal(principal), self.path)
        return None if session is None else self._entered(session, principal)

    async def _there(self, headers: dict[bytes, bytes], principal: Any) -> Session:
        """The session that the headers name, in memory or not. Raises Refused."""
        session = self._session(headers, _version(headers), principal)
        return await self._load(headers, principal) if session is None else session

    def _entered(self, session: Session, principal: Principal | None) -> Session:
        session.seen(principal)
        session.servers = self._names
        session.wrap = self._wrap_uris
        return session

    async def _load(self, headers: dict[bytes, bytes], principal: Any) -> Session:
        id = headers[b"mcp-session-id"].decode("latin-1")
        session = await self._sessions.load(id, _principal(principal), self.path, principal)
        if session is None:
            raise Refused(-32001, "there is no such session: begin with initialize", status=404)
        return self._entered(session, principal)

    async def _batch(self, request: Request, headers: dict[bytes, bytes], body: bytes) -> Response:
        """Several messages at once, of a session of the one revision that has that."""
        context = request.context
        context.mcp_method = "batch"
        try:
            version = _version(headers)
            session = None
            if not revisions.is_new(version):
                session = await self._there(headers, context.principal)
            if session is None or session.revision != revisions.BATCHING:
                what = "a batch is not accepted: send one JSON-RPC message a request"
                raise Refused(jsonrpc.INVALID_REQUEST, what, status=400)
            items = batch.split(body)
        except jsonrpc.Malformed as problem:
            told = refusal(b"null", problem.code, problem.message, None, 400)
        except Refused as refused:
            told = refusal(b"null", refused.code, refused.message, refused.data, refused.status or 400)
        else:
            return await batch.answer(request, items, lambda part: self._post(part, headers), self._sessions.holders)
        context.mcp_outcome = "protocol_error"
        await self._ask(request, "batch")  # what is refused as a whole reaches nobody else who counts it
        return told

    async def _initialize(self, asking: Asking) -> Response:
        """`initialize` (2025-11-25, Lifecycle): answered from what is known, without waiting for any server."""
        fields = asking.fields
        asked = jsonrpc.decode_string(fields.get("protocolVersion"))
        if asked is None:
            raise Refused(jsonrpc.INVALID_PARAMS, "protocolVersion is missing", status=400)
        declared = fields.get("capabilities", msgspec.Raw(b""))
        profile = profile_of(declared)
        revision = revisions.negotiate(asked)
        if asking.request.header(b"mcp-protocol-version") == revisions.OLDEST.encode():
            revision = revisions.OLDEST  # over the transport that only that one has (`sse`)
        principal = asking.request.context.principal
        session = self._sessions.open(
            principal=_principal(principal),
            endpoint=self.path,
            servers=self._names,
            revision=revision,
            profile=profile,
            who=principal,
        )
        session.wrap = self._wrap_uris
        if len(self.servers) == 1 and (extensions := bytes(self._bridge.profiles.extensions(declared))):
            session.declare(extensions)
            await self._sessions.saved(session)
        result: dict[str, Any] = {
            "protocolVersion": revision,
            "capabilities": capabilities(self.servers, revision),
            "serverInfo": msgspec.Raw(self._info),
        }
        if said := await instructions(self.servers, self._lists, asking.request, session):
            result["instructions"] = said
        self._count(asking)
        asking.request.context.mcp_outcome = "ok"
        body = jsonrpc.result(asking.id, jsonrpc.encode_fields(result))
        return Response(200, [JSON, (b"mcp-session-id", session.id.encode())], body)

    async def _old_aside(
        self, request: Request, message: jsonrpc.Message, fields: dict[str, msgspec.Raw], session: Session | None
    ) -> Response:
        """A notification or a response in a session: taken, and acknowledged with 202. What ends or carries on what was
        admitted needs not be admitted: a call, or the handshake."""
        if session is None:
            return plain(400, "initialize is a request and needs an id")
        method = message.method
        if message.is_response:
            if not await self._sessions.answered(session, message):
                return plain(400, "no request with this id waits for a response")
            return Response(202, [])
        wanted = bytes(fields.get("requestId", b"")) if method == "notifications/cancelled" else b""
        greets = method == "notifications/initialized" and not session.greeted
        session.greeted = session.greeted or greets
        if greets or (wanted and session.cancel(wanted)):
            return Response(202, [])
        await self._ask_aside(request, method)
        if wanted:
            self._sessions.cancelled(session, wanted)
        elif method == "notifications/roots/list_changed":
            session.roots_changed(partial(self._roots_changed, session))
        return Response(202, [])

    def _roots_changed(self, session: Session) -> None:
        for server in self.servers.values():
            server.upstream.roots_changed(session)

    async def _ask_aside(self, request: Request, method: str) -> None:
        """`_ask`, for a message that has no answer: a refusal is one of HTTP. Raises Aside."""
        try:
            await self._ask(request, method)
        except Failure as failure:
            raise Aside(failure.with_traceback(None)) from None

    async def _get(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        if not self._accepted.of(headers.get(b"accept"))[1]:
            return plain(406, "accept text/event-stream")
        try:
            session = await self._there(headers, request.context.principal)
        except Refused as refused:
            return refusal(b"null", refused.code, refused.message, refused.data, refused.status or 400)
        last = headers.get(b"last-event-id")
        go_on = partial(self._go_on, request)
        after = last.decode("latin-1") if last else None
        return await self._sessions.listen(session, after, go_on, request.context.principal)

    async def _go_on(self, request: Request, session: Session, left: Left) -> Response | None:
        """Answer a call of a session in the place of a worker that is gone: its rules are asked again, and its server
        only where that does no harm."""
        server, kind = self.servers.get(left.server), TARGETS.get(left.method)
        if server is None or kind is None or not (left.place or left.params):
            return None
        asking = Asking(request, left.request, left.method, session, new=False)
        asking.endpoint, asking.token = self.path, left.token
        pending = Pending.read(left.place)
        params = pending.params if pending is not None else left.params
        asking.fields = jsonrpc.decode_fields(params) if params else {}
        asking.retry = Retry(1, partial(_read_on, server, left))
        request.context.mcp_method = left.method
        return as_stream(await self._put(asking, server, kind, left.name))

    async def _delete(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        try:
            session = await self._there(headers, request.context.principal)
        except Refused as refused:
            return refusal(b"null", refused.code, refused.message, refused.data, refused.status or 400)
        await self._sessions.ended(session)
        return Response(204, [])

    # ---- the new era
    def _check_new(self, asking: Asking, meta: dict[str, msgspec.Raw] | None) -> None:
        """What a stateless request must say of itself (2026-07-28, Base Protocol and Streamable HTTP)."""
        missing = [key for key in (revisions.PROTOCOL_VERSION, revisions.CAPABILITIES) if key not in (meta or {})]
        if meta is None or missing:
            raise Refused(jsonrpc.INVALID_PARAMS, f"_meta lacks {' and '.join(missing)}")
        version = jsonrpc.decode_string(meta[revisions.PROTOCOL_VERSION])
        named = jsonrpc.decode_string(asking.fields.get(NAMED.get(asking.method, ""), b""))
        fault = request_fault(asking.request.headers, asking.method, version, named)
        if fault is not None:
            raise Refused(revisions.HEADER_MISMATCH, fault[1], {"header": fault[0]})
        if version is None or not revisions.is_new(version):
            raise Refused(
                revisions.UNSUPPORTED_VERSION,
                f"revision {version!r} is not spoken here without a session",
                {"supported": list(revisions.SERVED), "requested": version},
            )
        if bytes(meta[revisions.CAPABILITIES])[:1] != b"{":
            raise Refused(jsonrpc.INVALID_PARAMS, f"{revisions.CAPABILITIES} must be an object")
        profiles, declared = self._bridge.profiles, meta[revisions.CAPABILITIES]
        asking.profile = profiles.of(declared)
        if len(self.servers) == 1:
            asking.extensions = profiles.extensions(declared)
        level = jsonrpc.decode_string(meta.get(revisions.LOG_LEVEL))
        if level is not None and level not in LEVELS:
            raise Refused(jsonrpc.INVALID_PARAMS, f"{revisions.LOG_LEVEL} must be one of {', '.join(LEVELS)}")
        asking.level = level or ""

    async def _new_aside(self, request: Request, message: jsonrpc.Message, version: str) -> Response:
        """Stateless agents have nothing to notify us of; what they send is acknowledged and dropped."""
        if message.is_response:
            raise Refused(jsonrpc.INVALID_REQUEST, "responses are not sent in this revision")
        if not revisions.is_new(version):
            data = {"supported": list(revisions.SERVED), "requested": version[:40]}
            raise Refused(revisions.UNSUPPORTED_VERSION, "the header MCP-Protocol-Version is missing or unknown", data)
        await self._ask_aside(request, message.method)
        return Response(202, [])

    # ---- both
    def _read_meta(self, asking: Asking, meta: dict[str, msgspec.Raw]) -> None:
        token = meta.get("progressToken")
        if token is not None:
            raw = bytes(token)
            if jsonrpc.as_id(raw) is None:
                raise Refused(jsonrpc.INVALID_PARAMS, "progressToken must be a string or an integer")
            asking.token = raw
        asking.meta = revisions.passing_meta(meta)


async def _read_on(server: Server, left: Left, call: ToolCall) -> Reply:
    call.resume = None
    upstream = server.upstream
    call.idempotent = bool(left.params)
    pending = Pending.read(left.place)
    if pending is not None:
        if upstream.new is None:  # nobody has reached it from here
            await upstream.listing(TARGETS["tools/call"], call.session, call.principal, call.profile)
        if upstream.new:
            return Reply(200, [JSON], jsonrpc.result(0, pending.result))
        raise Failure(503, Reason.MCP, f"{call.server}: the server is another than it was", code="call_lost")
    try:
        if left.place:
            call.resume = partial(_adopted, upstream, left.place)
            return await server.again(call)
    except Failure as failure:
        if not left.params:
            raise
        call.resume = None
        log.info("mcp: %s: a call is made again: %s", call.server, failure.message)
    return await server.again(call)


async def _adopted(upstream: Upstream, place: bytes, call: ToolCall) -> Reply:
    """In the place of a server that is at work on the call already."""
    call.resume = None
    return await upstream.adopt(call, place)


def _version(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"mcp-protocol-version", b"").decode("latin-1")


def _principal(principal: Any) -> str:
    """Whose session it is; "" for all who have not said who they are."""
    return principal.id if principal is not None and principal.source != "anonymous" else ""
