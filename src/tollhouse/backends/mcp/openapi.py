"""A server made from an OpenAPI document: a file that is read with the configuration, or a URL that is read again.

Rule: the last good document serves. One that cannot be fetched, cannot be read, or is another API's is told to the
log and changes nothing; one that gives other tools is told to agents. A document at a URL says nothing of where calls
go: they go to where it came from, or to `base_url`. The gateway's credentials go with a document only there.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from tollhouse.backends.header_fields import header_lines
from tollhouse.backends.http_tools import ApiCredentialSpec, BaseUrl, Credentials, HttpTools, HttpToolsSpec, misfit
from tollhouse.backends.mcp.heal import said
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.spec import Duration, Reading, Size, Spec, existing
from tollhouse.net.client import Client, Origin
from tollhouse.wire.mcp.openapi import Picked, Toolset, tools_of
from tollhouse.wire.mcp.openapi import Reading as DocumentReading
from tollhouse.wire.mcp.openapi_document import OpenAPIError, read

__all__ = ["OpenApiServerSpec", "OpenApiTools", "PickedSpec", "SelectSpec"]

log = logging.getLogger("tollhouse.backends.mcp")

_FETCH = 30.0  # seconds for a document
_SOONER = 5.0  # seconds after which one that did not come is asked for again; twice as many each time
_MAX_LOGGED = 20
_ACCEPT = (b"accept", b"application/vnd.oai.openapi+json, application/json, application/yaml;q=0.9, */*;q=0.5")

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class PickedSpec(Spec):
    """Some operations of a document."""

    tags: tuple[str, ...] = Field(default=(), description="their tags")
    operations: tuple[str, ...] = Field(default=(), description="their operationIds; `*` stands for any text")
    methods: tuple[Method, ...] = Field(default=(), description="their methods")
    paths: tuple[str, ...] = Field(default=(), description="their paths as the document has them; `*` for any text")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.tags or self.operations or self.methods or self.paths):
            raise ValueError("it names nothing; leave it out")
        return self

    def value(self) -> Picked:
        return Picked(self.tags, self.operations, self.methods, self.paths)


class SelectSpec(Spec):
    """Which operations are tools."""

    allow: PickedSpec | None = Field(default=None, description="only those that fit all of it; absent: every one")
    deny: PickedSpec | None = Field(default=None, description="not those that fit any of it")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.allow is None and self.deny is None:
            raise ValueError("neither `allow` nor `deny` says anything; leave it out")
        return self


class OpenApiServerSpec(HttpToolsSpec):
    """A server whose tools are the operations of an OpenAPI 3.0 or 3.1 document."""

    openapi: str = Field(min_length=1, description="the document: a file, or a URL")
    base_url: BaseUrl | None = Field(default=None, description="where its calls go, in the place of what it says")
    refresh: Duration = Field(default=3600.0, ge=1.0, description="how often a document at a URL is looked at again")
    list_timeout: Duration = Field(default=5.0, gt=0.0, description="how long a list or call waits for the document")
    max_document: Size = Field(default=16 << 20, ge=1, le=32 << 20, description="bytes of the document")
    select: SelectSpec | None = Field(default=None, description="which operations are tools; absent: all")
    variables: dict[str, str] = Field(default={}, description="of the URL of the document's server")
    credentials: dict[str, ApiCredentialSpec] = Field(default={}, description="by the names of its security schemes")
    output_schema: bool = Field(default=True, description="off: tools do not say what they give")

    _tools: Toolset | None = PrivateAttr(default=None)
    _digest: str = PrivateAttr(default="")

    @field_validator("openapi")
    @classmethod
    def _place(cls, value: str, info: ValidationInfo) -> str:
        if _is_url(value):
            Origin.of(value)
            return value
        if "://" in value:
            raise ValueError("not a document: write the name of a file, or a URL of http or https")
        if isinstance(info.context, Reading):
            path = Path(info.context.directory, value)
            info.context.files.add(str(path))
            return existing(path)
        return existing(Path(value))

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.is_url:
            return self
        for name in ("refresh", "list_timeout"):
            if name in self.model_fields_set:
                raise ValueError(f"`{name}` has no effect: a file is read when it changes; leave it out")
        try:
            data = Path(self.openapi).read_bytes()
        except OSError as error:
            raise ValueError(f"the document cannot be read: {error.strerror}") from None
        try:
            self._tools = self.toolset(data)
        except OpenAPIError as problem:
            raise ValueError(f"{Path(self.openapi).name}: {problem}") from None
        if self._tools.unused:
            raise ValueError(f"`select` names what no operation has: {', '.join(self._tools.unused[:5])}")
        if not self._tools.tools:
            why = f": {self._tools.dropped[0]}" if self._tools.dropped else ""
            raise ValueError(f"no operation of the document can be a tool{why}")
        self._digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        return self

    @property
    def is_url(self) -> bool:
        return _is_url(self.openapi)

    @property
    def found(self) -> Toolset | None:
        """Of a file; None for a URL."""
        return self._tools

    @property
    def digest(self) -> str:
        """Of a file's content; "" for a URL."""
        return self._digest

    def toolset(self, data: bytes) -> Toolset:
        """The tools of a document. Takes up to a second. Raises OpenAPIError."""
        select = self.select
        schemes = frozenset(self.credentials)
        found = tools_of(
            read(data, self.max_document),
            DocumentReading(
                allow=select.allow.value() if select is not None and select.allow is not None else None,
                deny=select.deny.value() if select is not None and select.deny is not None else None,
                base_url=self.base_url or "",
                url=self.openapi if self.is_url else "",
                variables=self.variables,
                headers=frozenset(name.lower() for name in self.headers),
                credentials=schemes,
                output=self.output_schema,
            ),
        )
        for name, credential in self.credentials.items():
            fault = misfit(credential, found.security[name])
            if fault:
                raise OpenAPIError(f"/components/securitySchemes/{name}", fault)
            if _sets(credential, found.security[name]) in {header.lower() for header in self.headers}:
                raise OpenAPIError(f"/components/securitySchemes/{name}", "it stands in `headers` already")
        return found


def _is_url(value: str) -> bool:
    return value.lower().startswith(("http://", "https://"))


def _sets(credential: ApiCredentialSpec, scheme: dict[str, Any]) -> str:
    """The header field that the credential goes in, in lower case; "" for none."""
    if credential.key is None:
        return "authorization"
    return {"header": str(scheme.get("name")).lower(), "cookie": "cookie"}.get(str(scheme.get("in")), "")


class OpenApiTools(HttpTools):
    """An `HttpTools` whose tools come from a document. Timed, where that is at a URL."""

    spec: OpenApiServerSpec

    def __init__(
        self, name: str, spec: OpenApiServerSpec, client: Client, clock: Clock, *, on_change: Callable[[str, str], None]
    ) -> None:
        tools = spec.found
        base = spec.base_url or (tools.base if tools is not None else spec.openapi)
        self.deadline = FOREVER
        self._origin = spec.origin_of(base)
        super().__init__(name, spec, self._origin, client, clock, on_change=on_change)
        self._task: asyncio.Task[None] | None = None
        self._etag = self._modified = b""
        self._failures = 0
        self._started = self._closed = False
        if tools is not None:
            self._take(tools)

    # ---- its life
    def start(self) -> None:
        super().start()
        if self.spec.is_url and not self._started and not self._closed:
            self._started = True
            self.clock.watch(self)
            _ = self._begin()

    @property
    def idle(self) -> bool:
        return super().idle and (self._task is None or self._task.done())

    def retire(self) -> None:
        super().retire()
        self._stop()
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        self._stop()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        await super().close()

    def _stop(self) -> None:
        self._closed = True
        self.clock.drop(self)

    def expire(self) -> None:
        """Timed: look at the document again."""
        _ = self._begin()

    def _begin(self) -> "asyncio.Task[None]":
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._refresh())
        return self._task

    # ---- the document
    async def load(self) -> None:
        if not self.spec.is_url or self._closed:
            return
        task = self._begin()
        await asyncio.wait((task,), timeout=self.spec.list_timeout)
        if self._listing is None:
            why = "did not come in time" if not task.done() else "cannot be had"
            raise Failure(
                503, Reason.UPSTREAM_FAILURE, f"{self.name}: its OpenAPI document {why}", retry=True, reached=False
            )

    async def _refresh(self) -> None:
        """Fetch it, if it is another. The root of its task: whatever is wrong is told to the log."""
        wait = self.spec.refresh
        try:
            await self._fetch()
            self._failures = 0
        except (Failure, OpenAPIError) as problem:
            self._failures += 1
            wait = min(self.spec.refresh, _SOONER * 2.0 ** min(self._failures - 1, 12))
            why = said(problem) if isinstance(problem, Failure) else str(problem)
            kept = "" if self._listing is None else "; the tools it had stay"
            log.warning("mcp server %s: its OpenAPI document cannot be used: %s%s", self.name, why, kept)
        except Exception:  # the root of the task
            log.exception("mcp server %s: internal error", self.name)
        self.deadline = self.clock.now + wait

    async def _fetch(self) -> None:
        spec = self.spec
        url = spec.openapi
        there = spec.origin_of(url)
        beside = (there.scheme, there.host, there.port) == (self._origin.scheme, self._origin.host, self._origin.port)
        headers = [_ACCEPT]
        if beside:
            headers = [field for field in _fields(header_lines(spec.headers)) if field[0] != b"accept"] + headers
        if self._etag:
            headers.append((b"if-none-match", self._etag))
        elif self._modified:
            headers.append((b"if-modified-since", self._modified))
        tls = spec.tls.value() if spec.tls is not None and beside else None
        fetched = await self._client.fetch(
            url,
            headers=headers,
            timeout=_FETCH,
            limit=spec.max_document,
            guarded=False,  # the operator's word, as every upstream's URL; a redirect to another origin is guarded
            tls=tls,
            proxy=spec.proxy,
        )
        if fetched.status == 304 and self._listing is not None:
            return
        if fetched.status != 200:
            raise Failure(502, Reason.UPSTREAM_FAILURE, f"the document was answered with {fetched.status}")
        self._take(await asyncio.to_thread(spec.toolset, fetched.body))
        self._etag = fetched.headers.get(b"etag") or b""
        self._modified = fetched.headers.get(b"last-modified") or b""

    def _take(self, found: Toolset) -> None:
        if self.spec.credentials and self._credentials is None:
            self._credentials = Credentials(
                self.name, self.spec.credentials, found.security, self._client, self.clock, self.spec.proxy
            )
            if self._started:
                self._credentials.start()
        if self.put(found.tools, found.instructions):
            told = [*found.dropped, *(f"`select` names what no operation has: {one}" for one in found.unused)]
            for what in told[:_MAX_LOGGED]:
                log.warning("mcp server %s: OpenAPI: %s", self.name, what)
            if len(told) > _MAX_LOGGED:
                log.warning("mcp server %s: OpenAPI: and %d more", self.name, len(told) - _MAX_LOGGED)


def _fields(lines: bytes) -> list[tuple[bytes, bytes]]:
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]
