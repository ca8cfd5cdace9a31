"""What a guard that is no pattern looks like: a Check is given texts and says what is wrong with them.

Rule: a check does its one thing. How long it may take, what becomes of a call when it cannot run, whether it is asked
again and whether it only shadows is the policy's matter; a check neither waits without bound nor guesses: what it
could not look at is CannotCheck, and no answer is never an empty one. No finding holds the text that it is about.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from tollhouse.core.call import Call

__all__ = ["CannotCheck", "Check", "Finding", "Phase", "Span"]

Phase = Literal["request", "response"]
"""What the texts are: what the caller sends, or what came back."""

Span = tuple[int, int, int]
"""Which of the texts, by its place among them, and where in it: start and end in characters."""


class Finding(msgspec.Struct, frozen=True):
    """What is wrong with the texts.

    rule: which of the check's rules found it, for metrics and records: one of a bounded set, lower case. spans: what a
    mask would cover; () for the texts as a whole, which cannot be masked. message: for the operator; never a part of
    the texts. replaces: what stands in the place of each span, where the check itself has said that; () for the
    policy's own placeholder, else as many as spans. decided: what a service wants done about it ("mask", "reject",
    "flag"), "" where that is for the rule's `action` to say. shown: what the caller is told, where the guard says it;
    "" for the rule's own `message`.
    """

    rule: str
    spans: tuple[Span, ...] = ()
    message: str = ""
    replaces: tuple[str, ...] = ()
    decided: Literal["", "mask", "reject", "flag"] = ""
    shown: str = ""


class CannotCheck(Exception):
    """The guard could not look at the texts; the policy does what `on_failure` says. The message is why, for the log:
    it holds neither the texts nor a secret. retry_after: seconds that its service asks to be left alone, if any."""

    def __init__(self, why: str, *, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Check(Protocol):
    """A guard that is asked about texts. Made once with the configuration, used by many calls at once."""

    @property
    def name(self) -> str:
        """The key of its kind: `webhook`."""
        ...

    @property
    def phases(self) -> frozenset[Phase]:
        """What it can look at."""
        ...

    @property
    def masks(self) -> bool:
        """Whether its findings may have spans, so that `action: mask` has an effect."""
        ...

    @property
    def whole(self) -> bool:
        """Whether a part of a text tells it nothing: in streams it is asked at the end."""
        ...

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        """What is wrong with the texts, nothing if nothing is. Raises CannotCheck, also where the time is up that it
        was made with. It may be cancelled at any time."""
        ...

    def health(self) -> str:
        """Why it cannot run now; "" where nothing is known to be wrong. Asks nobody."""
        ...

    async def close(self) -> None:
        """Let go of what it holds. Nothing is checked any more."""
        ...
