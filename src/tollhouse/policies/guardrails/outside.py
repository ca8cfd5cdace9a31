"""What servers say outside of calls: what they are for, log lines, that something has changed, and what they ask then.

Rule: the guards of the server and of what stands around it look at it: it belongs to no tool. Patterns look at once;
who has to be asked is asked about each text once (`verdicts`), and it waits for that, no longer than the guard may
take. What is refused is left out, and the log says so.
"""

import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.answers import refused
from tollhouse.policies.guardrails.asking import Edit, Entry, entries_of, replaced
from tollhouse.policies.guardrails.check import Phase
from tollhouse.policies.guardrails.failures import looked_at
from tollhouse.policies.guardrails.plan import Plan, plan_of
from tollhouse.policies.guardrails.verdicts import Judge, Question, about, ask_each, judges_of, verdicts
from tollhouse.wire.guard.llm.texts import Piece, Texts
from tollhouse.wire.guard.mcp import message_texts

__all__ = ["Outside", "outside"]

log = logging.getLogger("tollhouse.policies.guardrails")

T = TypeVar("T")
U = TypeVar("U")

_INSTRUCTIONS = ("instructions", "descriptions")
_KEPT = 512  # verdicts about messages: few are said twice
_OLD = 600.0  # seconds after which instructions are looked at again, for guards that think otherwise by now


class _Rules(NamedTuple):
    """What looks in one phase. described: who is asked about instructions; said: about messages."""

    plan: Plan
    described: Sequence[Judge]
    said: Sequence[Judge]


class _Said(NamedTuple):
    """Texts that stand by themselves."""

    pieces: tuple[Piece, ...]


class Outside:
    """The guards of one server. requests: for what agents answer to it; answers: for what it says."""

    __slots__ = ("_answers", "_clock", "_counts", "_kept", "_requests", "_server")

    def __init__(
        self, server: str, requests: _Rules | None, answers: _Rules | None, counts: Counts, clock: Clock
    ) -> None:
        self._clock = clock
        self._server = server
        self._requests = requests
        self._answers = answers
        self._counts = counts
        self._kept = ("", "", 0.0)

    def instructions(self, text: str) -> str | Coroutine[Any, Any, str]:
        """The server's instructions as agents get them; "" where they are refused. They are looked at once; after a
        time again, where guards are asked."""
        rules = self._answers
        if rules is None or not text:
            return text
        before, said, at = self._kept
        if before == text and (not rules.described or self._clock.now - at < _OLD):
            return said
        looking = self._looking(rules.plan, rules.described, "initialize", "response")
        texts = _Said((Piece(_INSTRUCTIONS, "descriptions", "", text, False),))
        return looking.through(texts, partial(self._instructed, text, looking), partial(self._left_out, text))

    def _instructed(self, text: str, looking: "_Looking", new: dict[Any, str]) -> str:
        said = new.get(_INSTRUCTIONS, text)
        if looking.is_whole:
            self._kept = (text, said, self._clock.now)
        return said

    def _left_out(self, text: str, error: Failure | ValueError) -> str:
        log.warning("mcp server %s: its instructions are left out: %s", self._server, _why(error))
        if not isinstance(error, Failure) or error.status != 503:
            self._kept = (text, "", self._clock.now)
        return ""

    def heard(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes | None] | None:
        """A notification or request of the server, None where it is refused; the same where nothing is found."""
        rules = self._answers
        if rules is None:
            return message
        looking = self._looking(rules.plan, rules.said, method, "response")
        return looking.message(message, self._unheard)

    def _unheard(self, error: Failure | ValueError) -> None:
        # That a guard cannot run is said once in a while, and not for each message.
        level = logging.DEBUG if isinstance(error, Failure) and error.status == 503 else logging.WARNING
        log.log(level, "mcp server %s: a message outside of calls is left out: %s", self._server, _why(error))

    def told(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes]:
        """An agent's response to what the server has asked by `method`: masked, or an error in its place."""
        rules = self._requests
        if rules is None:
            return message
        looking = self._looking(rules.plan, rules.said, method, "request")
        return looking.message(message, partial(refused, message))

    def failed(self, failure: Failure) -> Failure:
        """The same with other words, or the guard's refusal. Patterns alone look at it: it is for programs."""
        if self._answers is None:
            return failure
        acts = Acts(Context(), "response", self._counts)
        try:
            return looked_at(failure, self._answers.plan, acts)
        except Failure as refused:
            return refused.with_traceback(None)
        finally:
            acts.done()

    def _looking(self, plan: Plan, judges: Sequence[Judge], method: str, phase: Phase) -> "_Looking":
        return _Looking(plan, judges, Acts(Context(), phase, self._counts), about(self._server, method), phase)


class _Looking:
    """Something that is looked at. is_whole: by all who have to."""

    __slots__ = ("_acts", "_call", "_entries", "_judges", "_new", "_phase", "_plan", "_questions", "is_whole")

    def __init__(self, plan: Plan, judges: Sequence[Judge], acts: Acts, call: ToolCall, phase: Phase) -> None:
        self._plan = plan
        self._judges = judges
        self._acts = acts
        self._call = call
        self._phase: Phase = phase
        self._new: dict[Any, str] = {}
        self._entries: list[Entry] = []
        self._questions: list[Question] = []
        self.is_whole = True

    def message(
        self, message: bytes, refused: Callable[[Failure | ValueError], T]
    ) -> bytes | T | Coroutine[Any, Any, bytes | T]:
        """A JSON-RPC message with what becomes of its texts."""
        try:
            texts = message_texts("", message)
            if texts.opaque:
                self._acts.unseen(f"{next(iter(texts.opaque))} in a message", passes=self._plan.opaque)
        except (Failure, ValueError) as error:
            self._acts.done()
            return refused(error)
        return self.through(texts, texts.replaced, refused)

    def through(
        self,
        texts: Texts | _Said,
        put: Callable[[dict[Any, str]], T],
        refused: Callable[[Failure | ValueError], U],
    ) -> T | U | Coroutine[Any, Any, T | U]:
        """What `put` makes of the texts that are others, or `refused` of the refusal; awaited where somebody has to be
        asked."""
        said: T | U
        try:
            if self._begin(texts):
                return self._later(put, refused)
            said = put(self._end())
        except (Failure, ValueError) as error:
            said = refused(error)
        self._acts.done()
        return said

    async def _later(self, put: Callable[[dict[Any, str]], T], refused: Callable[[Failure | ValueError], T]) -> T:
        try:
            await ask_each([one for one in self._questions if not one.is_answered])
            return put(self._end())
        except Failure as failure:
            return refused(failure)
        finally:
            self._acts.done()

    def _begin(self, texts: Texts | _Said) -> bool:
        """Look by patterns; whether somebody has to be asked. Raises Failure."""
        self._new = self._plan.scan(texts.pieces, self._acts)
        if self._judges:
            self._entries = entries_of(texts, self._new)
            asked = [judge.question(self._entries, self._call, self._phase) for judge in self._judges]
            self._questions = [one for one in asked if one is not None]
        return not all(one.is_answered for one in self._questions)

    def _end(self) -> dict[Any, str]:
        """The texts that are others. Raises Failure."""
        edits: dict[int, list[Edit]] = {}
        for question in self._questions:
            self.is_whole = question.act(self._acts, edits) and self.is_whole
        for n, own in edits.items():
            self._new[self._entries[n].key] = replaced(self._entries[n], own)
        return self._new


def _why(error: Failure | ValueError) -> str:
    return error.detail if isinstance(error, Failure) else str(error)


def outside(server: str, layers: Sequence[Layer], parts: Parts) -> Outside | None:
    """The guards of these scopes, None where none looks. Raises ConfigError."""
    requests, answers = _rules(layers, "request", parts), _rules(layers, "response", parts)
    if requests is None and answers is None:
        return None
    return Outside(server, requests, answers, Counts(parts.families), parts.clock)


def _rules(layers: Sequence[Layer], phase: Phase, parts: Parts) -> _Rules | None:
    plan = plan_of(layers, phase, parts, watched=False)
    if plan is None:
        return None
    described = judges_of(plan.checks, verdicts(parts), "descriptions") if phase == "response" else ()
    said = judges_of(plan.checks, verdicts(parts, "messages", _KEPT))
    return _Rules(plan, described, said) if plan.patterns or described or said else None
