"""Whether a request is one whose answer may be kept at all, and whether what came is an answer.

Rule: it asks for text, numbers or judgements (not for sound, pictures or a session), and its answer depends on nothing
but what it says: not on what a provider keeps for it, and not on chance, where it asks for chance. An answer of which
its provider says that it failed, or that a filter has ended it, is none, whatever its status.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tollhouse.core.call import ModelCall
from tollhouse.core.depth import UNREADABLE

__all__ = ["OPERATIONS", "has_failed", "is_chancy", "is_fit", "is_kept_elsewhere"]

OPERATIONS: Final = frozenset(
    (
        "chat", "responses", "messages", "generate", "converse", "completions", "embeddings", "embed", "embed_batch",
        "rerank", "moderations",
    )
)  # fmt: skip

_NESTED: Final = {"generate": ("generationConfig", "generation_config"), "converse": ("inferenceConfig",)}
"""Where an API has its temperature, if not at the top level."""

_ELSEWHERE: Final = ("conversation", "background", "store", "container", "mcp_servers")
"""Fields by which an answer depends on, or becomes, what the provider keeps and changes; or by which the provider does
something on its way to an answer."""

_SUSPECT: Final = frozenset((*_ELSEWHERE, "prompt", "tools"))

_DOES: Final = b'"mcp"'
"""The type of a tool that a provider calls by itself, and that may do anything."""

_OFF: Final = frozenset((b"null", b"false", b'""', b"[]", b"{}"))

_CHAT: Final = (rb'"finish_reason"\s*:\s*"(?:error|content_filter)"',)
_FAILED: Final = {
    operation: tuple(map(re.compile, patterns))
    for operation, patterns in {
        "chat": _CHAT,
        "completions": _CHAT,
        "messages": (rb'"stop_reason"\s*:\s*"refusal"',),
        "generate": (rb'"finishReason"\s*:\s*"(?!(?:STOP|MAX_TOKENS)")', rb'"blockReason"\s*:\s*"'),
        "converse": (rb'"stopReason"\s*:\s*"(?:guardrail_intervened|content_filtered|malformed_[a-z_]+)"',),
        "responses": (
            rb'"status"\s*:\s*"(?:failed|cancelled)"',
            rb'"incomplete_details"\s*:\s*\{\s*"reason"\s*:\s*"content_filter"',
        ),
    }.items()
}
"""How each API says it, as its JSON is written; in a text the same has a backslash before each quote."""

_NO_CHOICE: Final = re.compile(rb'"choices"\s*:\s*(?:null|\[\s*\])')
_NOTHING: Final = {
    "chat": _NO_CHOICE,
    "completions": _NO_CHOICE,
    "responses": re.compile(rb'"status"\s*:\s*"(?:queued|in_progress)"'),
}
"""The same of whole answers alone: a stream says that on its way."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_number = msgspec.json.Decoder(float).decode


def is_fit(call: ModelCall) -> bool:
    """Whether it is a request of that kind, in JSON."""
    return call.operation in OPERATIONS and not call.content_type and bool(call.label)


def is_kept_elsewhere(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the answer depends on what the provider keeps, will be there later only, or is not all that is wanted."""
    if _SUSPECT.isdisjoint(fields):
        return False
    for name in _ELSEWHERE:
        value = fields.get(name)
        if value is not None and bytes(value) not in _OFF:
            return True
    prompt = fields.get("prompt")
    if prompt is not None and bytes(prompt)[:1] == b"{":  # one that is kept there; in other APIs it is a text
        return True
    tools = fields.get("tools")
    return tools is not None and _DOES in bytes(tools)


def is_chancy(call: ModelCall) -> bool:
    """Whether it says that it wants another answer each time: a temperature above 0. What cannot be read may be one."""
    fields = call.fields
    value = fields.get("temperature")
    for name in _NESTED.get(call.operation, ()):
        within = fields.get(name)
        if within is None:
            continue
        try:
            value = _members(within).get("temperature", value)
        except UNREADABLE:
            return bytes(within) != b"null"
    if value is None or bytes(value) == b"null":
        return False
    try:
        return _number(value) != 0.0
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True


def has_failed(operation: str, blocks: Sequence[bytes], *, stream: bool) -> bool:
    """Whether an answer that came with status 200 says that it is none. blocks: of whole events, or all of it."""
    for pattern in _FAILED.get(operation, ()):
        if any(map(pattern.search, blocks)):
            return True
    nothing = None if stream else _NOTHING.get(operation)
    return nothing is not None and any(map(nothing.search, blocks))
