"""The variables of CEL expressions: what each is called, what it says, and how it is read from a Call.

Rule: this table is the only place that knows a variable. A fact that a call does not have (the tool of a model call)
is missing, never empty, so that `has()` tells the truth. Facts of the caller are prepared once for each Principal;
the others are read for each evaluation, and only those that the expression names.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from msgspec.structs import asdict

from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.cel_engine import cel
from tollhouse.core.depth import decode
from tollhouse.core.http import CREDENTIALS, Request
from tollhouse.core.match import host_of

__all__ = ["FACTS", "MISSING", "VARIABLES", "Fact", "Prepared", "Read", "gather", "of_caller", "prepare", "recall"]

Read = Callable[[Call], Any]
"""How a fact is read from a call; MISSING where it has none."""


class _Missing:
    __slots__ = ()


MISSING: Any = _Missing()
"""What `Fact.read` gives for a fact that this call does not have."""


class Fact(NamedTuple):
    """One field of a variable: `variable.name`, or `variable.group.name`.

    caller: depends on the Principal alone. name_of_call: depends on nothing but the Principal and what is asked (the
    model; the server, method and name). listed: depends also on what the server says of the thing asked for, so that it
    is known in listings but may change. late: known only when the call is over. early: known only until then. open: a
    map with keys we do not know.
    """

    variable: str
    group: str
    name: str
    doc: str
    read: Read
    caller: bool = False
    name_of_call: bool = False
    listed: bool = False
    late: bool = False
    open: bool = False
    early: bool = False

    @property
    def path(self) -> str:
        return ".".join(filter(None, (self.variable, self.group, self.name)))


def _headers(call: Call) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in call.request.headers:
        if name not in CREDENTIALS:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            fields[key] = f"{fields[key]}, {text}" if key in fields else text
    return fields


def _address(call: Call) -> str:
    return call.context.client or str(call.request.peer)


def _query(call: Call) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in parse_qsl(call.request.query.decode("latin-1"), keep_blank_values=True):
        fields.setdefault(name, value)
    return fields


def _of_model(read: Callable[[ModelCall], Any]) -> Read:
    # Without a model (a list of them, an unknown name) no model is asked: then there is nothing to say of it.
    return lambda call: read(call) if isinstance(call, ModelCall) and call.model else MISSING


def _of_body(read: Callable[[ModelCall], Any]) -> Read:
    # One that only stands for a call has no body.
    return lambda call: read(call) if isinstance(call, ModelCall) and call.dialect is not None else MISSING


def _tools(call: ModelCall) -> bool:
    fields = call.fields
    return any(bytes(fields[name]).translate(None, _BLANK) not in _NOTHING for name in _TOOLS if name in fields)


def _metadata(call: ModelCall) -> Any:
    """Raises ValueError for one that is too deep."""
    for name in _METADATA:
        raw = call.fields.get(name)
        if raw is not None:
            value = decode(raw)
            return value if isinstance(value, dict) else {}
    return {}


def _of_server(read: Callable[[ToolCall], Any]) -> Read:
    return lambda call: read(call) if isinstance(call, ToolCall) else MISSING


def _of(methods: tuple[str, ...], read: Callable[[ToolCall], Any]) -> Read:
    return lambda call: read(call) if isinstance(call, ToolCall) and call.method in methods else MISSING


def _arguments(call: ToolCall) -> Any:
    """Raises ValueError also where the server may read other arguments than these: it gets them as they came."""
    raw = call.arguments
    if not raw:
        return {}
    known = call.decoded
    if known is not None and known[0] is raw:
        return known[1]
    value = decode(raw)
    data = bytes(raw)
    # A member that stands twice is one member, and two colons; texts may have more of them.
    if _members(value) != data.count(b":"):
        json.loads(data, object_pairs_hook=_unambiguous)  # not so deep that it could fail
    call.decoded = (raw, value)
    return value


def _members(value: Any) -> int:
    """How many members all objects in it have. Raises ValueError where two of one object differ at most by case."""
    if isinstance(value, dict):
        if len({name.casefold() for name in value}) != len(value):
            raise ValueError(_AMBIGUOUS)
        return len(value) + sum(map(_members, value.values()))
    return sum(map(_members, value)) if isinstance(value, list) else 0


class _Annotations(msgspec.Struct, frozen=True):
    """Hints of a tool, as they are where the server does not say (MCP schema, ToolAnnotations)."""

    readOnlyHint: bool = False  # noqa: N815
    destructiveHint: bool = True  # noqa: N815
    idempotentHint: bool = False  # noqa: N815
    openWorldHint: bool = True  # noqa: N815


class _Definition(msgspec.Struct):
    annotations: _Annotations | None = None


_UNSAID = _Annotations()
_definition = msgspec.json.Decoder(_Definition)


def _annotations(call: ToolCall) -> Any:
    """Raises ValueError for hints that are no hints."""
    hints = _UNSAID
    if len(call.definition):
        try:
            hints = _definition.decode(call.definition).annotations or _UNSAID
        except msgspec.DecodeError as error:
            raise ValueError(f"what the server says of the tool cannot be read: {error}") from None
    return asdict(hints)


def _unambiguous(members: list[tuple[str, Any]]) -> None:
    # Of two equal names decoders take the first or the last, and some take equal but for the case as equal.
    if len({name.casefold() for name, _ in members}) != len(members):
        raise ValueError(_AMBIGUOUS)


_AMBIGUOUS = "the arguments have members whose names differ at most by case"
_BLANK = b" \t\r\n"
_NOTHING = (b"null", b"[]", b"{}")
_TOOLS = ("tools", "functions", "toolConfig")  # as the APIs have them
_METADATA = ("metadata", "requestMetadata", "labels")

_TOOL = ("tools/call",)
_PROMPT = ("prompts/get",)
_RESOURCE = ("resources/read", "resources/subscribe", "resources/unsubscribe")


def _nobody(_: Call) -> Any:
    return MISSING  # facts of the caller are read by `prepare`, not from the call


FACTS: tuple[Fact, ...] = (
    Fact("request", "", "method", "GET, POST, ...", lambda c: c.request.method.decode("latin-1")),
    Fact("request", "", "path", "without the query", lambda c: c.request.path.decode("latin-1")),
    Fact("request", "", "host", "lower case, without the port", lambda c: host_of(c.request).decode("latin-1")),
    Fact("request", "", "scheme", "http or https", lambda c: c.request.scheme),
    Fact("request", "", "ip", "the client's address", _address),
    Fact("request", "", "query", "map: decoded parameters, the first of each name", _query, open=True),
    Fact(
        "request", "", "headers", "map: lower-case names; several of one name joined by `, `; no credentials",
        _headers, open=True,
    ),
    Fact("source", "", "address", "the client's address", _address),
    Fact("jwt", "", "", "map: the verified token's claims; empty without a token", _nobody, caller=True, open=True),
    Fact("key", "", "name", "of the API key; empty without one", _nobody, caller=True),
    Fact("key", "", "user", "whose key it is", _nobody, caller=True),
    Fact("key", "", "org", "whose key it is", _nobody, caller=True),
    Fact("key", "", "metadata", "map: what config says about the key", _nobody, caller=True, open=True),
    Fact("principal", "", "id", "stable and unique, like `key:ci`", _nobody, caller=True),
    Fact("principal", "", "source", "key, jwt, anonymous, ...", _nobody, caller=True),
    Fact("principal", "", "user", "on whose behalf", _nobody, caller=True),
    Fact("principal", "", "org", "organisation", _nobody, caller=True),
    Fact("principal", "", "team", "of the organisation", _nobody, caller=True),
    Fact("principal", "", "agent", "the program that acts", _nobody, caller=True),
    Fact("principal", "", "email", "empty when not known", _nobody, caller=True),
    Fact("principal", "", "groups", "list of names", _nobody, caller=True, open=True),
    Fact("principal", "", "key", "name of the API key", _nobody, caller=True),
    Fact("principal", "", "client", "the OAuth client of the token", _nobody, caller=True),
    Fact("principal", "", "issuer", "who issued the token", _nobody, caller=True),
    Fact("principal", "", "subject", "whom the token is about, as its issuer has it", _nobody, caller=True),
    Fact("principal", "", "scopes", "list of the token's scopes, sorted", _nobody, caller=True, open=True),
    Fact(
        "principal", "", "actors", "list of {iss, sub}: who acts for the user, outermost first", _nobody, caller=True,
        open=True,
    ),
    Fact("llm", "", "model", "the model asked for", _of_model(lambda c: c.model), name_of_call=True),
    Fact("llm", "", "dialect", "openai, anthropic, ...", _of_model(lambda c: c.context.dialect)),
    Fact("llm", "", "operation", "chat, messages, embeddings", _of_model(lambda c: c.operation)),
    Fact("llm", "", "stream", "bool", _of_model(lambda c: c.stream)),
    Fact("llm", "", "tokens", "int: estimate before the answer", _of_model(lambda c: c.estimate)),
    Fact(
        "llm", "", "tools", "bool: the model may call tools; not in labels and log fields", _of_body(_tools), early=True
    ),
    Fact(
        "llm", "", "metadata", "map: the request's `metadata`; not in labels and log fields",
        _of_body(_metadata), open=True, early=True,
    ),
    Fact(
        "llm", "", "provider", "who answered; not in rules and limits",
        _of_model(lambda c: c.context.provider or MISSING), late=True,
    ),
    Fact("mcp", "", "server", "the server's name", _of_server(lambda c: c.server or MISSING), name_of_call=True),
    Fact("mcp", "", "method", "tools/call, tools/list, ...", _of_server(lambda c: c.method), name_of_call=True),
    Fact("mcp", "", "arguments", "map: of a tool or prompt", _of(_TOOL + _PROMPT, _arguments), open=True),
    Fact("mcp", "tool", "name", "the server's own name", _of(_TOOL, lambda c: c.name), name_of_call=True),
    Fact("mcp", "tool", "arguments", "map", _of(_TOOL, _arguments), open=True),
    Fact(
        "mcp", "tool", "annotations", "map: readOnlyHint, destructiveHint, idempotentHint, openWorldHint, as its "
        "server says or as MCP has it", _of(_TOOL, _annotations), listed=True, open=True,
    ),
    Fact(
        "mcp", "tool", "integrity", "changed, new or scan: it is not as it was approved; not in rules and limits",
        _of(_TOOL, lambda c: c.context.integrity or MISSING), late=True,
    ),
    Fact("mcp", "prompt", "name", "the server's own name", _of(_PROMPT, lambda c: c.name), name_of_call=True),
    Fact("mcp", "prompt", "arguments", "map", _of(_PROMPT, _arguments), open=True),
    Fact("mcp", "resource", "uri", "as the server knows it", _of(_RESOURCE, lambda c: c.name), name_of_call=True),
)  # fmt: skip

VARIABLES = tuple(dict.fromkeys(fact.variable for fact in FACTS))

Prepared = tuple[cel.Context, dict[str, Any]]
"""A Principal's facts: the context that holds them, and the (otherwise empty) dict it asks first for call facts."""


def of_caller(principal: Principal) -> dict[str, Any]:
    """The variables that depend on the Principal alone."""
    from_key = principal.source == "key"
    return {
        "jwt": {} if from_key else principal.claims,
        "key": {
            "name": principal.key,
            "user": principal.user if from_key else "",
            "org": principal.org if from_key else "",
            "metadata": principal.claims if from_key else {},
        },
        "principal": {
            "id": principal.id,
            "source": principal.source,
            "user": principal.user,
            "org": principal.org,
            "team": principal.team,
            "agent": principal.agent,
            "email": principal.email,
            "groups": principal.groups,
            "key": principal.key,
            "client": principal.client,
            "issuer": principal.issuer,
            "subject": principal.subject,
            "scopes": sorted(principal.scopes),
            "actors": [{"iss": actor.iss, "sub": actor.sub} for actor in principal.actors],
        },
    }


def prepare(principal: Principal) -> Prepared:
    """The Principal's facts, made once and kept on it. Raises ValueError for claims CEL has no type for."""
    context = cel.Context(of_caller(principal))
    # A dict's own method, so that nothing here refers back to the context: it lives in Rust, unseen by the collector.
    current: dict[str, Any] = {}
    context.set_variable_resolver(current.get)
    prepared = principal.facts = (context, current)
    return prepared


def gather(facts: tuple[Fact, ...], call: Call) -> dict[str, Any]:
    """The value of one variable: those of `facts` that the call has. Raises ValueError for
    arguments that are not JSON, too deep, or ambiguous."""
    value: dict[str, Any] = {}
    for fact in facts:
        read = fact.read(call)
        if read is not MISSING:
            if fact.group:
                value.setdefault(fact.group, {})[fact.name] = read
            else:
                value[fact.name] = read
    return value


def recall(request: Request, context: Context) -> Call:
    """The Call a finished request was, as far as its Context tells: for labels and log fields."""
    if context.mcp_method:
        return ToolCall(
            request,
            context,
            server=context.server,
            method=context.mcp_method,
            name=context.tool,
            params={"arguments": context.arguments} if context.arguments else {},
        )
    if context.model_asked:
        return ModelCall(
            request,
            context,
            dialect=None,
            operation=context.operation,
            model=context.model_asked,
            label=context.model_asked,
            stream=context.stream,
            fields={},
            body=b"",
            reserve=context.usage.total if context.usage is not None else 0,
        )
    return Call(request, context)
