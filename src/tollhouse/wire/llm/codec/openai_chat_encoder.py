"""The neutral model's events as a stream of OpenAI chat completions.

Chunks are written by hand: the usual one tells a few letters. What a text cites is told when it is whole, and so is the
proof of a thought.
"""

import msgspec

from tollhouse.core.call import Usage
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.openai_chat_answer import annotation
from tollhouse.wire.llm.codec.openai_chat_messages import write_call, write_thought
from tollhouse.wire.llm.codec.openai_chat_stops import FINISH
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
    Opaque,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.llm.usage import ChatUsage

__all__ = ["ChatEncoder"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode

_QUICK = (
    b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,'
    b'"choices":[{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b}]}\n\n'
)
_NULL = b"null"


class _Told:
    """A choice of the stream that is being written."""

    __slots__ = ("annotations", "bare", "calls", "cited", "role", "said", "starts", "thoughts", "wrote")

    def __init__(self) -> None:
        self.role = False
        self.said = 0  # characters of content
        self.starts: dict[int, int] = {}  # a text's part: where it begins in the content
        self.calls: dict[int, int] = {}  # a call's part: its index
        self.wrote = 0  # thoughts told in `reasoning_details`
        self.thoughts: dict[int, tuple[Thinking, list[str]]] = {}
        self.bare: set[int] = set()  # calls without arguments so far
        self.cited: dict[int, list[Citation]] = {}  # what a text cites, told when it is whole
        self.annotations = 0


class ChatEncoder:
    """StreamEncoder of chunks. usage: the caller asked for the chunk that tells it.

    A thought that has a proof is told once more when it is whole, with it: so it can be sent back as it was. That is
    for providers that prove all of their thoughts or none."""

    __slots__ = ("_choices", "_created", "_first", "_id", "_model", "_usage", "_usages")

    def __init__(self, *, usage: bool) -> None:
        self._usage = usage
        self._usages: Usage | None = None
        self._id = b'""'
        self._model = b'""'
        self._created = 0
        self._first = _Told()
        self._choices: dict[int, _Told] = {0: self._first}

    def write(self, events: list[Event]) -> bytes:
        out = []
        for n, event in enumerate(events):
            if isinstance(event, TextDelta):
                told = self._told(event.choice)
                told.said += len(event.text)
                logprobs = _NULL
                if n + 1 < len(events):
                    following = events[n + 1]
                    if isinstance(following, LogprobsDelta) and following.choice == event.choice:
                        logprobs = b'{"content":%b,"refusal":null}' % bytes(following.logprobs)
                out.append(self._delta(event.choice, told, b'"content":' + _encode(event.text), logprobs))
            elif isinstance(event, ArgumentsDelta):
                told = self._told(event.choice)
                number = told.calls.get(event.part)
                if number is not None:
                    if told.bare:
                        told.bare.discard(event.part)
                    call = b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (number, _encode(event.text))
                    out.append(self._delta(event.choice, told, call))
            elif isinstance(event, ThinkingDelta):
                told = self._told(event.choice)
                thought = told.thoughts.get(event.part)
                if thought is not None:
                    thought[1].append(event.text)
                out.append(self._delta(event.choice, told, b'"reasoning_content":' + _encode(event.text)))
            elif isinstance(event, LogprobsDelta):
                if n == 0 or not isinstance(events[n - 1], TextDelta):
                    logprobs = b'{"content":%b,"refusal":null}' % bytes(event.logprobs)
                    out.append(self._delta(event.choice, self._told(event.choice), b"", logprobs))
            else:
                out.append(self._rare(event))
        return out[0] if len(out) == 1 else b"".join(out)

    def _told(self, choice: int) -> _Told:
        if choice == 0:
            return self._first
        told = self._choices.get(choice)
        if told is None:
            told = self._choices[choice] = _Told()
        return told

    def _delta(self, choice: int, told: _Told, fields: bytes, logprobs: bytes = _NULL, reason: bytes = _NULL) -> bytes:
        if not told.role:
            told.role = True
            fields = b'"role":"assistant",' + (fields or b'"content":""')
        return _QUICK % (self._id, self._created, self._model, choice, fields, logprobs, reason)

    def _rare(self, event: Event) -> bytes:
        if isinstance(event, Began):
            self._id, self._model, self._created = _encode(event.id), _encode(event.model), event.created
            return b""
        if isinstance(event, Used):
            self._usages = event.usage
            return b""
        told = self._told(event.choice)
        if isinstance(event, PartBegan):
            return self._part(event, told)
        if isinstance(event, PartEnded):
            return self._ended(event, told)
        if isinstance(event, SignatureDelta):
            return self._signature(event, told)
        if isinstance(event, RefusalDelta):
            return self._delta(event.choice, told, b'"refusal":' + _encode(event.text))
        if isinstance(event, CitationDelta):
            if event.citation.url:
                told.cited.setdefault(event.part, []).append(event.citation)
            return b""
        if isinstance(event, Ended):
            return self._delta(event.choice, told, b"", reason=_encode(FINISH[event.stop]))
        return b""

    def _ended(self, event: PartEnded, told: _Told) -> bytes:
        if event.part in told.bare:
            told.bare.discard(event.part)
            call = b'"tool_calls":[{"index":%d,"function":{"arguments":"{}"}}]' % told.calls[event.part]
            return self._delta(event.choice, told, call)
        cited = told.cited.pop(event.part, None)
        if cited is not None:
            begin = told.starts.get(event.part, 0)
            found = []
            for citation in cited:
                found.append({"index": told.annotations, **annotation(citation, begin, told.said - begin)})
                told.annotations += 1
            return self._delta(event.choice, told, b'"annotations":%b' % _encode(found))
        thought = told.thoughts.pop(event.part, None)
        if thought is None or (thought[0].signature is None and thought[0].id is None):
            return b""
        thought[0].text = "".join(thought[1])
        return self._detail(event.choice, told, thought[0])

    def _signature(self, event: SignatureDelta, told: _Told) -> bytes:
        thought = told.thoughts.get(event.part)
        if thought is not None:
            thought[0].signature = (thought[0].signature or "") + event.signature
            return b""
        number = told.calls.get(event.part)
        if number is None:
            return b""
        signed = {"index": number, "extra_content": {"google": {"thought_signature": event.signature}}}
        return self._delta(event.choice, told, b'"tool_calls":[%b]' % _encode(signed))

    def _detail(self, choice: int, told: _Told, thought: Thinking) -> bytes:
        form = write_thought(thought, told.wrote, own=False)
        told.wrote += 1
        return self._delta(choice, told, b'"reasoning_details":[%b]' % _encode(form))

    def _part(self, event: PartBegan, told: _Told) -> bytes:
        value = event.value
        if isinstance(value, ToolCall):
            number = told.calls[event.part] = len(told.calls)
            if not value.arguments:
                told.bare.add(event.part)
            form = {"index": number, **write_call(value, "", own=False, lost=Lost(), signed=True)}
            return self._delta(event.choice, told, b'"tool_calls":[%b]' % _encode(form))
        if isinstance(value, Text):
            told.starts[event.part] = told.said
            told.said += len(value.text)
            if value.text:
                return self._delta(event.choice, told, b'"content":' + _encode(value.text))
        elif isinstance(value, Refusal):
            if value.text:
                return self._delta(event.choice, told, b'"refusal":' + _encode(value.text))
        elif isinstance(value, Thinking):
            if value.sealed is not None:
                return self._detail(event.choice, told, value)
            told.thoughts[event.part] = (Thinking("", value.signature, id=value.id), [value.text])
            if value.text:
                return self._delta(event.choice, told, b'"reasoning_content":' + _encode(value.text))
        elif isinstance(value, Opaque) and value.dialect == "chat" and value.kind == "custom":
            number = told.calls[event.part] = len(told.calls)
            call = _encode({"index": number, **_object(value.value)})
            return self._delta(event.choice, told, b'"tool_calls":[%b]' % call)
        return b""

    def end(self) -> bytes:
        tail = b"data: [DONE]\n\n"
        if not self._usage or self._usages is None:
            return tail
        form = {
            "id": Raw(self._id),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": Raw(self._model),
            "choices": [],
            "usage": ChatUsage.form(self._usages),
        }
        return b"data: %b\n\n" % _encode(form) + tail
