"""`tollhouse explain` and `tollhouse check --policy-tests`: what the rules of a configuration say of a request.

Rule: the configuration is built as it would serve, and its own router, rules and policies are asked; nothing is sent to
a model or a tool, and no credential is looked at: who calls is said in the request. A policy server is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, NamedTuple, Self, TypeVar

import msgspec
from pydantic import Field, ValidationError, model_validator

from tollhouse.config.document import read
from tollhouse.config.spec import Config, McpEndpointSpec
from tollhouse.core.call import Actor, Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.core.spec import Reading, Spec
from tollhouse.endpoints.models import Model, Models
from tollhouse.gateway.assembly import Assembly, Fixtures
from tollhouse.gateway.build import Builder
from tollhouse.gateway.keep import Keep
from tollhouse.gateway.operate import Operations
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.authorize import AUTHORIZE, AUTHORIZE_ROUTE, Step, explained
from tollhouse.policies.base import Layer
from tollhouse.store.memory import MemoryState
from tollhouse.wire.mcp.names import split
from tollhouse.wire.mcp.overrides import Selection

__all__ = ["CaseSpec", "Explained", "RequestSpec", "cases_of", "explain", "failing", "request_of"]

S = TypeVar("S", bound=Spec)
T = TypeVar("T")

_ASKED_BY = {"tool": "tools/call", "prompt": "prompts/get", "resource": "resources/read"}


class PrincipalSpec(Spec):
    """Who calls, as authentication would have found out."""

    id: str = Field(default="", description="stable and unique; default: made of `source` and `user`")
    source: Literal["key", "jwt", "opaque", "basic", "mtls", "oidc", "ext", "anonymous"] = "jwt"
    user: str = ""
    org: str = ""
    agent: str = ""
    email: str = ""
    key: str = ""
    client: str = ""
    issuer: str = ""
    subject: str = ""
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    actors: tuple[dict[Literal["iss", "sub"], str], ...] = ()
    claims: dict[str, Any] = Field(default={}, description="of the token; of a key its metadata")

    def made(self) -> Principal:
        return Principal(
            self.id or f"{self.source}:{self.user or self.key}",
            source=self.source,
            user=self.user,
            org=self.org,
            agent=self.agent,
            email=self.email,
            key=self.key,
            client=self.client,
            issuer=self.issuer,
            subject=self.subject,
            groups=self.groups,
            scopes=frozenset(self.scopes),
            actors=tuple(Actor(actor.get("iss", ""), actor.get("sub", "")) for actor in self.actors),
            claims=self.claims,
        )


class RequestSpec(Spec):
    """A request. What is asked for is one of `model`, `tool`, `prompt` and `resource`, or nothing."""

    method: str = Field(default="POST", pattern=r"^[A-Z]{1,16}$")
    path: str = Field(pattern=r"^/[!-~]*$", description="with the query, if there is one")
    host: str = "localhost"
    ip: str = "127.0.0.1"
    headers: dict[str, str] = Field(default={})
    principal: PrincipalSpec | None = Field(default=None, description="absent: nobody said who he is")
    server: str = Field(default="", description="of a tool, prompt or resource, where its name does not say it")
    tool: str | None = None
    prompt: str | None = None
    resource: str | None = None
    mcp_method: str = Field(default="", description="default: what asks for such a thing")
    arguments: dict[str, Any] | None = None
    annotations: dict[str, bool] | None = Field(default=None, description="of the tool; absent: as MCP has it")
    model: str | None = None
    operation: str = "chat"
    stream: bool = False
    tokens: int = Field(default=1, ge=0, description="estimate of the request")

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [name for name in ("model", *_ASKED_BY) if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"asks for one thing, and not for {' and '.join(f'`{name}`' for name in named)}")
        return self


class CaseSpec(Spec):
    """A request, and what is to become of it."""

    name: str = ""
    request: RequestSpec
    expect: Literal["allow", "deny", "approve"]
    rule: str = Field(default="", description="that decides, by its scope and name as `explain` has it")


class _CasesSpec(Spec):
    cases: tuple[CaseSpec, ...] = Field(min_length=1)


class Explained(NamedTuple):
    """decision: allow, deny, or approve where it would wait. rule: that decided, "" for none. status: of a refusal.
    about: what is asked for, in words. steps: what each rule says, in the order in which they stand."""

    route: str
    about: str
    decision: Literal["allow", "deny", "approve"]
    rule: str
    status: int
    message: str
    steps: list[Step]

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {**self._asdict(), "steps": [step._asdict() for step in self.steps]}

    def text(self) -> str:
        """For people."""
        lines = [f"route: {self.route or 'none'}", *([f"asks for: {self.about}"] if self.about else [])]
        width = max((len(step.rule) for step in self.steps), default=0)
        for step in self.steps:
            mark = "!" if step.refuses else "~" if step.shadow else " "
            lines.append(f"{mark} {step.rule.ljust(width)}  {step.effect:<7}  {step.said:<5}  {step.source}".rstrip())
        if any(step.shadow for step in self.steps):
            lines.append("~ is in shadow: it refuses nothing")
        said = {"allow": "allowed", "approve": "waits for approval", "deny": "denied"}[self.decision]
        by = f" by {self.rule}" if self.rule else ""
        why = f": {self.status} {self.message}" if self.status else ""
        return "\n".join([*lines, f"{said}{by}{why}"])


def request_of(text: str, file: str) -> RequestSpec:
    """The request that a file says, in YAML or JSON. Raises ConfigError."""
    return _read(RequestSpec, text, file)


def cases_of(text: str, file: str) -> tuple[CaseSpec, ...]:
    """The cases of a file. Raises ConfigError."""
    return _read(_CasesSpec, text, file).cases


def _read(kind: type[S], text: str, file: str) -> S:
    document = read(text, file, None)
    if document.values is None or document.problems:
        raise ConfigError(document.problems)
    try:
        return kind.model_validate(document.values, context=Reading("."))
    except ValidationError as error:
        raise ConfigError(
            [
                Problem(one["msg"], file=file, path=".".join(map(str, one["loc"])))
                for one in error.errors(include_url=False, include_input=False)
            ]
        ) from None


def explain(config: Config, request: RequestSpec) -> Explained:
    """What becomes of it. Raises ConfigError for a configuration that could not serve."""
    return asyncio.run(_with(config, lambda asked: asked.explain(request)))


def failing(config: Config, cases: Sequence[CaseSpec]) -> list[tuple[CaseSpec, Explained]]:
    """The cases that another thing becomes of than they expect. Raises ConfigError."""

    async def every(asked: "_Asked") -> list[tuple[CaseSpec, Explained]]:
        found = [(case, await asked.explain(case.request)) for case in cases]
        return [(c, e) for c, e in found if c.expect != e.decision or (c.rule and c.rule != e.rule)]

    return asyncio.run(_with(config, every))


async def _with(config: Config, use: "Callable[[_Asked], Awaitable[T]]") -> T:
    async with AsyncExitStack() as stack:
        clock = Clock()
        timer = Timer(clock)
        timer.start()
        stack.callback(timer.stop)
        client = Client(clock)
        stack.push_async_callback(client.close)
        families = Families(Metrics())
        fixtures = Fixtures(clock, families, client, MemoryState(clock), Operations(families.metrics))
        keep = Keep()
        stack.push_async_callback(keep.close)
        return await use(_Asked(config, fixtures, keep))


class _Asked:
    """A configuration that is asked."""

    def __init__(self, config: Config, fixtures: Fixtures, keep: Keep) -> None:
        self._config = config
        self._assembly = Assembly(fixtures, config, keep.tenure(), [], Catalogue.load)
        self._router = Builder(fixtures).router(self._assembly)
        self._models = Models(Model(spec.name, _nobody, aliases=spec.aliases) for spec in config.models)

    async def explain(self, spec: RequestSpec) -> Explained:
        headers = [(b"host", spec.host.encode()), *((n.lower().encode(), v.encode()) for n, v in spec.headers.items())]
        request = Request(spec.method.encode(), spec.path.encode(), Headers(headers), peer=spec.ip)
        principal = spec.principal.made() if spec.principal is not None else Principal("anonymous", source="anonymous")
        request.context.principal = principal
        try:
            route = self._router.find(request).name
        except Failure as failure:
            return Explained("", "", "deny", "", failure.status, failure.message, [])
        try:
            call, layers, about = self._call(spec, request)
        except Failure as failure:
            return Explained(route, "", "deny", "", failure.status, failure.message, [])
        entrance: Literal["llm", "mcp", "http"] = (
            "llm" if isinstance(call, ModelCall) else "mcp" if isinstance(call, ToolCall) else "http"
        )
        steps, failure_ = await explained(layers, self._assembly.parts(entrance), call)
        if failure_ is not None:
            return Explained(route, about, "deny", call.context.rule, failure_.status, failure_.message, steps)
        waits = next((s for s in steps if s.effect == "approve" and s.said in ("yes", "doubt") and not s.shadow), None)
        if waits is not None:
            return Explained(route, about, "approve", waits.rule, 0, "", steps)
        return Explained(route, about, "allow", "", 0, "", steps)

    def _call(self, spec: RequestSpec, request: Request) -> tuple[Call, Sequence[Layer], str]:
        """What the request becomes, the rules before it, and how it is called. Raises Failure."""
        top = self._assembly.top
        context: Context = request.context
        if spec.model is not None:
            found = self._models.find(spec.model)
            if found is None:
                raise _unknown(f"there is no model {spec.model!r}")
            model = next(one for one in self._config.models if one.name == found.name)
            context.operation = spec.operation
            name = self._models.own(spec.model)
            asked = ModelCall(
                request, context, dialect=None, operation=spec.operation, model=name, label=found.name,
                stream=spec.stream, fields={}, body=b"", reserve=spec.tokens,
            )  # fmt: skip
            return asked, top.below("model", model.name, model).layers(AUTHORIZE), f"model {name}"
        kind = next((kind for kind in _ASKED_BY if getattr(spec, kind) is not None), "")
        if kind or spec.mcp_method:
            return self._tool_call(spec, kind, request)
        route = next((one for one in self._config.routes if one.name == context.route), None)
        scopes = top if route is None else top.below("route", route.name, route)
        kinds = AUTHORIZE_ROUTE if route is not None else AUTHORIZE
        return Call(request, context), scopes.layers(kinds), ""

    def _tool_call(self, spec: RequestSpec, kind: str, request: Request) -> tuple[Call, Sequence[Layer], str]:
        name = getattr(spec, kind) if kind else ""
        server, name = self._named(spec, kind, name, request.path.decode())
        params: dict[str, msgspec.Raw] = {}
        if spec.arguments is not None:
            params["arguments"] = msgspec.Raw(msgspec.json.encode(spec.arguments))
        definition = b""
        if spec.annotations is not None:
            definition = msgspec.json.encode({"annotations": spec.annotations})
        call = ToolCall(
            request,
            request.context,
            server=server,
            method=spec.mcp_method or _ASKED_BY[kind],
            name=name,
            params=params,
            definition=definition,
        )
        scopes = self._assembly.top
        mcp = self._config.mcp
        virtual = self._endpoint(request.path.decode())
        if virtual is not None:
            scopes = scopes.below("endpoint", virtual.path, virtual)
        if mcp is not None and server:
            one = mcp.servers[server]
            scopes = scopes.below("server", server, one)
            if kind == "tool" and name in one.tools:
                scopes = scopes.below("tool", f"{server}/{name}", one.tools[name])
        about = " ".join(part for part in (kind, f"{server}/{name}" if server else name) if part)
        return call, scopes.layers(AUTHORIZE), about or spec.mcp_method

    def _endpoint(self, path: str) -> McpEndpointSpec | None:
        """Whose path that is, of the endpoints of chosen tools."""
        mcp = self._config.mcp
        return None if mcp is None else next((one for one in mcp.endpoints if one.path == path), None)

    def _named(self, spec: RequestSpec, kind: str, name: str, path: str) -> tuple[str, str]:
        """The server, and its own name for what is asked for. Raises Failure."""
        mcp = self._config.mcp
        servers = dict(mcp.servers) if mcp is not None else {}
        if mcp is not None and path.startswith(f"{mcp.path}/") and path.removeprefix(f"{mcp.path}/") in servers:
            server = path.removeprefix(f"{mcp.path}/")
        elif spec.server:
            server = spec.server
        elif kind and "__" in name and split(name)[0] in servers:
            server, name = split(name)
        else:
            server = next(iter(servers)) if kind and len(servers) == 1 else ""
        if not server:
            if kind:
                raise _unknown(f"no server is known that has the {kind} {name!r}; say `server`")
            return "", name
        if server not in servers:
            raise _unknown(f"there is no server {server!r}")
        if kind == "tool":
            shown = name
            name = next((own for own, tool in servers[server].tools.items() if tool.name == name), name)
            virtual = self._endpoint(path)
            if virtual is not None:
                which = virtual.tools
                chosen = which is None or Selection(which.allow, which.deny).has(server, shown, name)
                if server not in virtual.servers or not chosen:
                    raise _unknown(f"{path} has no tool {shown!r} of {server}")
        return server, name


async def _nobody(_: Any) -> Any:
    raise AssertionError("nothing is sent")


def _unknown(message: str) -> Failure:
    return Failure(404, Reason.NOT_FOUND, message)
