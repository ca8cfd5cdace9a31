"""Guards that are asked: outside services, classifiers, and what judges a text as a whole.

Rule: all of a phase are asked at the same time, each within its time, about the texts that patterns have left. One that
could not run refuses the call, or is counted where it fails open; what they would mask is masked together.

They see what a text means, not how it is written: without escapes that hide letters (`wire.guard.escapes`).
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.base import Layer, Parts, wrong
from tollhouse.policies.guardrails.acts import Acts, Guard
from tollhouse.policies.guardrails.check import CannotCheck, Check, Finding, Phase
from tollhouse.policies.guardrails.checks import CHECKS
from tollhouse.policies.guardrails.spec import GuardRuleSpec
from tollhouse.wire.guard.escapes import Readable
from tollhouse.wire.guard.expression import Atom
from tollhouse.wire.guard.llm.texts import Piece
from tollhouse.wire.guard.rules import Rule

__all__ = [
    "GRACE", "Asked", "Chosen", "Edit", "Entry", "act_on", "ask_all", "ask_edits", "chosen_of", "entries_of", "made",
    "merged", "replaced",
]  # fmt: skip

GRACE = 0.25  # seconds that a check has to say itself that it is out of time
_string = msgspec.json.Decoder(str).decode
_ANY = Atom(".")  # findings have names and no pattern


class Entry(NamedTuple):
    """A text that is asked about."""

    key: Any
    kind: str
    text: str
    json: bool = False


class Asked:
    """A check, and what becomes of what it finds. whole: it judges an answer as a whole. window: characters of an
    answer that are asked about at a time; 0: all of it at once. parallel: beside the model's call. rule: a digest of
    all its settings, and of the files that they name."""

    __slots__ = ("check", "guard", "parallel", "rule", "timeout", "whole", "window")

    def __init__(
        self,
        check: Check,
        guard: Guard,
        *,
        timeout: float = 2.0,
        parallel: bool = False,
        window: int = 0,
        rule: str = "",
    ) -> None:
        self.rule = rule
        self.check = check
        self.guard = guard
        self.timeout = timeout
        self.parallel = parallel
        self.whole = check.whole
        self.window = 0 if self.whole else window


def made(rule: GuardRuleSpec, guard: Guard, layer: Layer, where: str, parts: Parts) -> Asked:
    """The check of a rule that is none of patterns. Raises ConfigError."""
    try:
        check = CHECKS[rule.kind].make(rule.sought, parts, rule.timeout)
    except ValueError as error:
        raise wrong(layer, f"{where}.{rule.kind}", str(error)) from None
    if parts.watch is not None:
        parts.watch(guard.label, check.health)
    window = rule.window if rule.stream == "window" else 0
    return Asked(check, guard, timeout=rule.timeout, parallel=rule.parallel, window=window, rule=_digest(rule))


def _digest(rule: GuardRuleSpec) -> str:
    read = getattr(rule.sought, "__pydantic_private__", None)  # what stood in a file, as a part of the Spec
    told = f"{rule.fingerprint()}{read!r}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(told, digest_size=16).hexdigest()


class Chosen(NamedTuple):
    """A text that a guard is asked about: its number among all of them, and as the guard is shown it."""

    number: int
    entry: Entry
    shown: Readable


Edit = tuple[int, int, str]
"""Characters of a text from the first up to the second, and what is written there instead."""


async def ask_all(
    checks: Sequence[Asked], entries: Sequence[Entry], acts: Acts, call: Call, phase: Phase
) -> dict[Any, str]:
    """The texts that are others now, by key. Raises Failure for what is refused, and for what could not be asked."""
    edits = await ask_edits(checks, entries, acts, call, phase)
    return {entries[n].key: replaced(entries[n], own) for n, own in edits.items()}


async def ask_edits(
    checks: Sequence[Asked], entries: Sequence[Entry], acts: Acts, call: Call, phase: Phase
) -> dict[int, list[Edit]]:
    """What is to be masked, by the number of the text. Raises Failure."""
    edits: dict[int, list[Edit]] = {}
    if len(checks) == 1:
        await _ask(checks[0], entries, acts, call, phase, edits)
        return edits
    tasks = [asyncio.ensure_future(_ask(one, entries, acts, call, phase, edits)) for one in checks]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return edits


async def _ask(
    asked: Asked,
    entries: Sequence[Entry],
    acts: Acts,
    call: Call,
    phase: Phase,
    edits: dict[int, list[Edit]],
) -> None:
    guard = asked.guard
    chosen = chosen_of(guard, entries)
    if not chosen:
        return
    within, left = asked.timeout + GRACE, max(call.context.deadline - monotonic(), 0.0)
    try:
        async with asyncio.timeout(min(within, left)):
            findings = await asked.check.check([one.shown.text for one in chosen], call, phase)
    except CannotCheck as problem:
        acts.unable(guard, str(problem), problem.retry_after)
        return
    except TimeoutError:
        if left < within:
            raise Failure(504, Reason.TIMEOUT, "the request's time was up before a guardrail had answered") from None
        acts.unable(guard, f"no answer within {asked.timeout:g} s")
        return
    acts.able(guard)
    act_on(asked, findings, chosen, acts, edits)


def chosen_of(guard: Guard, entries: Sequence[Entry]) -> list[Chosen]:
    """The texts that a guard is asked about."""
    # What stands beside texts says them again, or nothing: it is looked at by patterns alone.
    return [
        Chosen(n, one, Readable(one.text))
        for n, one in enumerate(entries)
        if one.text and one.kind != "beside" and guard.concerns(one.kind)
    ]


def act_on(
    asked: Asked, findings: Sequence[Finding], chosen: Sequence[Chosen], acts: Acts, edits: dict[int, list[Edit]]
) -> None:
    """Do what the rule says about these findings. edits: what is to be masked is put there. Raises Failure."""
    for finding in findings:
        _act(asked, finding, chosen, acts, edits)


def _act(asked: Asked, finding: Finding, chosen: Sequence[Chosen], acts: Acts, edits: dict[int, list[Edit]]) -> None:
    guard = asked.guard
    action = finding.decided or guard.action
    spans = [(chosen[at], begin, end) for at, begin, end in finding.spans if 0 <= at < len(chosen)]
    if action == "mask" and (
        asked.parallel or not spans or any(entry.kind == "names" for (_, entry, _), _, _ in spans)
    ):
        action = "reject"  # there is nothing that a mask could cover, or it has been sent
    if guard.shadow or action == "flag":
        acts.note(guard, action)
        return
    if action == "reject":
        what = f"{finding.rule}: {finding.message}" if finding.message else finding.rule
        acts.refuse(guard, what, shown=finding.shown)
    rule = Rule(finding.rule, _ANY)
    for number, ((n, entry, shown), begin, end) in enumerate(spans):
        begin, end = max(begin, 0), min(end, len(shown.text))
        if begin >= end:
            continue
        acts.note(guard, "mask")
        own = shown.text[begin:end]
        begin, end = shown.place(begin, end)
        told = finding.replaces[number] if number < len(finding.replaces) else None
        if told is None:
            text = acts.instead(guard, rule, _meant(own) if entry.json else own)
            text = _escaped(text) if entry.json else text
        else:
            text = acts.told(own, told)
            if entry.json and _meant(told) is told:  # what it has been shown is JSON; so is what it says, or not
                text = _escaped(told)
        edits.setdefault(n, []).append((begin, end, text))


class _Read(Protocol):
    """`wire.guard.llm.texts.Texts`, or what else has texts."""

    @property
    def pieces(self) -> Sequence[Piece]: ...


def entries_of(texts: _Read, changed: Mapping[Any, str]) -> list[Entry]:
    """What is asked about: texts, and not the names of what is called. changed: what patterns have made of some."""
    return [
        Entry(piece.key, piece.kind, changed.get(piece.key, piece.text), piece.json)
        for piece in texts.pieces
        if piece.kind != "names"
    ]


def merged(edits: Sequence[Edit]) -> list[Edit]:
    """In order; of those that overlap the first stands for all of them."""
    out: list[Edit] = []
    for begin, end, text in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if out and begin < out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end, out[-1][2])
        else:
            out.append((begin, end, text))
    return out


def _escaped(text: str) -> str:
    """As it is written within a JSON string."""
    return msgspec.json.encode(text).decode()[1:-1]


def _meant(written: str) -> str:
    """What a part of a JSON string stands for; the very same, where it is none, or has no escapes."""
    if "\\" not in written and '"' not in written:
        return written
    try:
        return _string(f'"{written}"')
    except msgspec.DecodeError:
        return written


def replaced(entry: Entry, edits: Sequence[Edit]) -> str:
    """The text with the edits."""
    out: list[str] = []
    at = 0
    for begin, end, text in merged(edits):
        out += (entry.text[at:begin], text)
        at = end
    out.append(entry.text[at:])
    return "".join(out)
