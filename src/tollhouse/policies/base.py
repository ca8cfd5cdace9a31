"""What a policy is made from: a Kind says where it may be configured and how it is built.

Rule: a policy knows neither its neighbours nor where it stands; the order is the two tuples of `policies`, and `Parts`
is all it gets. What must outlive a configuration (counters are `counter`; key sets, remembered tokens, retry budgets)
is asked of `Parts.shared` by a key that holds everything it was made from.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from tollhouse.core.call import Context, ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import Handler, Policy
from tollhouse.core.http import Headers, Request, Response
from tollhouse.core.identity import Accounts, Exchanger, Minted, RevocationView
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.net.client import Client
from tollhouse.observe.families import Families
from tollhouse.policies.holds import Holds
from tollhouse.policies.quotes import Quotes
from tollhouse.store.base import Counter, Draw, State
from tollhouse.store.revocation import Kind as RevocationKind
from tollhouse.wire.jose import Keys, Token

__all__ = [
    "ENTRANCES", "EVERYWHERE", "Entrance", "Exchangers", "Inside", "Kind", "Layer", "Level", "Opens", "OwnIssuer",
    "Parts", "RunBegan", "Service", "Services", "Shared", "on_or_off", "one_or_several", "several", "shown", "wrong",
]  # fmt: skip

Level = Literal["top", "model", "server", "tool", "endpoint", "route"]
Entrance = Literal["llm", "mcp", "http"]

EVERYWHERE: frozenset[Level] = frozenset(("top", "model", "server", "tool", "endpoint", "route"))
ENTRANCES: frozenset[Entrance] = frozenset(("llm", "mcp", "http"))

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")


Opens = Callable[[Sequence[Draw]], Awaitable[None]]
"""Fills what the draws are spent from with what the ledger knows. Raises Failure 503."""

RunBegan = Callable[[str, float], Awaitable[tuple[float, str] | None]]
"""By a run's full name when its first call was admitted, of those since then (unix seconds), and the run that began it,
as the ledger has it; None where it has none. Raises Failure 503."""

Inside = Callable[[str], "Handler[ModelCall, Reply] | None"]
"""The call chain of a model, past what records a call; None where there is no such model."""


class Shared(Protocol):
    """`gateway.keep.Tenure.get`: the part of that key, made if there is none; closed when no Snapshot uses it."""

    def __call__(
        self, key: Hashable, make: Callable[[], T], close: Callable[[T], Awaitable[None]] | None = None, /
    ) -> T: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """What config says about one policy in one scope. name: of the model, server, ... ("" at the top)."""

    level: Level
    name: str
    spec: Any

    @property
    def where(self) -> str:
        """`top`, `model smart`."""
        return f"{self.level} {self.name}" if self.name else self.level

    @property
    def one(self) -> str:
        """`a model`, `an endpoint`."""
        return f"an {self.level}" if self.level == "endpoint" else f"a {self.level}"


class OwnIssuer(NamedTuple):
    """The auth provider in this process. url: as in its tokens' `iss`. keys: those that verify now, the same object as
    long as they are the same. algorithms: that it signs with. find: those to verify a token with; where none is it,
    another node may have made it, and the state is asked first. Raises Failure 503, as `keys` does."""

    url: str
    keys: Callable[[], Keys]
    algorithms: tuple[str, ...]
    find: Callable[[Token], Awaitable[Keys]]


class Exchangers(Protocol):
    """Who makes tokens for upstreams. generation: the same object in one configuration, another one in the next.
    identity: makes a statement of who a principal is, for an audience and so many seconds; None where nobody can."""

    @property
    def generation(self) -> object: ...

    @property
    def identity(self) -> Callable[[Principal, str, float], Minted] | None: ...

    def of(self, who: Any) -> Exchanger | None:
        """who: the Spec that names an issuer elsewhere; None for the one in this process, if there is one. Raises
        ConfigError."""
        ...


class Service(Protocol):
    """An HTTP service that policies ask."""

    async def post(self, target: bytes, body: bytes, *, deadline: float, limit: int) -> tuple[int, Headers, bytes]:
        """Status, header fields and body of its answer to a JSON body. target: path and query below its address.
        deadline: monotonic seconds. limit: bytes of the answer. Raises Failure."""
        ...


class Services(Protocol):
    """Services at providers that are configured."""

    def __call__(self, provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
        """What is asked with that provider's credentials: beside its models, or at another URL. kinds: that the
        provider may be of. Raises ValueError: what is wrong, and what would be right."""
        ...


class Ways(Protocol):
    """What chains lead to, in digests of all settings that may change an answer."""

    def __call__(self, model: str, /) -> Any:
        """`policies.cache.key.Path` to the model that is configured under this name."""
        ...

    def server(self, name: str, /) -> bytes:
        """Of an MCP server."""
        ...

    def apart(self, guards: Any, /) -> "Ways":
        """The same for servers behind one more Spec of guards."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What policies may use. entrance: what the chain stands before. public_url: of the gateway, as clients see it,
    without a slash at the end. hosts: by which names it may be called besides. forwarding: which proxies are trusted,
    None for none. resource: canonical URI of what stands behind the chain, which tokens for it have as `aud`; "" for
    the gateway as a whole. scopes: that every call behind the chain needs. state: what workers share, None where
    nothing is. revocations: None where nothing is ever revoked. issuer: the auth provider in this process. issued: API
    keys that live in the ledger. spool: directory in which calls wait for approval where the state is this process's
    own; "" for none. upstream: canonical URI of what the chain leads to, "" where that takes no tokens
    made for it. exchangers: who makes those. accounts: those that users have connected at a server, by its name; None
    where none are. revoke: as `store.revocation.Revocations.revoke`. server: name of the MCP server that the chain
    leads to. patience: seconds that an agent's user may take for what he is asked. watch: told of each guard that may
    be unable to run, by its name, and of what says why; None where nobody asks. services: at providers; None where
    there are none. quotes: what calls of models may cost. holds: of all calls of the worker; None where nothing is
    held. opens: fills allowances from the ledger. run_began: what the ledger knows of a run. inside: by a model's name
    its call chain past what records a call. behind: what stands behind the chain. price: nano-dollars of what a call
    has used, None where no price is known; None where there are no models. embed: vectors of texts by a configured
    model, asked for in the name of a request's caller. end_run: ends all that an agent run has under way in this
    worker; None where nobody can."""

    clock: Clock
    families: Families
    counter: Counter
    client: Client
    shared: Shared
    entrance: Entrance = "http"
    public_url: str = ""
    hosts: tuple[str, ...] = ()
    forwarding: Forwarding | None = None
    resource: str = ""
    state: State | None = None
    revocations: RevocationView | None = None
    issuer: OwnIssuer | None = None
    issued: KeyFollower | None = None
    scopes: tuple[str, ...] = ()
    spool: str = ""
    upstream: str = ""
    exchangers: Exchangers | None = None
    accounts: Callable[[str], Accounts | None] | None = None
    revoke: Callable[[RevocationKind, str, float, str], Awaitable[None]] | None = None
    server: str = ""
    patience: float = 300.0
    quotes: Quotes | None = None
    holds: Holds | None = None
    opens: Opens | None = None
    run_began: RunBegan | None = None
    inside: Inside | None = None
    services: Services | None = None
    watch: Callable[[str, Callable[[], str]], None] | None = None
    behind: Ways | None = None
    price: Callable[[Context], int | None] | None = None
    embed: Callable[[str], Callable[[Request, Sequence[str]], Awaitable[list[list[float]]]]] | None = None
    end_run: Callable[[str, Failure], None] | None = None

    @property
    def keys_read(self) -> Callable[[str], None]:
        """Who is told of readings of issuers' keys (`net.jwks.Told`); it outlives these parts, and holds none."""
        refreshes = self.families.jwks_refreshes
        return lambda outcome: refreshes.child(outcome).inc()


@dataclass(frozen=True, slots=True)
class Kind(Generic[Q, R]):
    """A kind of policy.

    name: the config key. levels: where it may stand. adds: layers add up; else the narrowest one replaces the wider.
    build: from the layers, widest first, as they are in force for one chain (for one that does not add, only the
    narrowest counts); None when there is nothing to do. Raises ConfigError. entrances: before what it is of use.
    always: is built without layers too. joins: what `build` gives is no policy, but a part of one: this makes it of the
    parts of all kinds that have the same `joins` and stand next to each other.
    """

    name: str
    levels: frozenset[Level]
    adds: bool
    build: Callable[[tuple[Layer, ...], Parts], Policy[Q, R] | None]
    entrances: frozenset[Entrance] = ENTRANCES
    always: bool = False
    joins: "Callable[[Sequence[Any], Parts], Policy[Q, R]] | None" = None

    def make(self, layers: tuple[Layer, ...], parts: Parts) -> Policy[Q, R] | None:
        """The policy of one chain, or None. layers: of this kind, widest first, those without a spec left out."""
        if parts.entrance not in self.entrances or not (layers or self.always):
            return None
        return self.build(layers, parts)


def on_or_off(value: Any) -> Any:
    """For a setting that `on` and `off` may stand for: {} and {mode: off}."""
    if isinstance(value, str):
        if value not in ("on", "off"):
            raise ValueError("write on, off, or its settings as a mapping")
        return {} if value == "on" else {"mode": "off"}
    return value


def several(value: Any) -> Any:
    """For a setting that is one Spec, or a list of them: the list."""
    return [value] if isinstance(value, (dict, Spec)) else value


def one_or_several(schema: dict[str, Any]) -> None:
    """The same for editors, as `json_schema_extra` of a tuple of Specs."""
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [listed["items"], listed]


def shown(request: Request, change: Callable[[Response], None]) -> None:
    """Let `change` see the answer to a Failure, too: those are rendered by the server, after every policy."""
    render = request.render

    def changed(failure: Failure, asked: Request) -> Response:
        response = render(failure, asked)
        change(response)
        return response

    request.render = changed


def wrong(layer: Layer, path: str, message: str) -> ConfigError:
    """A setting that cannot be used, found only while building."""
    return ConfigError([Problem(message, path=f"{layer.where}: {path}")])
