"""What answers say of limits: the headers of the draft, and those of the caller's own dialect.

Rule: every number is one that the counter has said; a header is never a guess. Of several limits of one unit a dialect
has room for one: the one with the least left.

draft: draft-ietf-httpapi-ratelimit-headers, `RateLimit: "user-rpm";r=12;t=5` with r units left and all of them in t
seconds, and `RateLimit-Policy: "user-rpm";q=60;w=60`. dialect: OpenAI's `x-ratelimit-remaining-requests`, Anthropic's
`anthropic-ratelimit-requests-remaining`; who speaks another one gets the draft's.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Literal, NamedTuple

__all__ = ["Left", "Style", "fields_of", "policy_item"]

Style = Literal["draft", "dialect", "off"]

_OPENAI = {"requests": b"requests", "calls": b"requests", "tokens": b"tokens"}
_ANTHROPIC = {
    "requests": b"requests",
    "calls": b"requests",
    "tokens": b"tokens",
    "input_tokens": b"input-tokens",
    "output_tokens": b"output-tokens",
}


class Left(NamedTuple):
    """Of one limit. amount: in its window. left: units that could be taken now. full: seconds until all could. window:
    seconds, 0 for none."""

    name: bytes
    unit: str
    style: Style
    amount: int
    left: int
    full: float
    window: float


def policy_item(name: bytes, amount: int, window: float) -> bytes:
    return b'"%b";q=%d;w=%d' % (name, amount, max(1, round(window))) if window else b'"%b";q=%d' % (name, amount)


def fields_of(told: Sequence[Left], dialect: str, now: float) -> list[tuple[bytes, bytes]]:
    """The header fields. dialect: the family that the caller speaks. now: unix seconds."""
    words = {"openai": _OPENAI, "anthropic": _ANTHROPIC}.get(dialect)
    drafts: list[bytes] = []
    best: dict[bytes, Left] = {}
    for one in told:
        if one.style == "off":
            continue
        word = words.get(one.unit) if words is not None and one.style == "dialect" else None
        if word is None:
            drafts.append(b'"%b";r=%d;t=%d' % (one.name, one.left, ceil(one.full)))
        elif word not in best or one.left < best[word].left:
            best[word] = one
    fields = [(b"ratelimit", b", ".join(drafts))] if drafts else []
    for word, one in best.items():
        if dialect == "openai":
            fields += [
                (b"x-ratelimit-limit-" + word, b"%d" % one.amount),
                (b"x-ratelimit-remaining-" + word, b"%d" % one.left),
                (b"x-ratelimit-reset-" + word, _span(one.full)),
            ]
        else:
            start = b"anthropic-ratelimit-" + word
            fields += [
                (start + b"-limit", b"%d" % one.amount),
                (start + b"-remaining", b"%d" % one.left),
                (start + b"-reset", datetime.fromtimestamp(ceil(now + one.full), UTC).strftime(_RFC3339).encode()),
            ]
    return fields


_RFC3339 = "%Y-%m-%dT%H:%M:%SZ"


def _span(seconds: float) -> bytes:
    """As OpenAI writes it: 320ms, 6m0s, 1h2m3s."""
    if seconds < 1.0:
        return b"%dms" % ceil(seconds * 1000)
    whole = ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, rest)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
