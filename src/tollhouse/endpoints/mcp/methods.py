"""What each MCP method does, in either era, once it is known who asks and for what.

Rule: what a server has goes through that server's chain: a name is looked up, made the server's own, and a ToolCall is
put to it. What reaches no chain is put to `admit` first, so that rules and limits see every request.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from tollhouse.core.call import ACCOUNT, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import CONNECT
from tollhouse.endpoints.mcp.bridge import Bridge, Retry
from tollhouse.endpoints.mcp.call import put
from tollhouse.endpoints.mcp.code import Code
from tollhouse.endpoints.mcp.listen import Listener, final, wanted_tasks, wanted_uris
from tollhouse.endpoints.mcp.lists import Found, Lists
from tollhouse.endpoints.mcp.offer import capabilities, instructions
from tollhouse.endpoints.mcp.request import (
    JSON,
    Accepted,
    Asking,
    Refused,
    named,
    outcome_of,
)
from tollhouse.endpoints.mcp.search import CALL, FIND, Many, Search, Vectors
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.endpoints.mcp.task import NO_TASK
from tollhouse.endpoints.mcp.task_result import Look, Watch
from tollhouse.net.program import Limits, Programs
from tollhouse.observe.families import Families
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names, revisions, tasks
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.catalogue import KINDS, Cursors, Kind
from tollhouse.wire.mcp.headers import param_mismatch
from tollhouse.wire.mcp.messages import LEVELS, is_tool_error
from tollhouse.wire.mcp.overrides import Selection
from tollhouse.wire.mcp.search import Indexes

__all__ = ["TARGETS", "Admit", "Methods"]

Admit = Callable[[ToolCall], Awaitable[None]]
"""Asked before what reaches no server: rules and limits of the endpoint. Raises Failure."""

_TOOLS, _PROMPTS = KINDS["tools/list"], KINDS["prompts/list"]
_RESOURCES, _TEMPLATES = KINDS["resources/list"], KINDS["resources/templates/list"]
TARGETS: dict[str, Kind] = {
    "tools/call": _TOOLS,
    "prompts/get": _PROMPTS,
    "resources/read": _RESOURCES,
    "resources/subscribe": _RESOURCES,
    "resources/unsubscribe": _RESOURCES,
}
_SUBSCRIBING = frozenset(("resources/subscribe", "resources/unsubscribe"))


class Methods:
    """Those of several servers as one, or of one alone.

    path: names the endpoint; sessions are bound to it. prefix, failure: as in config. selection: which tools it has.
    admit: awaited with a ToolCall that has no server (and no name but that of `run_program`) before every request that
    goes through no server's chain (its method is the JSON-RPC one, also of a notification, or GET or DELETE, or batch
    for one that is refused as a whole).
    max_body: bytes of a request. info: raw JSON of serverInfo. families: metrics, or None. search: when tools
    are searched instead of listed. programs: runs those of agents, within limits; None: none.
    """

    def __init__(
        self,
        path: str,
        servers: Mapping[str, Server],
        sessions: Sessions,
        clock: Clock,
        *,
        cursors: Cursors,
        bridge: Bridge,
        info: bytes,
        prefix: names.Prefix = "auto",
        failure: Literal["open", "closed"] = "open",
        admit: Admit | None = None,
        max_body: int = 10 << 20,
        page: int = 1000,
        selection: Selection | None = None,
        families: Families | None = None,
        search: Search | None = None,
        programs: tuple[Programs, Limits] | None = None,
        indexes: Indexes | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        self.path = path
        self.servers = dict(servers)
        self._sessions = sessions
        self._clock = clock
        self._info = info
        self._bridge = bridge
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
            selection=selection,
        )
        self._many: Many | None = None
        self._code: Code | None = None
        if programs is not None or (search is not None and search.mode != "off"):
            self._many = Many(
                self._lists,
                search or Search(),
                programs=programs is not None,
                wrap=self._wrap,
                indexes=indexes or Indexes(),
                vectors=vectors,
            )
            if programs is not None:
                self._code = Code(*programs, self._lists, self._many)
        for server in self.servers.values():
            bridge.tasks.old.serve(path, server, wrap=self._wrap_uris)
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
        for method in tasks.METHODS:
            self._new[method] = self._task
        for method in tasks.OLD_METHODS:
            self._old[method] = self._task
        self._old["tasks/list"] = self._list_tasks
        for method in _SUBSCRIBING:
            self._old[method] = self._call

    async def _ask(
        self, request: Request, method: str, name: str = "", params: dict[str, msgspec.Raw] | None = None
    ) -> None:
        """Whether this request may be made, though no server is asked. params: of a tool of ours. Raises Failure."""
        if self._admit is not None:
            call = ToolCall(request, request.context, server="", method=method, name=name, params=params or {})
            try:
                await self._admit(call)
            except Failure as failure:
                request.context.mcp_outcome = outcome_of(failure)
                raise

    # ---- of agents with sessions
    async def _ping(self, asking: Asking) -> Response:
        return self._whole(asking, b"{}")

    async def _set_level(self, asking: Asking) -> Response:
        session = asking.session
        level = jsonrpc.decode_string(asking.fields.get("level"))
        if session is None or level not in LEVELS:
            raise Refused(jsonrpc.INVALID_PARAMS, f"level must be one of {', '.join(LEVELS)}")
        session.set_level(level)
        for server in self.servers.values():
            server.upstream.level_changed(session)
        await self._sessions.saved(session)
        return self._whole(asking, b"{}")

    # ---- of stateless agents
    async def _discover(self, asking: Asking) -> Response:
        result: dict[str, Any] = {
            "supportedVersions": list(revisions.SERVED),
            "capabilities": capabilities(self.servers, revisions.NEWEST_NEW),
            "serverInfo": msgspec.Raw(self._info),
            "ttlMs": 5000,
        }
        if said := await instructions(self.servers, self._lists, asking.request, None):
            result["instructions"] = said
        return self._whole(asking, jsonrpc.encode_fields(result))

    async def _listen(self, asking: Asking) -> Response:
        try:
            wanted = msgspec.json.decode(asking.fields.get("notifications", b"{}"), type=dict[str, Any])
        except msgspec.DecodeError:
            raise Refused(jsonrpc.INVALID_PARAMS, "notifications must be an object") from None
        uris = wanted_uris(wanted)
        looks = self._looks(asking, wanted)
        agreed: list[str] = []
        listener = None
        meta = {revisions.SUBSCRIPTION_ID: msgspec.Raw(asking.id)}
        if uris:
            listener = Listener(meta, wrap=self._wrap_uris, outside=self._sessions.outside, endpoint=self.path)
        try:
            if listener is not None:
                agreed = await listener.subscribe(uris, partial(self._hear_of, asking, listener))
            request = asking.request
            subscription = self._sessions.subscriptions.add(
                asking.id,
                wanted,
                self._names,
                principal=request.context.principal,
                address=request.context.client or request.peer,
                resources=agreed,
                tasks=list(looks),
            )
        except BaseException:
            if listener is not None:
                listener.end()
            raise
        self._count(asking)
        asking.request.context.mcp_outcome = "ok"
        response = subscription.outlet.response()
        if listener is not None:
            listener.open(subscription.outlet.say)
            assert response.ends is not None
            response.ends.append(listener.end)
        if looks:
            watch = Watch(looks, subscription.outlet.say, meta)
            assert response.ends is not None
            response.ends.append(lambda _: watch.close())
        return response

    def _looks(self, asking: Asking, wanted: dict[str, Any]) -> dict[str, Look]:
        """How to see the tasks that are listened to, those that are this caller's. Raises Refused."""
        if not wanted.get("taskIds"):
            return {}
        if not asking.profile & TASKS:
            what = f"taskIds need the extension {tasks.EXTENSION}, which the client did not declare"
            raise Refused(revisions.MISSING_CAPABILITY, what, {"requiredCapabilities": tasks.REQUIRED})
        request = asking.request
        looks = {}
        for token in wanted_tasks(wanted):
            try:
                found = self._bridge.tasks.open(request.context.principal, self.path, token)
            except Refused:
                continue  # it is left out of the acknowledgement
            server = self.servers.get(found.server)
            if server is None or (server.upstream.new is not None and server.upstream.new != found.new):
                continue
            context = msgspec.structs.replace(request.context, mcp_method="tasks/get", server=server.name)
            call = ToolCall(request, context, server=server.name, method="tasks/get", name=found.id, params={})
            looks[token] = self._bridge.tasks.look(call, found, server, token, asking.profile, wrap=self._wrap_uris)
        return looks

    async def _hear_of(self, asking: Asking, listener: Listener, uri: str) -> bool:
        """Ask a resource's server to tell `listener` of it; whether it agrees. Raises Failure."""
        request = asking.request
        context = msgspec.structs.replace(request.context, mcp_method="resources/subscribe")
        found = await self._lists.owner(_RESOURCES, uri, None, context)
        if found is None:
            return False
        server, original, _ = found
        context.server = context.backend = server.name
        call = ToolCall(
            request,
            context,
            server=server.name,
            method="resources/subscribe",
            name=original,
            params={"uri": msgspec.Raw(msgspec.json.encode(original))},
            session=listener,
            idempotent=True,
        )
        answer = await final(call, await server.chain(call))
        return len(answer.result) > 0

    # ---- of both
    async def _list(self, asking: Asking) -> Response:
        kind = KINDS[asking.method]
        request = asking.request
        cursor = _cursor(asking)
        result = await self._lists.result(kind, request, asking.session, cursor, new=asking.new, profile=asking.lists)
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
        server, original, _ = await self._owner(kind, name, asking)
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
        kind = TARGETS[asking.method]
        fields = asking.fields
        name = named(fields, kind.key)
        many, unwrapped = self._many, False
        if many is not None and name in many.names and kind is _TOOLS and await many.answers(name, asking):
            if name != CALL:
                return await self._own_tool(asking, many, name)
            many.unwrap(asking)
            name, unwrapped = named(fields, kind.key), True
        server, original, asking.connects = await self._owner(kind, name, asking)
        if original is not name:
            fields[kind.key] = msgspec.Raw(msgspec.json.encode(original))
        if asking.connects:
            fields.pop("task", None)
        elif asking.method == "tools/call":
            if asking.new and not unwrapped:
                self._check_params(asking, server, original)
            if server.overrides is not None:
                given = fields.get("arguments", jsonrpc.NONE)
                arguments = server.overrides.to_server(original, given)
                if arguments is not given:
                    fields["arguments"] = msgspec.Raw(arguments)
        session = asking.session
        if asking.new:
            fields.pop("task", None)  # of the old era; a server of it would take it for one of its own agent's
            if "requestState" in fields or "inputResponses" in fields:
                principal = asking.request.context.principal
                asking.retry = self._bridge.retry(principal, self.path, server, asking.method, original, fields)
                # The user was sent to connect an account: whoever has that name by now, our tool is what was called.
                asking.connects = asking.connects or (original == CONNECT and _is_about_account(asking.retry))
        elif asking.method in _SUBSCRIBING and session is not None:
            if asking.method == "resources/subscribe":
                session.subscribe(name)
                asking.over = partial(session.subscribed_to, name)
            elif self._sessions.subscribed_elsewhere(session, name):
                await self._ask(asking.request, asking.method)
                session.unsubscribed(name, True)
                await self._sessions.saved(session)
                return self._whole(asking, b"{}")
            else:
                asking.over = partial(session.unsubscribed, name)
            response: Response = await self._put(asking, server, kind, original)
            await self._sessions.saved(session)
            return response
        elif "task" in fields and (session is None or not revisions.has_tasks(session.revision)):
            del fields["task"]
        return await self._put(asking, server, kind, original)

    async def _own_tool(self, asking: Asking, many: Many, name: str) -> Response:
        """`find_tools` is a list, and `run_program` a call that is allowed by its name; what a program calls is asked
        about by itself."""
        context = asking.request.context
        context.tool = name
        if name == FIND:
            await self._ask(asking.request, "tools/list")
            result = await many.find(asking)
        else:
            await self._ask(asking.request, asking.method, name, asking.fields)
            assert self._code is not None
            result = await self._code.run(asking)
        response = self._whole(asking, result)
        if is_tool_error(result):
            context.mcp_outcome = "tool_error"
        return response

    async def _task(self, asking: Asking) -> Response:
        """About one task, by the id that its agent has: to the server that runs it."""
        if not asking.new:
            self._must_have_tasks(asking)
        elif not asking.profile & TASKS:
            what = f"{asking.method} needs the extension {tasks.EXTENSION}, which the client did not declare"
            raise Refused(revisions.MISSING_CAPABILITY, what, {"requiredCapabilities": tasks.REQUIRED})
        fields = asking.fields
        token = named(fields, "taskId")
        found = self._bridge.tasks.open(asking.request.context.principal, self.path, token)
        server = self.servers.get(found.server)
        if server is None:
            raise Refused(jsonrpc.INVALID_PARAMS, NO_TASK)
        asking.task = token
        fields["taskId"] = msgspec.Raw(msgspec.json.encode(found.id))
        asking.request.context.tool = found.tool
        self._bridge.tasks.route(asking, found, server, wrap=self._wrap_uris)
        return await self._put(asking, server, _TOOLS, found.id)

    def _must_have_tasks(self, asking: Asking) -> None:
        if asking.session is None or not revisions.has_tasks(asking.session.revision):
            self._count(asking)
            raise Refused(jsonrpc.METHOD_NOT_FOUND, f"there is no method {asking.method!r} here")

    async def _list_tasks(self, asking: Asking) -> Response:
        """`tasks/list` (2025-11-25): the tasks that this session began."""
        self._must_have_tasks(asking)
        cursor = _cursor(asking)
        context = asking.request.context
        call = ToolCall(
            asking.request, context, server="", method=asking.method, name="", params={}, session=asking.session
        )
        return self._whole(asking, await self._bridge.tasks.listed(asking, call, self.servers, cursor))

    # ---- names, and what is answered
    async def _owner(self, kind: Kind, name: str, asking: Asking) -> Found:
        found = await self._lists.owner(kind, name, asking.session, asking.request.context, asking.lists)
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
        if known is not None and server.overrides is not None and entry is not None and entry.headers:
            exposed = server.overrides.exposed(known).entries  # an override may take headers away, and adds none
            entry = next((entry for entry in exposed if entry.original == original), None)
        if entry is None or not entry.headers:
            return
        raw = asking.fields.get("arguments")
        arguments = msgspec.json.decode(raw) if raw is not None else {}
        mismatch = param_mismatch(entry.headers, arguments, asking.request.headers)
        if mismatch is not None:
            raise Refused(revisions.HEADER_MISMATCH, mismatch)

    def _put(self, asking: Asking, server: Server, kind: Kind, original: str) -> Awaitable[Response]:
        return put(
            asking,
            server,
            kind,
            original,
            wrap=self._wrap_uris,
            info=self._info,
            clock=self._clock,
            bridge=self._bridge,
            holders=self._sessions.holders,
        )

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


def _is_about_account(retry: Retry | None) -> bool:
    return retry is not None and retry.consent is not None and retry.consent.about == ACCOUNT


def _cursor(asking: Asking) -> str | None:
    """Of a list request. Raises Refused."""
    cursor = asking.fields.get("cursor")
    text = jsonrpc.decode_string(cursor)
    if cursor is not None and text is None:
        raise Refused(jsonrpc.INVALID_PARAMS, "the cursor must be a string")
    return text
