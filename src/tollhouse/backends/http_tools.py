"""Tools that are HTTP requests: a server to the endpoints, and a place that answers HTTP behind it.

Rule: where a call goes is settled when the tools are: one origin, one pool. A call fills places and adds the gateway's
credentials; nothing of the caller's own request is sent on, and no redirect is followed. What an API does not do is a
Failure as long as somebody may try again; at the outer end of the chain it becomes a result that the model can read.
"""

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Annotated, Any, Self
from urllib.parse import quote

import msgspec
from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from tollhouse.backends.credential import Credential
from tollhouse.backends.header_fields import HeaderFields, UpstreamTLSSpec, header_lines
from tollhouse.backends.mcp.handshake import Features
from tollhouse.backends.mcp.messages import ANSWER_HEADERS
from tollhouse.backends.mcp.place import unplaced
from tollhouse.backends.oauth import OAuthSpec, oauth_credential
from tollhouse.backends.retry_after import retry_after
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import API_FAILED, Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Secret, Size, Spec
from tollhouse.net.client import Client, Origin, Pool, Until
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.catalogue import Entry, Kind, Listing
from tollhouse.wire.mcp.headers import TOKEN
from tollhouse.wire.mcp.openapi_answer import Answer, ApiFailed, HttpTool, error_result
from tollhouse.wire.mcp.openapi_request import BadArguments, HttpRequest

__all__ = ["ApiCredentialSpec", "BaseUrl", "Credentials", "HttpTools", "HttpToolsSpec", "as_tool_error", "misfit"]

_FRESH = 60.0  # seconds for which an agent may keep the list
_TOOLS = "tools/list"
_OURS = frozenset(("accept", "mcp-session-id"))
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_CAPABILITIES = {"tools": msgspec.Raw(b'{"listChanged":true}')}


def _base(value: str) -> str:
    _, path = Origin.of(value)
    if b"?" in path or "#" in value:
        raise ValueError("a `base_url` has no query and no fragment")
    return value


BaseUrl = Annotated[str, AfterValidator(_base)]
"""Where an API is: http or https, with a path or without."""


class ApiCredentialSpec(Spec):
    """What the gateway shows an API for one of the document's security schemes."""

    key: Secret | None = Field(default=None, description="for a scheme of type apiKey: its value")
    token: Secret | None = Field(default=None, description="a bearer token (http bearer, oauth2, openIdConnect)")
    username: str | None = Field(default=None, min_length=1, description="for http basic, with `password`")
    password: SecretStr | None = Field(default=None, description="for http basic")
    oauth: OAuthSpec | None = Field(default=None, description="a bearer token by client credentials")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("key", "token", "username", "oauth") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("write one of `key`, `token`, `username` with `password`, and `oauth`")
        if (self.username is None) != (self.password is None):
            raise ValueError("`username` and `password` belong together")
        if self.username is not None and ":" in self.username:
            raise ValueError("a `username` for http basic has no colon in it")
        return self


class HttpToolsSpec(Spec):
    """What is common to servers whose tools are HTTP requests."""

    headers: HeaderFields = Field(default={}, description="sent with every request, credentials among them")
    tls: UpstreamTLSSpec | None = Field(default=None, description="how its certificate is verified, and what is shown")
    proxy: str | None = Field(default=None, description="an outbound HTTP proxy on the way to it")
    timeout: Duration = Field(default=60.0, gt=0.0, description="for one call, to the end of its answer")
    max_answer: Size = Field(default=1 << 20, ge=1, description="bytes of an answer; a larger one is a tool error")

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            if name.lower() in _OURS:
                raise ValueError(f"the header {name!r} is the gateway's own to set")
        return value

    def origin_of(self, url: str) -> Origin:
        """The origin of `url`, reached as these settings say. Raises OriginError."""
        tls = None if self.tls is None else self.tls.value()
        return Origin.of(url, tls=tls, proxy=self.proxy)[0]


class Credentials:
    """What goes with a call, by the security schemes it names. schemes: the document's, each fit for what is configured
    for it (`misfit`). Raises OriginError where a TLS file cannot be used."""

    __slots__ = ("_lines", "_query", "_renewed")

    def __init__(
        self,
        name: str,
        specs: Mapping[str, ApiCredentialSpec],
        schemes: Mapping[str, Mapping[str, Any]],
        client: Client,
        clock: Clock,
        proxy: str | None = None,
    ) -> None:
        self._renewed: dict[str, Credential] = {}
        self._query: dict[str, str] = {}
        self._lines: dict[str, tuple[bytes, bytes]] = {}
        for scheme, spec in specs.items():
            self._add(scheme, spec, schemes[scheme])
            if spec.oauth is not None:
                self._renewed[scheme] = oauth_credential(f"{name} {scheme}", spec.oauth, client, clock, proxy=proxy)

    def _add(self, scheme: str, spec: ApiCredentialSpec, said: Mapping[str, Any]) -> None:
        if spec.key is not None:
            key, place, name = spec.key.get_secret_value(), said["in"], str(said["name"])
            if place == "query":
                self._query[scheme] = f"{quote(name, safe='')}={quote(key, safe='')}"
            elif place == "cookie":
                self._lines[scheme] = (b"cookie", f"{name}={quote(key, safe='')}".encode())
            else:
                self._lines[scheme] = (name.lower().encode(), key.encode())
        elif spec.token is not None:
            self._lines[scheme] = (b"authorization", b"Bearer " + spec.token.get_secret_value().encode())
        elif spec.username is not None and spec.password is not None:
            pair = f"{spec.username}:{spec.password.get_secret_value()}".encode()
            self._lines[scheme] = (b"authorization", b"Basic " + base64.b64encode(pair))

    async def put(
        self, schemes: Sequence[str], headers: list[tuple[bytes, bytes]], deadline: float
    ) -> tuple[bytes, str]:
        """Add to `headers`; further header lines, and what is added to the query. Raises Failure."""
        lines, query = b"", []
        for scheme in schemes:
            credential = self._renewed.get(scheme)
            if credential is not None:
                await credential.ready(deadline)
                lines += credential.lines
            elif scheme in self._query:
                query.append(self._query[scheme])
            elif scheme in self._lines:
                name, value = self._lines[scheme]
                known = next((n for n, field in enumerate(headers) if field[0] == b"cookie" == name), None)
                if known is None:
                    headers.append((name, value))
                else:
                    headers[known] = (name, headers[known][1] + b"; " + value)
        return lines, "&".join(query)

    def refused(self, schemes: Sequence[str], lines: bytes) -> bool:
        """The API answered 401 to these header lines: whether asking once more may help, with what is fetched anew."""
        again = False
        for scheme in schemes:
            credential = self._renewed.get(scheme)
            if credential is not None:  # each of them is told
                again |= credential.lines not in lines or credential.refused(credential.lines, 401, None)
        return again

    def start(self) -> None:
        for credential in self._renewed.values():
            credential.start()

    async def close(self) -> None:
        for credential in self._renewed.values():
            await credential.close()


def misfit(spec: ApiCredentialSpec, said: Mapping[str, Any]) -> str:
    """What is wrong with these credentials for the security scheme; "" for nothing."""
    kind, scheme = said.get("type"), str(said.get("scheme", "")).lower()
    if kind == "apiKey":
        name, place = said.get("name"), said.get("in")
        if place not in ("header", "query", "cookie") or not isinstance(name, str):
            return "the document does not say where the key goes"
        if place != "query" and TOKEN.fullmatch(name) is None:
            return "the document does not say where the key goes"
        return "" if spec.key is not None else "the scheme is an API key; write `key`"
    if kind == "http" and scheme == "basic":
        return "" if spec.username is not None else "the scheme is http basic; write `username` and `password`"
    if kind == "mutualTLS":
        return "the scheme is mutual TLS; write `tls` of the server, with `cert` and `key`, instead"
    if kind == "http" and scheme != "bearer":
        return f"the scheme is http {scheme[:20]!r}, which is not spoken here; write what it needs in `headers`"
    return (
        ""
        if spec.token is not None or spec.oauth is not None
        else "the scheme is a bearer token; write `token` or `oauth`"
    )


class HttpTools:
    """A server whose tools are HTTP requests (`endpoints.mcp.lists.Upstream`). `handle` is the end of its call chain.

    origin: where all calls go. on_change: called with (server, notification) when the tools are others.
    Raises OriginError when its TLS files or its proxy cannot be used.
    """

    def __init__(
        self,
        name: str,
        spec: HttpToolsSpec,
        origin: Origin,
        client: Client,
        clock: Clock,
        *,
        on_change: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.spec = spec
        self.clock = clock
        self.features: Features | None = None
        self.new: bool | None = False  # its answers say nothing that only one era has
        self.examines = False
        self._client = client
        self._pool: Pool = client.pool(origin)
        self._on_change = on_change
        self._credentials: Credentials | None = None
        fixed = header_lines(spec.headers)
        if "user-agent" not in {header.lower() for header in spec.headers}:
            fixed += b"user-agent: tollhouse\r\n"
        self._fixed = b"host: %b\r\n%b" % (origin.authority, fixed)
        self._tools: dict[str, HttpTool] = {}
        self._listing: Listing | None = None
        self._nothing = Listing((), at=monotonic(), until=0.0, public=True)
        self._calls = 0
        self._retired = False
        self._ending: asyncio.Task[None] | None = None  # of its credentials

    # ---- its life
    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self._calls == 0 and (self._ending is None or self._ending.done())

    def start(self) -> None:
        """It serves now."""
        if self._credentials is not None:
            self._credentials.start()

    def retire(self) -> None:
        """A new configuration serves without it: what is under way comes to its end."""
        self._retired = True
        self._pool.retire()
        self._end_unused()

    def _end_unused(self) -> None:
        if self._retired and self._calls == 0 and self._ending is None and self._credentials is not None:
            self._ending = asyncio.get_running_loop().create_task(self._credentials.close())

    async def close(self) -> None:
        """End everything, and wait for that."""
        self._pool.close()
        if self._ending is not None:
            await asyncio.wait((self._ending,))
        elif self._credentials is not None:
            await self._credentials.close()

    # ---- the catalogue
    def put(self, tools: Sequence[HttpTool], instructions: str = "") -> bool:
        """These are its tools from now on; whether they are others than before."""
        now = monotonic()
        entries = [Entry(tool.name, tool.raw, repeatable=tool.repeatable) for tool in tools]
        listing = Listing(entries, at=now, until=now + _FRESH, public=True)
        before = self._listing
        self._tools = {tool.name: tool for tool in tools}
        self.features = Features(revisions.NEWEST_OLD, _CAPABILITIES, instructions)
        if before is not None and before.version == listing.version:
            return False
        self._listing = listing
        if before is not None:
            self._on_change(self.name, "notifications/tools/list_changed")
        return True

    async def load(self) -> None:
        """Have the tools. Raises Failure."""

    async def listing(self, kind: Kind, agent: Any, principal: Principal | None, profile: int | None = None) -> Listing:
        """All tools; nothing of another kind. Raises Failure while they are not known."""
        if self._listing is None:
            await self.load()
        return self.known(kind, agent) or self._nothing

    def known(
        self, kind: Kind, agent: Any, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None:
        listing = self._listing if kind.method == _TOOLS else self._nothing
        if listing is not None:
            listing.until = max(listing.until, monotonic() + _FRESH / 2)
        return listing

    def level_changed(self, agent: Any) -> None: ...

    def roots_changed(self, agent: Any) -> None: ...

    async def wait_elicited(self, ids: Sequence[str], timeout: float) -> None: ...

    async def adopt(self, call: ToolCall, place: bytes) -> Reply:
        raise unplaced(self.name)

    # ---- calls
    async def handle(self, call: ToolCall) -> Reply:
        """The terminal Handler. Raises Failure, with code "api_failed" for what the API says of itself."""
        context = call.context
        if call.resume is not None:  # it is under way, with a server that stood here before
            resumed: Reply = await call.resume(call)
            return resumed
        if call.method != "tools/call":
            return _reply(jsonrpc.error(1, jsonrpc.METHOD_NOT_FOUND, f"{self.name} has tools only"))
        now = monotonic()
        if not context.upstream_began:
            context.upstream_began = now
        context.attempts += 1
        self._calls += 1
        try:
            if self._listing is None:
                await self.load()
            tool = self._tools.get(call.name)
            if tool is None:
                return _reply(jsonrpc.error(1, jsonrpc.INVALID_PARAMS, f"Unknown tool: {call.name[:200]}"))
            return _reply(
                jsonrpc.result(1, await self._call(tool, call, min(context.deadline, now + self.spec.timeout)))
            )
        finally:
            self._calls -= 1
            self._end_unused()
            context.upstream_ended = monotonic()

    async def _call(self, tool: HttpTool, call: ToolCall, deadline: float) -> bytes:
        """The CallToolResult. Raises Failure."""
        try:
            request = tool.operation.request(call.arguments)
        except BadArguments as problem:
            return error_result(f"The call was not made: {problem}.")
        credentials = self._credentials if tool.security else None
        answer, lines = await self._exchange(tool, request, call, deadline)
        if answer.status == 401 and call.credential:
            why = f"{self.name}: the API refused the token that was made for the call (401)"
            raise Failure(502, Reason.UPSTREAM_FAILURE, why, code="upstream_credentials")
        if answer.status == 401 and credentials is not None and credentials.refused(tool.security, lines):
            # What is answered so was not carried out.
            answer, lines = await self._exchange(tool, request, call, deadline)
        try:
            return tool.result(answer)
        except ApiFailed as failed:
            limited = answer.status == 429
            raise Failure(
                answer.status if limited or answer.status in (503, 504) else 502,
                Reason.UPSTREAM_FAILURE,
                f"{self.name}: the API answered {answer.status}",
                code=API_FAILED,
                detail=failed.text,
                retry=True,
                retry_after=answer.retry_after,
                sent=not limited,  # what is refused for being too much was not carried out
            ) from None

    async def _exchange(
        self, tool: HttpTool, request: HttpRequest, call: ToolCall, deadline: float
    ) -> tuple[Answer, bytes]:
        """The answer, and the header lines of credentials that went out. Raises Failure."""
        headers, lines, target = [*request.headers], b"", request.target
        if self._credentials is not None and tool.security:
            lines, query = await self._credentials.put(tool.security, headers, deadline)
            if query:
                target += (b"&" if b"?" in target else b"?") + query.encode("ascii")
        if call.credential or call.identity:  # which no argument of the agent's takes the place of
            ours = (b"authorization" if call.credential else b"", call.identity.partition(b":")[0])
            headers = [field for field in headers if field[0].lower().replace(b"_", b"-") not in ours]
        if call.credential:
            headers.append((b"authorization", call.credential))
        fields = b"".join(b"%b: %b\r\n" % field for field in headers)
        head = b"%b %b HTTP/1.1\r\n%b%b%b" % (request.method, target, self._fixed, lines, fields + call.identity)
        if request.body or request.method in _WITH_BODY:
            head += b"content-length: %d\r\n" % len(request.body)
        limit = self.spec.max_answer
        try:
            exchange = await self._pool.exchange(
                head + b"\r\n",
                request.body,
                method=request.method,
                until=Until.WHOLE,
                deadline=deadline,
                first_byte=self.spec.timeout,
                idle=self.spec.timeout,
                limit=limit,
                resend=call.idempotent,
            )
            body = await exchange.read(limit)
        except Failure as failure:
            failure.with_traceback(None)  # it would lead back to this frame
            raise _told(self.name, failure) from None
        got = exchange.headers
        content_type, location = got.get(b"content-type") or b"", got.get(b"location") or b""
        answer = Answer(
            exchange.status, content_type.decode("latin-1"), body, location.decode("latin-1"), retry_after(got)
        )
        return answer, lines


def _reply(message: bytes) -> Reply:
    return Reply(200, ANSWER_HEADERS, message)


def _told(server: str, failure: Failure) -> Failure:
    """A failure of the connection, that says whose it was."""
    told = failure.copy()
    told.message = f"{server}: {failure.message}"
    return told


async def as_tool_error(call: ToolCall, next: Handler[ToolCall, Reply]) -> Reply:
    """Policy for these servers, outside of all that tries again: what the API has not done is a result of the tool
    (2025-11-25, Tools, Error Handling), so that the model reads it."""
    try:
        return await next(call)
    except Failure as failure:
        if failure.reason not in (Reason.UPSTREAM_FAILURE, Reason.TIMEOUT):
            raise
        call.context.error = failure.message
        text = failure.detail if failure.code == API_FAILED else f"The call failed: {failure.message}."
        if failure.sent and failure.code != API_FAILED:
            text += " It is not known whether it was carried out."
        return _reply(jsonrpc.result(1, error_result(text)))
