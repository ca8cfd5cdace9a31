"""What guards do to one call in one phase: what is noted of it, what stands in place of a match, and how it is refused.

Rule: it is told once, by the strongest of what was done, and never with the text. What only shadows is counted beside
it, and changes nothing.
"""

import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final, Literal, NoReturn

from tollhouse.core.call import Context
from tollhouse.core.errors import Failure, Reason
from tollhouse.observe.families import Families
from tollhouse.policies.guardrails.check import Phase
from tollhouse.policies.guardrails.spec import Action, GuardRuleSpec
from tollhouse.wire.guard.placeholders import Placeholders
from tollhouse.wire.guard.rules import Rule
from tollhouse.wire.llm.tokens import of_text

__all__ = ["Acts", "Counts", "Fate", "Guard", "Guards", "concerns", "refusal"]

log = logging.getLogger("tollhouse.policies.guardrails")

_QUIET = 60.0  # seconds between lines of the log about one guard that cannot run
_LABELS: Final[Mapping[Phase, str]] = {"request": "Request", "response": "Response"}
_ALLOW, _FLAG, _MASK, _FAIL_OPEN, _REJECT = range(5)
_ACTIONS: Final = ("Allow", "Flag", "Mask", "FailOpen", "Reject")
_RANKS: Final[Mapping[str, int]] = {"": _ALLOW} | {name.lower(): rank for rank, name in enumerate(_ACTIONS)}
Fate = Literal["count", "mask", "reject"]
_NAMED: Final = frozenset(("descriptions", "arguments"))  # what names stand beside
_STRENGTH: Final[Mapping[Action, int]] = {"flag": _FLAG, "mask": _MASK, "reject": _REJECT}


def concerns(kinds: frozenset[str] | None, kind: str) -> bool:
    """Whether who looks at these kinds (None: all) looks at a text of that one."""
    if kind == "echo":  # the caller's own words, told again
        return False
    if kinds is None or kind in ("other", "beside"):  # what is not known may be anything
        return True
    if kind == "names":  # of what is offered, or of what is called
        return not kinds.isdisjoint(_NAMED)
    return kind in kinds


class Guard:
    """A rule of the configuration, as far as it says what becomes of a match. kinds: of texts it looks at, None for
    all. fate: what is really done; "count" where that is nothing."""

    __slots__ = (
        "action",
        "fate",
        "kinds",
        "label",
        "message",
        "on_failure",
        "quiet",
        "replacement",
        "reversible",
        "shadow",
    )

    def __init__(self, rule: GuardRuleSpec) -> None:
        self.label = rule.label
        self.action: Action = rule.action
        self.shadow = rule.shadow
        self.message = rule.message
        self.reversible = rule.reversible
        self.replacement = rule.replacement
        self.on_failure = rule.on_failure
        self.kinds = None if rule.in_ is None else frozenset(rule.in_)
        self.fate: Fate = "count" if rule.shadow or rule.action == "flag" else rule.action
        self.quiet = -_QUIET

    def concerns(self, kind: str) -> bool:
        """Whether it looks at texts of that kind."""
        return concerns(self.kinds, kind)


Guards = Mapping[Rule, Guard]
"""Whose a pattern is."""


class Counts:
    """The series that guards count in."""

    __slots__ = ("_checks", "_findings", "_unable")

    def __init__(self, families: Families) -> None:
        self._checks = families.guardrail_checks
        self._findings = families.guardrail_findings
        self._unable = families.guardrail_unable

    def checked(self, phase: Phase, action: int) -> None:
        """A call's phase is over."""
        self._checks.child(_LABELS[phase], _ACTIONS[action]).inc()

    def found(self, phase: Phase, guard: Guard, action: Action) -> None:
        """One match, or one finding."""
        self._findings.child(_LABELS[phase], guard.label, action, "true" if guard.shadow else "false").inc()

    def unable(self, label: str, is_unable: bool) -> None:
        """Whether a guard could not run when it was asked last."""
        self._unable.child(label).set(1 if is_unable else 0)


class Acts:
    """Of one call in one phase. placeholders: for what is turned back."""

    __slots__ = ("_context", "_counts", "_done", "_flags", "_phase", "_strongest", "make", "placeholders")

    def __init__(self, context: Context, phase: Phase, counts: Counts) -> None:
        self._context = context
        self._phase: Phase = phase
        self._counts = counts
        self._strongest = _ALLOW
        self._done = False
        self._flags: list[str] = []
        self.make: Callable[[], Placeholders] | None = None
        self.placeholders: Placeholders | None = None

    @property
    def flags(self) -> list[str]:
        """The names of the guards that have found something, but for those that only shadow."""
        return self._flags

    # ---- masks of patterns (`wire.guard.patterns.Mask`), bound to whose they are
    def count(self, guards: Guards, rule: Rule, text: str) -> str:
        """It stays."""
        guard = guards[rule]
        self.note(guard, guard.action)
        return text

    def reject(self, guards: Guards, rule: Rule, text: str) -> str:
        """Raises Failure."""
        self.refuse(guards[rule], rule.name, text)

    def mask(self, guards: Guards, rule: Rule, text: str) -> str:
        """What stands there instead."""
        guard = guards[rule]
        self.note(guard, "mask")
        return self.instead(guard, rule, text)

    # ---- the same of what is no pattern
    def instead(self, guard: Guard, rule: Rule, text: str) -> str:
        """What stands in place of a text. rule: its name is the kind of thing that it is."""
        if self._phase == "response":
            self._context.withheld_tokens += of_text(len(text))
        if guard.reversible and self.make is not None:
            if self.placeholders is None:
                self.placeholders = self.make()
            return self.placeholders.mask(rule, text)
        if guard.replacement is not None:
            return guard.replacement
        return f"[{rule.name.upper().replace('-', '_').replace('.', '_')}]"

    def told(self, text: str, instead: str) -> str:
        """The same, where the guard has said itself what stands there."""
        if self._phase == "response":
            self._context.withheld_tokens += of_text(len(text))
        return instead

    def note(self, guard: Guard, action: Action) -> None:
        """A guard has found something, and this becomes of it."""
        self._counts.found(self._phase, guard, action)
        if guard.shadow:
            return
        if guard.label not in self._flags:
            self._flags.append(guard.label)
        self._stronger(_STRENGTH[action], guard.label)

    def refuse(self, guard: Guard, what: str, text: str = "", shown: str = "") -> NoReturn:
        """The call is refused. what: is wrong, for the operator. shown: for the caller. Raises Failure."""
        self.note(guard, "reject")
        if text and self._phase == "response":
            self._context.withheld_tokens += of_text(len(text))
        raise refusal(self._phase, guard.message or shown, f"guard {guard.label}: {what}")

    def unable(self, guard: Guard, why: str, retry_after: float | None = None) -> None:
        """A guard could not run. Raises Failure, unless it fails open."""
        self._counts.unable(guard.label, True)
        now = monotonic()
        if now - guard.quiet >= _QUIET:
            guard.quiet = now
            log.warning("guard %s could not run (%s): %s", guard.label, guard.on_failure, why)
        if guard.shadow or guard.on_failure == "open":
            self._stronger(_FAIL_OPEN, guard.label)
            return
        self._stronger(_REJECT, guard.label)
        raise Failure(
            503,
            Reason.GUARDRAIL,
            "a guardrail of this gateway could not look at this; try again later",
            code="guardrail_unavailable",
            detail=f"guard {guard.label}: {why}",
            retry_after=retry_after if retry_after is not None else 1.0,
        )

    def able(self, guard: Guard) -> None:
        """A guard has run."""
        self._counts.unable(guard.label, False)

    def unseen(self, what: str, *, passes: bool) -> None:
        """There is what guards cannot look at. Raises Failure, unless that passes."""
        if passes:
            self._stronger(_FAIL_OPEN, "")
            return
        self._stronger(_REJECT, "")
        raise refusal(self._phase, "", f"{what} cannot be looked at")

    def overfull(self, why: str) -> Failure:
        """More than is kept of one answer."""
        self._stronger(_REJECT, "")
        return refusal(self._phase, "", why)

    def done(self) -> None:
        """The phase is over; it is counted once."""
        if not self._done:
            self._done = True
            self._counts.checked(self._phase, self._strongest)

    def _stronger(self, action: int, label: str) -> None:
        if action < self._strongest:
            return
        self._strongest = action
        context = self._context
        # Another phase may have done what is stronger; what no guard has done is told where it refuses.
        if (label or action == _REJECT) and action >= _RANKS[context.guard_action]:
            context.guard = label
            context.guard_action = _ACTIONS[action].lower()


def refusal(phase: Phase, message: str, detail: str) -> Failure:
    """The Failure of a call that a guard refuses."""
    if not message:
        message = (
            "a guardrail of this gateway refuses this request"
            if phase == "request"
            else "a guardrail of this gateway withholds this answer"
        )
    return Failure(403, Reason.GUARDRAIL, message, code="guardrail", detail=detail)
