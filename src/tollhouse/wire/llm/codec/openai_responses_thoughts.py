"""OpenAI responses: thoughts as items, and the neutral model's.

Rule: a thought is sealed for those who had it. `encrypted_content` of OpenAI's own goes abroad as a signature or seal
that begins with "responses:" and has the item's id in it; another provider's comes in here as `encrypted_content` that
begins with "signature:" or "sealed:". So each finds its way home, and nobody is given what is not theirs.
"""

from typing import Any

import msgspec

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.reading import Fields, put_back, told
from tollhouse.wire.llm.model import Extra, Opaque, Thinking

__all__ = ["SIGNATURE", "read_thought", "seal_abroad", "thought_item", "write_thought"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode

_ABROAD = "responses:"
SIGNATURE = "signature:"
"""Begins `encrypted_content` that is the signature of another provider's thought."""
_SEALED = "sealed:"


def read_thought(f: Fields, *, answered: bool) -> Thinking | Opaque:
    """A `reasoning` item. answered: the provider has just said it, so it may go abroad; one that a caller sends back
    is OpenAI's own or marked as another's. One with neither text nor seal stands for what is stored at OpenAI."""
    whole = f.whole(type="reasoning")
    id = f.text("id")
    sealed = f.text("encrypted_content")
    extra: Extra = {}
    summary = [one.need_text("text") for one in f.children("summary") or ()]
    content = [one.need_text("text") for one in f.children("content") or ()]
    f.raw("status")
    text = "\n\n".join([*content, *summary])
    if not text and not sealed:
        return Opaque("responses", "reasoning", whole)
    extra.update(told(f.rest()) or {})
    if content or len(summary) != bool(text):
        fields = _object(whole)
        extra.update({name: fields[name] for name in ("summary", "content") if name in fields})
    thought = Thinking(text, id=id)
    if sealed:
        if sealed.startswith(SIGNATURE):
            thought.signature = sealed.removeprefix(SIGNATURE)
        elif sealed.startswith(_SEALED):
            thought.sealed = sealed.removeprefix(_SEALED)
        elif not answered:
            extra["encrypted_content"] = Raw(_encode(sealed))
        elif text:
            thought.signature = seal_abroad(id, sealed)
        else:
            thought.sealed = seal_abroad(id, sealed)
    thought.extra = extra or None
    return thought


def seal_abroad(id: str | None, sealed: str) -> str:
    """OpenAI's `encrypted_content`, for another API to carry; what is another's is given back as it was."""
    for tag in (SIGNATURE, _SEALED):
        if sealed.startswith(tag):
            return sealed.removeprefix(tag)
    return f"{_ABROAD}{id or ''}:{sealed}"


def write_thought(thought: Thinking, where: str, own: bool, lost: Lost) -> dict[str, Any] | None:
    """A `reasoning` item; None, and lost, for a thought that its provider could not know again."""
    sealed = _seal(thought)[1]
    if not own and (sealed is None or sealed.startswith((SIGNATURE, _SEALED))):
        lost.add(f"{where}: a thought that is not of this API")
        return None
    item = thought_item(thought)
    put_back(item, thought.extra, own, lost, where + ".")
    return item


def thought_item(thought: Thinking) -> dict[str, Any]:
    """A `reasoning` item, with its id when it has one."""
    id, sealed = _seal(thought)
    summary = [{"type": "summary_text", "text": thought.text}] if thought.text else []
    item: dict[str, Any] = {"type": "reasoning", "summary": summary}
    if id:
        item["id"] = id
    if sealed is not None:
        item["encrypted_content"] = sealed
    return item


def _seal(thought: Thinking) -> tuple[str | None, str | None]:
    """An item's id and `encrypted_content`."""
    for value, tag in ((thought.sealed, _SEALED), (thought.signature, SIGNATURE)):
        if value:
            if value.startswith(_ABROAD):
                id, _, sealed = value.removeprefix(_ABROAD).partition(":")
                return id or None, sealed
            return thought.id, tag + value
    return thought.id, None
