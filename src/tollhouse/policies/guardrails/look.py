"""One list of a server that guards look at, entry by entry.

Rule: patterns look once, and what guards answer is done once. An entry that they have not answered for is not listed
where they fail closed; the list says then that it is not good for long.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Edit, entries_of, replaced
from tollhouse.policies.guardrails.asking import Entry as Said
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.guardrails.verdicts import Judge, Question, about
from tollhouse.wire.guard.llm.texts import Piece, Texts
from tollhouse.wire.guard.mcp import entry_texts
from tollhouse.wire.mcp.catalogue import Entry, Kind, Listing

__all__ = ["Look", "Rules"]

log = logging.getLogger("tollhouse.policies.guardrails")

_ADDRESSES: Final = frozenset(("uri", "uriTemplate"))
_SOON = 2.0  # seconds that a list is good which guards have not seen to its end
_OLD = 600.0  # seconds after which it is looked at again, for guards that think otherwise by now


class Rules:
    """What is looked for in an entry: by patterns, and by asking."""

    __slots__ = ("judges", "plan")

    def __init__(self, plan: Plan, judges: Sequence[Judge]) -> None:
        self.plan = plan
        self.judges = judges

    @property
    def rejects(self) -> bool:
        """Whether an entry may have to be left out for what it says."""
        return any(one.fate == "reject" for one in self.plan.patterns) or any(
            not judge.asked.guard.shadow for judge in self.judges
        )


class _Reading:
    """An entry that is looked at. shown: as agents see it, None where they do not. failure: for want of whom they do
    not. decided: nothing is left to be asked."""

    __slots__ = ("_changed", "_forms", "_said", "decided", "entry", "failure", "questions", "shown")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.shown: Entry | None = None
        self.failure: Failure | None = None
        self.decided = True
        self.questions: list[Question] = []
        self._forms: list[Texts] = []  # of the entry, and of the same for the old era
        self._changed: list[dict[Any, str]] = []
        self._said: list[Said] = []

    def begin(self, rules: Rules, server: str, kind: Kind, acts: Acts) -> None:
        """Look at it by patterns. Raises Failure, and ValueError for what cannot be read."""
        entry = self.entry
        for form in (entry,) if entry.old is None else (entry, entry.old):
            texts = entry_texts(form.raw)
            changed = rules.plan.scan(texts.pieces, acts)
            _refuse_addresses(texts.pieces, rules.plan, acts)
            self._forms.append(texts)
            self._changed.append(changed)
        if rules.judges:
            self._ask(rules.judges, server, kind)
        self.decided = not self.questions
        if self.decided:
            self.shown = self._written(self._changed)

    def _ask(self, judges: Sequence[Judge], server: str, kind: Kind) -> None:
        known: dict[Any, str] = {}
        for number, (texts, changed) in enumerate(zip(self._forms, self._changed, strict=True)):
            for one in entries_of(texts, changed):
                if number and known.get(one.key) == one.text:
                    continue  # both forms say it
                known.setdefault(one.key, one.text)
                self._said.append(one._replace(key=(number, one.key)))
        call = about(server, kind.method, self.entry.original)
        asked = [judge.question(self._said, call, "response") for judge in judges]
        self.questions = [one for one in asked if one is not None]

    def end(self, acts: Acts) -> None:
        """Do what guards have answered, as far as they have. Raises Failure for what they refuse."""
        edits: dict[int, list[Edit]] = {}
        self.shown = self.failure = None
        self.decided = False
        try:
            answered = [one.act(acts, edits) for one in self.questions]
        except Failure as failure:
            if failure.status != 503:
                self.decided = True
                raise
            self.failure = failure.with_traceback(None)
            return
        self.decided = all(answered)
        changed = [dict(one) for one in self._changed]
        for n, own in edits.items():
            said = self._said[n]
            number, key = said.key
            text = changed[number][key] = replaced(said, own)
            if number == 0 and len(changed) > 1 and _same(self._forms[1], self._changed[1], key, said.text):
                changed[1][key] = text
        self.shown = self._written(changed)

    def _written(self, changed: Sequence[dict[Any, str]]) -> Entry:
        entry = self.entry
        raw, *more = [texts.replaced(new) for texts, new in zip(self._forms, changed, strict=True)]
        old = entry.old
        if old is not None and more[0] != old.raw:
            old = _as(old, more[0], None)
        return entry if raw == entry.raw and old is entry.old else _as(entry, raw, old)


def _as(entry: Entry, raw: bytes, old: Entry | None) -> Entry:
    made = Entry(
        entry.name,
        raw,
        headers=entry.headers,
        repeatable=entry.repeatable,
        old=old,
        original=entry.original,
        task=entry.task,
    )
    made.facts = entry.facts
    return made


def _same(texts: Texts, changed: Mapping[Any, str], key: Any, text: str) -> bool:
    return any(piece.key == key and changed.get(key, piece.text) == text for piece in texts.pieces)


class Look:
    """One list that is looked at. given: as agents see it now, None while nobody has it. asked: guards were, once at
    least. failure: why there is none. hidden: what is left out, by the server's names, and for want of whom. is_whole:
    nothing is left to be asked. is_wanted: it is remembered for its list."""

    __slots__ = (
        "_acts", "_asks", "_at", "_clock", "_readings", "_server", "_waits", "asked", "failure", "given", "hidden",
        "is_wanted", "is_whole", "kind", "listing", "task",
    )  # fmt: skip

    def __init__(self, server: str, kind: Kind, listing: Listing, acts: Acts, clock: Clock) -> None:
        self._server = server
        self._acts = acts
        self._clock = clock
        self._at = clock.now
        self._asks = False
        self._readings: list[_Reading] = []
        self._waits: asyncio.Future[None] | None = None
        self.kind = kind
        self.listing = listing
        self.given: Listing | None = None
        self.failure: Failure | None = None
        self.hidden: dict[str, Failure | None] = {}
        self.is_whole = False
        self.is_wanted = True
        self.asked = False
        self.task: asyncio.Task[None] | None = None

    @property
    def is_old(self) -> bool:
        """Whether guards may think otherwise by now."""
        is_over = self.task is None or self.task.done()
        return self._asks and is_over and self._clock.now - self._at > _OLD

    def is_like(self, listing: Listing) -> bool:
        """Whether that one says the same, in all its forms."""
        own = self.listing
        return own.version == listing.version and all(map(_is_alike, own.entries, listing.entries))

    def of(self, listing: Listing) -> "Look":
        """The same, of another list that says the same."""
        if not self.is_whole:
            self.listing = listing
            if self.given is not None:
                self._show()
            return self
        made = Look(self._server, self.kind, listing, self._acts, self._clock)
        made._asks, made._at = self._asks, self._at
        made.hidden, made.is_whole, made.asked = self.hidden, True, self.asked
        assert self.given is not None
        made.given = listing if self.given is self.listing else self._as(self.given.entries, listing, listing.until)
        return made

    async def wait(self, seconds: float) -> None:
        """Until guards were asked once, or for so long."""
        if self._waits is None:
            self._waits = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._waits,), timeout=seconds)

    def wake(self) -> None:
        """Guards were asked."""
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    @property
    def version(self) -> bytes:
        """Of what is given."""
        return b"" if self.given is None else self.given.version

    @property
    def unanswered(self) -> list[Question]:
        """What guards have to be asked."""
        return [
            question
            for reading in self._readings
            if not reading.decided
            for question in reading.questions
            if not question.is_answered
        ]

    def read(self, entry: Entry, rules: Rules | None) -> None:
        """One more entry."""
        reading = _Reading(entry)
        self._readings.append(reading)
        if rules is None:
            reading.shown = entry
            return
        try:
            reading.begin(rules, self._server, self.kind, self._acts)
            self._asks = self._asks or bool(reading.questions)
        except (Failure, ValueError) as error:
            self._leave_out(reading, error)

    def finish(self) -> None:
        """Show what is known by now."""
        if self.is_whole:
            return
        for reading in self._readings:
            if not reading.decided:
                try:
                    reading.end(self._acts)
                except Failure as failure:
                    self._leave_out(reading, failure)
        self._acts.done()
        self.is_whole = all(reading.decided for reading in self._readings)
        self.hidden = {one.entry.original: one.failure for one in self._readings if one.shown is None}
        self.failure = next((one.failure for one in self._readings if one.failure is not None), None)
        self._show()
        if self.is_whole:
            self._at = self._clock.now
            self._readings = []

    def _show(self) -> None:
        listing = self.listing
        entries = [reading.shown for reading in self._readings if reading.shown is not None]
        if self.failure is not None and not entries:
            self.given = None
        elif not self.is_whole:
            self.given = self._as(entries, listing, min(listing.until, monotonic() + _SOON))
        elif len(entries) == len(listing.entries) and all(map(_is, entries, listing.entries)):
            self.given = listing
        else:
            self.given = self._as(entries, listing, listing.until)

    def _as(self, entries: Sequence[Entry], listing: Listing, until: float) -> Listing:
        made = Listing(entries, at=listing.at, until=until, dropped=listing.dropped, public=listing.public)
        made.source = listing.source or listing
        return made

    def _leave_out(self, reading: _Reading, error: Failure | ValueError) -> None:
        why = error.detail if isinstance(error, Failure) else str(error)
        log.warning("mcp server %s: %r is not listed: %s", self._server, reading.entry.name[:200], why)
        reading.shown = None
        reading.decided = True


def _is(one: Entry, other: Entry) -> bool:
    return one is other


def _is_alike(one: Entry, other: Entry) -> bool:
    return one is other or _form(one) == _form(other)


def _form(entry: Entry) -> tuple[Any, ...]:
    old = None if entry.old is None else entry.old.raw
    return entry.name, entry.original, entry.raw, old, entry.headers, entry.repeatable, entry.task


def _refuse_addresses(pieces: Sequence[Piece], plan: Plan, acts: Acts) -> None:
    """Raises Failure."""
    # Of the names of members those that are nobody's but the server's own, too.
    addresses = [piece for piece in pieces if piece.key[0] in _ADDRESSES or isinstance(piece.key[0], tuple)]
    for one in plan.patterns if addresses else ():
        if one.fate == "mask":
            for piece in addresses:
                piece.masked(one.set, partial(acts.reject, one.guards))
