"""The call floor's values: who asks (Principal), for what (Call), and what is known about it (Context).

Rule: a fact that travels between two policies is a named field of Context, never an entry in a dict. Context
refers to nothing that refers back to it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from tollhouse.core.errors import Failure

__all__ = [
    "ACCOUNT",
    "APPROVAL",
    "CONNECTING",
    "Actor",
    "Asks",
    "Call",
    "Consent",
    "Context",
    "Hold",
    "Instead",
    "ModelCall",
    "Movable",
    "Principal",
    "Share",
    "ToolCall",
    "Usage",
]


class Usage(msgspec.Struct, gc=False, omit_defaults=True):
    """Tokens by kind. `input` excludes cached tokens and `output` includes reasoning, whatever the provider counts.

    cache_write_1h: those of `cache_write` that are kept for an hour. audio_input, image_input: those of `input`, and
    audio_output, image_output: those of `output`, that are sound and pictures. estimated: the provider did not say (a
    stream that was left), so this is ours, from what was seen. tier: the service tier that answered, as a price has it
    ("flex", "priority", "batch"); "" for the usual one.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False
    cache_write_1h: int = 0
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    tier: str = ""

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write


class Share(NamedTuple):
    """What one target used of a call that several were asked for: the fields of Context that say its price."""

    backend: str
    model_answered: str
    model_sent: str
    usage: Usage


class Actor(NamedTuple):
    """One level of who acts for the user (claim `act`, RFC 8693 section 4.1). iss: "" where the token did not say."""

    iss: str
    sub: str


class Principal:
    """Who calls, and on whose behalf. Made once for each key or verified token, and remembered with it.

    facts: prepared CEL variables; verdicts: remembered answers of rules that depend only on principal and name.
    Both belong to `core.expr` and are bounded there. minted: tokens that were exchanged for its own, by target; they
    belong to whoever exchanges, and are bounded there.
    """

    __slots__ = (
        "access",
        "actors",
        "agent",
        "claims",
        "client",
        "email",
        "expires",
        "facts",
        "family",
        "groups",
        "id",
        "issued",
        "issuer",
        "jti",
        "key",
        "minted",
        "org",
        "proof",
        "scopes",
        "sid",
        "source",
        "subject",
        "team",
        "token",
        "user",
        "verdicts",
    )

    def __init__(
        self,
        id: str,
        *,
        source: str,
        user: str = "",
        org: str = "",
        key: str = "",
        agent: str = "",
        email: str = "",
        groups: tuple[str, ...] = (),
        claims: dict[str, Any] | None = None,
        expires: float = 1e18,
        issuer: str = "",
        subject: str = "",
        client: str = "",
        scopes: frozenset[str] = frozenset(),
        actors: tuple[Actor, ...] = (),
        token: bytes = b"",
        jti: str = "",
        sid: str = "",
        family: str = "",
        issued: float = 0.0,
        proof: str = "",
        team: str = "",
    ) -> None:
        self.id = id  # stable and unique: "key:ci", "jwt:<issuer>|<subject>", "anonymous"
        self.source = source  # "key" | "jwt" | "opaque" | "basic" | "mtls" | "oidc" | "ext" | "anonymous"
        self.user = user
        self.org = org
        self.team = team
        self.key = key
        self.agent = agent
        self.email = email
        self.groups = groups
        self.claims = claims if claims is not None else {}
        self.expires = expires  # unix seconds
        self.issuer = issuer  # `iss`, `sub` and `client_id` of the token that was shown, as they are in it
        self.subject = subject
        self.client = client
        self.scopes = scopes
        self.actors = actors  # who acts for the user, outermost first
        self.token = token  # what was shown, to be exchanged; it goes into no log and no error
        self.jti = jti
        self.sid = sid
        self.family = family  # the grant that the token comes from: `gid`
        self.issued = issued  # unix seconds
        self.proof = proof  # thumbprint of the key that must be shown with the token (`cnf`), "" for a bearer token
        self.access: Any = None  # what the key may be used for (`policies.authenticate.access`); None: no such bounds
        self.facts: Any = None
        self.verdicts: dict[Any, bool] = {}
        self.minted: dict[Any, Any] = {}


class Context(msgspec.Struct, gc=False):
    """What is known about one request, field by field as it becomes known. Times are monotonic seconds."""

    request_id: str = ""
    began: float = 0.0
    client: str = ""  # the client's address where trusted proxies tell it; else it is the request's peer
    route: str = "unknown"
    backend: str = "unknown"
    principal: Principal | None = None
    deadline: float = 1e18
    dialect: str = ""
    operation: str = ""  # chat | messages | embeddings | mcp | http
    provider: str = ""  # gen_ai_system
    model_asked: str = ""
    model_answered: str = ""
    stream: bool = False
    usage: Usage | None = None
    shares: tuple[Share, ...] = ()  # where several targets have used tokens: what each did; `usage` is the sum
    cost_nano: int | None = None  # nano-dollars that `usage` cost, once somebody asked; None: not known
    model_sent: str = ""  # the name that the provider was asked for
    server: str = ""
    tool: str = ""
    mcp_method: str = ""
    mcp_outcome: str = ""  # ok | tool_error | protocol_error | denied | timeout | cancelled
    arguments: Any = None  # msgspec.Raw of the tool's arguments
    upstream_began: float = 0.0
    upstream_ended: float = 0.0
    first_event: float = 0.0
    attempts: int = 0
    fallback: str = ""  # the target that answered instead of the ones asked first
    tried: str = ""  # the targets that were asked, in their order, if there were several; joined by ", "
    budget: Any = None  # core.backoff.RetryBudget that repetitions are taken from, where a target has failed
    requires: tuple[str, ...] = ()  # scopes that the endpoint asks of every call
    rule: str = ""  # the rule that denied, or that had the call approved
    decision: str = ""  # of `authorize`: allow | deny | approved; "" where nobody was asked
    approver: str = ""  # who approved or refused to: user | operator:<name> | timeout; kept: an earlier approval
    shadow: str = ""  # the rule that would have denied, were it in force
    integrity: str = ""  # what is wrong with the tool that was called: changed | new | scan
    guard: str = ""  # the guard that acted on it, by its name in the configuration
    guard_action: str = ""  # what that did: flag | mask | failopen | reject
    withheld_tokens: int = 0  # of its answer, estimated, that guards kept back
    bytes_in: int = 0
    error: str = ""  # what a Failure that was answered says to the operator
    token_jti: str = ""  # of the token that was made for this call
    audited: bool = False  # there is an audit record of it
    event: Any = None  # core.identity.Event: what the auth provider has done
    credential: bytes = b""  # as `Call.credential`, for a request to a plain service; it goes into no log
    identity: bytes = b""  # as `Call.identity`, likewise
    run_id: str = ""  # the agent run it is part of, with its principal before it
    parent_id: str = ""  # the run that began that one
    tags: tuple[str, ...] = ()  # the caller's own words for what it is about, sorted
    cached: str = ""  # how it was answered without being asked: exact | semantic
    saved_nano: int = 0  # nano-dollars that asking would have cost
    cache: str = ""  # what a cache did that has not answered it: miss | bypass
    stopped: Failure | None = None  # why it is not to be answered any further, though it is under way; never raised
    limit: str = ""  # what refused it, or warned its caller: "limit NAME", "budget NAME", "run UNIT"
    raw_usage: str = ""  # what a provider told of tokens and was not believed, JSON of 1024 characters at most
    reading: Any = None  # what reads the answer, where that is a stream: `text`, its bytes of text so far

    def __repr__(self) -> str:  # without what is secret in it
        return f"<Context of {self.request_id!r}>"


# A Struct that is set looks whether the collector must know of it now, which is never so of this one, and which keeps
# the interpreter from its short cut: without it a fourth of the price, for some twenty fields of each request.
Context.__setattr__ = object.__setattr__  # type: ignore[method-assign]
Context.__delattr__ = object.__delattr__  # type: ignore[method-assign]


class Hold(Protocol):
    """What a call holds of what its callers may spend, until it is known what it came to. id: of the hold. at:
    microseconds since 1970 when it was admitted, by the clock of who counts. nano: nano-dollars that are held."""

    @property
    def id(self) -> str: ...

    @property
    def at(self) -> int: ...

    @property
    def nano(self) -> int: ...

    @property
    def pending(self) -> bool:
        """Whether it is of money that nobody may pass, and `begin` has not been called."""
        ...

    @property
    def begun(self) -> bool:
        """Whether it is written down what is due if nobody lives to say how the call ended."""
        ...

    def begin(self, intend: Callable[["Usage", int, tuple[tuple[str, int], ...]], None]) -> None:
        """The call's upstream is about to be asked. intend: writes down what is due then: what it may use and cost
        (nano-dollars), and its draws; done again as the hold grows. Raises what that raises, the first time."""
        ...

    def believed(self, usage: "Usage", passed: int = 0) -> "Usage":
        """What was used, or what was held where a provider tells more than can be. passed: tokens of answer that the
        caller has got at least."""
        ...

    def draws(self, usage: "Usage | None", cost_nano: int | None, counts: bool) -> tuple[tuple[str, int], ...]:
        """(field, amount) of each allowance that is spent, for the call's record. counts: it is one of the calls that
        are counted. Asked once, before `post`."""
        ...

    def post(self, journal: str, seq: int) -> None:
        """The record with these draws is number `seq` of that journal: let them count, and let go of what was held."""
        ...

    def release(self) -> None:
        """There is no record of the call: let go of what was held."""
        ...


class Call(msgspec.Struct, eq=False):
    """Something is asked. `request` is the HTTP request it came in; policies read it and never change it. principal:
    the context's. credential: the field `authorization` that this one call goes out with, b"" where it goes out with
    what its upstream is configured with. identity: a header line that tells the upstream who calls, b"" for none.
    hold: what was reserved for it; whoever records the call settles it."""

    request: Any
    context: Context
    principal: Principal | None = None
    credential: bytes = b""
    identity: bytes = b""
    hold: Hold | None = None

    def __post_init__(self) -> None:
        self.principal = self.context.principal

    def __repr__(self) -> str:  # as Context
        return f"<{type(self).__name__} of {self.context.request_id!r}>"


class ModelCall(Call, kw_only=True, eq=False):
    """A model is asked. `fields` is the body's top level with values unparsed; what is changed is put there.

    label: the configured model's name, bounded, for metrics. reserve: the estimate, where it is known already.
    content_type: of the body, b"" for JSON. chat: the request in the neutral model, once somebody needed it. continued:
    the assistant's message at its end is the beginning of the answer that is wanted. bounded: the answer has a bound of
    ours, that its caller has not given.
    """

    dialect: Any
    operation: str
    model: str
    label: str
    stream: bool
    fields: dict[str, msgspec.Raw]
    body: bytes
    reserve: int | None = None
    content_type: bytes = b""
    chat: Any = None
    continued: bool = False
    bounded: bool = False

    @property
    def estimate(self) -> int:
        """Tokens to reserve before the answer tells. Few calls need it, and it costs a look at the body: the dialect
        is asked for it once, and not before somebody wants to know."""
        reserve = self.reserve
        if reserve is None:
            reserve = self.reserve = self.dialect.estimate(self.body, self.fields)
        return reserve


APPROVAL: Final = "approval"
"""What a question of ours is about: whether the call may be made."""

ACCOUNT: Final = "account"
"""The same: the user is to connect an account of his at the server, and the call goes on then."""

CONNECTING: Final = "connecting"
"""The same, where that is all that the call is for."""


class Consent(NamedTuple):
    """What the agent's user said to a question of ours. about: APPROVAL | ACCOUNT | CONNECTING. action: accept |
    decline | cancel, or "" for nothing in time. claim: whether it is used for the first time; awaited before an
    approval counts. Raises Failure 503. left: seconds that the question still has."""

    about: str
    action: str
    claim: Callable[[], Awaitable[bool]]
    left: float = 0.0


class Asks(Protocol):
    """A question of ours to the agent's user, in the place of a call's answer. about: as in Consent. timeout: seconds
    to answer it."""

    about: str
    timeout: float
    carry: Callable[[Any], Any] | None
    """Makes the Reply that follows once that is settled what this agent can have; set by the endpoint."""


class Movable(Protocol):
    """A server's answer that goes on without the connection it came over."""

    def place(self) -> bytes:
        """Where it is found again (`backends`), as far as it was read; b"" where it is not."""
        ...

    def leave(self) -> None:
        """Let go of it, and let the server go on."""
        ...


class Instead(Protocol):
    """Who has answered a call in the place of its server. name: for a later call that goes on with it. new: the era of
    who answered, None while that is not known."""

    name: str

    @property
    def new(self) -> bool | None: ...

    async def again(self, call: "ToolCall") -> Any:
        """Ask it once more, without what was asked before. Raises Failure."""
        ...


class ToolCall(Call, kw_only=True, eq=False):
    """An MCP server is asked. Names are the server's own, without the gateway's prefix.

    method: the JSON-RPC method. name: of the tool or prompt, or the resource's URI. params: the fields of `params`
    with values unparsed, `_meta` taken out, the server's own name in it; what is changed is put there, and it is what
    goes out. meta: what of `_meta` may pass, or None. session: the agent's session, None for stateless agents.
    progress: the agent wants progress. level: the log level this one request asked for, "" for none. idempotent: may
    be asked again when it is unknown whether it was carried out. answer: set by the backend at the commit; sends a
    JSON-RPC response to a request that the server made within this call. profile: what the agent can be asked
    (`wire.mcp.capabilities`); a session's, where there is one. round: above 0 for what carries a call on that was
    admitted before. resume: what takes the place of the server, where the call is under way with it already. moves:
    set by the backend at the commit, where another worker may be able to take the answer over. extensions: what the
    agent declares beside the profile, raw JSON of an object, for a stateless server. definition: what the server says
    of the tool, raw JSON, b"" while that is not known. consent: what the agent's user said of it, in the round that
    brings that. asks: the Reply is a question of ours to the agent's user. instead: who answered in the
    server's place. onward: the name of who did in an earlier round, and is to go on. decoded: arguments, raw and as
    they are, once somebody needed them. child: which of its
    caller's sessions with the server it was put to, set by the backend, and is to be put to where it is about a task.
    connects: the tool is ours (`core.identity.CONNECT`), by which the agent's user connects an account at the server;
    it is answered before the server. outgoing: is given the call, a JSON-RPC response of the agent's to what the server
    asks within it, and who sends that: what becomes of it is for him, at once or later. asked: name and arguments as
    the agent has them, where a policy has changed them; None elsewhere.
    """

    server: str
    method: str
    name: str
    params: dict[str, msgspec.Raw]
    meta: dict[str, msgspec.Raw] | None = None
    session: Any = None
    progress: bool = False
    level: str = ""
    idempotent: bool = False
    answer: Callable[[bytes], None] | None = None
    profile: int = 0
    round: int = 0
    resume: Callable[["ToolCall"], Awaitable[Any]] | None = None
    extensions: msgspec.Raw | bytes = b""
    moves: "Movable | None" = None
    instead: Instead | None = None
    onward: str = ""
    definition: msgspec.Raw | bytes = b""
    consent: Consent | None = None
    asks: Asks | None = None
    decoded: tuple[Any, Any] | None = None
    child: int = 0
    connects: bool = False
    outgoing: 'Callable[["ToolCall", bytes, Callable[[bytes], None]], None] | None' = None
    asked: "tuple[str, msgspec.Raw | bytes] | None" = None

    @property
    def arguments(self) -> msgspec.Raw | bytes:
        """Raw JSON of the tool's or prompt's arguments; empty when there are none."""
        return self.params.get("arguments", b"")
