"""The records of the ledger. A record says what was asked, by whom, how it ended and what it used; nothing of its text.

Rule: (journal, seq) is a record's identity, given when it is appended; the id is computed from it and the time of
admission, so that every replay of a journal gives the same id, and ids sort by time. Fields are added, never renamed.
"""

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

__all__ = [
    "AUDIT",
    "INTENT",
    "MOST_NANO",
    "MOST_RAW",
    "OUTCOMES",
    "USAGE",
    "Anchor",
    "Outcome",
    "UsageFacts",
    "UsageRecord",
    "identify",
    "labels",
]

USAGE: Final = 1
"""The journal's kind of a UsageRecord."""

AUDIT: Final = 2
"""The kind of an `audit.AuditRecord`."""

INTENT: Final = 3
"""The kind of a UsageRecord that is due if its worker dies before the call ends (`intents`)."""

MOST_NANO: Final = 1 << 50
"""Nano-dollars of one record: what is more is no sum to be believed, and many of them must fit 64 bits."""

MOST_RAW: Final = 1024
"""Characters of `UsageRecord.raw_usage`."""


class Anchor(NamedTuple):
    """The record up to which an audit chain is known: its number there, and its hash."""

    chain: str
    n: int
    hash: str


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    DENIED = "denied"  # by a rule, a limit, a budget, a guard, or for missing credentials
    INVALID = "invalid"  # the request made no sense: unknown model or tool, bad body
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    TOOL_ERROR = "tool_error"  # the tool answered, and its answer says that it failed
    CUT = "cut"  # the upstream died after its first event
    ERROR = "error"  # ours
    LOST = "lost"  # the worker died, and what was held is charged; written by whoever adopts its journal


OUTCOMES = frozenset(Outcome)


class UsageRecord(msgspec.Struct, gc=False, omit_defaults=True, kw_only=True):
    """One call. Times are microseconds: since 1970 (UTC) in `..._at`, spans in `..._us`.

    Tokens: input excludes what came from or went into the provider's cache, output includes reasoning; cache_write_1h
    is a part of cache_write, audio and image are parts of input and output. estimated: the provider did not say.
    cost_nano: nano-dollars, None where no price is known (never 0 for "unknown") and where nothing was used.
    admitted_at is by the store's clock where a store admitted the call, so that budgets and ledger agree on its window.
    journal, seq and id are filled in when the record is read back; they are not in its body.

    run_id, parent_id: the agent run it belongs to, and the run that began that one. draws: (field, amount) of each
    allowance it was posted to; the field says whose, of which unit and from when. hold: the hold that the post
    releases, where it is not called like the request. held_nano: what was reserved for it. saved_nano: what a hit
    in the cache (`cached`: exact or semantic) would have cost. withheld_tokens: tokens of the answer that a guard
    (`guard`, the one that acted) kept back; they are paid. tags: the operator's, sorted.

    adjust_of: this is no call but a correction of the record of this id. It has that one's admitted_at and labels;
    its tokens, cost_nano and draws are what is added to it. repriced: that one had no price before. raw_usage: what
    the provider told of tokens, where that was not believed: JSON, cut after MOST_RAW characters.

    The order is that of the encoded body: first what is each call's own, then, from `outcome` on (which is always
    there), the labels: what many calls have in common, and a ledger may keep once.
    """

    id: str = ""
    journal: str = ""
    seq: int = 0
    admitted_at: int
    ended_at: int
    request_id: str = ""
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cost_nano: int | None = None
    ttft_us: int = 0
    total_us: int = 0
    upstream_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    run_id: str = ""
    parent_id: str = ""
    hold: str = ""
    held_nano: int = 0
    saved_nano: int = 0
    withheld_tokens: int = 0
    draws: tuple[tuple[str, int], ...] = ()
    adjust_of: str = ""
    repriced: bool = False
    raw_usage: str = ""
    outcome: str
    reason: str = ""
    status: int = 0
    attempt: int = 1
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


class UsageFacts(msgspec.Struct, gc=False, omit_defaults=True):
    """What is each call's own of a UsageRecord, in its order; with `labels` it is the record's body, written without
    making the record."""

    admitted_at: int
    ended_at: int
    request_id: str = ""
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cost_nano: int | None = None
    ttft_us: int = 0
    total_us: int = 0
    upstream_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    run_id: str = ""
    parent_id: str = ""
    hold: str = ""
    held_nano: int = 0
    saved_nano: int = 0
    withheld_tokens: int = 0
    draws: tuple[tuple[str, int], ...] = ()
    adjust_of: str = ""
    repriced: bool = False
    raw_usage: str = ""


def labels(record: UsageRecord) -> bytes:
    """The second half of a record's body, to stand in the place of the `}` of its UsageFacts: the same for all calls
    with the same labels."""
    _, mark, rest = msgspec.json.encode(record).partition(b',"outcome":')
    return mark + rest


def identify(journal: str, seq: int, at: int) -> str:
    """The id of a record: a UUID of version 7 (RFC 9562 section 5.7) without a new random number.

    48 bits of milliseconds from `at` (microseconds), 12 + 22 bits of `seq`, 40 bits of the journal's random id (hex).
    Two records can only get the same one within the same millisecond, with the same seq, in two journals whose random
    40 bits agree.
    """
    number = (at // 1000 & (1 << 48) - 1) << 80
    number |= 7 << 76
    number |= (seq >> 22 & 0xFFF) << 64
    number |= 2 << 62
    number |= (seq & 0x3FFFFF) << 40
    number |= int(journal[:10], 16)
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
