"""The policies, and their order: place in these tuples is place in the chain, outermost first.

Config switches a policy on and sets it, and cannot reorder it. The gateway puts what records a request before the first
of REQUEST, what meters a call before the first of CALL, and what audits before either.
"""

from typing import Final

from pydantic import Field

from tollhouse.core.call import Call
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.policies.account import ACCOUNTS
from tollhouse.policies.address import ADDRESS, AddressSpec
from tollhouse.policies.authenticate import (
    ACCESS,
    ACCESS_ROUTE,
    AUTHENTICATE,
    REQUIRES,
    REQUIRES_ENDPOINT,
    REQUIRES_ROUTE,
    AuthenticateSpec,
    ScopeWord,
)
from tollhouse.policies.authorize import (
    APPROVE,
    APPROVE_ROUTE,
    AUTHORIZE,
    AUTHORIZE_ROUTE,
    AuthorizeSpec,
    GuardSpec,
)
from tollhouse.policies.base import Kind
from tollhouse.policies.budgets import BUDGETS, BudgetSpec
from tollhouse.policies.cache import CACHE, ModelCacheSetting, ToolCacheSetting, TopCacheSetting
from tollhouse.policies.cors import CORS, CorsSpec
from tollhouse.policies.exchange import EXCHANGE, EXCHANGE_ROUTE
from tollhouse.policies.exchange_spec import ExchangeSetting
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.guardrails.spec import GuardrailsSpec
from tollhouse.policies.headers import HEADERS, RESPONSE_HEADERS, HeadersSpec
from tollhouse.policies.identity_headers import IDENTITY, IDENTITY_ROUTE, IdentitySetting
from tollhouse.policies.limits import LIMITS, LIMITS_ROUTE, LimitSpec
from tollhouse.policies.oauth_spec import OauthSetting
from tollhouse.policies.origin import ORIGIN
from tollhouse.policies.retry import RETRY, RetrySpec
from tollhouse.policies.run_caps import RUN_CAPS
from tollhouse.policies.runs import RUNS, RunsSpec
from tollhouse.policies.timeout import TIMEOUT, TimeoutSpec
from tollhouse.policies.transform import TRANSFORM, Steps

__all__ = [
    "ADMISSION", "CALL", "REQUEST", "CallScope", "EntranceScope", "GuardedScope", "ModelScope", "RouteScope",
    "RuledScope", "Scope", "ServerScope",
]  # fmt: skip

REQUEST: Final[tuple[Kind[Request, Response], ...]] = (
    RESPONSE_HEADERS,  # first: no answer is without them, preflights and refusals included
    CORS,  # before all that refuses: a preflight has no credentials, and a page must be able to read every refusal
    ADDRESS,  # before anything that costs: what comes from outside the allowed networks is not looked at
    AUTHENTICATE,  # before all that asks who it is
    ORIGIN,  # behind it: whoever has said who he is, is asked no further, except by MCP
    ACCESS_ROUTE,  # before rules: what a key may not be used for
    REQUIRES_ENDPOINT,  # before the body is read: who must get another token need not send it
    REQUIRES_ROUTE,
    AUTHORIZE_ROUTE,  # before limits: what is forbidden must not use up anybody's share
    LIMITS_ROUTE,  # before the deadline begins to matter, and before anybody is asked or the upstream is touched
    TIMEOUT,
    APPROVE_ROUTE,  # last of those that refuse: nobody is asked for what would be refused anyway
    EXCHANGE_ROUTE,  # behind all that refuses: no token is made for what is not sent
    IDENTITY_ROUTE,
    HEADERS,  # last: rules see the request as it came, the upstream sees it as it was changed
)

ADMISSION: Final[tuple[Kind[Call, Reply], ...]] = (
    RUN_CAPS,
    BUDGETS,
    LIMITS,
)
"""What is counted, in one step: one policy, wherever it stands."""

CALL: Final[tuple[Kind[Call, Reply], ...]] = (
    RUNS,  # before all: what is refused belongs to its run, too
    ACCESS,  # before rules: what a key may not be used for, no rule can permit
    REQUIRES,  # before rules: a caller who can get another token is told so
    AUTHORIZE,  # before limits: what is forbidden must not use up anybody's share
    *ADMISSION,  # outside retries: a call counts once, however often it is tried
    GUARD_REQUESTS,  # behind rules and limits: nobody looks for free; before who is asked, who sees what may be seen
    APPROVE,  # behind both: nobody is asked for what would be refused anyway, and nobody can flood those who approve
    ACCOUNTS,  # behind it: nobody connects an account for a call that is not approved
    TRANSFORM,  # behind both: rules and limits see the request as it came
    CACHE,  # behind all that changes a request: the key has what is really asked; before all that makes an answer
    RETRY,  # outside of what makes tokens, and of nothing else: only the backend is asked again
    IDENTITY,
    EXCHANGE,  # within it: what is asked again goes out with a token that is good then
    GUARD_ANSWERS,  # innermost: no answer passes it by, nor one that is kept or asked for again
)


class RuledScope(Spec):
    """What may be set in every scope. It adds to what the wider scopes say."""

    authorize: AuthorizeSpec | None = Field(default=None, description="who may do what: rules in CEL")
    limits: tuple[LimitSpec, ...] | None = Field(default=None, min_length=1, description="rate limits")
    requires: tuple[ScopeWord, ...] | None = Field(
        default=None, min_length=1, description="scopes that a caller's token must have"
    )


class GuardedScope(RuledScope):
    """What may be set on all that calls pass: an endpoint of MCP servers, too."""

    budgets: tuple[BudgetSpec, ...] | None = Field(
        default=None, min_length=1, description="what may be spent in an hour, a day, a month"
    )
    guardrails: GuardrailsSpec | None = Field(
        default=None, description="what is masked, refused or noted in calls and their answers"
    )


class CallScope(GuardedScope):
    """What may be set on a model, an MCP server or one of its tools."""

    cache: ToolCacheSetting | None = Field(default=None, description="results of tools that only read, given again")
    retry: RetrySpec | None = Field(default=None, description="when a failed call to a model or tool is made again")


class ServerScope(CallScope):
    """What may be set on an MCP server that is reached over HTTP."""

    exchange: ExchangeSetting | None = Field(default=None, description="whether calls go out with tokens made for them")
    oauth: OauthSetting | None = Field(
        default=None, description="users connect accounts of their own there, whose tokens their calls go out with"
    )
    identity: IdentitySetting | None = Field(default=None, description="a header that says who calls, signed")


class ModelScope(CallScope):
    """What may be set on a model."""

    cache: ModelCacheSetting | None = Field(default=None, description="answers that are given again")
    transform: Steps | None = Field(default=None, description="changes to requests: fields and system text")


class EntranceScope(RuledScope):
    """What may be set on a route. It replaces what the top says, where it does not add."""

    address: AddressSpec | None = Field(default=None, description="from which addresses requests are taken")
    authenticate: AuthenticateSpec | None = Field(default=None, description="who may call; absent: everybody")
    cors: CorsSpec | None = Field(default=None, description="which web pages may call")
    headers: HeadersSpec | None = Field(default=None, description="header fields set, added and removed")


class RouteScope(EntranceScope):
    """What may be set on a route to plain HTTP services."""

    exchange: ExchangeSetting | None = Field(
        default=None, description="whether requests go out with tokens made for them; absent: they do not"
    )
    identity: IdentitySetting | None = Field(default=None, description="a header that says who calls, signed")


class Scope(EntranceScope, ModelScope):
    """What may be set at the top, for everything."""

    authorize: GuardSpec | None = Field(
        default=None, description="who may do what: rules in CEL, policies in Rego, and how calls are approved"
    )
    runs: RunsSpec | None = Field(default=None, description="the runs of agents: what names them and what they may use")
    cache: TopCacheSetting | None = Field(default=None, description="answers of models that are given again")
    timeout: TimeoutSpec | None = Field(default=None, description="how long a request may take")
    exchange: ExchangeSetting | None = Field(
        default=None, description="a token for each call to an MCP server over HTTP, and how it is made"
    )
    identity: IdentitySetting | None = Field(
        default=None, description="a header that tells plain services and MCP servers over HTTP who calls, signed"
    )
