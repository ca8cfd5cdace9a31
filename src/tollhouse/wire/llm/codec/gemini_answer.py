"""Gemini's whole answers and the neutral model: candidates, why they ended, log-probs and what they cite.

Places in a text are counted in bytes of UTF-8 here, and in characters in the neutral model.
"""

from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.gemini_parts import opened, read_part, signed
from tollhouse.wire.llm.codec.reading import Fields, restore, written
from tollhouse.wire.llm.model import (
    Answer,
    Audio,
    Choice,
    Citation,
    Document,
    Extra,
    Image,
    Opaque,
    Part,
    Refusal,
    Stop,
    Text,
    Thinking,
    ToolCall,
)
from tollhouse.wire.llm.usage import GeminiUsage, counted

__all__ = [
    "FINISH",
    "Cited",
    "call_id",
    "read_answer",
    "read_citations",
    "read_logprobs",
    "stop_of",
    "write_answer",
    "write_citation",
    "write_logprobs",
    "write_part",
]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_usage = msgspec.json.Decoder(GeminiUsage, strict=False).decode
_entries = msgspec.json.Decoder(list[dict[str, Any]]).decode

_CITING = frozenset(("groundingMetadata", "citationMetadata"))
_STOPS: dict[str, Stop] = {
    "STOP": "stop",
    "FINISH_REASON_UNSPECIFIED": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "pause",
    "MALFORMED_FUNCTION_CALL": "error",
    "MALFORMED_RESPONSE": "error",
    "MISSING_THOUGHT_SIGNATURE": "error",
    "UNEXPECTED_TOOL_CALL": "error",
    "TOO_MANY_TOOL_CALLS": "error",
    "OTHER": "error",
    "IMAGE_OTHER": "error",
    "NO_IMAGE": "error",
}
"""Every other reason is some filter's."""

FINISH: dict[Stop, str] = {
    "stop": "STOP",
    "stop_sequence": "STOP",
    "tool_calls": "STOP",
    "pause": "STOP",
    "length": "MAX_TOKENS",
    "context_window": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "refusal": "SAFETY",
    "error": "OTHER",
}
"""Ours to `finishReason`."""


def stop_of(reason: str, calls: bool) -> Stop:
    """`finishReason` as ours. A turn that ends with calls ends like any other there."""
    stop = _STOPS.get(reason, "content_filter")
    return "tool_calls" if calls and stop == "stop" else stop


def call_id(answer: str, choice: int, number: int) -> str:
    """For a call without one. answer: its id."""
    return f"call_{answer or 'x'}_{choice}_{number}"


# ---- reading


def read_answer(body: bytes) -> Answer:
    """A whole `GenerateContentResponse`. Raises Failure 502."""
    f = Fields.of(body, "answer.", misread)
    candidates = f.children("candidates")
    answer = Answer("generate", f.text("responseId") or "", f.text("modelVersion") or "", [])
    if not candidates:
        feedback = f.peek("promptFeedback")
        blocked = feedback.text("blockReason") if feedback is not None else None
        if blocked is None:
            f.fail("candidates", "is missing")
        answer.choices.append(Choice([], "content_filter", detail=blocked))
    for n, candidate in enumerate(candidates or ()):
        answer.choices.append(_choice(candidate, answer.id, n))
    usage = f.raw("usageMetadata")
    if usage is not None:
        answer.usage = counted(_usage, usage)
    answer.extra = f.rest()
    return answer


def _choice(f: Fields, answer: str, index: int) -> Choice:
    content = f.child("content")
    parts = [] if content is None else [read_part(opened(p)) for p in content.children("parts") or ()]
    calls = [p for p in parts if isinstance(p, ToolCall)]
    for number, call in enumerate(calls):
        call.id = call.id or call_id(answer, index, number)
    reason = f.text("finishReason") or "STOP"
    choice = Choice(parts, stop_of(reason, bool(calls)), detail=reason)
    f.raw("index")
    logprobs = f.child("logprobsResult")
    if logprobs is not None:
        choice.logprobs = read_logprobs(logprobs)
    cited = Cited()
    for part in parts:
        cited.part(part)
    read_citations(f.peek("groundingMetadata"), f.peek("citationMetadata"), cited)
    choice.extra = f.rest()
    return choice


def read_logprobs(f: Fields) -> Raw:
    """`logprobsResult` in OpenAI's form."""
    tops = f.children("topCandidates") or []
    entries = []
    for n, chosen in enumerate(f.children("chosenCandidates") or ()):
        others = tops[n].children("candidates") or [] if n < len(tops) else []
        entries.append({**_logprob(chosen), "top_logprobs": [_logprob(o) for o in others]})
    return written(entries)


def _logprob(f: Fields) -> dict[str, Any]:
    token = f.text("token") or ""
    return {"token": token, "logprob": f.number("logProbability") or 0.0, "bytes": list(token.encode())}


class Cited:
    """A candidate's texts, to find the places in that something is cited for. parts: its parts as far as they have
    come; texts alone count, one after another."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytearray, Text | None]] = []  # where it begins, its text, and the part
        self._size = 0

    def part(self, part: Part) -> None:
        """One more part."""
        text = part if isinstance(part, Text) else None
        said = bytearray(b"" if text is None else text.text.encode("utf-8", "surrogatepass"))
        self._parts.append((self._size, said, text))
        self._size += len(said)

    def more(self, text: str) -> None:
        """More of the last part, which is a text."""
        said = text.encode("utf-8", "surrogatepass")
        self._parts[-1][1].extend(said)
        self._size += len(said)

    def place(self, begin: int, end: int | None, number: int) -> tuple[Text, int | None, int | None] | None:
        """The text, and the characters in it, of bytes of the part of that number, or of all the candidate's text
        when it is 0; None where there is no text. end: None where no stretch is said."""
        texts = [each for each in self._parts if each[2] is not None]
        if not texts:
            return None
        if 0 < number < len(self._parts) and self._parts[number][2] is not None:
            at, said, text = self._parts[number]
            at = 0
        else:
            at, said, text = next((each for each in reversed(texts) if each[0] <= begin), texts[0])
        assert text is not None
        begin = max(begin - at, 0)
        if end is None:
            return text, None, None
        return text, _characters(said, begin), _characters(said, max(end - at, begin))


def _characters(said: bytearray, end: int) -> int:
    return len(said[:end].decode("utf-8", "ignore"))


def read_citations(
    grounding: Fields | None, cited: Fields | None, texts: Cited, into: list[tuple[Text, Citation]] | None = None
) -> None:
    """`groundingMetadata` and `citationMetadata`, as citations of the texts they are about. into: is filled instead of
    the texts."""
    found: list[tuple[Text, Citation]] = [] if into is None else into
    if grounding is not None:
        _ground(grounding, texts, found)
    if cited is not None:
        for source in cited.children("citations") or cited.children("citationSources") or ():
            place = texts.place(source.integer("startIndex") or 0, source.integer("endIndex"), 0)
            if place is not None:
                citation = Citation("url", source.text("title"), source.text("uri"), begin=place[1], end=place[2])
                found.append((place[0], citation))
    if into is None:
        for text, citation in found:
            text.citations = [*(text.citations or ()), citation]


def _ground(f: Fields, texts: Cited, found: list[tuple[Text, Citation]]) -> None:
    """Each support's segment cites each of its chunks."""
    sources = []
    for chunk in f.children("groundingChunks") or ():
        web = chunk.child("web") or chunk.child("retrievedContext") or chunk.child("maps")
        sources.append((web.text("uri"), web.text("title")) if web is not None else (None, None))
    for support in f.children("groundingSupports") or ():
        segment = support.child("segment")
        indices = support.any("groundingChunkIndices")
        if segment is None or not isinstance(indices, list):
            continue
        place = texts.place(
            segment.integer("startIndex") or 0, segment.integer("endIndex"), segment.integer("partIndex") or 0
        )
        if place is None:
            continue
        text, begin, end = place
        quote = segment.text("text")
        for index in indices:
            if isinstance(index, int) and 0 <= index < len(sources):
                url, title = sources[index]
                found.append((text, Citation("url", title, url, quote=quote, begin=begin, end=end)))


# ---- writing


def write_answer(answer: Answer, *, own: bool) -> bytes:
    """A whole `GenerateContentResponse`. Raises Failure 502."""
    form: dict[str, Any] = {"candidates": [_write_choice(c, n, own) for n, c in enumerate(answer.choices)]}
    if answer.usage is not None:
        form["usageMetadata"] = GeminiUsage.form(answer.usage)
    form["modelVersion"] = answer.model
    form["responseId"] = answer.id
    if own and answer.extra:
        restore(form, answer.extra)
    return _encode(form)


def _write_choice(choice: Choice, index: int, own: bool) -> dict[str, Any]:
    parts = []
    citations = []
    said = 0
    cut = choice.stop in ("length", "context_window")
    for part in choice.parts:
        form = write_part(part, own=own, cut=cut)
        if form is not None:
            parts.append(form)
        if isinstance(part, (Text, Refusal)):
            text = part.text.encode("utf-8", "surrogatepass")
            if isinstance(part, Text):
                citations += [write_citation(c, part.text, said) for c in part.citations or () if c.url]
            said += len(text)
    reason = choice.detail if own and choice.detail else FINISH[choice.stop]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": index}
    if citations and not (own and choice.extra and _CITING.intersection(choice.extra)):
        candidate["citationMetadata"] = {"citations": citations}
    if choice.logprobs is not None:
        candidate["logprobsResult"] = write_logprobs(choice.logprobs)
    if own and choice.extra:
        restore(candidate, choice.extra)
    return candidate


def write_citation(citation: Citation, text: str, said: int) -> dict[str, Any]:
    """An entry of `citationMetadata`. text: the part it is about; said: bytes of the texts before it."""
    form: dict[str, Any] = {"uri": citation.url}
    if citation.title is not None:
        form["title"] = citation.title
    for name, place in (("startIndex", citation.begin), ("endIndex", citation.end)):
        if place is not None:
            form[name] = said + len(text[: max(place, 0)].encode("utf-8", "surrogatepass"))
    return form


def write_logprobs(raw: Raw) -> dict[str, Any]:
    """`logprobsResult`, from OpenAI's form. Raises Failure 502."""
    try:
        entries = _entries(raw)
        return {
            "chosenCandidates": [_write_logprob(e) for e in entries],
            "topCandidates": [
                {"candidates": [_write_logprob(t) for t in e.get("top_logprobs") or ()]} for e in entries
            ],
        }
    except (*UNREADABLE, KeyError, TypeError):
        raise unreadable("the log-probs of an answer") from None


def _write_logprob(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logProbability": entry["logprob"]}


def write_part(part: Part, *, own: bool = False, cut: bool = False) -> dict[str, Any] | None:
    """A part of an answer; None for what this API has no part for. cut: the answer is not whole, so a call's arguments
    need not be either; then there are none. Raises Failure 502."""
    form: dict[str, Any]
    extra: Extra | None = None
    if isinstance(part, (Text, Refusal)):
        form = {"text": part.text}
        extra = part.extra if isinstance(part, Text) else None
    elif isinstance(part, ToolCall):
        form = {"functionCall": {"id": part.id, "name": part.name, "args": _arguments(part, cut)}}
        extra = part.extra
    elif isinstance(part, Thinking):
        form = {"text": part.text, "thought": True}
        extra = part.extra
        signature = part.signature if own else signed(part)
        if signature is not None:
            form["thoughtSignature"] = signature
    elif isinstance(part, (Image, Audio, Document)):
        media = part.media
        if media.data:
            form = {"inlineData": {"mimeType": media.type, "data": media.data}}
        elif media.url:
            form = {"fileData": {"mimeType": media.type, "fileUri": media.url}}
        else:
            return None
        extra = part.extra
    elif isinstance(part, Opaque) and part.dialect == "generate":
        return _object(part.value)
    else:
        return None
    if isinstance(part, ToolCall) and part.signature is not None:
        form["thoughtSignature"] = part.signature
    if own and extra:
        restore(form, extra)
    return form


def _arguments(call: ToolCall, cut: bool) -> dict[str, Raw]:
    try:
        return _object(call.arguments or "{}")
    except UNREADABLE:
        if cut:
            return {}
        raise unreadable("the arguments of a tool call are not a JSON object") from None
