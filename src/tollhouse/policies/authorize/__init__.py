"""Authorization: who may do what.

`spec` is what may be configured; `rules` the algebra of CEL rules in one scope; `document`, `rego` and `opa` policies
in another language; `approvals` with `question`, `queue` and `desk` calls that wait for somebody; `policy` joins them.
"""

from tollhouse.policies.authorize.policy import (
    APPROVE,
    APPROVE_ROUTE,
    AUTHORIZE,
    AUTHORIZE_ROUTE,
    Authorize,
    described,
    desk_of,
    explained,
    permitted,
    unasked,
)
from tollhouse.policies.authorize.rules import Step
from tollhouse.policies.authorize.spec import (
    ApprovalsSpec,
    AuthorizeSpec,
    GuardSpec,
    OpaSpec,
    RegoSpec,
    RuleSpec,
)

__all__ = [
    "APPROVE",
    "APPROVE_ROUTE",
    "AUTHORIZE",
    "AUTHORIZE_ROUTE",
    "ApprovalsSpec",
    "Authorize",
    "AuthorizeSpec",
    "GuardSpec",
    "OpaSpec",
    "RegoSpec",
    "RuleSpec",
    "Step",
    "described",
    "desk_of",
    "explained",
    "permitted",
    "unasked",
]
