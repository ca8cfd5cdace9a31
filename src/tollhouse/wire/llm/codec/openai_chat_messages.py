"""OpenAI chat completions and the neutral model: messages and their parts, in requests and in answers.

A message knows no order between its thoughts, its content and its calls: they are read in this order, and written
without one. Results are messages of their own. Instructions, texts and results that are one text alone are written as a
string, which servers that know no parts understand as well.
"""

from typing import Annotated, Any, Literal

import msgspec

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.reading import (
    Fields,
    cache_control,
    file_name,
    is_base64,
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

__all__ = [
    "place_of_part",
    "read_call",
    "read_messages",
    "read_part",
    "read_thoughts",
    "write_call",
    "write_messages",
    "write_thought",
    "write_thoughts",
]

Raw = msgspec.Raw


_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}
_PDF = "application/pdf"
_BREAKPOINT = "prompt_cache_breakpoint"
_SUMMARY = b"reasoning.summary"
_FILES = ("chat", "responses")  # one store of files serves both
_SILENT = {"role": "assistant", "content": None}
_MARKABLE = (Text, Image, Audio, Document)


# ---- reading


class _UsualFunction(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    arguments: str


class _UsualCall(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    id: Annotated[str, msgspec.Meta(min_length=1)]
    function: _UsualFunction
    type: Literal["function"] = "function"


class _Usual(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_UsualCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None


_usual_messages = msgspec.json.Decoder(list[_Usual]).decode


def _read_usual(raw: Raw) -> tuple[list[Message], int]:
    """Texts, calls and results, and how many entries they were. Raises msgspec.ValidationError where there is more."""
    found: list[Message] = []
    entries = 0
    for told in _usual_messages(raw):
        role, content = told.role, told.content
        parts: list[Part] = [] if content is None else [Text(content)]
        if told.tool_calls is not None or told.tool_call_id is not None or content is None or role == "tool":
            if role == "tool" and content is not None and told.tool_call_id is not None and told.tool_calls is None:
                parts = [ToolResult(told.tool_call_id, parts)]
            elif role == "assistant" and told.tool_call_id is None:
                calls = told.tool_calls or ()
                parts += [ToolCall(c.id, c.function.name, c.function.arguments or "{}") for c in calls]
                entries += len(calls)
            else:
                raise msgspec.ValidationError("an unusual message")
        found.append(Message(role, parts))
    return found, len(found) + entries


def read_messages(f: Fields) -> list[Message]:
    """A request's `messages`. Raises Failure 400."""
    usual = f.taken("messages", _read_usual)
    if usual is not None:
        f.bounded("messages", usual[1])
        return usual[0]
    messages = f.children("messages")
    if messages is None:
        f.fail("messages", "is missing: it must be a list of messages")
    return [_message(m) for m in messages]


def _message(f: Fields) -> Message:
    role = f.need_text("role")
    if role not in _ROLES:
        f.fail("role", f"{role!r} is not a role; it is one of {', '.join(_ROLES)}")
    if role == "assistant":
        return _assistant(f)
    given = f.has("content")
    parts = _content(f)
    name = f.text("name")
    if role in ("tool", "function"):
        # A function's result is the older form: it has no id, and names what it is the result of.
        if role == "function" and name is None:
            f.fail("name", "is missing: it must be a string")
        result = ToolResult(f.need_text("tool_call_id") if role == "tool" else "", parts, name or "")
        return Message("tool", [result], extra=f.rest())
    if not given:
        f.fail("content", "is missing: it must be a string or a list of parts")
    return Message(role, parts, name, f.rest())  # type: ignore[arg-type]


def _assistant(f: Fields) -> Message:
    parts = [*read_thoughts(f), *_content(f)]
    refusal = f.text("refusal")
    if refusal is not None:
        parts.append(Refusal(refusal))
    parts += [read_call(c) for c in f.children("tool_calls") or ()]
    return Message("assistant", parts, f.text("name"), f.rest())


def _content(f: Fields) -> list[Part]:
    """`content`; a marker on the whole message is one on its last part."""
    parts: list[Part]
    if f.is_text("content"):
        parts = [Text(f.need_text("content"))]
    elif f.has("content") and not f.is_list("content"):
        f.fail("content", "must be a string or a list of parts")
    else:
        parts = [read_part(p) for p in f.children("content") or ()]
    last = parts[-1] if parts else None
    if isinstance(last, _MARKABLE) and last.cache is None:
        last.cache = _cache(f)
    return parts


def _cache(f: Fields) -> Cache | None:
    """A marker, in either of two forms. The newer one is OpenAI's own and rides along, too."""
    cache = read_cache(f)
    return Cache() if cache is None and f.is_object(_BREAKPOINT) else cache


def read_part(f: Fields, *, told: bool = False) -> Part:
    """A part of a message's content. told: of an answer, where some servers tell thoughts as parts."""
    kind = f.need_text("type")
    if kind == "text":
        text = Text(f.need_text("text"), _cache(f))
        text.extra = f.rest()
        return text
    if kind == "image_url":
        inner = f.need_child(kind, "an object with a url")
        image = Image(_by_url(inner.some_text("url"), inner, "url"), inner.text("detail"), _cache(f))
        f.leave(kind, inner)
        image.extra = f.rest()
        return image
    if kind == "input_audio":
        inner = f.need_child(kind, "an object with data and format")
        form = inner.some_text("format")
        sound = Audio(Media(_AUDIO.get(form, f"audio/{form}"), inner.base64("data")), _cache(f))
        f.leave(kind, inner)
        sound.extra = f.rest()
        return sound
    if kind == "file":
        inner = f.need_child(kind, "an object with file_data or file_id")
        document = Document(_file(inner), inner.text("filename"), cache=_cache(f))
        f.leave(kind, inner)
        document.extra = f.rest()
        return document
    if kind == "refusal":
        refusal = f.need_text("refusal")
        return Refusal(refusal) if f.rest() is None else Opaque("chat", kind, f.untouched())
    if kind == "thinking" and told:
        if f.is_text("thinking"):
            return Thinking(f.need_text("thinking"), f.text("signature"))
        return Thinking("".join(t.text("text") or "" for t in f.children("thinking") or ()))
    return Opaque("chat", kind, f.untouched())


def _by_url(url: str, f: Fields, name: str) -> Media:
    """A URL, or the media that a `data:` URL holds (RFC 2397)."""
    if url[:5].lower() != "data:":
        return Media(url=url)
    head, comma, content = url[5:].partition(",")
    if not comma or not head.endswith(";base64") or not is_base64(content):
        f.fail(name, "a data: URL must hold base64 (`data:image/png;base64,...`)")
    return Media(head[:-7].partition(";")[0], content)


def _file(f: Fields) -> Media:
    content = f.text("file_data")
    if content is None:
        return Media(file=f.some_text("file_id"))
    if content[:5].lower() == "data:" or "://" in content:
        return _by_url(content, f, "file_data")
    if not is_base64(content):
        f.fail("file_data", "must be base64, or a data: URL that holds it")
    return Media(data=content)


def read_thoughts(f: Fields) -> list[Part]:
    """What a message tells of its thoughts: `reasoning_content` (or `reasoning`), and `reasoning_details` where they
    must be proved or are sealed."""
    text = f.text("reasoning_content")
    if text is None and f.is_text("reasoning"):
        text = f.text("reasoning")
    details = f.children("reasoning_details")
    if not details:
        return [Thinking(text)] if text else []
    if f.is_text("reasoning"):
        f.raw("reasoning")
    thoughts = [_thought(d) for d in details]
    bare = [t for t in thoughts if t.sealed is None and not t.text]
    if len(bare) == 1 and text and not any(t.text for t in thoughts):
        bare[0].text = text  # told beside its proof
    return list(thoughts)


def _thought(f: Fields) -> Thinking:
    kind = f.text("type")
    f.raw("index")
    if kind == "reasoning.encrypted":
        thought = Thinking(sealed=f.text("data") or "", id=f.text("id"))
        thought.extra = f.rest()
        return thought
    thought = Thinking(f.text("text") or f.text("summary") or "", f.text("signature"), id=f.text("id"))
    thought.extra = f.rest()
    if kind == "reasoning.summary":
        thought.extra = {**(thought.extra or {}), "type": Raw(b'"%b"' % _SUMMARY)}
    return thought


def read_call(f: Fields, default: str | None = None) -> Part:
    """An entry of `tool_calls`. default: an id for a call that has none; without one it must have its own."""
    kind = f.text("type") or "function"
    if kind != "function":
        return Opaque("chat", kind, f.untouched())
    function = f.need_child("function", "an object with name and arguments")
    id = f.text("id")
    if not id:
        if default is None:
            f.fail("id", "is missing: it must be a string")
        id = default
    given = function.object("arguments") if function.is_object("arguments") else None
    arguments = function.text("arguments") if given is None else bytes(given).decode()
    call = ToolCall(id, function.need_text("name"), arguments or "{}")
    content = f.child("extra_content")
    if content is not None:
        google = content.child("google")
        if google is not None:
            call.signature = google.text("thought_signature")
            content.leave("google", google)
        f.leave("extra_content", content)
    f.leave("function", function)
    f.raw("index")
    call.extra = f.rest()
    return call


def place_of_part(chat: Chat, n: int, k: int, inner: int | None) -> str:
    """What this API calls the part `k` of the message `n`. inner: its part, of a result."""
    where = f"messages[{n}]"
    parts = chat.messages[n].parts
    part = parts[k]
    if isinstance(part, ToolResult):
        return where if inner is None else f"{where}.content[{inner}]"
    before = parts[:k]
    if _is_call(part):
        return f"{where}.tool_calls[{sum(map(_is_call, before))}]"
    if isinstance(part, Thinking):
        return f"{where}.reasoning_content"
    if isinstance(part, Refusal):
        return f"{where}.refusal"
    return f"{where}.content[{sum(not isinstance(p, Thinking) for p in before)}]"


def _is_call(part: Part) -> bool:
    return isinstance(part, ToolCall) or (isinstance(part, Opaque) and part.kind == "custom")


# ---- writing


def write_messages(chat: Chat, own: bool, lost: Lost) -> list[dict[str, Any]]:
    """`messages`."""
    found: list[dict[str, Any]] = []
    writer = _Writer(own, lost, files=chat.dialect in _FILES)
    for n, message in enumerate(chat.messages):
        writer.message(message, f"messages[{n}]", found)
    return found


class _Writer:
    """Writes a request's messages. files: ids of files are understood."""

    __slots__ = ("_files", "_lost", "_own")

    def __init__(self, own: bool, lost: Lost, *, files: bool) -> None:
        self._own = own
        self._lost = lost
        self._files = files

    def message(self, message: Message, where: str, into: list[dict[str, Any]]) -> None:
        if message.role == "assistant":
            form = self._assistant(message, where)
            if not self._own and form == _SILENT:
                self._lost.fields(message.extra, where + ".")
                return  # an answer that says nothing is refused there
        else:
            content = []
            for n, part in enumerate(message.parts):
                place = f"{where}.parts[{n}]"
                if isinstance(part, ToolResult):
                    into.append(self._result(part, place))
                else:
                    content += self._part(part, place)
            if message.role == "tool" or (message.parts and not content):
                put_back(into[-1] if into else {}, message.extra, self._own, self._lost, where + ".")
                return
            form = {"role": message.role, "content": _plain(content)}
        if message.name is not None:
            form["name"] = message.name
        put_back(form, message.extra, self._own, self._lost, where + ".")
        into.append(form)

    def _result(self, result: ToolResult, where: str) -> dict[str, Any]:
        content: list[Any] = []
        for n, part in enumerate(result.parts):
            place = f"{where}.parts[{n}]"
            if self._own or isinstance(part, (Text, Json)) or (isinstance(part, Document) and part.media.text):
                content += self._part(part, place)
            else:
                self._lost.add(f"{place}: a tool's result that is not text")
        if result.cache is not None and self._own:
            if not content:
                content.append({"type": "text", "text": ""})
            if isinstance(content[-1], dict):
                content[-1].setdefault("cache_control", cache_control(result.cache.ttl))
        form: dict[str, Any]
        if result.id or not result.name:
            form = {"role": "tool", "tool_call_id": result.id, "content": _plain(content)}
            if result.name and self._own:
                form["name"] = result.name
        else:
            form = {"role": "function", "name": result.name, "content": _plain(content)}
        put_back(form, result.extra, self._own, self._lost, where + ".")
        return form

    def _assistant(self, message: Message, where: str) -> dict[str, Any]:
        form: dict[str, Any] = {"role": "assistant"}
        content: list[Any] = []
        thoughts: list[Thinking] = []
        calls: list[Any] = []
        for n, part in enumerate(message.parts):
            place = f"{where}.parts[{n}]"
            if isinstance(part, ToolCall):
                calls.append(write_call(part, place, self._own, self._lost))
            elif isinstance(part, Thinking):
                if self._own:
                    thoughts.append(part)
                elif part.text and not (part.signature or part.sealed):
                    # One without a proof was told by a server of this API, or nobody asks for the proof.
                    thoughts.append(Thinking(part.text))
                    self._lost.fields(part.extra, place + ".")
                else:
                    self._lost.add(f"{place}: a thought")
            elif isinstance(part, Opaque) and part.dialect == "chat" and part.kind == "custom":
                calls.append(part.value)
            else:
                content += self._part(part, place)
        if len(content) == 1 and isinstance(content[0], dict) and content[0]["type"] == "refusal":
            form.update(content=None, refusal=content[0]["refusal"])
        else:
            form["content"] = _plain(content) if content else None
        form.update(write_thoughts(thoughts, self._own))
        if calls:
            form["tool_calls"] = calls
        return form

    def _part(self, part: Part, where: str) -> list[Any]:
        """The part; [] when it is lost."""
        inner: dict[str, Any]
        if isinstance(part, Text):
            if part.citations:
                self._lost.add(f"{where}.citations")
            return [self._marked({"type": "text", "text": part.text}, part, where)]
        if isinstance(part, Json):
            return [{"type": "text", "text": legible(part.value)}]
        if isinstance(part, Refusal):
            return [{"type": "refusal", "refusal": part.text}]
        if isinstance(part, Opaque):
            return own_value(part, "chat", where, self._lost)
        media = getattr(part, "media", None)
        if media is None:
            self._lost.add(f"{where}: a {type(part).__name__} there")
            return []
        if media.file and not self._files:
            self._lost.add(f"{where}: a file by its id at another provider")
            return []
        if isinstance(part, Image):
            if media.file or not (media.url or media.type or self._own):
                self._lost.add(f"{where}: a picture {'by file id' if media.file else 'of unknown type'}")
                return []
            inner = {"url": media.url or f"data:{media.type};base64,{media.data}"}
            if part.detail is not None:
                inner["detail"] = part.detail
            return [self._marked({"type": "image_url", "image_url": inner}, part, where)]
        if isinstance(part, Audio):
            kind = _AUDIO_FORMATS.get(media.type) or (media.type.removeprefix("audio/") if self._own else "")
            if not kind or not media.data:
                self._lost.add(f"{where}: sound other than wav and mp3 as base64")
                return []
            return [self._marked(_under("input_audio", data=media.data, format=kind), part, where)]
        assert isinstance(part, Document)
        return self._document(part, where)

    def _document(self, part: Document, where: str) -> list[Any]:
        media = part.media
        if part.context is not None:
            self._lost.add(f"{where}.context")
        if part.citations:
            self._lost.add(f"{where}.citations")
        text = media.text
        if not self._own and media.data and media.type not in ("", _PDF):
            text = text_in(media.data) or "" if media.type.startswith("text/") else ""
            if not text:
                self._lost.add(f"{where}: a document of type {media.type}")
                return []
        if text:
            # A text's title stands above it, where else its file's name would tell it.
            titled = f"{part.title}\n\n{text}" if part.title else text
            return [self._marked({"type": "text", "text": titled}, part, where)]
        inner: dict[str, Any] = {}
        if media.file:
            inner["file_id"] = media.file
        elif media.url:
            if not self._own:
                self._lost.add(f"{where}: a document by URL")
                return []
            inner["file_data"] = media.url
        elif media.type or not self._own:
            inner["file_data"] = f"data:{media.type or _PDF};base64,{media.data}"
        else:
            inner["file_data"] = media.data
        if media.data and not self._own:
            inner["filename"] = file_name(part.title, media.type)
        elif part.title is not None:
            inner["filename"] = part.title
        return [self._marked({"type": "file", "file": inner}, part, where)]

    def _marked(self, form: dict[str, Any], part: Text | Image | Audio | Document, where: str) -> dict[str, Any]:
        if part.cache is not None and self._own and not (part.extra and _BREAKPOINT in part.extra):
            form["cache_control"] = cache_control(part.cache.ttl)
        put_back(form, part.extra, self._own, self._lost, where + ".")
        return form


def _plain(content: list[Any]) -> Any:
    return one_text(content) if content else ""


def _under(kind: str, **inner: str) -> dict[str, Any]:
    return {"type": kind, kind: inner}


def write_call(call: ToolCall, where: str, own: bool, lost: Lost, *, signed: bool = False) -> dict[str, Any]:
    """An entry of `tool_calls`. signed: with its signature, whoever gave it."""
    form: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if call.signature is not None and (own or signed):
        form["extra_content"] = {"google": {"thought_signature": call.signature}}
    put_back(form, call.extra, own, lost, where + ".")
    return form


def write_thoughts(thoughts: list[Thinking], own: bool) -> dict[str, Any]:
    """The fields of a message that tell its thoughts; none for none."""
    form: dict[str, Any] = {}
    text = "".join(t.text for t in thoughts)
    if text:
        form["reasoning_content"] = text
    if any(t.signature is not None or t.sealed is not None or t.id is not None or (own and t.extra) for t in thoughts):
        form["reasoning_details"] = [write_thought(t, n, own) for n, t in enumerate(thoughts)]
    return form


def write_thought(thought: Thinking, index: int, own: bool) -> dict[str, Any]:
    """An entry of `reasoning_details`. index: among the thoughts of its message; who adds up a stream needs it."""
    form: dict[str, Any]
    extra = thought.extra if own and thought.extra else {}
    if thought.sealed is not None:
        form = {"type": "reasoning.encrypted", "data": thought.sealed}
    else:
        form = {"type": "reasoning.text", "summary" if "type" in extra else "text": thought.text}
    if thought.signature is not None:
        form["signature"] = thought.signature
    if thought.id is not None:
        form["id"] = thought.id
    form["index"] = index
    form.update(extra)
    return form
