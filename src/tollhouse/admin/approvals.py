"""Calls that wait for an operator, and the operator's answers.

Rule: the first answer holds, whoever gives it, here or with `tollhouse approvals`.
"""

from typing import Annotated

import msgspec

from tollhouse.admin.operation import Answer, Asked, Moment, Operation, missing, moment, paged, started, unconfigured
from tollhouse.core.errors import ConfigError
from tollhouse.gateway import approvals
from tollhouse.gateway.approvals import Entry
from tollhouse.gateway.premises import Premises
from tollhouse.policies.authorize.desk import Desk

__all__ = ["Approvals"]

_LONGEST = 30 * 86400


class Remember(msgspec.Struct, forbid_unknown_fields=True):
    """remember: seconds in which further calls of the same are not asked about; absent: as the rule says."""

    remember: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST)] | None = None


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object."""


class Waiting(msgspec.Struct):
    """A call that waits. what: the server's tool, the model or the route. rule: that has it wait. arguments: JSON, cut
    where it is long. until: when nobody waits any more."""

    id: str
    what: str
    rule: str
    asked: Moment
    until: Moment
    principal: str
    user: str
    agent: str
    org: str
    request: str
    arguments: str


class WaitingPage(msgspec.Struct):
    """approvals: the oldest first. next: cursor of the next page, null on the last one."""

    approvals: list[Waiting]
    next: str | None


class Answered(msgspec.Struct):
    """by: who has answered."""

    id: str
    approved: bool
    by: str


class Approvals:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._state = premises.state

    def operations(self) -> list[Operation]:
        path = "/api/approvals"
        return [
            Operation("approvals.list", "GET", path, "Calls that wait", self.page, WaitingPage, listed=True),
            Operation(
                "approvals.approve", "POST", f"{path}/{{id}}/approve", "Approve a call", self.approve, Answered,
                Remember, optional=True,
            ),
            Operation(
                "approvals.deny", "POST", f"{path}/{{id}}/deny", "Deny a call", self.deny, Answered, Nothing,
                optional=True,
            ),
        ]  # fmt: skip

    async def page(self, asked: Asked) -> Answer:
        after = started(asked, tuple[float, str], (-1.0, ""))
        found = sorted(await self._desk().entries(), key=_place)
        shown, more = paged(asked, [entry for entry in found if _place(entry) > after], _place)
        return Answer(WaitingPage([_shown(entry) for entry in shown], more))

    async def approve(self, asked: Asked) -> Answer:
        body: Remember | None = asked.body
        return await self._say(asked, approvals.Answer(True, asked.operator, None if body is None else body.remember))

    async def deny(self, asked: Asked) -> Answer:
        return await self._say(asked, approvals.Answer(False, asked.operator))

    async def _say(self, asked: Asked, answer: approvals.Answer) -> Answer:
        desk = self._desk()
        what = next((entry.what for entry in await desk.entries() if entry.id == asked.id), "")
        if not await desk.answer(asked.id, answer):
            raise missing("no call of this id waits for an answer; GET /api/approvals has those that do")
        kept = "" if answer.remember is None else f", and further ones for {answer.remember:g} s"
        return Answer(Answered(asked.id, answer.approved, answer.by), f"{asked.id}, a call of {what!r}{kept}")

    def _desk(self) -> Desk:
        try:
            return approvals.desk_of(self._config(), self._state)
        except ConfigError as error:
            raise unconfigured(error) from None


def _place(entry: Entry) -> tuple[float, str]:
    return entry.asked, entry.id


def _shown(entry: Entry) -> Waiting:
    return Waiting(
        entry.id,
        entry.what,
        entry.rule,
        moment(entry.asked),
        moment(entry.until),
        entry.principal,
        entry.user,
        entry.agent,
        entry.org,
        entry.request,
        entry.arguments,
    )
