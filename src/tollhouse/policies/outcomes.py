"""How a call ended: the outcome of its record, from what its answer, its failure or its cancellation says.

Rule: the ledger and the audit say the same of one call.
"""

import asyncio

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.ledger.records import Outcome

__all__ = ["how_it_failed", "outcome_at_end", "outcome_of"]

_TOLD = frozenset((401, 403, 408, 429))  # of a provider's 4xx: not about the request
_OK, _ANSWERED = Outcome.OK, Reason.UPSTREAM  # to ask an Enum for a member costs as much as a call
_DENIED = frozenset(
    (
        Reason.RATE_LIMIT, Reason.BUDGET, Reason.JWT_AUTH, Reason.BASIC_AUTH, Reason.API_KEY_AUTH, Reason.EXT_AUTH,
        Reason.AUTHORIZATION, Reason.GUARDRAIL,
    )
)  # fmt: skip
_INVALID = frozenset((Reason.NOT_FOUND, Reason.INVALID_REQUEST))
_UPSTREAM = frozenset((Reason.UPSTREAM, Reason.UPSTREAM_FAILURE, Reason.NO_HEALTHY_BACKEND, Reason.MCP))
_MCP_OUTCOMES = {
    "ok": Outcome.OK,
    "tool_error": Outcome.TOOL_ERROR,
    "protocol_error": Outcome.UPSTREAM_ERROR,
    "denied": Outcome.DENIED,
    "timeout": Outcome.TIMEOUT,
    "cancelled": Outcome.CLIENT_GONE,
}


def outcome_of(reason: str) -> Outcome:
    """How a call that failed for this reason before its first event ended."""
    if reason in _DENIED:
        return Outcome.DENIED
    if reason == Reason.TIMEOUT:
        return Outcome.TIMEOUT
    if reason == Reason.CLIENT_GONE:
        return Outcome.CLIENT_GONE
    if reason in _INVALID:
        return Outcome.INVALID
    return Outcome.UPSTREAM_ERROR if reason in _UPSTREAM else Outcome.ERROR


def how_it_failed(error: BaseException, stopped: Failure | None) -> tuple[Outcome, int, str]:
    """Outcome, status and reason of a call that this ended before there was an answer. stopped: `Context.stopped`."""
    if stopped is not None and isinstance(error, asyncio.CancelledError):
        error = stopped
    if isinstance(error, Failure):
        return outcome_of(error.reason), error.status, error.reason
    if isinstance(error, Exception):
        return Outcome.ERROR, 500, Reason.INTERNAL
    return Outcome.CLIENT_GONE, 499, Reason.CLIENT_GONE  # cancelled, because the client left


def outcome_at_end(ending: Ending, mcp: str = "") -> Outcome:
    """How a call that was answered ended. mcp: what is known of an MCP call's answer (`Context.mcp_outcome`)."""
    if ending.gone:
        return Outcome.CLIENT_GONE
    failure = ending.failure
    if failure is not None:
        return Outcome.CUT if failure.reason in _UPSTREAM else outcome_of(failure.reason)
    if ending.status < 400:
        return _MCP_OUTCOMES.get(mcp, _OK) if mcp else _OK
    if ending.status < 500 and ending.reason == _ANSWERED and ending.status not in _TOLD:
        return Outcome.INVALID  # the provider says that the request makes no sense
    return outcome_of(ending.reason)
