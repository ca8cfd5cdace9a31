"""MCP for agents: Streamable HTTP at revisions 2025-06-18 and 2025-11-25 (sessions) and 2026-07-28 (stateless).

Rule: the era is settled first, from this request alone; after that both eras walk the same way: name to server, a
ToolCall through that server's chain, and the answer told in the agent's words. What reaches no chain is put to `admit`
first, so that rules and limits see every request. An answer is JSON when the first message is the last one, and an
event stream otherwise.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Request, Response
from tollhouse.endpoints.mcp_call import put
from tollhouse.endpoints.mcp_lists import Lists, Permitted, Server, Upstream
from tollhouse.endpoints.mcp_offer import capabilities, instructions
from tollhouse.endpoints.mcp_request import (
    JSON,
    LONGEST_METHOD,
    Accepted,
    Asking,
    Refused,
    failed,
    named,
    outcome_of,
    plain,
    refusal,
    render,
)
from tollhouse.endpoints.mcp_session import Session, Sessions
from tollhouse.observe.families import Families
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names, revisions
from tollhouse.wire.mcp.capabilities import profile_of
from tollhouse.wire.mcp.catalogue import KINDS, Cursors, Kind
from tollhouse.wire.mcp.headers import NAMED, param_mismatch, request_fault
from tollhouse.wire.mcp.messages import LEVELS

__all__ = ["Admit", "McpEndpoint", "Permitted", "Server", "Upstream", "render"]

Admit = Callable[[ToolCall], Awaitable[None]]
"""Asked before what reaches no server: rules and limits of the endpoint. Raises Failure."""

_ASSUMED = "2025-03-26"  # what a missing version header means (2025-11-25, Streamable HTTP)

_TOOLS, _PROMPTS = KINDS["tools/list"], KINDS["prompts/list"]
_RESOURCES, _TEMPLATES = KINDS["resources/list"], KINDS["resources/templates/list"]
_TARGETS: dict[str, Kind] = {
    "tools/call": _TOOLS,
    "prompts/get": _PROMPTS,
    "resources/read": _RESOURCES,
    "resources/subscribe": _RESOURCES,
    "resources/unsubscribe": _RESOURCES,
}
_SUBSCRIBING = frozenset(("resources/subscribe", "resources/unsubscribe"))
_THROUGH = frozenset((*_TARGETS, "completion/complete"))  # what a server answers, through its own chain


class McpEndpoint:
    """Several servers as one, or one alone; `handle` is a Handler of the request floor.

    path: names the endpoint; sessions are bound to it. prefix, failure: as in config. admit: awaited with a ToolCall
    that has no server and no name before every request that goes through no server's chain (its method is the
    JSON-RPC one, or GET or DELETE); notifications are not asked about. max_body: bytes of a request. info: raw JSON of
    serverInfo. families: metrics, or None.
    """

    def __init__(
        self,
        path: str,
        servers: Mapping[str, Server],
        sessions: Sessions,
        clock: Clock,
        *,
        cursors: Cursors,
        info: bytes,
        prefix: names.Prefix = "auto",
        failure: Literal["open", "closed"] = "open",
        admit: Admit | None = None,
        max_body: int = 10 << 20,
        page: int = 1000,
        families: Families | None = None,
    ) -> None:
        self.path = path
        self.servers = dict(servers)
        self._sessions = sessions
        self._clock = clock
        self._info = info
        self._max_body = max_body
        self._families = families
        self._names = frozenset(self.servers)
        self._wrap = names.prefixed(prefix, len(self.servers))
        self._wrap_uris = self._wrap or len(self.servers) > 1
        self._lists = Lists(
            self.servers,
            endpoint=path,
            wrap=self._wrap,
            wrap_uris=self._wrap_uris,
            failure=failure,
            cursors=cursors,
            page=page,
        )
        self._admit = admit
        self._accepted = Accepted()
        self._new: dict[str, Callable[[Asking], Any]] = {
            "server/discover": self._discover,
            "subscriptions/listen": self._listen,
        }
        self._old: dict[str, Callable[[Asking], Any]] = {"ping": self._ping, "logging/setLevel": self._set_level}
        for methods in (self._new, self._old):
            for method in KINDS:
                methods[method] = self._list
            methods["completion/complete"] = self._complete
            for method in ("tools/call", "prompts/get", "resources/read"):
                methods[method] = self._call
        for method in _SUBSCRIBING:
            self._old[method] = self._call

    # ---- HTTP
    async def handle(self, request: Request) -> Response:
        """Answer one request. Raises Failure for a body that cannot be read, and for a GET or DELETE that `admit`
        refuses."""
        headers = dict(request.headers)
        request.context.operation = "mcp"
        if request.method == b"POST":
            return await self._post(request, headers)
        if request.method not in (b"GET", b"DELETE"):
            return plain(405, "use POST", (b"allow", b"GET, POST, DELETE"))
        if headers.get(b"mcp-protocol-version") == revisions.NEWEST_NEW.encode():
            return plain(405, f"revision {revisions.NEWEST_NEW} has only POST", (b"allow", b"POST"))
        await self._ask(request, "GET" if request.method == b"GET" else "DELETE")
        return self._get(request, headers) if request.method == b"GET" else self._delete(request, headers)

    async def _ask(self, request: Request, method: str) -> None:
        """Whether this request may be made, though no server is asked. Raises Failure."""
        if self._admit is not None:
            call = ToolCall(request, request.context, server="", method=method, name="", params={})
            try:
                await self._admit(call)
            except Failure as failure:
                request.context.mcp_outcome = outcome_of(failure)
                raise

    async def _post(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        json, stream = self._accepted.of(headers.get(b"accept"))
        if not (json and stream):
            return plain(406, "accept both application/json and text/event-stream")
        if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            return plain(415, "send content-type: application/json")
        body = await request.read(self._max_body)
        context = request.context
        context.bytes_in = len(body)
        id = b"null"
        new = False
        due = ""  # the method, while neither a chain nor `admit` was asked
        try:
            message = jsonrpc.decode(body)
            id = bytes(message.id) or id
            version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
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
            handshake = method == "initialize"
            new = not handshake and revisions.is_new(version)
            fields = jsonrpc.decode_fields(message.params)
            raw_meta = fields.pop("_meta", None)
            meta = jsonrpc.decode_fields(raw_meta) if raw_meta is not None else None
            if meta is not None and revisions.PROTOCOL_VERSION in meta and not handshake:
                new = True
            if new:
                if not message.is_request:
                    return self._new_aside(message, version)
                asking = Asking(request, id, method, None, new=True)
                asking.fields = fields
                self._check_new(asking, meta)
                answer = self._new.get(method)
            else:
                session = None if handshake else self._session(headers, version, context.principal)
                if not message.is_request:
                    return self._old_aside(message, fields, session)
                if handshake:
                    asking = Asking(request, id, method, None, new=False)
                    asking.fields = fields
                    return self._initialize(asking)
                asking = Asking(request, id, method, session, new=False)
                asking.fields = fields
                asking.level = session.level if session is not None else ""
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
    def _session(self, headers: dict[bytes, bytes], version: str, principal: Any) -> Session:
        if version and version not in revisions.OLD and version != _ASSUMED:
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
        if session is None:
            raise Refused(-32001, "there is no such session: begin with initialize", status=404)
        session.touch()
        session.servers = self._names
        session.wrap = self._wrap_uris
        return session

    def _initialize(self, asking: Asking) -> Response:
        """`initialize` (2025-11-25, Lifecycle): answered from what is known, without waiting for any server."""
        fields = asking.fields
        asked = jsonrpc.decode_string(fields.get("protocolVersion"))
        if asked is None:
            raise Refused(jsonrpc.INVALID_PARAMS, "protocolVersion is missing", status=400)
        profile = profile_of(fields.get("capabilities", b""))
        revision = revisions.negotiate(asked)
        session = self._sessions.open(
            principal=_principal(asking.request.context.principal),
            endpoint=self.path,
            servers=self._names,
            revision=revision,
            profile=profile,
        )
        session.wrap = self._wrap_uris
        result: dict[str, Any] = {
            "protocolVersion": revision,
            "capabilities": capabilities(self.servers, new=False),
            "serverInfo": msgspec.Raw(self._info),
        }
        if said := instructions(self.servers, self._lists, asking.request, session):
            result["instructions"] = said
        self._count(asking)
        asking.request.context.mcp_outcome = "ok"
        body = jsonrpc.result(asking.id, jsonrpc.encode_fields(result))
        return Response(200, [JSON, (b"mcp-session-id", session.id.encode())], body)

    def _old_aside(self, message: jsonrpc.Message, fields: dict[str, msgspec.Raw], session: Session | None) -> Response:
        """A notification or a response in a session: taken, and acknowledged with 202."""
        if session is None:
            return plain(400, "initialize is a request and needs an id")
        method = message.method
        if message.is_response:
            session.answered(message)
        elif method == "notifications/cancelled":
            call = session.calls.get(bytes(fields.get("requestId", b"")))
            if call is not None:
                call.cancel()
        elif method == "notifications/roots/list_changed":
            for server in self.servers.values():
                server.upstream.roots_changed(session)
        return Response(202, [])

    def _get(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        if not self._accepted.of(headers.get(b"accept"))[1]:
            return plain(406, "accept text/event-stream")
        try:
            version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
            session = self._session(headers, version, request.context.principal)
        except Refused as refused:
            return refusal(b"null", refused.code, refused.message, refused.data, refused.status or 400)
        return session.outlet().response()

    def _delete(self, request: Request, headers: dict[bytes, bytes]) -> Response:
        try:
            version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
            session = self._session(headers, version, request.context.principal)
        except Refused as refused:
            return refusal(b"null", refused.code, refused.message, refused.data, refused.status or 400)
        self._sessions.end(session)
        return Response(204, [])

    async def _ping(self, asking: Asking) -> Response:
        return self._whole(asking, b"{}")

    async def _set_level(self, asking: Asking) -> Response:
        session = asking.session
        level = jsonrpc.decode_string(asking.fields.get("level"))
        if session is None or level not in LEVELS:
            raise Refused(jsonrpc.INVALID_PARAMS, f"level must be one of {', '.join(LEVELS)}")
        session.level = level
        for server in self.servers.values():
            server.upstream.level_changed(session)
        return self._whole(asking, b"{}")

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
        level = jsonrpc.decode_string(meta.get(revisions.LOG_LEVEL))
        if level is not None and level not in LEVELS:
            raise Refused(jsonrpc.INVALID_PARAMS, f"{revisions.LOG_LEVEL} must be one of {', '.join(LEVELS)}")
        asking.level = level or ""

    def _new_aside(self, message: jsonrpc.Message, version: str) -> Response:
        """Stateless agents have nothing to notify us of; what they send is acknowledged and dropped."""
        if message.is_response:
            raise Refused(jsonrpc.INVALID_REQUEST, "responses are not sent in this revision")
        if not revisions.is_new(version):
            data = {"supported": list(revisions.SERVED), "requested": version[:40]}
            raise Refused(revisions.UNSUPPORTED_VERSION, "the header MCP-Protocol-Version is missing or unknown", data)
        return Response(202, [])

    async def _discover(self, asking: Asking) -> Response:
        result: dict[str, Any] = {
            "supportedVersions": list(revisions.SERVED),
            "capabilities": capabilities(self.servers, new=True),
            "serverInfo": msgspec.Raw(self._info),
            "ttlMs": 5000,
        }
        if said := instructions(self.servers, self._lists, asking.request, None):
            result["instructions"] = said
        return self._whole(asking, jsonrpc.encode_fields(result))

    async def _listen(self, asking: Asking) -> Response:
        try:
            wanted = msgspec.json.decode(asking.fields.get("notifications", b"{}"), type=dict[str, Any])
        except msgspec.DecodeError:
            raise Refused(jsonrpc.INVALID_PARAMS, "notifications must be an object") from None
        self._count(asking)
        asking.request.context.mcp_outcome = "ok"
        return self._sessions.subscribe(asking.id, wanted, self._names).outlet.response()

    # ---- both
    def _read_meta(self, asking: Asking, meta: dict[str, msgspec.Raw]) -> None:
        token = meta.get("progressToken")
        if token is not None:
            raw = bytes(token)
            if jsonrpc.as_id(raw) is None:
                raise Refused(jsonrpc.INVALID_PARAMS, "progressToken must be a string or an integer")
            asking.token = raw
        asking.meta = revisions.passing_meta(meta)

    async def _list(self, asking: Asking) -> Response:
        kind = KINDS[asking.method]
        request = asking.request
        cursor = asking.fields.get("cursor")
        text = jsonrpc.decode_string(cursor)
        if cursor is not None and text is None:
            raise Refused(jsonrpc.INVALID_PARAMS, "the cursor must be a string")
        result = await self._lists.result(kind, request, asking.session, text, new=asking.new)
        self._count(asking, kind.resource_type)
        request.context.mcp_outcome = "ok"
        return Response(200, [JSON], jsonrpc.result(asking.id, result))

    async def _complete(self, asking: Asking) -> Response:
        """`completion/complete` of what the caller may use: the values complete a prompt or a URI that lists show."""
        ref = jsonrpc.decode_fields(asking.fields.get("ref", b""))
        said = jsonrpc.decode_string(ref.get("type"))
        kind, key = {"ref/prompt": (_PROMPTS, "name"), "ref/resource": (_TEMPLATES, "uri")}.get(said or "", (None, ""))
        if kind is None or key not in ref:
            wanted = "a prompt by its name (ref/prompt), or a resource template by its uri (ref/resource)"
            raise Refused(jsonrpc.INVALID_PARAMS, f"ref must name {wanted}")
        name = named(ref, key)
        server, original = await self._owner(kind, name, asking)
        if not self._lists.permits(server, kind, original, asking.request, asking.session):
            raise self._unknown(kind, name, asking)
        # Only what was looked at: a server may read another member than `type` says.
        ref = {"type": ref["type"], key: msgspec.Raw(msgspec.json.encode(original))}
        asking.fields["ref"] = msgspec.Raw(jsonrpc.encode_fields(ref))
        features = server.upstream.features
        if features is not None and "completions" not in features.capabilities:
            await self._ask(asking.request, asking.method)
            return self._whole(asking, b'{"completion":{"values":[],"total":0,"hasMore":false}}')
        return await self._put(asking, server, kind, original)

    async def _call(self, asking: Asking) -> Response:
        kind = _TARGETS[asking.method]
        fields = asking.fields
        name = named(fields, kind.key)
        server, original = await self._owner(kind, name, asking)
        if original is not name:
            fields[kind.key] = msgspec.Raw(msgspec.json.encode(original))
        if asking.new and asking.method == "tools/call":
            self._check_params(asking, server, original)
        session = asking.session
        if session is not None and asking.method in _SUBSCRIBING:
            if asking.method == "resources/subscribe":
                session.subscribe(name)
                asking.over = partial(session.subscribed_to, name)
            elif self._sessions.subscribed_elsewhere(session, name):
                await self._ask(asking.request, asking.method)
                session.unsubscribed(name, True)
                return self._whole(asking, b"{}")
            else:
                asking.over = partial(session.unsubscribed, name)
        return await self._put(asking, server, kind, original)

    async def _owner(self, kind: Kind, name: str, asking: Asking) -> tuple[Server, str]:
        found = await self._lists.owner(kind, name, asking.session, asking.request.context)
        if found is None:
            raise self._unknown(kind, name, asking)
        return found

    def _unknown(self, kind: Kind, name: str, asking: Asking) -> Refused:
        """Nobody has it, or this caller may not know that somebody has."""
        self._count(asking, kind.resource_type)
        if kind.key == "name":
            return Refused(jsonrpc.INVALID_PARAMS, f"Unknown {kind.resource_type.lower()}: {name[:200]}")
        code = jsonrpc.INVALID_PARAMS if asking.new else revisions.RESOURCE_NOT_FOUND
        return Refused(code, "Resource not found", {"uri": name[:2000]})

    def _check_params(self, asking: Asking, server: Server, original: str) -> None:
        """Headers that repeat arguments must say what the arguments say (2026-07-28, Custom Headers)."""
        known = server.upstream.known(_TOOLS, None)
        entry = known.index.get(original) if known is not None else None
        if entry is None or not entry.headers:
            return
        raw = asking.fields.get("arguments")
        arguments = msgspec.json.decode(raw) if raw is not None else {}
        mismatch = param_mismatch(entry.headers, arguments, asking.request.headers)
        if mismatch is not None:
            raise Refused(revisions.HEADER_MISMATCH, mismatch)

    def _put(self, asking: Asking, server: Server, kind: Kind, original: str) -> Awaitable[Response]:
        return put(asking, server, kind, original, wrap=self._wrap_uris, info=self._info, clock=self._clock)

    def _whole(self, asking: Asking, result: bytes) -> Response:
        """An answer of our own."""
        self._count(asking)
        asking.request.context.mcp_outcome = "ok"
        told = revisions.result_for(
            asking.method, result, new=asking.new, server_info=self._info if asking.new else b""
        )
        return Response(200, [JSON], jsonrpc.result(asking.id, told))

    def _count(self, asking: Asking, resource_type: str = "") -> None:
        """A request that reaches no server; the others are counted on the call floor."""
        families = self._families
        if families is not None:
            request = asking.request
            known = asking.method in self._new or asking.method in self._old or asking.method == "initialize"
            families.mcp_requests.child(
                asking.method if known else "other",
                resource_type,
                "",
                "",
                request.context.route,
                *families.extra.values(request, request.context),
            ).inc()


def _principal(principal: Any) -> str:
    return principal.id if principal is not None else ""
