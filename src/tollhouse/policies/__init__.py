"""The policies, and their order: place in these tuples is place in the chain, outermost first.

Config switches a policy on and sets it, and cannot reorder it. The gateway puts what records a request before the first
of REQUEST and what meters a call before the first of CALL.
"""

from typing import Final

from pydantic import Field

from tollhouse.core.call import Call
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.policies.address import ADDRESS, AddressSpec
from tollhouse.policies.authenticate import AUTHENTICATE, AuthenticateSpec
from tollhouse.policies.authorize import AUTHORIZE, AUTHORIZE_ROUTE, AuthorizeSpec
from tollhouse.policies.base import Kind
from tollhouse.policies.cors import CORS, CorsSpec
from tollhouse.policies.headers import HEADERS, RESPONSE_HEADERS, HeadersSpec
from tollhouse.policies.limits import LIMITS, LIMITS_ROUTE, LimitSpec
from tollhouse.policies.origin import ORIGIN
from tollhouse.policies.retry import RETRY, RetrySpec
from tollhouse.policies.timeout import TIMEOUT, TimeoutSpec
from tollhouse.policies.transform import TRANSFORM, Steps

__all__ = ["CALL", "REQUEST", "CallScope", "EntranceScope", "ModelScope", "RuledScope", "Scope"]

REQUEST: Final[tuple[Kind[Request, Response], ...]] = (
    RESPONSE_HEADERS,  # first: no answer is without them, preflights and refusals included
    CORS,  # before all that refuses: a preflight has no credentials, and a page must be able to read every refusal
    ADDRESS,  # before anything that costs: what comes from outside the allowed networks is not looked at
    AUTHENTICATE,  # before all that asks who it is
    ORIGIN,  # behind it: whoever has said who he is, is asked no further, except by MCP
    AUTHORIZE_ROUTE,  # before limits: what is forbidden must not use up anybody's share
    LIMITS_ROUTE,  # before the deadline begins to matter, and before the upstream is touched
    TIMEOUT,
    HEADERS,  # last: rules see the request as it came, the upstream sees it as it was changed
)

CALL: Final[tuple[Kind[Call, Reply], ...]] = (
    AUTHORIZE,  # first: what is forbidden must not use up anybody's share
    LIMITS,  # outside retries: a call counts once, however often it is tried
    TRANSFORM,  # behind both: rules and limits see the request as it came
    RETRY,  # innermost: only the backend is asked again
)


class RuledScope(Spec):
    """What may be set in every scope. It adds to what the wider scopes say."""

    authorize: AuthorizeSpec | None = Field(default=None, description="who may do what: rules in CEL")
    limits: tuple[LimitSpec, ...] | None = Field(default=None, min_length=1, description="rate limits")


class CallScope(RuledScope):
    """What may be set on a model, an MCP server or one of its tools."""

    retry: RetrySpec | None = Field(default=None, description="when a failed call to a model or tool is made again")


class ModelScope(CallScope):
    """What may be set on a model."""

    transform: Steps | None = Field(default=None, description="changes to requests: fields and system text")


class EntranceScope(RuledScope):
    """What may be set on a route. It replaces what the top says, where it does not add."""

    address: AddressSpec | None = Field(default=None, description="from which addresses requests are taken")
    authenticate: AuthenticateSpec | None = Field(default=None, description="who may call; absent: everybody")
    cors: CorsSpec | None = Field(default=None, description="which web pages may call")
    headers: HeadersSpec | None = Field(default=None, description="header fields set, added and removed")


class Scope(EntranceScope, ModelScope):
    """What may be set at the top, for everything."""

    timeout: TimeoutSpec | None = Field(default=None, description="how long a request may take")
