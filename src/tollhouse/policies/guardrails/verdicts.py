"""What guards that are asked have said of texts that belong to no call: what servers list, and what they say by
themselves.

Rule: a verdict is about a text and the place where it stands, never about a caller; so it is asked for once, whoever
needs it. It is asked for again behind when it is an hour old, and stands for a day where nobody can give another one.
A guard that could not run several times in a row is left alone for some seconds.
"""

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import GRACE, Asked, Chosen, Edit, Entry, act_on, chosen_of
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase
from tollhouse.policies.stop import stop

__all__ = ["Judge", "Question", "Verdicts", "about", "ask_each", "judges_of", "verdicts"]

log = logging.getLogger("tollhouse.policies.guardrails")

_FRESH = 3600.0  # seconds
_STANDS = 86_400.0
_KEPT = 8192
_ROOM = 16 << 20  # bytes of what guards have found, about
_FOUND, _SPAN = 200, 150  # bytes of a finding and of each place in it, besides what is to stand there
_AT_ONCE = 8  # questions about one list, and verdicts that are asked for again
_IN_A_ROW = 8
_RESTS = 5.0  # seconds


def about(server: str, method: str, name: str = "") -> ToolCall:
    """What guards are told of a text that belongs to no call: where it stands, and nothing of anybody."""
    context = Context(route="", operation="mcp", server=server, mcp_method=method)
    return ToolCall(None, context, server=server, method=method, name=name, params={})


class Verdicts:
    """Of one process. most: that are kept."""

    def __init__(self, clock: Clock, most: int = _KEPT) -> None:
        self.clock = clock
        self._most = most
        self._kept: dict[bytes, tuple[tuple[Finding, ...], float, int]] = {}  # the last used one at the end
        self._size = 0
        self._asking: dict[bytes, asyncio.Task[str]] = {}

    async def close(self) -> None:
        await stop(self._asking.values())
        self._kept.clear()
        self._size = 0

    def find(self, key: bytes) -> tuple[Sequence[Finding], bool] | None:
        """What was found, and whether that is new enough."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        age = self.clock.now - kept[1]
        if age > _STANDS:
            self._size -= kept[2]
            return None
        self._kept[key] = kept
        return kept[0], age < _FRESH

    def put(self, key: bytes, findings: Sequence[Finding]) -> None:
        """This is what is true of it now."""
        before = self._kept.pop(key, None)
        if before is not None:
            self._size -= before[2]
        size = sum(
            _FOUND + _SPAN * len(one.spans) + len(one.message) + len(one.shown) + sum(map(len, one.replaces))
            for one in findings
        )
        self._kept[key] = tuple(findings), self.clock.now, size
        self._size += size
        while len(self._kept) > self._most or self._size > _ROOM:
            self._size -= self._kept.pop(next(iter(self._kept)))[2]

    @property
    def busy(self) -> bool:
        """Whether what nobody waits for is to wait."""
        return len(self._asking) >= _AT_ONCE

    def ask(self, key: bytes, work: Coroutine[Any, Any, str]) -> "asyncio.Task[str]":
        """What asks for it, or is asking already. work: gives why there is no verdict, "" where there is one."""
        task = self._asking.get(key)
        if task is not None:
            work.close()
            return task
        task = self._asking[key] = asyncio.get_running_loop().create_task(work, name="a guard's verdict")
        task.add_done_callback(lambda _: self._asking.pop(key, None))
        return task


class Judge:
    """A guard that is asked for verdicts."""

    __slots__ = ("_failed", "_rests", "_verdicts", "_why", "asked")

    def __init__(self, asked: Asked, verdicts: Verdicts) -> None:
        self.asked = asked
        self._verdicts = verdicts
        self._failed = 0
        self._rests = -1e18
        self._why = ""

    def question(self, entries: Sequence[Entry], call: ToolCall, phase: Phase) -> "Question | None":
        """What it is to be asked about these texts; None for nothing."""
        chosen = chosen_of(self.asked.guard, entries)
        return Question(self, chosen, call, phase) if chosen else None

    def find(self, question: "Question") -> Sequence[Finding] | None:
        """Its verdict, None while there is none."""
        found = self._verdicts.find(question.key)
        if found is None:
            return None
        if not found[1] and not self._verdicts.busy and not self._is_resting:
            _ = self._begin(question)
        return found[0]

    async def ask(self, question: "Question") -> str:
        """Have it looked at; gives why it could not be, "" where it was."""
        if self._is_resting:
            return self._why
        task = self._begin(question)
        await asyncio.wait((task,))
        return "it was stopped" if task.cancelled() else task.result()

    @property
    def _is_resting(self) -> bool:
        return self._verdicts.clock.now < self._rests

    def _begin(self, question: "Question") -> "asyncio.Task[str]":
        return self._verdicts.ask(question.key, self._ask(question))

    async def _ask(self, question: "Question") -> str:
        asked = self.asked
        try:
            async with asyncio.timeout(asked.timeout + GRACE):
                findings = await asked.check.check(question.texts, question.call, question.phase)
        except CannotCheck as problem:
            return self._unable(str(problem))
        except TimeoutError:
            return self._unable(f"no answer within {asked.timeout:g} s")
        except Exception:  # a task's root: who waits must hear of it
            log.exception("the guard %s failed", asked.guard.label)
            return self._unable("internal error")
        self._failed = 0
        self._verdicts.put(question.key, findings)
        return ""

    def _unable(self, why: str) -> str:
        self._why = why
        self._failed += 1
        if self._failed >= _IN_A_ROW:
            self._failed = 0
            self._rests = self._verdicts.clock.now + _RESTS
        return why


class Question:
    """What one guard is asked about some texts. Not to be changed. key: equal for what has the same verdict."""

    __slots__ = ("_chosen", "_judge", "_why", "call", "key", "phase")

    def __init__(self, judge: Judge, chosen: Sequence[Chosen], call: ToolCall, phase: Phase) -> None:
        self._judge = judge
        self._chosen = chosen
        self._why = "it has not answered in time"
        self.call = call
        self.phase: Phase = phase
        self.key = _key(judge.asked.rule, phase, call.server, call.method, call.name, *self.texts)

    @property
    def texts(self) -> list[str]:
        """As the guard is shown them."""
        return [one.shown.text for one in self._chosen]

    @property
    def is_answered(self) -> bool:
        return self._judge.find(self) is not None

    async def ask(self) -> None:
        """Return when it is answered, or cannot be."""
        self._why = await self._judge.ask(self)

    def act(self, acts: Acts, edits: dict[int, list[Edit]]) -> bool:
        """Do what the rule says about the answer, or about there being none; whether there is one. edits: what is to be
        masked is put there, by the number of the text. Raises Failure."""
        asked = self._judge.asked
        findings = self._judge.find(self)
        if findings is None:
            acts.unable(asked.guard, self._why or "it has not answered in time")
            return False
        if not self._why:  # else it is what was kept, and nothing is known of now
            acts.able(asked.guard)
        act_on(asked, findings, self._chosen, acts, edits)
        return True


def judges_of(checks: Iterable[Asked], verdicts: Verdicts, kind: str = "") -> tuple[Judge, ...]:
    """Those that look at texts of this kind, "": of any. Who judges an answer as a whole looks at no others, unless its
    rule names their kind."""
    return tuple(
        Judge(one, verdicts)
        for one in checks
        if (not kind or one.guard.concerns(kind))
        and (not one.whole or (kind != "" and one.guard.kinds is not None and kind in one.guard.kinds))
    )


async def ask_each(questions: Sequence[Question]) -> None:
    """Return when all are answered, or cannot be: some at a time."""
    if len(questions) == 1:
        await questions[0].ask()
        return
    left = iter(questions)

    async def some() -> None:
        for question in left:
            await question.ask()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(questions))):
            group.create_task(some())


def verdicts(parts: Parts, about: str = "", most: int = _KEPT) -> Verdicts:
    """Made once for all configurations. about: what they are kept apart for."""
    made: Verdicts = parts.shared(("guard verdicts", about), partial(Verdicts, parts.clock, most), Verdicts.close)
    return made


def _key(*texts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(content))
        digest.update(content)
    return digest.digest()
