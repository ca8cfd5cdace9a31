"""Texts of OpenAI's older completions: a prompt, and choices that are nothing but text."""

import msgspec

from tollhouse.wire.guard.llm.chat import ChatTexts
from tollhouse.wire.guard.llm.events import Event
from tollhouse.wire.guard.llm.forms import SKIP, Json, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object
from tollhouse.wire.guard.llm.tokens import Tokens, told

__all__ = ["ANSWER", "REQUEST", "CompletionsTexts"]

Raw = msgspec.Raw

_PROMPT = Choice(text=Text(), many=Each(Choice(text=Text())))
REQUEST = Object({"model": SKIP, "prompt": _PROMPT, "suffix": Text(), "logit_bias": SKIP, "stream_options": SKIP})
ANSWER = Object(
    {
        "id": SKIP,
        "object": SKIP,
        "created": SKIP,
        "model": SKIP,
        "usage": SKIP,
        "system_fingerprint": SKIP,
        "service_tier": SKIP,
        "obfuscation": SKIP,
        "choices": Each(
            Object(
                {
                    "index": SKIP,
                    "finish_reason": SKIP,
                    "stop_reason": SKIP,
                    "token_ids": SKIP,
                    "prompt_logprobs": SKIP,
                    "prompt_token_ids": SKIP,
                    "content_filter_results": SKIP,
                    "text": Text(label="content"),
                    "logprobs": Tokens(b"null"),
                },
                by="index",
                stale={
                    "logprobs": b"null",
                    "token_ids": b"null",
                    "prompt_logprobs": b"null",
                    "prompt_token_ids": b"null",
                },
            )
        ),
        "error": Json("text"),
    }
)


class _Choice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    text: str
    index: int
    logprobs: Raw = Raw()
    finish_reason: str | None = None
    stop_reason: Raw = Raw()


class _Chunk(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual one."""

    choices: list[_Choice]
    id: str | None = None
    object: str | None = None
    created: float | None = None
    model: str | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    obfuscation: str | None = None
    usage: Raw = Raw()


def _proved(choice: _Choice) -> bool:
    """Whether its log-probs are those of its text."""
    try:
        return len(choice.logprobs) < 5 or told(choice.logprobs) == choice.text
    except (msgspec.DecodeError, RecursionError):
        return False


_chunk = msgspec.json.Decoder(_Chunk).decode


class CompletionsTexts(ChatTexts):
    """A stream of chunks, which ends as one of chat's does."""

    __slots__ = ()

    form = ANSWER

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        try:
            choices = _chunk(data).choices
        except (msgspec.DecodeError, RecursionError):
            return self.any(raw, data)
        if len(choices) == 1 and choices[0].text and choices[0].finish_reason is None and _proved(choices[0]):
            choice = choices[0]
            return self.piece(raw, data, self.form, (choice.index, "content", "text"), choice.text)
        return self.any(raw, data)
