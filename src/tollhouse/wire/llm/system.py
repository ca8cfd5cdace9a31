"""System text around the caller's own, in each API's form. Values in, values out; no API is asked.

Rule: what the caller wrote stays as it is, byte for byte where it is a list: a text joins a text, a block stands beside
blocks. A request gets no second system message where it has one, since templates of many models take only one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason

__all__ = [
    "System",
    "around_blocks",
    "around_content",
    "around_messages",
    "around_prompt",
    "around_text",
    "without_instructions",
]

Raw = msgspec.Raw

_SEPARATOR = "\n\n"
_INSTRUCTS = frozenset(("system", "developer"))


class System(NamedTuple):
    """prefix, suffix: "" for none. own: the caller's own text stays between them."""

    prefix: str = ""
    suffix: str = ""
    own: bool = True

    @property
    def alone(self) -> str:
        """The text where the caller has none."""
        return _SEPARATOR.join(filter(None, (self.prefix, self.suffix)))

    def around(self, text: str) -> str:
        """The text with the caller's in it."""
        return _SEPARATOR.join(filter(None, (self.prefix, text if self.own else "", self.suffix)))


class _Role(msgspec.Struct, gc=False):
    role: str | None = None


_role = msgspec.json.Decoder(_Role).decode
_list = msgspec.json.Decoder(list[Raw]).decode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


def around_text(raw: Raw | None, system: System, field: str) -> Raw:
    """A field that is a text, or absent."""
    if _absent(raw):
        return _raw(system.alone)
    return _raw(system.around(_read(_text, raw, field, "a string")))


def around_blocks(raw: Raw | None, system: System, field: str, *, typed: bool = True) -> Raw:
    """A field that is a list of blocks, or a text, or absent. typed: a block of text says that it is one."""
    block = _block if typed else _bare
    if _absent(raw):
        return _raw([block(system.alone)])
    if _kind(raw) == b'"':
        return around_text(raw, system, field)
    blocks: list[Any] = _read(_list, raw, field, "a string or a list") if system.own else []
    before = [block(system.prefix)] if system.prefix else []
    after = [block(system.suffix)] if system.suffix else []
    return _raw([*before, *blocks, *after])


def around_content(raw: Raw | None, system: System, field: str) -> Raw:
    """Gemini's: an object with `parts`, a part, a list of them, or a text."""
    if _absent(raw) or _kind(raw) in (b'"', b"["):
        inner = around_blocks(raw, system, field, typed=False)
        return _raw({"parts": [_bare(_text(inner))] if _kind(inner) == b'"' else inner})
    content = _read(_object, raw, field, "an object")
    if "parts" not in content:
        if "text" in content:
            return around_content(_raw([content]), system, field)
        content["parts"] = around_blocks(None, system, field, typed=False)
        return _raw(content)
    parts = content["parts"]
    if _kind(parts) == b"{":  # one part is as good as a list of one
        parts = Raw(b"[%b]" % bytes(parts))
    content["parts"] = around_blocks(parts, system, f"{field}.parts", typed=False)
    return _raw(content)


def around_messages(raw: Raw | None, system: System, field: str = "messages") -> Raw:
    """OpenAI's chat messages: into the first and the last of the instructions that they begin with."""
    messages: list[Any] = _read(_list, raw, field, "a list")
    roles = [_role_of(message) for message in messages]
    if not system.own:
        messages = [message for message, role in zip(messages, roles, strict=True) if role not in _INSTRUCTS]
        roles = []  # none of them instructs any more
    count = next((n for n, role in enumerate(roles) if role not in _INSTRUCTS), len(roles))
    if count == 0:
        return _raw([{"role": "system", "content": system.alone}, *messages])
    if system.prefix:
        messages[0] = _grown(messages[0], system._replace(suffix=""), f"{field}[0]")
    if system.suffix:
        last = count - 1
        messages[last] = _grown(messages[last], system._replace(prefix=""), f"{field}[{last}]")
    return _raw(messages)


def without_instructions(raw: Raw, field: str) -> Raw:
    """A list of turns without the instructions among them; anything else as it is."""
    if _kind(raw) != b"[":
        return raw
    return _raw([item for item in _read(_list, raw, field, "a list") if _role_of(item) not in _INSTRUCTS])


def around_prompt(raw: Raw | None, system: System) -> Raw:
    """The prompt of older completions: one text or several. Raises Failure 400 for tokens, which nothing can be put
    before."""
    if _absent(raw) or _kind(raw) == b'"':
        return around_text(raw, system._replace(own=True), "prompt")
    prompts = _read(_list, raw, "prompt", "a string or a list")
    if any(_kind(prompt) != b'"' for prompt in prompts):
        raise _invalid("prompt", "must be text here, not tokens: the gateway puts a text of its own around it")
    return _raw([around_text(prompt, system._replace(own=True), "prompt") for prompt in prompts])


def _grown(message: Raw, system: System, field: str) -> Raw:
    fields = _read(_object, message, field, "an object")
    fields["content"] = around_blocks(fields.get("content"), system, f"{field}.content")
    return _raw(fields)


def _block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _bare(text: str) -> dict[str, str]:
    return {"text": text}


def _role_of(message: Raw) -> str:
    try:
        return _role(message).role or ""
    except UNREADABLE:
        return ""  # not for us to judge


def _absent(raw: Raw | None) -> bool:
    return raw is None or bytes(raw) == b"null"


def _kind(raw: Any) -> bytes:
    return bytes(raw)[:1]


def _read(decode: Callable[[Any], Any], raw: Raw | None, field: str, form: str) -> Any:
    if raw is None:
        raise _invalid(field, f"is missing: it must be {form}")
    try:
        return decode(raw)
    except UNREADABLE:
        raise _invalid(field, f"must be {form}") from None


def _raw(value: Any) -> Raw:
    return Raw(_encode(value))


def _invalid(field: str, problem: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, f"{field}: {problem}", code="invalid_value")
