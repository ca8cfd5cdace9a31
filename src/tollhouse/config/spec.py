"""What a configuration file may say: `Config`, made of the Specs that stand beside the code they are for.

Rule: this file gives names and places to Specs, and knows nothing of what they do. What holds between settings of
different places is in `checks`.
"""

from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from tollhouse.backends.http import HttpRouteSpec
from tollhouse.backends.mcp_http import HttpServerSpec
from tollhouse.backends.mcp_stdio import StdioServerSpec
from tollhouse.backends.pool import PoolSpec
from tollhouse.backends.providers import ProviderSpec
from tollhouse.config.server import ServerSpec
from tollhouse.config.telemetry import TelemetrySpec
from tollhouse.config.writable import settled
from tollhouse.core.errors import Failure
from tollhouse.core.match import normalise
from tollhouse.core.spec import Duration, Spec
from tollhouse.ledger.prices import PriceSpec
from tollhouse.net.egress import Egress
from tollhouse.policies import CallScope, EntranceScope, ModelScope, Scope
from tollhouse.wire.mcp.names import SERVER_NAME

__all__ = [
    "Config",
    "EgressSpec",
    "HttpServer",
    "McpServer",
    "McpSpec",
    "ModelSpec",
    "Provider",
    "RouteSpec",
    "StdioServer",
    "ToolSpec",
]

_SQLITE: Final = "sqlite:"


def _state(value: Any) -> Any:
    if value != "memory":
        raise ValueError("a shared state is not available in this version; write `memory`, or leave it out")
    return value


def _ledger(value: str, info: ValidationInfo) -> str:
    kind, colon, name = value.partition(":")
    if kind in ("postgres", "postgresql"):
        raise ValueError("a ledger in PostgreSQL is not available in this version; write sqlite:tollhouse.db")
    absolute = name.startswith("///")
    if kind != "sqlite" or not colon or name in ("", ":memory:") or (name.startswith("//") and not absolute):
        raise ValueError("not a ledger; write `sqlite:` and the name of a file, like sqlite:tollhouse.db")
    return _SQLITE + settled(name[2:] if absolute else name, info)


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


class ToolSpec(CallScope):
    """What may be set on a single tool."""

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is set here; leave the tool out")
        return self


class _Server(CallScope):
    """What may be set on any kind of MCP server."""

    tools: dict[str, ToolSpec] = Field(default={}, description="for single tools, by the server's own names for them")


class StdioServer(StdioServerSpec, _Server):
    """An MCP server that the gateway starts and speaks to over its standard input and output."""


class HttpServer(HttpServerSpec, _Server):
    """An MCP server with a URL (Streamable HTTP).

    url: where it is spoken to. tls: how its certificate is verified, and what the gateway shows. proxy: an HTTP proxy
    on the way to it.
    """


def _transport(value: Any) -> str | None:
    if isinstance(value, dict):
        return "stdio" if "command" in value else "http" if "url" in value else None
    return "stdio" if isinstance(value, StdioServerSpec) else "http" if isinstance(value, HttpServerSpec) else None


McpServer = Annotated[
    Annotated[StdioServer, Tag("stdio")] | Annotated[HttpServer, Tag("http")],
    Discriminator(
        _transport,
        custom_error_type="mcp_server",
        custom_error_message=(
            "needs `command` (a program to start) or `url` (a server to reach); "
            "servers made from OpenAPI documents are not available in this version"
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
    servers: dict[ServerName, McpServer] = Field(min_length=1, description="by name")


def _to_one_or_several(schema: dict[str, Any]) -> None:
    """For editors: `to` may be one URL, or a list in which a URL stands for {url: ...}."""
    to = schema["properties"]["to"]
    target = {"anyOf": [{"type": "string"}, to.pop("items")]}
    several = {"type": to.pop("type"), "items": target, "minItems": to.pop("minItems", 1)}
    to["anyOf"] = [*target["anyOf"], several]


class RouteSpec(HttpRouteSpec, EntranceScope):
    """A route to plain HTTP services."""

    model_config = ConfigDict(json_schema_extra=_to_one_or_several)


class Config(Scope):
    """A configuration file."""

    server: ServerSpec = Field(default=ServerSpec(), description="where the gateway listens")
    state: Annotated[Literal["memory"], BeforeValidator(_state)] = Field(
        default="memory", description="where counters and sessions are kept; only `memory` in this version"
    )
    ledger: Annotated[str, AfterValidator(_ledger)] | None = Field(
        default=None,
        description="where usage is recorded: sqlite:FILE, relative to where the gateway is started; absent: nowhere",
        examples=["sqlite:tollhouse.db"],
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
    telemetry: TelemetrySpec = Field(default=TelemetrySpec(), description="what can be seen from outside")
