"""Anthropic messages and the neutral model: turns and their blocks, in requests and in answers.

Instructions that come before the first turn are the field `system`; later ones are turns of their own. Neighbours of
one side become one turn, in which the results of tools come first: so they follow their calls. A call's arguments are
an object here.
"""

import re
from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Lost, unreadable
from tollhouse.wire.llm.codec.anthropic_citations import read_citation, write_citation
from tollhouse.wire.llm.codec.reading import (
    Fields,
    cache_control,
    legible,
    one_text,
    own_value,
    put_back,
    read_cache,
    text_in,
)
from tollhouse.wire.llm.model import (
    Audio,
    Cache,
    Chat,
    Document,
    Image,
    Json,
    Media,
    Message,
    Opaque,
    Part,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)

__all__ = ["read_block", "read_content", "read_turn", "write_answer_blocks", "write_cache", "write_turns"]

Raw = msgspec.Raw

_object = msgspec.json.Decoder(dict[str, Raw]).decode

_ROLES = ("user", "assistant", "system")
_PICTURES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_TTLS = ("5m", "1h")
_PDF = "application/pdf"
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")


# ---- reading


def read_turn(f: Fields) -> Message:
    """An entry of a request's `messages`. Raises Failure 400."""
    role = f.need_text("role")
    if role not in _ROLES:
        f.fail("role", f"{role!r} is not a role; it is one of {', '.join(_ROLES)}")
    if not f.has("content"):
        f.fail("content", "is missing: it must be a string or a list of blocks")
    return Message(role, read_content(f, "content"), extra=f.rest())  # type: ignore[arg-type]


def read_content(f: Fields, name: str) -> list[Part]:
    """A string or a list of blocks."""
    if f.is_text(name):
        return [Text(f.need_text(name))]
    if f.has(name) and not f.is_list(name):
        f.fail(name, "must be a string or a list of blocks")
    return [read_block(b) for b in f.children(name) or ()]


def read_block(f: Fields) -> Part:
    """A block of any kind; one that only this API has stays whole."""
    kind = f.need_text("type")
    if kind == "text":
        text = Text(f.need_text("text"), read_cache(f))
        cited = f.children("citations")
        text.citations = [read_citation(c) for c in cited] if cited else None
        text.extra = f.rest()
        return text
    if kind == "tool_use":
        given = f.object("input")
        call = ToolCall(f.need_text("id"), f.need_text("name"), "{}" if given is None else bytes(given).decode())
        call.cache = read_cache(f)
        call.extra = f.rest()
        return call
    if kind == "tool_result":
        result = ToolResult(f.need_text("tool_use_id"), read_content(f, "content"))
        result.error = f.flag("is_error")
        result.cache = read_cache(f)
        result.extra = f.rest()
        return result
    if kind == "thinking":
        return Thinking(f.text("thinking") or "", f.text("signature") or None, extra=f.rest())
    if kind == "redacted_thinking":
        return Thinking(sealed=f.need_text("data"), extra=f.rest())
    if kind in ("image", "document"):
        return _medium(kind, f)
    return Opaque("messages", kind, f.untouched())


def _medium(kind: str, f: Fields) -> Part:
    source = f.need_child("source", "an object with a type")
    form = source.need_text("type")
    media = Media()
    if form == "base64":
        media.type = source.need_text("media_type")
        media.data = source.base64("data")
    elif form == "url":
        media.url = source.some_text("url")
    elif form == "file":
        media.file = source.some_text("file_id")
    elif form == "text" and kind == "document":
        media.type = source.text("media_type") or "text/plain"
        media.text = source.need_text("data")
    else:
        return Opaque("messages", kind, f.untouched())
    f.leave("source", source)
    if kind == "image":
        image = Image(media, None, read_cache(f))
        image.extra = f.rest()
        return image
    document = Document(media, f.text("title"), f.text("context"), cache=read_cache(f))
    citations = f.child("citations")
    if citations is not None:
        document.citations = citations.flag("enabled")
        f.leave("citations", citations)
    document.extra = f.rest()
    return document


# ---- writing a request


def write_turns(chat: Chat, own: bool, lost: Lost) -> tuple[Any, list[dict[str, Any]]]:
    """`system` (None for none) and `messages`."""
    system: list[Any] = []
    turns: list[dict[str, Any]] = []
    first = True
    for n, message in enumerate(chat.messages):
        where = f"messages[{n}]"
        instructs = message.role in ("system", "developer")
        blocks = _write_blocks(message.parts, where, own, lost)
        if message.name is not None:
            lost.add(f"{where}.name")
        if instructs and first:
            if message.extra:
                put_back({}, message.extra, own, lost, where + ".")
            system += blocks
            continue
        first = first and not blocks and not own
        role = "system" if instructs else "assistant" if message.role == "assistant" else "user"
        if not own and (not blocks or (turns and turns[-1]["role"] == role)):
            if message.extra:
                lost.fields(message.extra, where + ".")
            if blocks:
                turns[-1]["content"] += blocks
            continue
        form: dict[str, Any] = {"role": role, "content": blocks}
        if message.extra:
            put_back(form, message.extra, own, lost, where + ".")
        turns.append(form)
    for turn in turns:
        if not own and turn["role"] == "user" and len(turn["content"]) > 1:
            turn["content"].sort(key=_after_results)
        turn["content"] = one_text(turn["content"])
    return (one_text(system) if system else None), turns


def _after_results(block: Any) -> bool:
    return not isinstance(block, dict) or block["type"] != "tool_result"


def _write_blocks(parts: list[Part], where: str, own: bool, lost: Lost) -> list[Any]:
    blocks = []
    for n, part in enumerate(parts):
        if type(part) is Text and part.text and not (part.citations or part.cache or part.extra):
            blocks.append({"type": "text", "text": part.text})  # the usual part
        elif (block := _write_block(part, f"{where}.parts[{n}]", own, lost)) is not None:
            blocks.append(block)
    return blocks


def _write_block(part: Part, where: str, own: bool, lost: Lost) -> Any:
    """The block; None when it is lost, or says nothing."""
    form: dict[str, Any]
    if isinstance(part, Text):
        if not part.text and not own:
            return None  # an empty text is refused there
        form = {"type": "text", "text": part.text}
        if part.citations:
            if own:
                form["citations"] = [write_citation(c, own=True) for c in part.citations]
            else:
                lost.add(f"{where}.citations")
    elif isinstance(part, ToolCall):
        form = {"type": "tool_use", "id": _id(part.id, own), "name": part.name, "input": _arguments(part, where, lost)}
    elif isinstance(part, ToolResult):
        content = one_text(_write_blocks(part.parts, where, own, lost))
        form = {"type": "tool_result", "tool_use_id": _id(part.id, own), "content": content}
        if part.error is not None:
            form["is_error"] = part.error
    elif isinstance(part, Json):
        return {"type": "text", "text": legible(part.value)}
    elif isinstance(part, Refusal):
        return {"type": "text", "text": part.text} if part.text else None
    elif isinstance(part, Thinking):
        return _write_thinking(part, where, own, lost)
    elif isinstance(part, Opaque):
        return next(iter(own_value(part, "messages", where, lost)), None)
    elif isinstance(part, Audio):
        lost.add(f"{where}: sound")
        return None
    else:
        source = _own_source(part.media) if own else _source(part, where, lost)
        if source is None:
            return None
        form = _with_source(part, source, where, lost)
    if part.cache is not None:
        form["cache_control"] = write_cache(part.cache, own)
    put_back(form, part.extra, own, lost, where + ".")
    return form


def write_cache(cache: Cache, own: bool) -> dict[str, str]:
    """`cache_control`; a time to live that is not known here is left to the default."""
    return cache_control(cache.ttl if own or cache.ttl in _TTLS else "")


def _id(id: str, own: bool) -> str:
    """Calls are named with letters, digits, _ and - only."""
    return id if own else _NOT_IN_ID.sub("_", id)


def _arguments(call: ToolCall, where: str, lost: Lost) -> Any:
    try:
        return _object(call.arguments or "{}")
    except UNREADABLE:
        raise lost.invalid(f"{where}.arguments", "must be the JSON text of an object") from None


def _write_thinking(part: Thinking, where: str, own: bool, lost: Lost) -> dict[str, Any] | None:
    """A thought goes back to who had it, with its proof; without one it would be refused. Proofs are base64 here: one
    with a colon in it is another's."""
    form: dict[str, Any]
    if not own and ":" in (part.sealed or part.signature or ""):
        lost.add(f"{where}: a thought of another provider's")
        return None
    if part.sealed is not None and (own or part.signature is None):
        form = {"type": "redacted_thinking", "data": part.sealed}
    elif part.signature or own:
        form = {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}
    else:
        lost.add(f"{where}: a thought without a signature")
        return None
    put_back(form, part.extra, own, lost, where + ".")
    return form


def _own_source(media: Media) -> dict[str, Any]:
    """`source`, as it was read."""
    if media.url:
        return {"type": "url", "url": media.url}
    if media.file:
        return {"type": "file", "file_id": media.file}
    if media.text or (media.type == "text/plain" and not media.data):
        return {"type": "text", "media_type": media.type or "text/plain", "data": media.text}
    return {"type": "base64", "media_type": media.type, "data": media.data}


def _source(part: Image | Document, where: str, lost: Lost) -> dict[str, Any] | None:
    """`source` of what another API gave; None when it cannot be read there."""
    media = part.media
    what = "a picture" if isinstance(part, Image) else "a document"
    kind = media.type
    if media.file:
        lost.add(f"{where}: a file by its id at another provider")
        return None
    if media.url:
        if not media.url.startswith(("https://", "http://")):
            lost.add(f"{where}: {what} by a URL that is not of the web")
            return None
        if isinstance(part, Document) and kind not in ("", _PDF):
            lost.add(f"{where}: {what} of type {kind} by URL")
            return None
        return {"type": "url", "url": media.url}
    if isinstance(part, Image):
        kind = "image/jpeg" if kind == "image/jpg" else kind
        if kind not in _PICTURES:
            lost.add(f"{where}: a picture of type {kind or 'unknown'}")
            return None
        return {"type": "base64", "media_type": kind, "data": media.data}
    if media.data:
        if kind in ("", _PDF):
            return {"type": "base64", "media_type": _PDF, "data": media.data}
        text = text_in(media.data) if kind.startswith("text/") else None
        if text is None:
            lost.add(f"{where}: a document of type {kind}")
            return None
        return {"type": "text", "media_type": "text/plain", "data": text}
    return {"type": "text", "media_type": "text/plain", "data": media.text}


def _with_source(part: Image | Document, source: dict[str, Any], where: str, lost: Lost) -> dict[str, Any]:
    if isinstance(part, Image):
        if part.detail not in (None, "auto"):
            lost.add(f"{where}.detail")
        return {"type": "image", "source": source}
    form: dict[str, Any] = {"type": "document", "source": source}
    if part.title is not None:
        form["title"] = part.title
    if part.context is not None:
        form["context"] = part.context
    if part.citations is not None:
        form["citations"] = {"enabled": part.citations}
    return form


# ---- writing an answer


def write_answer_blocks(parts: list[Part], *, own: bool, cut: bool) -> list[Any]:
    """An answer's blocks. What this API has no block for is told as text, or not at all when it has none. cut: the
    answer is not whole, so a call's arguments need not be either; then there are none. Raises Failure 502."""
    blocks: list[Any] = []
    for part in parts:
        if isinstance(part, Thinking) and part.sealed is None:
            form = {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}
            if own and part.extra:
                form.update(part.extra)
            blocks.append(form)
        elif isinstance(part, ToolCall):
            blocks.append(_write_call(part, own=own, cut=cut))
        elif isinstance(part, Text):
            if part.text or own:
                blocks.append(_write_text(part, own=own))
        elif not isinstance(part, (Image, Audio, Document)) or own:
            block = _write_block(part, "", own, Lost())
            if block is not None:
                blocks.append(block)
    return blocks


def _write_text(part: Text, *, own: bool) -> dict[str, Any]:
    form: dict[str, Any] = {"type": "text", "text": part.text}
    if part.citations:
        form["citations"] = [write_citation(c, own=own) for c in part.citations]
    if own and part.extra:
        form.update(part.extra)
    return form


def _write_call(call: ToolCall, *, own: bool, cut: bool) -> dict[str, Any]:
    arguments: dict[str, Raw] = {}
    try:
        arguments = _object(call.arguments or "{}")
    except UNREADABLE:
        if not cut:
            raise unreadable("the arguments of a tool call are not a JSON object") from None
    form = {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
    if own and call.extra:
        form.update(call.extra)
    return form
