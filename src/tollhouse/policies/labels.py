"""What a call's record has in common with others: the second half of its body.

Rule: nothing here is a caller's own word; names come as the ledger may keep them.
"""

from tollhouse.core.call import Call
from tollhouse.ledger.records import Outcome, UsageRecord, labels

__all__ = ["labels_of"]


def labels_of(
    call: Call, outcome: Outcome, status: int, reason: str, estimated: bool, name: str, answered: str, later: bool
) -> bytes:
    """name: what was asked, and answered: who did, as the ledger keeps them. later: it is a later round of a call that
    was recorded before: the attempt 0."""
    context = call.context
    record = UsageRecord(admitted_at=0, ended_at=0, outcome=outcome, reason=reason, status=status, estimated=estimated)
    record.route = context.route
    record.dialect = context.dialect
    record.operation = context.operation
    record.backend = context.backend
    if later:
        record.attempt = 0
    elif context.attempts > 1:
        record.attempt = context.attempts
    if context.server:
        record.server = context.server
        record.tool = name if context.tool else ""
    else:
        record.model_asked = name
        record.model_answered = answered
        record.provider = context.provider
        record.stream = context.stream
    record.tags = context.tags
    record.guard = context.guard
    record.cached = context.cached
    principal = call.principal
    if principal is not None:
        record.org = principal.org
        record.team = principal.team
        record.user = principal.user
        record.key = principal.key
        record.agent = principal.agent
    return labels(record)
