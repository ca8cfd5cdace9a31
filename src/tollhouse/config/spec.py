"""What a configuration file may say: `Config`, made of the Specs that stand beside the code they are for.

Rule: this file gives names and places to Specs, and knows nothing of what they do. What holds between settings of
different places is in `checks`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from tollhouse.backends.http import HttpRouteSpec
from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.integrity import IntegritySpec
from tollhouse.backends.mcp.openapi import OpenApiServerSpec
from tollhouse.backends.mcp.rest import RestServerSpec
from tollhouse.backends.mcp.stdio import StdioServerSpec
from tollhouse.backends.pool import PoolSpec
from tollhouse.backends.providers import ProviderSpec
from tollhouse.config.journal import JournalSpec
from tollhouse.config.ledger import LedgerSetting
from tollhouse.config.many_tools import CodeMode, SearchMode, SearchSpec
from tollhouse.config.retention import RetentionSpec
from tollhouse.config.server import ServerSpec
from tollhouse.config.subscriptions import SubscriptionSpec
from tollhouse.config.telemetry import TelemetrySpec
from tollhouse.core.errors import Failure
from tollhouse.core.match import normalise
from tollhouse.core.spec import Duration, Spec
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.ledger.prices import PriceSpec
from tollhouse.net.egress import Egress
from tollhouse.policies import CallScope, GuardedScope, ModelScope, RouteScope, Scope, ServerScope
from tollhouse.policies.audit import AuditSetting
from tollhouse.policies.exchange_spec import ToolExchangeSpec
from tollhouse.store.spec import StateSpec
from tollhouse.wire.mcp.names import SERVER_NAME

__all__ = [
    "Config",
    "EgressSpec",
    "HttpServer",
    "McpServer",
    "McpSpec",
    "ModelSpec",
    "OpenApiServer",
    "Provider",
    "RestServer",
    "RouteSpec",
    "StdioServer",
    "ToolSpec",
]


def _state(value: Any) -> Any:
    """A place alone may stand for {url: ...}."""
    if not isinstance(value, (str, dict, StateSpec)):
        raise ValueError("not a place for state; write `memory`, a URL like redis://host:6379/0, or {url: ...}")
    return {"url": value} if isinstance(value, str) else value


def _estimates(value: str) -> str:
    if value == "bpe" and find_spec("bpe_openai") is None:
        raise ValueError("needs the extra `tokens`: pip install 'tollhouse[tokens]'")
    return value


def _allowed(value: str) -> str:
    Egress((value,))
    return value


def _mount(value: str) -> str:
    """A path of the gateway's own, in normal form, without a slash at its end."""
    try:
        normal = normalise(value.encode()).decode("ascii")
    except Failure as failure:
        raise ValueError(failure.message) from None
    if normal != value or value == "/" or value.endswith("/"):
        raise ValueError("not a path to serve on; write it like /mcp, without a slash at the end")
    return value


def _model_name(value: str) -> str:
    if value.count("*") > 1:
        raise ValueError("the name of a model has at most one `*`")
    if any(letter.isspace() for letter in value):
        raise ValueError("the name of a model has no spaces in it")
    return value


def _alias(value: str) -> str:
    if "*" in value or any(letter.isspace() for letter in value):
        raise ValueError("an alias is one exact name, without `*` and spaces")
    return value


def _server_name(value: str) -> str:
    if "__" in value:
        raise ValueError("the name of a server has no `__` in it: that separates it from the names of its tools")
    if SERVER_NAME.fullmatch(value) is None:
        raise ValueError("the name of a server begins with a letter, ends with no _ and has letters, digits, - and _")
    return value


Provider = ProviderSpec
"""Who runs models. Which kind, its `kind` says."""


class EgressSpec(Spec):
    """Where URLs that come from outside may lead: documents that tokens, clients and servers name."""

    allow: tuple[Annotated[str, AfterValidator(_allowed)], ...] = Field(
        default=(),
        description="networks, addresses and host names that are reached although they are not public",
    )


class ModelSpec(PoolSpec, ModelScope):
    """A name that clients may ask for, and what answers it.

    targets: models at providers that share the calls. timeout: how long a call may take. health: when a target is left
    out for a while.
    """

    name: Annotated[str, AfterValidator(_model_name)] = Field(
        min_length=1,
        max_length=256,
        description="what clients write as `model`; exact, or with one *",
        json_schema_extra={"pattern": r"^[^*\s]*\*?[^*\s]*$"},
    )
    aliases: tuple[Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_alias)], ...] = Field(
        default=(), description="other names that clients may write; all else sees the model's own"
    )

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if self.aliases and "*" in self.name:
            raise ValueError("`aliases` are for a model of one name: what would the `*` stand for?")
        return self


class ArgumentSpec(Spec):
    """An argument of a tool, as agents see it."""

    rename: str | None = Field(default=None, min_length=1, max_length=256, description="its name for agents")
    description: str | None = Field(default=None, min_length=1, description="in place of the server's")
    hidden: bool = Field(default=False, description="agents do not see it and cannot set it")
    default: Any = Field(default=None, description="what the server gets when the agent says nothing")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is set here; leave the argument out")
        if self.hidden and (self.rename is not None or self.description is not None):
            raise ValueError("agents do not see it: `rename` and `description` have no effect with `hidden`")
        return self


class ToolSpec(CallScope):
    """What may be set on a single tool."""

    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.-]{1,128}$", description="its name for agents, before any prefix"
    )
    description: str | None = Field(default=None, min_length=1, description="for agents, in place of the server's")
    arguments: dict[str, ArgumentSpec] = Field(default={}, description="by the server's names for them")
    idempotent: bool | None = Field(
        default=None, description="whether calling it twice is as good as once; not set: as its server says"
    )
    alternate: str | None = Field(
        default=None, min_length=1, description="another server's tool, as server__tool, asked when this one has failed"
    )
    exchange: ToolExchangeSpec | None = Field(default=None, description="the tokens that its calls go out with")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is set here; leave the tool out")
        names = [own.rename for own in self.arguments.values() if own.rename is not None]
        if len(names) != len(set(names)):
            raise ValueError("two arguments have the same `rename`")
        return self


class _ToolServer(CallScope):
    """What may be set on whatever has tools."""

    tools: dict[str, ToolSpec] = Field(default={}, description="for single tools, by the server's own names for them")
    integrity: IntegritySpec | None = Field(
        default=None, description="whether its tools must be what was approved; what is not set here is as for all"
    )

    @model_validator(mode="after")
    def _tool_names(self) -> Self:
        names = [own.name for own in self.tools.values() if own.name is not None]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tools have the name {name!r}")
        return self


class _Server(_ToolServer):
    """What may be set on any kind of MCP server."""

    bridge: bool = Field(
        default=True,
        description="off: the server does not ask agents of the other protocol era; a call that needs input fails",
    )


class StdioServer(StdioServerSpec, _Server):
    """An MCP server that the gateway starts and speaks to over its standard input and output."""


class HttpServer(HttpServerSpec, _Server, ServerScope):
    """An MCP server with a URL (Streamable HTTP).

    url: where it is spoken to. tls: how its certificate is verified, and what the gateway shows. proxy: an HTTP proxy
    on the way to it.
    """


class OpenApiServer(OpenApiServerSpec, _ToolServer, ServerScope):
    """An HTTP API whose operations are tools, by its OpenAPI document.

    tls: how its certificate is verified, and what the gateway shows. proxy: an HTTP proxy on the way to it.
    """


class RestServer(RestServerSpec, _ToolServer, ServerScope):
    """An HTTP API with tools that are written here.

    tls: how its certificate is verified, and what the gateway shows. proxy: an HTTP proxy on the way to it.
    """


# Kinds are not called as the keys are: in the place of a mistake they could be taken for one.
_KINDS: Final = {"command": "stdio", "url": "http", "openapi": "document", "rest": "written"}


def _transport(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((kind for key, kind in _KINDS.items() if key in value), None)
    kinds: tuple[tuple[type[Spec], str], ...] = (
        (StdioServerSpec, "stdio"), (HttpServerSpec, "http"), (OpenApiServerSpec, "document"),
        (RestServerSpec, "written"),
    )  # fmt: skip
    return next((tag for kind, tag in kinds if isinstance(value, kind)), None)


McpServer = Annotated[
    Annotated[StdioServer, Tag("stdio")]
    | Annotated[HttpServer, Tag("http")]
    | Annotated[OpenApiServer, Tag("document")]
    | Annotated[RestServer, Tag("written")],
    Discriminator(
        _transport,
        custom_error_type="mcp_server",
        custom_error_message=(
            "needs `command` (a program to start), `url` (a server to reach), `openapi` (a document of an HTTP API) "
            "or `rest` (tools written here)"
        ),
    ),
]
"""Which kind a server is, its keys say."""

ServerName = Annotated[
    str,
    Field(max_length=64, json_schema_extra={"pattern": f"^{SERVER_NAME.pattern}$"}),
    AfterValidator(_server_name),
]
"""A word that can stand in a path and before `__` in a tool's name."""


class SelectionSpec(Spec):
    """Which tools there are, by patterns with `*`, over `server__tool` and over the tool's name alone."""

    allow: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None, min_length=1, description="only these; absent: all"
    )
    deny: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="not these, whatever allows them"
    )

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.allow is None and not self.deny:
            raise ValueError("neither `allow` nor `deny` says anything; leave it out")
        return self


class McpEndpointSpec(GuardedScope):
    """Chosen servers and tools under a path of their own. What is set here adds to what the top and the servers say."""

    path: Annotated[str, AfterValidator(_mount)] = Field(description="where it is served")
    servers: tuple[str, ...] = Field(min_length=1, description="of those below `mcp.servers`, in this order")
    tools: SelectionSpec | None = Field(default=None, description="which of their tools it has; absent: all")
    search: SearchMode | None = Field(default=None, description="as `mcp.search`, for this path; absent: as there")
    code_mode: CodeMode = Field(default=None, description="as `mcp.code_mode`, for this path; absent: as there")


class McpSpec(Spec):
    """MCP servers behind one endpoint."""

    path: Annotated[str, AfterValidator(_mount)] = Field(
        default="/mcp", description="all servers as one; each server alone, its names unprefixed, is below it by name"
    )
    prefix: Literal["auto", "always", "never"] = Field(
        default="auto", description="tools as server__tool; auto: when there is more than one server"
    )
    failure: Literal["open", "closed"] = Field(
        default="open", description="open: a server that is down is left out of lists and reported; closed: lists fail"
    )
    session_timeout: Duration = Field(default=3600.0, gt=0.0, description="an agent's session that nobody uses ends")
    sessions_per_caller: int = Field(
        default=1000,
        ge=1,
        description="sessions that one caller may have open at a worker; above it those end that were idle longest",
    )
    legacy_sse: bool = Field(
        default=False,
        description="serve the HTTP+SSE transport of 2024-11-05 as well, below each path at /sse and /messages",
    )
    input_timeout: Duration = Field(
        default=300.0, gt=0.0, description="how long a call waits for what its server asks the agent for"
    )
    integrity: IntegritySpec | None = Field(
        default=None, description="whether tools must be what was approved; absent: nobody looks"
    )
    search: SearchMode = Field(
        default=SearchSpec(mode="off"),
        description="agents search tools instead of getting them all: auto (when they are many), on, off",
    )
    code_mode: CodeMode = Field(
        default=None, description="agents send programs that call tools: true, or what one may take (extra `code`)"
    )
    rest: Annotated[str, AfterValidator(_mount)] | bool = Field(
        default=False,
        description="tools as plain REST for programs that speak no MCP: true for /tools, or a path; POST "
        "/tools/<server>/<tool> calls one, GET /tools/openapi.json says which there are",
    )
    servers: dict[ServerName, McpServer] = Field(min_length=1, description="by name")
    endpoints: tuple[McpEndpointSpec, ...] = Field(default=(), description="other paths, with chosen servers and tools")


def _to_one_or_several(schema: dict[str, Any]) -> None:
    """For editors: `to` may be one URL, or a list in which a URL stands for {url: ...}."""
    to = schema["properties"]["to"]
    target = {"anyOf": [{"type": "string"}, to.pop("items")]}
    several = {"type": to.pop("type"), "items": target, "minItems": to.pop("minItems", 1)}
    to["anyOf"] = [*target["anyOf"], several]


class RouteSpec(HttpRouteSpec, RouteScope):
    """A route to plain HTTP services."""

    model_config = ConfigDict(json_schema_extra=_to_one_or_several)


class Config(Scope):
    """A configuration file."""

    server: ServerSpec = Field(default=ServerSpec(), description="where the gateway listens")
    state: Annotated[StateSpec, BeforeValidator(_state, json_schema_input_type=str | StateSpec)] = Field(
        default=StateSpec(),
        description="where counters and sessions are kept: `memory`, of this process alone; or the URL of a Valkey or "
        "Redis server or cluster; or {url, encryption_key, ...}",
        examples=["memory", "redis://127.0.0.1:6379/0"],
    )
    ledger: LedgerSetting | None = Field(
        default=None,
        description="where usage and audit are kept: sqlite:FILE, relative to where the gateway is started; "
        "postgresql://user:password@host/database; or {url, ...}; absent: nowhere",
        examples=["sqlite:tollhouse.db"],
    )
    journal: JournalSpec = Field(default=JournalSpec(), description="the files in which records wait for the ledger")
    retention: RetentionSpec = Field(default=RetentionSpec(), description="for how long the ledger keeps what")
    subscriptions: tuple[SubscriptionSpec, ...] = Field(
        default=(), description="seats that could be bought instead: `tollhouse usage seats` says for whom they pay"
    )
    audit: AuditSetting | None = Field(
        default=None,
        description="who did what, and what was said to it, in the ledger; absent: on where there are a ledger and "
        "`authorize` or `issuer`",
    )
    egress: EgressSpec = Field(default=EgressSpec(), description="where URLs that come from outside may lead")
    providers: dict[str, Provider] = Field(default={}, description="who runs models, by name")
    models: tuple[ModelSpec, ...] = Field(default=(), description="the names that clients may ask for")
    prices: tuple[PriceSpec, ...] = Field(default=(), description="of models, in the place of those that are known")
    estimates: Annotated[Literal["bytes", "bpe"], AfterValidator(_estimates)] = Field(
        default="bytes",
        description="how tokens are estimated that no provider has counted: by their bytes, or the prompts of OpenAI's "
        "models with their vocabularies (bpe: the extra `tokens`, and 180 MB more in each worker)",
    )
    mcp: McpSpec | None = Field(default=None, description="MCP servers behind one endpoint")
    routes: tuple[RouteSpec, ...] = Field(default=(), description="plain HTTP services")
    issuer: IssuerSpec | None = Field(
        default=None,
        description="the auth provider (OAuth 2.1, OpenID Connect), in this process: alone, or beside the rest",
    )
    telemetry: TelemetrySpec = Field(default=TelemetrySpec(), description="what can be seen from outside")

    @property
    def ledger_file(self) -> Path | None:
        """The file beside which all that the ledger has on this machine is: for SQLite the database itself."""
        return None if self.ledger is None else self.ledger.file
