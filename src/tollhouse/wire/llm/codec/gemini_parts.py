"""Gemini's parts and the neutral model's, and the turns they stand in.

Rule: every name is taken in both spellings of ProtoJSON, bytes in both alphabets of base64. What a part has beside its
content, and what its content has beside what we know, rides along in the form it had.

A thought's signature is Google's, and no proof to anybody else. Another provider's goes out as bytes that begin with
"signature:" or "sealed:", and comes back in a piece of its own after what was thought, which is then one thought again.

A call need not have an id, and its result names the tool: calls without one get one here, and their results find them
by name, in order. A tool's result is an object; one that is nothing but `output` or `error` with a text is that text.
"""

from base64 import b64encode
from binascii import a2b_base64
from collections import deque
from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.reading import Fields, is_base64, legible, own_value, put_back, written
from tollhouse.wire.llm.model import (
    Audio,
    Chat,
    Document,
    Extra,
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
    "PartWriter",
    "below",
    "each",
    "join_calls",
    "join_thoughts",
    "opened",
    "read_content",
    "read_part",
    "read_system",
    "signed",
    "write_contents",
]

Raw = msgspec.Raw

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_any = msgspec.json.Decoder().decode
_told_alone = msgspec.json.Decoder(dict[str, str]).decode

_NAME = "generate"  # of the codec
_SIGNATURE = "thoughtSignature"
_URL_SAFE = str.maketrans("-_", "+/")
_UNSIGNED = "skip_thought_signature_validator"
"""What the API takes in place of the signature of a call that it did not make itself."""

_PROOF = "signature:"
_SEAL = "sealed:"

_SPELLINGS = {
    "".join("_" + c.lower() if c.isupper() else c for c in name): name
    for name in (
        "allowedFunctionNames", "audioTimestamp", "boolValue", "candidateCount", "displayName",
        "enableEnhancedCivicAnswers", "fileData", "fileUri", "frequencyPenalty", "functionCall",
        "functionCallingConfig", "functionDeclarations", "functionResponse", "generationConfig", "includeThoughts",
        "includeServerSideToolInvocations", "inlineData", "jsonPath", "maxOutputTokens", "mediaResolution", "mimeType",
        "nullValue", "numberValue", "parametersJsonSchema", "partialArgs", "presencePenalty", "responseJsonSchema",
        "responseLogprobs", "responseMimeType", "responseModalities", "responseSchema", "serviceTier", "stopSequences",
        "streamFunctionCallArguments", "stringValue", "systemInstruction", "thinkingBudget", "thinkingConfig",
        "thinkingLevel", "thoughtSignature", "toolConfig", "topK", "topP", "willContinue",
    )
}  # fmt: skip
"""By how Python spells them. What is not known rides along as it came."""

_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "pdf": "application/pdf",
    "txt": "text/plain",
    "mp4": "video/mp4",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def opened(fields: Fields) -> Fields:
    """The same with the names that are known in their usual spelling."""
    return fields.renamed(_spelt)


def _spelt(name: str) -> str:
    return _SPELLINGS.get(name, name)


def below(f: Fields, name: str) -> Fields | None:
    """An object below."""
    found = f.child(name)
    return None if found is None else opened(found)


def each(f: Fields, name: str) -> list[Fields] | None:
    """The objects of a list; one alone is as good as a list of one."""
    if f.is_object(name):
        alone = f.child(name)
        found = None if alone is None else [alone]
    else:
        found = f.children(name)
    return None if found is None else [opened(one) for one in found]


# ---- reading


def read_content(f: Fields) -> Message:
    """A turn."""
    role = f.text("role") or "user"
    if role not in ("user", "model", "function"):
        f.fail("role", f"{role!r} is not a role; it is user or model")
    parts = [read_part(p, asked=True) for p in each(f, "parts") or ()]
    if role == "model" and len(parts) > 1:
        # The last event of a stream often has an empty text, which clients send back with the others.
        parts = [p for p in parts if not (isinstance(p, Text) and not p.text and p.extra is None)] or parts[:1]
    return Message("assistant" if role == "model" else "user", parts, extra=f.rest())


def read_system(f: Fields) -> Message | None:
    """`systemInstruction`: a content, a part, a list of parts, or a text."""
    name = "systemInstruction"
    if f.is_text(name):
        return Message("system", [Text(f.need_text(name))])
    if f.is_list(name):
        parts: list[Part] = []
        for n, raw in enumerate(f.list(name) or ()):
            if bytes(raw)[:1] == b'"':
                parts.append(Text(Fields({"text": raw}, f"{name}[{n}].").need_text("text")))
            else:
                parts.append(read_part(opened(Fields.of(raw, f"{name}[{n}]."))))
        return Message("system", parts)
    content = below(f, name)
    if content is None:
        return None
    if content.has("text") and not content.has("parts"):
        return Message("system", [read_part(content)])
    content.raw("role")
    read = read_content(content)
    return Message("system", read.parts, extra=read.extra)


def read_part(f: Fields, *, asked: bool = False) -> Part:
    """One part of a content, its names in the usual spelling. A call may be without an id. asked: it is a request's,
    where Google's own signature of a thought only rides along, and another's is taken out of it."""
    signature = f.text(_SIGNATURE)
    thought = f.flag("thought")
    if f.has("text"):
        text = f.need_text("text")
        if thought:
            return _thought(text, signature, f.rest(), asked)
        return Text(text, extra=_around(f, None, signature))
    call = below(f, "functionCall")
    if call is not None:
        made = ToolCall(call.text("id") or "", call.need_text("name"), signature=signature)
        arguments = call.object("args")
        if arguments is not None:
            made.arguments = bytes(arguments).decode()
        f.leave("functionCall", call)
        made.extra = _around(f, thought, None)
        return made
    result = below(f, "functionResponse")
    if result is not None:
        told = _result(result)
        f.leave("functionResponse", result)
        told.extra = _around(f, thought, signature)
        return told
    if f.has("inlineData"):
        return _medium(f, "inlineData", thought, signature)
    if f.has("fileData"):
        return _medium(f, "fileData", thought, signature)
    extra = _around(f, thought, signature) or {}
    kind = next((name for name in extra if name not in (_SIGNATURE, "thought")), "an empty part")
    return Opaque(_NAME, kind, written(extra))


def _thought(text: str, signature: str | None, extra: Extra | None, asked: bool) -> Thinking:
    if signature is None or not asked:
        return Thinking(text, signature, extra=extra)
    carried = _carried(signature)
    if carried.startswith(_SEAL):
        return Thinking(text, sealed=carried.removeprefix(_SEAL), extra=extra)
    if carried:
        return Thinking(text, carried.removeprefix(_PROOF), extra=extra)
    return Thinking(text, extra={**(extra or {}), _SIGNATURE: written(signature)})


def _carried(signature: str) -> str:
    """What of another provider a signature carries, "" for nothing."""
    try:
        value = a2b_base64(signature.translate(_URL_SAFE) + "=" * (-len(signature) % 4)).decode()
    except ValueError:
        return ""
    return value if value.startswith((_PROOF, _SEAL)) else ""


def signed(thought: Thinking) -> str | None:
    """`thoughtSignature` that carries another provider's signature or seal, once; None where there is none."""
    if thought.signature:
        if _carried(thought.signature):
            return thought.signature
        value = _PROOF + thought.signature
    elif thought.sealed:
        value = _SEAL + thought.sealed
    else:
        return None
    return b64encode(value.encode("utf-8", "surrogatepass")).decode()


def _around(f: Fields, thought: bool | None, signature: str | None) -> Extra | None:
    """What a part has beside its content."""
    extra = f.rest() or {}
    if thought:
        extra["thought"] = Raw(b"true")
    if signature is not None:
        extra[_SIGNATURE] = written(signature)
    return extra or None


def _result(f: Fields) -> ToolResult:
    told = ToolResult(f.text("id") or "", [], f.text("name") or "")
    value = f.object("response")
    if value is not None:
        told.parts.append(Json(_unescaped(value)))
        try:
            alone = _told_alone(value)
        except UNREADABLE:
            alone = {}
        if len(alone) == 1 and (text := alone.get("output", alone.get("error"))) is not None:
            told.parts[0] = Text(text)
            if "error" in alone:
                told.error = True
    told.parts += [read_part(p) for p in each(f, "parts") or ()]
    return told


def _unescaped(value: Raw) -> Raw:
    """Models are told a result as text: clients of Python write even an umlaut as an escape."""
    if b"\\u" in bytes(value):
        try:
            return written(_any(value))
        except UNREADABLE:
            pass  # it stays as it came
    return value


def _medium(f: Fields, name: str, thought: bool | None, signature: str | None) -> Image | Audio | Document:
    inner = below(f, name)
    assert inner is not None
    media = Media(inner.text("mimeType") or "")
    if name == "fileData":
        media.url = inner.need_text("fileUri")
    else:
        media.data = _base64(inner)
    kind = media.type.partition("/")[0]
    title = None if kind in ("image", "audio") else inner.text("displayName")
    f.leave(name, inner)
    extra = _around(f, thought, signature)
    if kind == "image":
        return Image(media, extra=extra)
    return Audio(media, extra=extra) if kind == "audio" else Document(media, title, extra=extra)


def _base64(f: Fields) -> str:
    """`data` in the alphabet that other APIs have (RFC 4648 section 4)."""
    data = f.need_text("data")
    if "-" in data or "_" in data:
        data = data.translate(_URL_SAFE)
    data += "=" * (-len(data) % 4)
    if not is_base64(data):
        f.fail("data", "must be base64 (RFC 4648, section 4 or 5)")
    return data


def join_calls(messages: list[Message]) -> None:
    """Give every call an id, and its result the same."""
    parts = [part for message in messages for part in message.parts]
    taken = {part.id for part in parts if isinstance(part, (ToolCall, ToolResult))}
    # In both, and answered once.
    by_id: dict[str, deque[ToolCall]] = {}
    by_name: dict[str, deque[ToolCall]] = {}
    answered: set[int] = set()
    number = 0
    for part in parts:
        if isinstance(part, ToolCall):
            while not part.id:
                number += 1
                if (new := f"call_{number}") not in taken:
                    part.id = new
            by_id.setdefault(part.id, deque()).append(part)
            by_name.setdefault(part.name, deque()).append(part)
        elif isinstance(part, ToolResult):
            waiting = by_id.get(part.id) if part.id else by_name.get(part.name)
            while waiting:
                call = waiting.popleft()
                if id(call) not in answered:
                    answered.add(id(call))
                    part.id = call.id
                    break


def join_thoughts(messages: list[Message]) -> None:
    """Put thoughts that came in pieces together: those before one with another provider's signature are its text."""
    pieces: list[tuple[Message, Thinking]] = []
    joined: set[int] = set()
    changed: dict[int, Message] = {}
    for message in messages:
        if message.role != "assistant":
            pieces.clear()
            continue
        for part in message.parts:
            if not isinstance(part, Thinking):
                pieces.clear()
            elif part.signature is not None:
                part.text = "".join(piece.text for _, piece in pieces) + part.text
                for whose, piece in pieces:
                    joined.add(id(piece))
                    changed[id(whose)] = whose
                pieces.clear()
            elif part.sealed is None and part.extra is None:
                pieces.append((message, part))
            else:
                pieces.clear()
    if changed:
        for message in changed.values():
            message.parts[:] = [part for part in message.parts if id(part) not in joined]
        messages[:] = [m for m in messages if id(m) not in changed or m.parts or m.extra is not None]


# ---- writing


class PartWriter:
    """Writes parts of a request. own: they are of this API."""

    __slots__ = ("_lost", "_names", "own")

    def __init__(self, chat: Chat, own: bool, lost: Lost) -> None:
        self.own = own
        self._lost = lost
        self._names = {p.id: p.name for m in chat.messages for p in m.parts if isinstance(p, ToolCall)}

    def parts(self, parts: list[Part], where: str) -> list[dict[str, Any]]:
        forms = [self.part(part, f"{where}.parts[{n}]") for n, part in enumerate(parts)]
        return [form for form in forms if form is not None]

    def part(self, part: Part, where: str) -> dict[str, Any] | None:
        """None for what is lost, and for what says nothing."""
        own, lost = self.own, self._lost
        form: dict[str, Any]
        if isinstance(part, Text):
            if not part.text and not own:
                return None
            form = {"text": part.text}
            if part.citations:
                lost.add(f"{where}.citations")
        elif isinstance(part, ToolCall):
            form = _call(part, where, lost)
        elif isinstance(part, ToolResult):
            form = self._result(part, where)
        elif isinstance(part, (Image, Audio, Document)):
            medium = _write_medium(part, where, own, lost)
            if medium is None:
                return None
            form = medium
        elif isinstance(part, Thinking):
            if not part.text and not own:
                if part.sealed is not None:
                    lost.add(f"{where}: a sealed thought")
                lost.fields(part.extra, where + ".")
                return None
            # Another's thought is taken back as well, but its proof would be no proof here.
            form = {"text": part.text, "thought": True}
            if own and (signature := signed(part)) is not None:
                form[_SIGNATURE] = signature
        elif isinstance(part, Json):
            return {"text": legible(part.value)}
        elif isinstance(part, Refusal):
            return {"text": part.text} if part.text else None
        else:
            return next(map(_object, own_value(part, _NAME, where, lost)), None)
        put_back(form, part.extra, own, lost, where + ".")
        return form

    def _result(self, result: ToolResult, where: str) -> dict[str, Any]:
        told: list[Any] = []
        media = []
        for n, part in enumerate(result.parts):
            if isinstance(part, Json):
                told.append(part.value)
            elif isinstance(part, Text):
                told.append(part.text)
            elif (form := self.part(part, f"{where}.parts[{n}]")) is not None:
                if "text" in form:
                    told.append(form["text"])
                else:
                    media.append(form)
        response: Any = {}
        if len(told) == 1 and isinstance(told[0], Raw) and bytes(told[0])[:1] == b"{" and not result.error:
            response = told[0]
        elif told:
            value = told[0] if len(told) == 1 else told
            if len(told) > 1 and all(isinstance(one, str) for one in told):
                value = "".join(told)
            response = {"error" if result.error else "output": value}
        inner: dict[str, Any] = {"name": result.name or self._names.get(result.id, ""), "response": response}
        if result.id:
            inner["id"] = result.id
        if media:
            inner["parts"] = media
        return {"functionResponse": inner}


def _call(call: ToolCall, where: str, lost: Lost) -> dict[str, Any]:
    try:
        arguments = _object(call.arguments or "{}")
    except (*UNREADABLE, UnicodeEncodeError):
        raise lost.invalid(f"{where}.arguments", "must be the JSON text of an object") from None
    inner: dict[str, Any] = {"name": call.name, "args": arguments}
    if call.id:
        inner["id"] = call.id
    form: dict[str, Any] = {"functionCall": inner}
    if call.signature is not None:
        form[_SIGNATURE] = call.signature
    return form


def _write_medium(part: Image | Audio | Document, where: str, own: bool, lost: Lost) -> dict[str, Any] | None:
    """Of another API, a document's title is not said: it is a name for it, and only Vertex AI takes one."""
    media = part.media
    if isinstance(part, Image) and part.detail not in (None, "auto"):
        lost.add(f"{where}.detail")
    if isinstance(part, Document):
        if part.context is not None:
            lost.add(f"{where}.context")
        if part.citations:
            lost.add(f"{where}.citations")
        if media.text:
            return {"text": media.text}
    if media.file:
        lost.add(f"{where}: a file by its id at another provider")
        return None
    name, kind = "inlineData", media.type
    inner: dict[str, Any] = {"data": media.data}
    if media.url:
        name, inner = "fileData", {"fileUri": media.url}
        kind = kind or _TYPES.get(media.url.partition("?")[0].rpartition(".")[2].lower(), "")
    elif not own:
        kind = kind or "application/octet-stream"
    if kind:
        inner["mimeType"] = kind
    if own and isinstance(part, Document) and part.title is not None:
        inner["displayName"] = part.title
    return {name: inner}


def write_contents(
    chat: Chat, own: bool, lost: Lost, *, signed: bool
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """`systemInstruction` (None for none) and `contents`. signed: the model refuses a call without a signature."""
    writer = PartWriter(chat, own, lost)
    system: dict[str, Any] | None = None
    contents: list[dict[str, Any]] = []
    for n, message in enumerate(chat.messages):
        where = f"messages[{n}]"
        parts = writer.parts(message.parts, where)
        if message.name is not None:
            lost.add(f"{where}.name")
        if message.role in ("system", "developer"):
            if contents:
                lost.add(f"{where}: that these instructions come after the first turn")
            if system is None:
                system = {"parts": []}
            system["parts"] += parts
            put_back(system, message.extra, own, lost, where + ".")
            continue
        role = "model" if message.role == "assistant" else "user"
        if not own and (not parts or (contents and contents[-1]["role"] == role)):
            lost.fields(message.extra, where + ".")
            if parts:
                contents[-1]["parts"] += parts
            continue
        content: dict[str, Any] = {"role": role, "parts": parts}
        put_back(content, message.extra, own, lost, where + ".")
        contents.append(content)
    if system is not None and not system["parts"] and not own:
        system = None
    if signed and not own:
        for content in contents:
            called = next((p for p in content["parts"] if "functionCall" in p), None)
            if called is not None:
                called.setdefault(_SIGNATURE, _UNSIGNED)
    return system, contents
