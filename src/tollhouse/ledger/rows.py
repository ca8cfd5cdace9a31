"""What a database keeps of a usage record: a row of what is its own, a row of labels, and its part of an hourly sum.

Rule: nothing here knows a database. A body is taken apart at `MARK`: what is before it is the call's own (`Facts`),
what is behind it the labels, which many calls have in common and a database keeps once, found by their digest. What is
no number to be believed raises ValueError, so that sums stay within 64 bits.
"""

from hashlib import blake2b
from typing import Annotated, Final, final

import msgspec
from msgspec.structs import asdict, astuple

from tollhouse.ledger.records import MOST_NANO, MOST_RAW, Outcome

__all__ = [
    "DRAWS", "FACTS", "HOUR_US", "LABELS", "LONGEST", "MARK", "NOTHING", "SUMS", "Facts", "Labels", "OnlyFacts",
    "OnlyLabels", "Sums", "UsualFacts", "digested", "drawn", "fact_row", "seldom", "sum_up",
]  # fmt: skip

MARK: Final = b',"outcome":'
"""Where the labels of a body begin. Inside of a JSON string it cannot stand: a quote there has a backslash."""

LONGEST: Final = 256
"""Characters of a label. It is kept for ever, and some are a caller's own words: what is longer is cut, with a mark."""

HOUR_US: Final = 3_600_000_000

_MOST_TAGS = 32

_Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Int = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
_Tokens = Annotated[int, msgspec.Meta(ge=-(1 << 40), le=1 << 40)]
_Nano = Annotated[int, msgspec.Meta(ge=-MOST_NANO, le=MOST_NANO)]
"""What a call may have used of what is summed up: more is no number to be believed, and sums stay within 64 bits."""


class Facts(msgspec.Struct, kw_only=True, gc=False):
    """What is a call's own, in the order of its columns. journal, seq and labels are not from a record's body; journal
    and labels are the numbers that the database knows them by."""

    journal: int = 0
    seq: int = 0
    labels: int = 0
    admitted_at: _Time
    ended_at: _Time
    request_id: str = ""
    input: _Tokens = 0
    output: _Tokens = 0
    cache_read: _Tokens = 0
    cache_write: _Tokens = 0
    reasoning: _Tokens = 0
    cost_nano: _Nano | None = None
    ttft_us: _Int = 0
    total_us: _Int = 0
    upstream_us: _Int = 0
    bytes_in: _Int = 0
    bytes_out: _Int = 0
    cache_write_1h: _Tokens = 0
    audio_input: _Tokens = 0
    audio_output: _Tokens = 0
    image_input: _Tokens = 0
    image_output: _Tokens = 0
    run_id: str = ""
    parent_id: str = ""
    hold: str = ""
    held_nano: _Nano = 0
    saved_nano: _Nano = 0
    withheld_tokens: _Tokens = 0
    draws: tuple[tuple[str, _Int], ...] = ()
    adjust_of: str = ""
    repriced: bool = False
    raw_usage: Annotated[str, msgspec.Meta(max_length=MOST_RAW)] = ""


def seldom(facts: Facts) -> bool:
    """Whether a call has something that most have not, besides draws: its row is written with all columns."""
    return bool(
        facts.cache_read
        or facts.cache_write
        or facts.reasoning
        or facts.cache_write_1h
        or facts.audio_input
        or facts.audio_output
        or facts.image_input
        or facts.image_output
        or facts.run_id
        or facts.parent_id
        or facts.hold
        or facts.held_nano
        or facts.saved_nano
        or facts.withheld_tokens
        or facts.adjust_of
        or facts.repriced
        or facts.raw_usage
    )


class Labels(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What many calls have in common. The digest is that of the JSON without defaults, so that a label added at the end
    leaves the digests of the rows that do not have it."""

    outcome: str = Outcome.OK
    reason: str = ""
    status: _Int = 0
    attempt: _Int = 1
    org: str = ""
    team: str = ""
    user: str = ""
    key: str = ""
    agent: str = ""
    route: str = ""
    dialect: str = ""
    operation: str = ""
    model_asked: str = ""
    model_answered: str = ""
    provider: str = ""
    backend: str = ""
    server: str = ""
    tool: str = ""
    estimated: bool = False
    stream: bool = False
    tags: tuple[str, ...] = ()
    guard: str = ""
    cached: str = ""


class OnlyFacts(Facts, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The first half of a body, up to MARK, if nothing of the other half is in it."""


@final
class UsualFacts(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The same of a call that has nothing which most have not: what is not here is not there."""

    admitted_at: _Time
    ended_at: _Time
    request_id: str = ""
    input: _Tokens = 0
    output: _Tokens = 0
    cost_nano: _Nano | None = None
    ttft_us: _Int = 0
    total_us: _Int = 0
    upstream_us: _Int = 0
    bytes_in: _Int = 0
    bytes_out: _Int = 0


class OnlyLabels(Labels, kw_only=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """The second half."""


DRAWS: Final = "draws"
"""The one of Facts' fields that is no column: its rows have a table of their own."""

_AT = Facts.__struct_fields__.index(DRAWS)

FACTS: Final = tuple(name for name in Facts.__struct_fields__ if name != DRAWS)
"""The columns of a call's own, in the order of `fact_row`."""

LABELS: Final = Labels.__struct_fields__
"""The columns of labels, in the order in which `digested` gives them."""

SUMS: Final = (
    "requests", "input", "output", "cache_read", "cache_write", "reasoning", "cost_nano", "unpriced",
    "cache_write_1h", "audio_input", "audio_output", "image_input", "image_output", "saved_nano", "withheld",
)  # fmt: skip
"""What is summed up by hour and labels."""

NOTHING: Final = (0,) * len(SUMS)

Sums = dict[tuple[int, int], list[int]]
"""(hour, labels) -> what SUMS names."""


def fact_row(facts: Facts) -> tuple[int | str | bool | None, ...]:
    """The values of FACTS."""
    row = astuple(facts)
    return row[:_AT] + row[_AT + 1 :]


def drawn(facts: Facts) -> tuple[tuple[str, int], ...]:
    """What a record took from each field, each once."""
    draws = facts.draws
    if len(draws) < 2 or len({field for field, _ in draws}) == len(draws):
        return draws
    sums: dict[str, int] = {}
    for field, amount in draws:
        sums[field] = sums.get(field, 0) + amount
    return tuple(sums.items())


def digested(labels: Labels) -> tuple[bytes, tuple[int | str | bool, ...]]:
    """16 bytes that are these labels' own, and the values of LABELS. What is too long is cut; tags are JSON text."""
    encoded = msgspec.json.encode(labels)
    if len(encoded) > LONGEST:  # or none of them can be
        for name, value in asdict(labels).items():
            if isinstance(value, str) and len(value) > LONGEST:
                setattr(labels, name, _cut(value))
        if labels.tags:
            labels.tags = tuple(_cut(tag) for tag in labels.tags[:_MOST_TAGS])
        encoded = msgspec.json.encode(labels)
    values = tuple(
        msgspec.json.encode(value).decode() if isinstance(value, tuple) else value for value in astuple(labels)
    )
    return blake2b(encoded, digest_size=16).digest(), values


def sum_up(sums: Sums, facts: Facts) -> None:
    """Add one row to the sums of its hour and labels. An adjustment is no request; it may give a price to one that had
    none."""
    group = (facts.admitted_at // HOUR_US, facts.labels)
    have = sums.get(group)
    if have is None:
        have = sums[group] = [*NOTHING]
    adjusts = bool(facts.adjust_of)
    if not adjusts:
        have[0] += 1
    have[1] += facts.input
    have[2] += facts.output
    if facts.cache_read:
        have[3] += facts.cache_read
    if facts.cache_write:
        have[4] += facts.cache_write
    if facts.reasoning:
        have[5] += facts.reasoning
    if facts.cost_nano is not None:
        have[6] += facts.cost_nano
        if adjusts and facts.repriced:
            have[7] -= 1
    elif not adjusts and (facts.input or facts.output or facts.cache_read or facts.cache_write):
        have[7] += 1  # a call that used nothing has nothing to be paid
    if facts.cache_write_1h:
        have[8] += facts.cache_write_1h
    if facts.audio_input or facts.audio_output or facts.image_input or facts.image_output:
        have[9] += facts.audio_input
        have[10] += facts.audio_output
        have[11] += facts.image_input
        have[12] += facts.image_output
    have[13] += facts.saved_nano
    have[14] += facts.withheld_tokens


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
