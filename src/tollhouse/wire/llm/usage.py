"""Usage as each API counts it, and as we do: N forms, one meaning.

Rule: our `input` has no cached token in it and our `output` has every token of reasoning, so the kinds add up and each
is paid once. OpenAI's input includes what was read from and written to the cache; Anthropic's and Bedrock's leave both
out; Gemini's prompt includes the cached part, and its thoughts stand beside the answer. A part is never more than the
whole, whatever a provider says: no token is paid that its totals do not have. A count that is missing is 0, and an
answer without any is None, never 0.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE

__all__ = [
    "MOST_RAW",
    "ChatUsage",
    "ConverseUsage",
    "Count",
    "GeminiUsage",
    "MessagesUsage",
    "ResponsesUsage",
    "count_in",
    "counted",
    "raw_usage",
    "tier_of",
    "tiered",
    "uncounted",
]

E = TypeVar("E")

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
"""Tokens of one kind in one answer. No answer has more: what says so is no count, and its cost would fit no column."""


class _Tier(msgspec.Struct, gc=False):
    """As Bedrock says it."""

    type: str


MOST_RAW: Final = 1024
"""Characters of a raw usage that are kept."""

_tier = msgspec.json.Decoder(str | _Tier).decode
_LONGEST = 32
_USUAL = frozenset(("", "auto", "default", "on_demand", "standard", "unspecified"))
_BEFORE = ("traffic_type_", "service_tier_", "on_demand_")
_UNSAID = (_ABSENT, Raw(b"null"), Raw(b'"default"'), Raw(b'"standard"'))


def tier_of(told: Raw) -> str:
    """The service tier that an answer tells, as `Usage.tier` has it; "" where it tells none. told: a word, in the
    provider's own spelling, or Bedrock's object."""
    if told in _UNSAID:
        return ""
    try:
        said = _tier(told)
    except UNREADABLE:
        return ""
    word = (said if isinstance(said, str) else said.type).lower()
    for before in _BEFORE:
        word = word.removeprefix(before)
    return "" if word in _USUAL else word[:_LONGEST]


def tiered(usage: Usage | None, told: Raw) -> Usage | None:
    """The same usage, with the tier that stands beside it in the answer."""
    if usage is not None:
        usage.tier = tier_of(told)
    return usage


class _CachedDetails(msgspec.Struct, gc=False):
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    """audio, image: of all the prompt, what was cached of it included."""

    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    cached_tokens_details: _CachedDetails | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class ChatUsage(msgspec.Struct, gc=False):
    """OpenAI chat completions, completions and embeddings. Some servers of that API (xAI) leave reasoning out of
    `completion_tokens`; their `total_tokens` shows it."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def normal(self) -> Usage | None:
        prompt, output = self.prompt_tokens, self.completion_tokens
        if prompt is None:
            if output is None:
                return None
            prompt = 0
        output = output or 0
        details = self.completion_tokens_details
        if details is not None and (apart := details.reasoning_tokens):
            total = self.total_tokens
            if total is not None and total >= prompt + output + apart:
                output += apart
        return _including(prompt, output, self.prompt_tokens_details, details)

    @staticmethod
    def form(usage: Usage) -> dict[str, Any]:
        prompt = usage.input + usage.cache_read + usage.cache_write
        form: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": usage.output,
            "total_tokens": prompt + usage.output,
        }
        details = _told(
            cached_tokens=usage.cache_read,
            cache_write_tokens=usage.cache_write,
            audio_tokens=usage.audio_input,
            image_tokens=usage.image_input,
        )
        if details:
            form["prompt_tokens_details"] = details
        details = _told(
            reasoning_tokens=usage.reasoning, audio_tokens=usage.audio_output, image_tokens=usage.image_output
        )
        if details:
            form["completion_tokens_details"] = details
        return form


class ResponsesUsage(msgspec.Struct, gc=False):
    """OpenAI responses, images, speech and transcription."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _PromptDetails | None = None
    input_token_details: _PromptDetails | None = None  # so spelt in transcriptions and realtime
    output_tokens_details: _CompletionDetails | None = None
    output_token_details: _CompletionDetails | None = None

    def normal(self) -> Usage | None:
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return _including(
            self.input_tokens or 0,
            self.output_tokens or 0,
            self.input_tokens_details or self.input_token_details,
            self.output_tokens_details or self.output_token_details,
        )

    @staticmethod
    def form(usage: Usage) -> dict[str, Any]:
        prompt = usage.input + usage.cache_read + usage.cache_write
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": prompt + usage.output,
        }


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _ThinkingDetails(msgspec.Struct, gc=False):
    thinking_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class MessagesUsage(msgspec.Struct, gc=False):
    """Anthropic messages. In a stream it comes in pieces, each with the totals up to then: see `merge`. The fast mode
    is a tier of its own to a price."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _ThinkingDetails | None = None
    service_tier: Raw = _ABSENT
    speed: Raw = _ABSENT

    def normal(self) -> Usage | None:
        if self.input_tokens is None and self.output_tokens is None:
            return None
        usage = Usage()
        self.merge(usage)
        return usage

    def merge(self, usage: Usage) -> None:
        """Write what is told here over what `usage` has."""
        if bytes(self.service_tier) or bytes(self.speed):
            named = (tier_of(self.service_tier), tier_of(self.speed))
            usage.tier = "+".join(filter(None, named)) or usage.tier
        if self.input_tokens is not None:
            usage.input = self.input_tokens
        if self.output_tokens is not None:
            usage.output = self.output_tokens
        if self.cache_read_input_tokens is not None:
            usage.cache_read = self.cache_read_input_tokens
        if self.cache_creation_input_tokens is not None:
            usage.cache_write = self.cache_creation_input_tokens
        creation = self.cache_creation
        if creation is not None:
            long = creation.ephemeral_1h_input_tokens or 0
            if self.cache_creation_input_tokens is None:
                usage.cache_write = long + (creation.ephemeral_5m_input_tokens or 0)
            usage.cache_write_1h = long if long < usage.cache_write else usage.cache_write
        details = self.output_tokens_details
        if details is not None:
            thought = details.thinking_tokens or details.reasoning_tokens
            if thought is not None:
                usage.reasoning = thought if thought < usage.output else usage.output

    @staticmethod
    def form(usage: Usage) -> dict[str, Any]:
        form: dict[str, Any] = {
            "input_tokens": usage.input,
            "cache_creation_input_tokens": usage.cache_write,
            "cache_read_input_tokens": usage.cache_read,
            "output_tokens": usage.output,
        }
        if usage.cache_write:
            form["cache_creation"] = {
                "ephemeral_5m_input_tokens": max(usage.cache_write - usage.cache_write_1h, 0),
                "ephemeral_1h_input_tokens": usage.cache_write_1h,
            }
        if usage.reasoning:
            form["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
        return form


class _Modality(msgspec.Struct, gc=False):
    modality: str | None = None
    token_count: Count | None = msgspec.field(default=None, name="tokenCount")


class GeminiUsage(msgspec.Struct, gc=False, rename="camel"):
    """Gemini's `usageMetadata`; in a stream each event has the totals up to then."""

    prompt_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    candidates_token_count: Count | None = None
    thoughts_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    prompt_tokens_details: list[_Modality] | None = None
    cache_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None
    service_tier: Raw = _ABSENT
    traffic_type: Raw = _ABSENT  # so it is called at Vertex

    def normal(self) -> Usage | None:
        if (
            self.prompt_token_count is None
            and self.candidates_token_count is None
            and self.thoughts_token_count is None
        ):
            return None
        thoughts = self.thoughts_token_count or 0
        prompt = (self.prompt_token_count or 0) + (self.tool_use_prompt_token_count or 0)
        cached = min(self.cached_content_token_count or 0, prompt)
        usage = Usage(prompt - cached, (self.candidates_token_count or 0) + thoughts, cached, 0, thoughts)
        usage.tier = tier_of(self.service_tier) or tier_of(self.traffic_type)
        if self.prompt_tokens_details:
            asked, had = self.prompt_tokens_details, self.cache_tokens_details
            sound = _of_modality(asked, "AUDIO") - _of_modality(had, "AUDIO")
            _heard(usage, sound, _of_modality(asked, *_PICTURES) - _of_modality(had, *_PICTURES))
        if self.candidates_tokens_details:
            told = self.candidates_tokens_details
            _said(usage, thoughts, _of_modality(told, "AUDIO"), _of_modality(told, *_PICTURES))
        return usage

    @staticmethod
    def form(usage: Usage) -> dict[str, Any]:
        prompt = usage.input + usage.cache_read + usage.cache_write
        form: dict[str, Any] = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": max(usage.output - usage.reasoning, 0),
            "totalTokenCount": prompt + usage.output,
        }
        form.update(_told(cachedContentTokenCount=usage.cache_read, thoughtsTokenCount=usage.reasoning))
        return form


class _CacheDetail(msgspec.Struct, gc=False, rename="camel"):
    ttl: str | None = None
    input_tokens: Count | None = None


class ConverseUsage(msgspec.Struct, gc=False, rename="camel"):
    """Bedrock Converse; in a stream in the event `metadata`."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_write_input_tokens: Count | None = None
    cache_details: list[_CacheDetail] | None = None

    def normal(self) -> Usage | None:
        if self.input_tokens is None and self.output_tokens is None:
            return None
        written = self.cache_write_input_tokens or 0
        usage = Usage(self.input_tokens or 0, self.output_tokens or 0, self.cache_read_input_tokens or 0, written)
        if written and self.cache_details:
            usage.cache_write_1h = min(sum(d.input_tokens or 0 for d in self.cache_details if d.ttl == "1h"), written)
        return usage

    @staticmethod
    def form(usage: Usage) -> dict[str, Any]:
        form: dict[str, Any] = {
            "inputTokens": usage.input,
            "outputTokens": usage.output,
            "totalTokens": usage.total,
        }
        form.update(_told(cacheReadInputTokens=usage.cache_read, cacheWriteInputTokens=usage.cache_write))
        if usage.cache_write:
            short = usage.cache_write - usage.cache_write_1h
            details = [("5m", short), ("1h", usage.cache_write_1h)]
            form["cacheDetails"] = [{"ttl": ttl, "inputTokens": count} for ttl, count in details if count > 0]
        return form


def _including(prompt: int, output: int, asked: _PromptDetails | None, told: _CompletionDetails | None) -> Usage:
    """A count whose prompt includes what the cache gave and took."""
    usage = Usage(prompt, output)
    if asked is not None:
        read, write = asked.cached_tokens or 0, asked.cache_write_tokens or 0
        if read or write:
            usage.cache_read = read = min(read, prompt)
            usage.cache_write = write = min(write, prompt - read)
            usage.input = prompt - read - write
        if asked.audio_tokens or asked.image_tokens:
            had = asked.cached_tokens_details or _NONE_CACHED
            sound = (asked.audio_tokens or 0) - (had.audio_tokens or 0)
            _heard(usage, sound, (asked.image_tokens or 0) - (had.image_tokens or 0))
    if told is not None and (told.reasoning_tokens or told.audio_tokens or told.image_tokens):
        _said(usage, told.reasoning_tokens or 0, told.audio_tokens or 0, told.image_tokens or 0)
    return usage


_NONE_CACHED = _CachedDetails()
_PICTURES = ("IMAGE", "DOCUMENT")  # a page is a picture, and paid as one


def _heard(usage: Usage, sound: int, pictures: int) -> None:
    """What of the input is sound and pictures."""
    usage.audio_input = sound = min(max(sound, 0), usage.input)
    usage.image_input = min(max(pictures, 0), usage.input - sound)


def _said(usage: Usage, thoughts: int, sound: int, pictures: int) -> None:
    """What of the output is thoughts, sound and pictures."""
    left = usage.output
    usage.reasoning = thoughts = min(thoughts, left)
    usage.audio_output = sound = min(sound, left - thoughts)
    usage.image_output = min(pictures, left - thoughts - sound)


def _of_modality(details: list[_Modality] | None, *modalities: str) -> int:
    return sum(d.token_count or 0 for d in details or () if d.modality in modalities)


class _Form(Protocol):
    def normal(self) -> Usage | None: ...


def counted(decode: Callable[[msgspec.Raw], _Form], raw: msgspec.Raw) -> Usage | None:
    """What a raw usage object of an answer counts; None for one that is not in its API's form. decode: of that form."""
    try:
        return decode(raw).normal()
    except UNREADABLE:
        return None


def uncounted(decode: Callable[[bytes], E], data: bytes, *places: Sequence[str]) -> tuple[E, str]:
    """An event that cannot be read, without what stands at these places: a usage that is not in its API's form must not
    cost the answer that it is of. Also that usage (`raw_usage`). Raises what `decode` does, where that is not why."""
    return decode(_without(data, *places)), raw_usage(data)


def _without(data: bytes | msgspec.Raw, *places: Sequence[str]) -> bytes:
    members = _members(data)
    for first, *rest in places:
        if first in members:
            if rest:
                members[first] = Raw(_without(members[first], rest))
            else:
                del members[first]
    return _encode(members)


def raw_usage(data: bytes) -> str:
    """What an answer or event has for its usage, as it stands there, cut to MOST_RAW; "" where there is none."""
    try:
        members = _members(data)
        for name in ("message", "response"):
            if name in members and "usage" not in members:
                members = _members(members[name])
    except UNREADABLE:
        return ""
    told = bytes(members.get("usage") or members.get("usageMetadata") or b"")
    return "" if told == b"null" else told[: 4 * MOST_RAW].decode("utf-8", "replace")[:MOST_RAW]


def count_in(raw: msgspec.Raw) -> int | None:
    """A count that stands alone, which some write with a fraction; None for what is none."""
    try:
        number = _number(raw)
    except UNREADABLE:
        return None
    return int(number) if number.is_integer() else None


_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_number = msgspec.json.Decoder(Annotated[float, msgspec.Meta(ge=0, lt=1 << 32)]).decode


def _told(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
