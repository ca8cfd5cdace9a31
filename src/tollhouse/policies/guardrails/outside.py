"""What servers say outside of calls: what they are for, log lines, that something has changed, and what they ask then.

Rule: patterns alone look at it, those of the server and of what stands around it: it belongs to no tool, and nobody
waits. What is refused is left out, and the log says so.
"""

import logging
from collections.abc import Sequence
from functools import partial

from tollhouse.core.call import Context
from tollhouse.core.errors import Failure
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.failures import looked_at
from tollhouse.policies.guardrails.plan import Plan, plan_of
from tollhouse.policies.guardrails.tools import outgoing
from tollhouse.wire.guard.llm.texts import Piece
from tollhouse.wire.guard.mcp import message_texts

__all__ = ["Outside", "outside"]

log = logging.getLogger("tollhouse.policies.guardrails")

_INSTRUCTIONS = ("instructions", "descriptions")


class Outside:
    """The guards of one server. requests: for what agents answer to it; answers: for what it says."""

    __slots__ = ("_answers", "_counts", "_requests", "_said", "_server")

    def __init__(self, server: str, requests: Plan | None, answers: Plan | None, counts: Counts) -> None:
        self._server = server
        self._requests = requests
        self._answers = answers
        self._counts = counts
        self._said = ("", "")

    def instructions(self, text: str) -> str:
        """The server's instructions as agents get them; "" where they are refused. They are looked at once."""
        if self._answers is None or not text:
            return text
        if self._said[0] != text:
            self._said = (text, self._looked_at(text, self._answers))
        return self._said[1]

    def _looked_at(self, text: str, plan: Plan) -> str:
        acts = Acts(Context(), "response", self._counts)
        try:
            changed = plan.scan([Piece(_INSTRUCTIONS, "descriptions", "", text, False)], acts)
        except Failure as failure:
            log.warning("mcp server %s: its instructions are left out: %s", self._server, failure.detail)
            return ""
        finally:
            acts.done()
        return changed.get(_INSTRUCTIONS, text)

    def heard(self, message: bytes) -> bytes | None:
        """A notification or request of the server, None where it is refused; the same where nothing is found."""
        plan = self._answers
        if plan is None:
            return message
        acts = Acts(Context(), "response", self._counts)
        try:
            texts = message_texts("", message)
            if texts.opaque:
                acts.unseen(f"{next(iter(texts.opaque))} in a message", passes=plan.opaque)
            return texts.replaced(plan.scan(texts.pieces, acts))
        except (Failure, ValueError) as error:
            why = error.detail if isinstance(error, Failure) else str(error)
            log.warning("mcp server %s: a message outside of calls is left out: %s", self._server, why)
            return None
        finally:
            acts.done()

    def told(self, message: bytes) -> bytes:
        """An agent's response to what the server has asked: masked, or an error in its place."""
        if self._requests is None:
            return message
        acts = Acts(Context(), "request", self._counts)
        try:
            return outgoing(self._requests, acts, message)
        finally:
            acts.done()

    def failed(self, failure: Failure) -> Failure:
        """The same with other words, or the guard's refusal."""
        if self._answers is None:
            return failure
        acts = Acts(Context(), "response", self._counts)
        try:
            return looked_at(failure, self._answers, acts)
        except Failure as refused:
            return refused.with_traceback(None)
        finally:
            acts.done()


def outside(server: str, layers: Sequence[Layer], parts: Parts) -> Outside | None:
    """The guards of these scopes, None where no pattern looks. Raises ConfigError."""
    made = partial(plan_of, layers, parts=parts, asks=False)
    requests, answers = made("request"), made("response")
    if requests is None and answers is None:
        return None
    return Outside(server, requests, answers, Counts(parts.families))
