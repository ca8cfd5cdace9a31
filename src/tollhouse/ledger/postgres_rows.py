"""Rows of usage records as COPY wants them (PostgreSQL's text format).

Rule: nothing here knows a connection. A row that has nothing seldom is written with its usual columns alone: what most
calls have none of costs nothing.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from tollhouse.ledger.base import Entry
from tollhouse.ledger.postgres_connection import plain
from tollhouse.ledger.records import USAGE
from tollhouse.ledger.rows import (
    HOUR_US,
    MARK,
    NOTHING,
    Facts,
    Labels,
    OnlyFacts,
    OnlyLabels,
    Sums,
    digested,
    drawn,
    fact_row,
    seldom,
    sum_up,
)

__all__ = ["DRAWS", "USUAL", "Batch", "Doubtful", "Halves", "bounded", "halves", "label_row", "stored_row"]

USUAL: Final = (
    "journal", "seq", "labels", "admitted_at", "ended_at", "request_id", "input", "output", "cost_nano", "ttft_us",
    "total_us", "upstream_us", "bytes_in", "bytes_out",
)  # fmt: skip
DRAWS: Final = ("field", "journal", "seq", "admitted_at", "amount")

_LONGEST: Final = 512
"""Characters of what an index finds: it takes no more than 2,700 bytes."""
_NULL: Final = "\\N"
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Doubtful(Exception):
    """The batch must be looked at row by row."""


def bounded(text: str) -> str:
    """A text as it is stored where it can be found: what is too long is cut, with a digest of the whole."""
    if len(text) > _LONGEST:
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        text = f"{text[: _LONGEST - 20]}~{digest}"
    return plain(text)


def stored_row(facts: Facts) -> tuple[int | str | None, ...]:
    """The values of FACTS."""
    *row, raw = fact_row(facts)
    found = [bounded(value) if isinstance(value, str) else int(value) if value is not None else None for value in row]
    return (*found, plain(str(raw)))


def label_row(labels: Labels) -> tuple[bytes, tuple[int | str, ...]]:
    """The digest of labels, and the values of LABELS."""
    digest, values = digested(labels)
    row = tuple(plain(value) if isinstance(value, str) else int(value) for value in values)
    if labels.tags and any("\x00" in tag for tag in labels.tags):
        tags = msgspec.json.encode([plain(tag) for tag in labels.tags]).decode()
        row = tuple(
            tags if name == "tags" else value for name, value in zip(Labels.__struct_fields__, row, strict=True)
        )
    return digest, row


def _text(value: str) -> str:
    """A text as COPY wants it."""
    if not value or (value.isprintable() and "\\" not in value and len(value) <= _LONGEST):
        return value
    return bounded(value).translate(_ESCAPES)


def _told(raw: str) -> str:
    """What nothing is found by, so whole."""
    return plain(raw).translate(_ESCAPES) if raw else ""


def _line(facts: Facts) -> str:
    """The values of FACTS as COPY wants them."""
    cost = facts.cost_nano
    return (
        f"{facts.journal}\t{facts.seq}\t{facts.labels}\t{facts.admitted_at}\t{facts.ended_at}\t"
        f"{_text(facts.request_id)}\t{facts.input}\t{facts.output}\t{facts.cache_read}\t{facts.cache_write}\t"
        f"{facts.reasoning}\t{_NULL if cost is None else cost}\t{facts.ttft_us}\t{facts.total_us}\t"
        f"{facts.upstream_us}\t{facts.bytes_in}\t{facts.bytes_out}\t{facts.cache_write_1h}\t{facts.audio_input}\t"
        f"{facts.audio_output}\t{facts.image_input}\t{facts.image_output}\t{_text(facts.run_id)}\t"
        f"{_text(facts.parent_id)}\t{_text(facts.hold)}\t{facts.held_nano}\t{facts.saved_nano}\t"
        f"{facts.withheld_tokens}\t{_text(facts.adjust_of)}\t{facts.repriced:d}\t{_told(facts.raw_usage)}"
    )


class Halves:
    """How bodies are read."""

    def __init__(self) -> None:
        self.facts: Callable[[bytes], Facts] = msgspec.json.Decoder(OnlyFacts).decode
        self.labels: Callable[[bytes], Labels] = msgspec.json.Decoder(OnlyLabels).decode
        self.any_facts: Callable[[bytes], Facts] = msgspec.json.Decoder(Facts).decode
        self.any_labels: Callable[[bytes], Labels] = msgspec.json.Decoder(Labels).decode


class Batch:
    """Records in the usual form. usual, rest, draws: lines for COPY; low, high: the times of the first and last one."""

    __slots__ = ("count", "draws", "high", "low", "rest", "sums", "times", "usual")

    def __init__(self) -> None:
        self.count = 0
        self.usual: list[str] = []
        self.rest: list[str] = []
        self.draws: list[str] = []
        self.sums: Sums = {}
        self.low = 1 << 62
        self.high = 0
        self.times: set[int] = set()
        """A time of each hour that there are records of."""

    def read(
        self,
        journal: int,
        entries: Sequence[Entry],
        parts: Sequence[tuple[bytes, bytes]],
        numbers: Callable[[bytes], int],
        decode: Callable[[bytes], Facts],
    ) -> None:
        """parts: the halves of each entry. numbers: of labels, by their half. Raises Doubtful; ValueError."""
        sums = self.sums
        usual = self.usual
        begin = end = labels = 0  # the hour and labels that `have` sums up, and the bytes these labels came as
        last = b""
        have: list[int] = []
        for entry, (first, second) in zip(entries, parts, strict=True):
            if entry.kind != USAGE:
                raise Doubtful
            facts = decode(first + b"}")
            admitted = facts.admitted_at
            if second != last or not begin <= admitted < end:
                labels = numbers(second)
                last = second
                hour = admitted // HOUR_US
                begin, end = hour * HOUR_US, (hour + 1) * HOUR_US
                have = sums.setdefault((hour, labels), [*NOTHING])
                self.times.add(admitted)
                self.low, self.high = min(self.low, begin), max(self.high, end - 1)
            if seldom(facts):
                facts.journal, facts.seq, facts.labels = journal, entry.seq, labels
                self.rest.append(_line(facts))
                sum_up(sums, facts)
            else:
                given, made, cost = facts.input, facts.output, facts.cost_nano
                have[0] += 1
                have[1] += given
                have[2] += made
                if cost is not None:
                    have[6] += cost
                elif given or made:
                    have[7] += 1
                usual.append(
                    f"{journal}\t{entry.seq}\t{labels}\t{admitted}\t{facts.ended_at}\t{_text(facts.request_id)}\t{given}\t{made}\t"
                    f"{_NULL if cost is None else cost}\t{facts.ttft_us}\t{facts.total_us}\t{facts.upstream_us}\t"
                    f"{facts.bytes_in}\t{facts.bytes_out}"
                )
            for field, amount in drawn(facts):
                self.draws.append(f"{_text(field)}\t{journal}\t{entry.seq}\t{admitted}\t{amount}")
        self.count = len(entries)


def halves(entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    """The two halves of each body."""
    found = []
    for entry in entries:
        first, _, second = entry.body.partition(MARK)
        found.append((first, second))
    return found
