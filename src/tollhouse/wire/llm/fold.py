"""A stream's events as a whole answer, and a whole answer as events.

Rule: what a stream has told so far is an answer at any time; once every choice has ended it is the answer that the
provider would have given whole, but for fields that only its API knows.
"""

from collections.abc import Iterable

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import unreadable
from tollhouse.wire.llm.model import (
    Answer,
    ArgumentsDelta,
    Began,
    Choice,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
    Part,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)

__all__ = ["Fold", "fold", "unfold"]

Raw = msgspec.Raw

_list = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Growing:
    """A part and the pieces it is made of."""

    __slots__ = ("closed", "pieces", "signature", "value")

    def __init__(self, value: Part) -> None:
        self.value = value
        self.pieces: list[str] = []
        self.signature: list[str] = []
        self.closed = False

    def part(self) -> Part:
        """The part as far as it has come: a copy, so that it may go on growing."""
        value = self.value
        said = "".join(self.pieces)
        if isinstance(value, (Text, Refusal)):
            return msgspec.structs.replace(value, text=value.text + said)
        signature = "".join(self.signature)
        if isinstance(value, Thinking):
            proof = (value.signature or "") + signature or value.signature
            return msgspec.structs.replace(value, text=value.text + said, signature=proof)
        if isinstance(value, ToolCall):
            arguments = value.arguments + said
            if self.closed and not arguments:
                arguments = "{}"
            return msgspec.structs.replace(value, arguments=arguments, signature=signature or value.signature)
        return value


class _Choice:
    __slots__ = ("ended", "logprobs", "parts")

    def __init__(self) -> None:
        self.parts: dict[int, _Growing] = {}
        self.logprobs: list[Raw] = []
        self.ended: Ended | None = None


class Fold:
    """Adds events up. dialect: of the API they were read from. choices: those that have begun; ended: all of them have
    ended, and there is one."""

    __slots__ = ("_began", "_choices", "_dialect", "_usage")

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._began = Began("", "")
        self._usage: Usage | None = None
        self._choices: dict[int, _Choice] = {}

    @property
    def ended(self) -> bool:
        return bool(self._choices) and all(c.ended is not None for c in self._choices.values())

    def add(self, events: Iterable[Event]) -> None:
        """Raises Failure 502 for a delta of a part that has not begun."""
        for event in events:
            if isinstance(event, Began):
                self._began = event
            elif isinstance(event, Used):
                self._usage = event.usage
            else:
                self._add(event, self._choice(event.choice))

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    def _add(self, event: Event, choice: _Choice) -> None:
        if isinstance(event, PartBegan):
            value = event.value
            if isinstance(value, Text) and value.citations is not None:
                value = msgspec.structs.replace(value, citations=list(value.citations))
            choice.parts[event.part] = _Growing(value)
            return
        if isinstance(event, Ended):
            choice.ended = event
            return
        assert not isinstance(event, (Began, Used))
        growing = choice.parts.get(event.part)
        if growing is None:
            raise unreadable("a part goes on that has not begun")
        if isinstance(event, (TextDelta, ThinkingDelta, ArgumentsDelta, RefusalDelta)):
            growing.pieces.append(event.text)
        elif isinstance(event, SignatureDelta):
            growing.signature.append(event.signature)
        elif isinstance(event, CitationDelta):
            if isinstance(growing.value, Text):
                growing.value = msgspec.structs.replace(
                    growing.value, citations=[*(growing.value.citations or ()), event.citation]
                )
        elif isinstance(event, LogprobsDelta):
            choice.logprobs.append(event.logprobs)
        elif isinstance(event, PartEnded):
            growing.closed = True

    def answer(self) -> Answer:
        """What has been told so far. A choice that has not ended has the stop "error". Raises Failure 502 for
        log-probs that are not a list."""
        answer = Answer(self._dialect, self._began.id, self._began.model, [], self._began.created, self._usage)
        for _, choice in sorted(self._choices.items()):
            ended = choice.ended or Ended("error")
            found = Choice([g.part() for _, g in sorted(choice.parts.items())], ended.stop, ended.stop_sequence)
            found.detail = ended.detail
            found.logprobs = _joined(choice.logprobs)
            answer.choices.append(found)
        return answer


def _joined(pieces: list[Raw]) -> Raw | None:
    """One list of several."""
    if not pieces:
        return None
    if len(pieces) == 1:
        return pieces[0]
    try:
        return Raw(_encode([entry for piece in pieces for entry in _list(piece)]))
    except UNREADABLE:
        raise unreadable("the log-probs of an answer") from None


def fold(events: Iterable[Event], dialect: str) -> Answer:
    """All of a stream's events as one answer."""
    whole = Fold(dialect)
    whole.add(events)
    return whole.answer()


def unfold(answer: Answer) -> list[Event]:
    """An answer as the events of a stream: each text in one delta. `extra` of the answer and of its choices is left
    out."""
    events: list[Event] = [Began(answer.id, answer.model, answer.created)]
    for index, choice in enumerate(answer.choices):
        for number, part in enumerate(choice.parts):
            _unfold_part(part, number, index, events)
        if choice.logprobs is not None:
            texts = [n for n, p in enumerate(choice.parts) if isinstance(p, (Text, Refusal))]
            if texts:
                ends = next(n for n, e in enumerate(events) if e == PartEnded(texts[0], index))
                events.insert(ends, LogprobsDelta(texts[0], choice.logprobs, index))
        events.append(Ended(choice.stop, choice.stop_sequence, choice.detail, index))
    if answer.usage is not None:
        events.append(Used(answer.usage))
    return events


def _unfold_part(part: Part, number: int, choice: int, into: list[Event]) -> None:
    replace = msgspec.structs.replace
    if isinstance(part, Text):
        into.append(PartBegan(number, replace(part, text="", citations=None), choice))
        if part.text:
            into.append(TextDelta(number, part.text, choice))
        into.extend(CitationDelta(number, c, choice) for c in part.citations or ())
    elif isinstance(part, Refusal):
        into.append(PartBegan(number, Refusal(""), choice))
        into.append(RefusalDelta(number, part.text, choice))
    elif isinstance(part, Thinking) and part.sealed is None:
        into.append(PartBegan(number, replace(part, text="", signature=None), choice))
        if part.text:
            into.append(ThinkingDelta(number, part.text, choice))
        if part.signature is not None:
            into.append(SignatureDelta(number, part.signature, choice))
    elif isinstance(part, ToolCall):
        into.append(PartBegan(number, replace(part, arguments=""), choice))
        into.append(ArgumentsDelta(number, part.arguments, choice))
    else:
        into.append(PartBegan(number, part, choice))
    into.append(PartEnded(number, choice))
