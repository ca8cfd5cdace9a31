"""OpenAI responses: items of a conversation and the neutral model's messages, in requests and answers alike.

Rule: neighbouring items of the model's side (thoughts, messages, calls) are one message, and anything else is one for
itself. An item's id and status, and log-probs of what was said before, mean nothing to the model: they are not kept.
Thoughts are in `openai_responses_thoughts`.
"""

from typing import Any

import msgspec

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.openai_responses_thoughts import read_thought, write_thought
from tollhouse.wire.llm.codec.places import Items
from tollhouse.wire.llm.codec.reading import Fields, file_name, is_base64, legible, own_value, put_back, told
from tollhouse.wire.llm.model import (
    Audio,
    Cache,
    Chat,
    Citation,
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

__all__ = [
    "call_item",
    "place_of_message",
    "place_of_part",
    "read_call",
    "read_citation",
    "read_items",
    "read_part",
    "refusal_content",
    "text_content",
    "within",
    "write_citation",
    "write_items",
]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode

_ROLES = ("user", "assistant", "system", "developer")
_CONTENT = " content"  # marks the kind of an Opaque that is within a message and no item
_CALLER_SIDE = (
    "item_reference",
    "mcp_approval_response",
    "compaction",
    "compaction_trigger",
    "additional_tools",
    "configuration_update",
)
_FAMILY = ("responses", "chat")  # APIs of one service: they share its files

# The two lifetimes this API knows, by the two that there are elsewhere: a short one and a long one.
_TTLS = {"30m": "5m", "12h": "1h"}
_LIFETIMES = {ours: theirs for theirs, ours in _TTLS.items()}

_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_AUDIO_FORMATS = {kind: form for form, kind in _AUDIO.items()}


# ---- reading items


def read_items(items: list[Fields]) -> Items:
    """The messages of a conversation. items: of a request's `input`."""
    messages: list[Message] = []
    wheres: list[list[str]] = []
    turn: Message | None = None  # the model's, while it goes on

    def say(message: Message, f: Fields) -> None:
        messages.append(message)
        wheres.append([f.where] * len(message.parts))

    for f in items:
        kind = f.text("type") or ("message" if f.has("role") else "item_reference")
        if kind == "message":
            role = f.need_text("role")
            if role not in _ROLES:
                f.fail("role", f"{role!r} is not a role; it is one of {', '.join(_ROLES)}")
            if not f.has("content"):
                f.fail("content", "is missing: it must be a string or a list of parts")
            parts = _content(f, "content")
            _unkept(f)
            extra = told(f.rest())
            if role != "assistant":
                turn = None
                say(Message(role, parts, extra=extra), f)  # type: ignore[arg-type]
                continue
            said = turn is not None and any(isinstance(part, (Text, Refusal)) for part in turn.parts)
            if turn is None or turn.extra or (extra and said):
                turn = Message("assistant", [])
                say(turn, f)
            turn.parts += parts
            turn.extra = extra
            wheres[-1] += [f.where] * len(parts)
        elif kind == "function_call_output":
            turn = None
            say(Message("tool", [_result(f)]), f)
        elif kind.endswith("_output"):
            turn = None
            say(Message("tool", [_opaque(kind, f)]), f)
        elif kind in _CALLER_SIDE:
            turn = None
            say(Message("user", [_opaque(kind, f)]), f)
        else:
            if turn is None:
                turn = Message("assistant", [])
                say(turn, f)
            if kind == "function_call":
                turn.parts.append(read_call(f))
            elif kind == "reasoning":
                turn.parts.append(read_thought(f, answered=False))
            else:
                turn.parts.append(_opaque(kind, f))
            wheres[-1].append(f.where)
    return Items(messages, wheres)


def place_of_message(chat: Chat, n: int) -> str:
    """What this API calls the message `n`: its only item, or the whole conversation."""
    messages = chat.messages
    wheres = frozenset(messages.wheres[n]) if isinstance(messages, Items) and n < len(messages.wheres) else ()
    return next(iter(wheres))[:-1] if len(wheres) == 1 else "input"


def place_of_part(chat: Chat, n: int, k: int, inner: int | None) -> str:
    """What this API calls the part `k` of the message `n`. inner: its part, of a result."""
    messages = chat.messages
    if not isinstance(messages, Items) or n >= len(messages.wheres) or k >= len(messages.wheres[n]):
        return "input"
    wheres = messages.wheres[n]
    where = wheres[k]
    if inner is not None:
        return f"{where}output[{inner}]"
    part = messages[n].parts[k]
    if isinstance(part, (ToolCall, ToolResult, Thinking)) or (isinstance(part, Opaque) and not within(part)):
        return where[:-1]
    return f"{where}content[{k - wheres.index(where)}]"


def _opaque(kind: str, f: Fields) -> Opaque:
    return Opaque("responses", kind, f.whole(type=kind))


def _unkept(f: Fields) -> None:
    f.raw("id")
    f.raw("status")


def _content(f: Fields, name: str) -> list[Part]:
    if f.is_text(name):
        return [Text(f.need_text(name))]
    return [read_part(part) for part in f.children(name) or ()]


def read_call(f: Fields) -> ToolCall:
    """A `function_call`."""
    call = ToolCall(f.need_text("call_id"), f.need_text("name"), f.text("arguments") or "{}")
    content = f.child("extra_content")
    google = content.child("google") if content is not None else None
    if google is not None:
        call.signature = google.text("thought_signature")
    _unkept(f)
    call.extra = told(f.rest())
    return call


def _result(f: Fields) -> ToolResult:
    result = ToolResult(f.text("call_id") or "", _content(f, "output"), f.text("name") or "")
    _unkept(f)
    result.extra = told(f.rest())
    return result


def read_part(f: Fields) -> Part:
    """A part of a message's content, or of a tool's output."""
    kind = f.need_text("type")
    if kind in ("input_text", "output_text", "text"):
        f.raw("logprobs")
        text = Text(f.need_text("text"), _cache(f))
        _annotate(text, f.children("annotations") or [])
        extra = told(f.rest())
        if extra:
            text.extra = {**(text.extra or {}), **extra}
        return text
    if kind == "refusal":
        return Refusal(f.need_text("refusal"))
    if kind == "input_image":
        url = f.text("image_url")
        file = f.text("file_id")
        if url is None and not file:
            f.fail("image_url", "is missing: a picture needs image_url or file_id")
        media = Media(file=file or "") if url is None else _by_url(url, f, "image_url")
        return Image(media, f.text("detail"), _cache(f), told(f.rest()))
    if kind == "input_file":
        return _document(f)
    if kind == "input_audio":
        sound = f.need_child("input_audio", "an object with data and format")
        form = sound.need_text("format")
        media = Media(_AUDIO.get(form, f"audio/{form}"), sound.base64("data"))
        return Audio(media, _cache(f), told(sound.rest()))
    return Opaque("responses", kind + _CONTENT, f.whole(type=kind))


def _annotate(text: Text, annotations: list[Fields]) -> None:
    """What is cited: pages of the web; other places only this API knows."""
    whole = [annotation.whole() for annotation in annotations]
    text.citations = [c for a in annotations if (c := read_citation(a)) is not None] or None
    if len(text.citations or ()) != len(annotations):
        text.extra = {"annotations": Raw(_encode(whole))}


def read_citation(f: Fields) -> Citation | None:
    """A `url_citation`; None for other annotations."""
    if f.text("type") != "url_citation":
        return None
    citation = Citation("url", f.text("title"), f.text("url"))
    citation.begin = f.integer("start_index")
    citation.end = f.integer("end_index")
    citation.extra = told(f.rest())
    return citation


def _cache(f: Fields) -> Cache | None:
    mark = f.child("prompt_cache_breakpoint")
    if mark is None:
        return None
    ttl = mark.text("ttl") or ""
    return Cache(_TTLS.get(ttl, ""))


def _by_url(url: str, f: Fields, name: str) -> Media:
    """A URL, or the media that a `data:` URL holds (RFC 2397)."""
    if not url.startswith("data:"):
        return Media(url=url)
    head, comma, content = url[5:].partition(",")
    if not comma or not head.endswith(";base64") or not is_base64(content):
        f.fail(name, "a data: URL must hold base64")
    return Media(head[:-7].partition(";")[0], content)


def _document(f: Fields) -> Document:
    content, url, file = f.text("file_data"), f.text("file_url"), f.text("file_id")
    if content is not None:
        if not content.startswith("data:") and not is_base64(content):
            f.fail("file_data", "must be base64 (RFC 4648, section 4), alone or in a data: URL")
        media = _by_url(content, f, "file_data") if content.startswith("data:") else Media(data=content)
    elif url is not None:
        media = Media(url=url)
    elif file is not None:
        media = Media(file=file)
    else:
        f.fail("file_data", "is missing: a file needs file_data, file_url or file_id")
    return Document(media, f.text("filename"), cache=_cache(f), extra=told(f.rest()))


# ---- writing items


def write_items(messages: list[Message], first: int, dialect: str, lost: Lost) -> list[Any]:
    """A request's `input`. first: the message to begin with. dialect: of the API it was made for."""
    items: list[Any] = []
    for n in range(first, len(messages)):
        _write_message(messages[n], f"messages[{n}]", dialect, lost, items)
    return items


def _write_message(message: Message, where: str, dialect: str, lost: Lost, items: list[Any]) -> None:
    own = dialect == "responses"
    if message.name is not None:
        lost.add(f"{where}.name")
    role = "user" if message.role == "tool" else message.role
    speech: dict[str, Any] | None = None  # the message that is being written
    speeches: list[dict[str, Any]] = []
    begin = len(items)
    for n, part in enumerate(message.parts):
        place = f"{where}.parts[{n}]"
        item: Any
        if isinstance(part, ToolCall):
            item = call_item(part)
            if part.signature is not None and own:
                item["extra_content"] = {"google": {"thought_signature": part.signature}}
            put_back(item, part.extra, own, lost, place + ".")
        elif isinstance(part, ToolResult):
            item = _write_result(part, place, dialect, lost)
        elif isinstance(part, Thinking):
            item = write_thought(part, place, own, lost)
        elif isinstance(part, Opaque) and part.dialect == "responses" and not within(part):
            item = part.value
        elif isinstance(part, Text) and not part.text and not own and len(message.parts) > 1:
            continue  # it says nothing, and would be a message
        else:
            form = _write_part(part, place, role, dialect, lost)
            if form is not None:
                if speech is None:
                    speech = {"role": role, "content": []}
                    items.append(speech)
                    speeches.append(speech)
                speech["content"].append(form)
            continue
        if item is not None:
            speech = None
            items.append(item)
    if not speeches and ((not message.parts and message.role != "tool") or (own and message.extra)):
        speeches.append({"role": role, "content": []})
        items.insert(begin, speeches[0])
    put_back(speeches[0] if speeches else {}, message.extra, own, lost, where + ".")
    for speech in speeches:
        speech["content"] = _plain(speech["content"])


def within(part: Opaque) -> bool:
    """Whether it is a part of a message, and no item."""
    return part.kind.endswith(_CONTENT)


def _plain(content: list[Any]) -> Any:
    """One text alone is a string: servers that know no parts understand it."""
    if not content:
        return ""
    if len(content) == 1 and not isinstance(one := content[0], Raw) and "text" in one:
        simple = one.keys() <= {"type", "text", "annotations"} and not one.get("annotations")
        return one["text"] if simple else content
    return content


def call_item(call: ToolCall) -> dict[str, Any]:
    """A `function_call`, but for its id and status."""
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments or "{}",
    }


def _write_result(result: ToolResult, where: str, dialect: str, lost: Lost) -> dict[str, Any]:
    content = []
    for n, part in enumerate(result.parts):
        form = _write_part(part, f"{where}.parts[{n}]", "user", dialect, lost)
        if form is not None:
            content.append(form)
    own = dialect == "responses"
    item: dict[str, Any] = {"type": "function_call_output", "call_id": result.id, "output": _plain(content)}
    if result.name and own:
        item["name"] = result.name
    put_back(item, result.extra, own, lost, where + ".")
    return item


def text_content(text: str, annotations: list[Any], logprobs: list[Any] | None = None) -> dict[str, Any]:
    """An `output_text`."""
    form: dict[str, Any] = {"type": "output_text", "text": text, "annotations": annotations}
    if logprobs is not None:
        form["logprobs"] = logprobs
    return form


def refusal_content(text: str) -> dict[str, Any]:
    """A `refusal`."""
    return {"type": "refusal", "refusal": text}


def write_citation(citation: Citation, size: int) -> dict[str, Any] | None:
    """An annotation; None for what has no address. size: characters of the text it belongs to."""
    if not citation.url:
        return None
    return {
        "type": "url_citation",
        "url": citation.url,
        "title": citation.title or "",
        "start_index": citation.begin or 0,
        "end_index": size if citation.end is None else citation.end,
    }


def _write_part(part: Part, where: str, role: str, dialect: str, lost: Lost) -> dict[str, Any] | Raw | None:
    own = dialect == "responses"
    if isinstance(part, Json):
        return {"type": "input_text", "text": legible(part.value)}
    if isinstance(part, Refusal):
        return refusal_content(part.text) if role == "assistant" else {"type": "input_text", "text": part.text}
    if isinstance(part, Opaque):
        return next(iter(own_value(part, "responses", where, lost)), None)
    form: dict[str, Any] | None
    if isinstance(part, Text):
        form = _write_text(part, where, role, own, lost)
    elif role == "assistant" and not own:
        lost.add(f"{where}: {type(part).__name__.lower()} in the model's turn")
        return None
    elif isinstance(part, Image):
        form = _write_image(part, where, dialect, lost)
    elif isinstance(part, Document):
        form = _write_document(part, where, dialect, lost)
    elif isinstance(part, Audio) and own:
        kind = _AUDIO_FORMATS.get(part.media.type) or part.media.type.removeprefix("audio/")
        sound: dict[str, Any] = {"data": part.media.data, "format": kind}
        put_back(sound, part.extra, own, lost, where + ".")
        return {"type": "input_audio", "input_audio": sound}
    else:
        lost.add(f"{where}: {'sound' if isinstance(part, Audio) else type(part).__name__}")
        return None
    if form is None:
        return None
    if part.cache is not None and own:
        mark = {"mode": "explicit"}
        if part.cache.ttl in _LIFETIMES:
            mark["ttl"] = _LIFETIMES[part.cache.ttl]
        form["prompt_cache_breakpoint"] = mark
    put_back(form, part.extra, own, lost, where + ".")
    return form


def _write_text(part: Text, where: str, role: str, own: bool, lost: Lost) -> dict[str, Any]:
    if role != "assistant":
        if part.citations:
            lost.add(f"{where}.citations")
        return {"type": "input_text", "text": part.text}
    annotations = []
    for citation in part.citations or ():
        annotation = write_citation(citation, len(part.text))
        if annotation is None:
            lost.add(f"{where}.citations")
            continue
        put_back(annotation, citation.extra, own, lost, f"{where}.citations.")
        annotations.append(annotation)
    return text_content(part.text, annotations)


def _write_image(part: Image, where: str, dialect: str, lost: Lost) -> dict[str, Any] | None:
    media = part.media
    form: dict[str, Any] = {"type": "input_image"}
    if media.url:
        form["image_url"] = media.url
    elif media.data:
        form["image_url"] = f"data:{media.type};base64,{media.data}"
    elif media.file and dialect in _FAMILY:
        form["file_id"] = media.file
    else:
        lost.add(f"{where}: a picture by another service's file id")
        return None
    if part.detail is not None or dialect != "responses":
        form["detail"] = part.detail or "auto"
    return form


def _write_document(part: Document, where: str, dialect: str, lost: Lost) -> dict[str, Any] | None:
    media = part.media
    own = dialect == "responses"
    if part.context is not None:
        lost.add(f"{where}.context")
    if part.citations:
        lost.add(f"{where}.citations")
    if media.text:
        if part.title is not None:
            lost.add(f"{where}.title")
        return {"type": "input_text", "text": media.text}
    if not own and media.type.startswith("video/"):
        lost.add(f"{where}: a video")
        return None
    form: dict[str, Any] = {"type": "input_file"}
    if media.data:
        bare = own and not media.type
        form["file_data"] = media.data if bare else f"data:{media.type or 'application/pdf'};base64,{media.data}"
        if not own:
            form["filename"] = file_name(part.title, media.type)
    elif media.url:
        form["file_url"] = media.url
    elif media.file and dialect in _FAMILY:
        form["file_id"] = media.file
    else:
        lost.add(f"{where}: a document by another service's file id")
        return None
    if part.title is not None and "filename" not in form:
        form["filename"] = part.title
    return form
