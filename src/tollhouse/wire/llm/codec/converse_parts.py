"""Bedrock Converse's content blocks and the neutral parts, in requests and answers alike.

A block is a union: an object with one member, named by its kind. A cache marker is a block of its own and marks what
stands before it; where nothing that can be marked stands there, it is an empty Text with a marker, since the API takes
no empty text. What lies in S3 only AWS can read, so it stays opaque. A medium says its format in a word, not in a type.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Lost, unreadable
from tollhouse.wire.llm.codec.converse_citations import read_citation, write_citation
from tollhouse.wire.llm.codec.reading import Fields, legible, own_value, put_back, written
from tollhouse.wire.llm.model import (
    Audio,
    Cache,
    Document,
    Image,
    Json,
    Media,
    Opaque,
    Part,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)

__all__ = ["PartWriter", "decodable", "image_type", "marker", "read_marker", "read_parts"]

Raw = msgspec.Raw

_object = msgspec.json.Decoder(dict[str, Raw]).decode

_DOCUMENTS = {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html",
    "txt": "text/plain",
    "md": "text/markdown",
}
_VIDEOS = {
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "flv": "video/x-flv",
    "mpeg": "video/mpeg",
    "mpg": "video/mpg",
    "wmv": "video/x-ms-wmv",
    "three_gp": "video/3gpp",
}
_SOUNDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "wav": "audio/wav",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "mp4": "audio/mp4",
    "ogg": "audio/ogg",
    "mkv": "audio/x-matroska",
    "mka": "audio/matroska",
    "x-aac": "audio/x-aac",
    "m4a": "audio/m4a",
    "mpga": "audio/mpga",
    "pcm": "audio/pcm",
    "webm": "audio/webm",
}
_PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}
_FORMATS = {
    kind: {media: word for word, media in words.items()}
    for kind, words in (("image", _PICTURES), ("audio", _SOUNDS), ("video", _VIDEOS), ("document", _DOCUMENTS))
}
_FORMATS["image"]["image/jpg"] = "jpeg"
_FORMATS["audio"].update({"audio/mp3": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"})
_NAMES = {"image": "a picture", "audio": "sound", "video": "a video", "document": "a document"}
_IN_RESULTS = (Text, Json, Image, Document, Refusal, Opaque)
_MARKABLE = (Text, Image, Audio, Document, ToolCall, ToolResult)


def image_format(kind: str) -> str | None:
    """The word for a picture's media type; None where there is none."""
    return _FORMATS["image"].get(kind)


def image_type(word: str) -> str:
    """The media type of a picture's format."""
    return _PICTURES.get(word) or f"image/{word}"


# ---- reading


def read_parts(blocks: list[Fields]) -> list[Part]:
    """What a message or a system prompt says."""
    parts: list[Part] = []
    for block in blocks:
        part = _read(block)
        if not isinstance(part, Cache):
            parts.append(part)
            continue
        marked = parts[-1] if parts else None
        if isinstance(marked, _MARKABLE) and marked.cache is None:
            marked.cache = part
        else:
            parts.append(Text("", part))
    return parts


def read_marker(f: Fields) -> Cache | None:
    """A `cachePoint`; None for one that says more than we know."""
    point = f.child("cachePoint")
    if point is None:
        return None
    kind = point.text("type")
    ttl = point.text("ttl") or ""
    return Cache(ttl) if kind in (None, "default") and not point.rest() else None


def _read(f: Fields) -> Part | Cache:
    members = f.rest() or {}
    kinds = [name for name, value in members.items() if bytes(value) != b"null"]
    if len(kinds) != 1:
        if "text" in kinds:
            return Text(f.need_text("text"), extra=f.rest())
        return Opaque("converse", "a block of several kinds" if kinds else "an empty block", f.untouched())
    kind = kinds[0]
    if kind == "text":
        return Text(f.need_text("text"))
    if kind == "json":
        return Json(members[kind])
    if kind == "cachePoint":
        raw = members[kind]
        return read_marker(f) or _opaque(kind, raw)
    read = _READERS.get(kind)
    if read is None:
        return _opaque(kind, members[kind])
    raw = members[kind]
    inner = f.child(kind)
    assert inner is not None  # it is the block's member
    part = read(inner, kind)
    return part if isinstance(part, Part) else _opaque(kind, raw, part)


def _opaque(kind: str, raw: Raw, name: str = "") -> Opaque:
    """A block that only this API has; name: what to call it where it is lost."""
    return Opaque("converse", name or kind, written({kind: raw}))


def _json_text(f: Fields, name: str) -> str:
    """A JSON object below, as text; "{}" when there is none."""
    raw = f.raw(name)
    if raw is None:
        return "{}"
    try:
        text = bytes(raw).decode()
    except UnicodeDecodeError:
        f.fail(name, "must be UTF-8")
    if text[:1] != "{":
        f.fail(name, "must be an object")
    return text


def _read_call(call: Fields, kind: str) -> Part | str:
    if call.has("type"):
        return call.text("type") or kind
    arguments = _json_text(call, "input")
    return ToolCall(call.need_text("toolUseId"), call.need_text("name"), arguments, extra=call.rest())


def _read_result(result: Fields, kind: str) -> Part | str:
    if result.has("type"):
        return result.text("type") or kind
    told = ToolResult(result.need_text("toolUseId"), read_parts(result.children("content") or []))
    status = result.text("status")
    if status is not None:
        if status not in ("success", "error"):
            result.fail("status", f"{status!r} is not one of success, error")
        told.error = status == "error"
    told.extra = result.rest()
    return told


def _read_medium(medium: Fields, kind: str) -> Part | str:
    word = medium.text("format")
    if word is None and kind != "document":
        medium.fail("format", "is missing: it must be a string")
    source = medium.child("source")
    if source is None:
        medium.fail("source", "is missing: it must be an object with bytes or s3Location")
    media = Media()
    if source.has("bytes"):
        media.data = source.base64("bytes")
    elif kind == "document" and source.has("text"):
        media.text = source.need_text("text")
    if source.rest() is not None or not (media.data or media.text):
        return f"{kind} in S3" if source.has("s3Location") else kind
    if kind == "image":
        media.type = image_type(word or "")
        return Image(media, extra=medium.rest())
    if kind == "audio":
        media.type = _SOUNDS.get(word or "") or f"audio/{word}"
        return Audio(media, extra=medium.rest())
    if kind == "video":
        media.type = _VIDEOS.get(word or "") or f"video/{word}"
        return Document(media, extra=medium.rest())
    if word is not None:
        media.type = _DOCUMENTS.get(word) or f"application/{word}"
    document = Document(media, medium.text("name"), medium.text("context"))
    citations = medium.child("citations")
    if citations is not None:
        document.citations = citations.flag("enabled")
    document.extra = medium.rest()
    return document


def _read_thinking(thought: Fields, kind: str) -> Part | str:
    told = thought.child("reasoningText")
    redacted = thought.text("redactedContent")
    if thought.rest() or (told is None) == (redacted is None):
        return kind
    if told is None:
        return Thinking(sealed=redacted)
    return Thinking(told.text("text") or "", told.text("signature"), extra=told.rest())


def _read_cited(cited: Fields, kind: str) -> Part | str:
    texts = [c.text("text") if c.is_text("text") else None for c in cited.children("content") or ()]
    if None in texts:
        return kind
    citations = [read_citation(c) for c in cited.children("citations") or ()]
    return Text("".join(t for t in texts if t), None, citations, cited.rest())


_READERS: dict[str, Callable[[Fields, str], Part | str]] = {
    "toolUse": _read_call,
    "toolResult": _read_result,
    "image": _read_medium,
    "audio": _read_medium,
    "video": _read_medium,
    "document": _read_medium,
    "reasoningContent": _read_thinking,
    "citationsContent": _read_cited,
}
"""By kind. They give a word instead of a part for what only this API has."""


# ---- writing


class PartWriter:
    """Writes blocks. own: the parts were read from this API. answer: they are an answer's, where what has no place is
    left out instead of lost. cut: it is not whole, so a call's arguments need not be either; then there are none.
    markers: the model takes cache markers."""

    __slots__ = ("_answer", "_counts", "_cut", "_lost", "_markers", "_names", "_own")

    def __init__(self, lost: Lost, *, own: bool, answer: bool = False, cut: bool = False, markers: bool = True) -> None:
        self._cut = cut
        self._lost = lost
        self._own = own
        self._answer = answer
        self._markers = markers
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def blocks(self, parts: list[Part], where: str) -> list[dict[str, Any]]:
        """where: the message's place in the neutral model."""
        blocks: list[dict[str, Any]] = []
        for n, part in enumerate(parts):
            block = self._block(part, f"{where}.parts[{n}]")
            if block is not None:
                blocks.append(block)
            cache = _marked(part)
            if cache is not None and self._markers and (blocks or self._own) and not self._answer:
                blocks.append(marker(cache))
        return blocks

    def _block(self, part: Part, where: str) -> dict[str, Any] | None:
        if isinstance(part, Text):
            return self._text(part, where)
        if isinstance(part, ToolCall):
            call: dict[str, Any] = {"toolUseId": part.id, "name": part.name, "input": self._arguments(part, where)}
            put_back(call, part.extra, self._own, self._lost, where + ".")
            return {"toolUse": call}
        if isinstance(part, ToolResult):
            return self._result(part, where)
        if isinstance(part, Thinking):
            return self._thinking(part, where)
        if isinstance(part, Refusal):
            return {"text": part.text} if part.text else None
        if isinstance(part, Json):
            return {"json": part.value} if self._own else {"text": legible(part.value)}
        if isinstance(part, Opaque):
            return next(map(_object, own_value(part, "converse", where, self._lost)), None)
        if isinstance(part, Image):
            if part.detail not in (None, "auto"):
                self._lost.add(f"{where}.detail")
            return self._medium("image", part, where)
        if isinstance(part, Audio):
            return self._medium("audio", part, where)
        return self._medium("video" if part.media.type.startswith("video/") else "document", part, where)

    def _text(self, part: Text, where: str) -> dict[str, Any] | None:
        form: dict[str, Any]
        if part.citations is not None and (part.citations or self._own):
            citations = [write_citation(c, self._own, self._lost, where + ".citations.") for c in part.citations]
            form = {"content": [{"text": part.text}] if part.text else [], "citations": citations}
            put_back(form, part.extra, self._own, self._lost, where + ".")
            return {"citationsContent": form}
        form = {"text": part.text}
        put_back(form, part.extra, self._own, self._lost, where + ".")
        if not part.text and (part.cache is not None or not self._own):
            return None  # an empty text is refused there, and says nothing
        return form

    def _arguments(self, call: ToolCall, where: str) -> dict[str, Raw]:
        try:
            return _object(call.arguments or "{}")
        except UNREADABLE:
            if self._cut:
                return {}
            if self._answer:
                raise unreadable("the arguments of a tool call are not a JSON object") from None
            raise self._lost.invalid(f"{where}.arguments", "must be the JSON text of an object") from None

    def _result(self, result: ToolResult, where: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for n, part in enumerate(result.parts):
            place = f"{where}.parts[{n}]"
            if not isinstance(part, _IN_RESULTS):
                self._lost.add(f"{place}: {type(part).__name__} in a tool's result")
                continue
            if isinstance(part, Json) and bytes(part.value)[:1] == b"{":
                content.append({"json": part.value})
                continue
            block = self._block(part, place)
            if block is not None:
                content.append(block)
        form: dict[str, Any] = {"toolUseId": result.id, "content": content}
        if result.error is not None:
            form["status"] = "error" if result.error else "success"
        put_back(form, result.extra, self._own, self._lost, where + ".")
        return {"toolResult": form}

    def _thinking(self, part: Thinking, where: str) -> dict[str, Any] | None:
        """A thought goes back to who had it, with its proof; without one it would be refused."""
        if part.sealed is not None and (self._own or part.signature is None):
            if self._own or decodable(part.sealed):
                return {"reasoningContent": {"redactedContent": part.sealed}}
            if not (self._answer and part.text):
                self._lost.add(f"{where}: a sealed thought of another API")
                return None
        if part.signature is None and not self._own and not self._answer:
            self._lost.add(f"{where}: a thought without a signature")
            return None
        form: dict[str, Any] = {"text": part.text}
        if part.signature is not None:
            form["signature"] = part.signature
        put_back(form, part.extra, self._own, self._lost, where + ".")
        return {"reasoningContent": {"reasoningText": form}}

    def _medium(self, kind: str, part: Image | Audio | Document, where: str) -> dict[str, Any] | None:
        media = part.media
        source: dict[str, Any]
        if media.url:
            if not media.url.startswith("s3://"):
                self._lost.add(f"{where}: {_NAMES[kind]} by URL")
                return None
            source = {"s3Location": {"uri": media.url}}
        elif media.file:
            self._lost.add(f"{where}: {_NAMES[kind]} by file id")
            return None
        elif media.text and kind == "document":
            source = {"text": media.text}
        else:
            source = {"bytes": media.data}
        form: dict[str, Any] = {}
        word = _FORMATS[kind].get(media.type)
        if word is None and self._own and media.type:
            word = media.type.partition("/")[2]
        if word is None and kind == "document" and not self._own and (media.text or not media.type):
            word = "txt" if media.text else "pdf"
        if word is not None:
            form["format"] = word
        elif not self._own:
            self._lost.add(f"{where}: {_NAMES[kind]} of type {media.type or 'unknown'}")
            return None
        if kind == "document" and isinstance(part, Document):
            name = part.title if self._own else self._name(part.title)
            if name is not None:
                form["name"] = name
        form["source"] = source
        if isinstance(part, Document):
            self._about(part, kind, form, where)
        put_back(form, part.extra, self._own, self._lost, where + ".")
        return {kind: form}

    def _about(self, part: Document, kind: str, form: dict[str, Any], where: str) -> None:
        if kind == "video":
            for name in ("context", "citations"):
                if getattr(part, name):
                    self._lost.add(f"{where}.{name}")
            return
        if part.context is not None:
            form["context"] = part.context
        if part.citations is not None:
            form["citations"] = {"enabled": part.citations}

    def _name(self, title: str | None) -> str:
        """A document's name of the characters that are allowed, and different from the others'."""
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-()[]") else " " for c in title or "")
        name = base = " ".join(kept.split())[:190].rstrip() or "document"
        count = self._counts.get(base, 1)
        while name in self._names:
            count += 1
            name = f"{base} {count}"
        self._counts[base] = count
        self._names.add(name)
        return name


def marker(cache: Cache) -> dict[str, Any]:
    """The block of a cache marker."""
    point = {"type": "default"}
    if cache.ttl:
        point["ttl"] = cache.ttl
    return {"cachePoint": point}


def _marked(part: Part) -> Cache | None:
    """A part's marker. Inside a tool's result there is no place for one: it stands after the result."""
    cache: Cache | None = getattr(part, "cache", None)
    if cache is None and isinstance(part, ToolResult):
        for inner in part.parts:
            cache = getattr(inner, "cache", None) or cache
    return cache


def decodable(text: str) -> bool:
    """Whether an SDK of the API will decode it: they take more than `reading.is_base64` does."""
    try:
        return bool(b64decode(text, validate=True))
    except (Base64Error, ValueError):
        return False
