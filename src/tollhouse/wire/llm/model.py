"""The neutral model: what a chat request, its answer and its stream mean, in no API's words. Values only; no I/O.

Rule: it can say everything that two of the APIs can say. What only one can say rides along in `extra` (fields) or as
an Opaque part or tool, under the name of that API: its own codec puts it back, any other one counts it as lost.

One codec for each API (`wire.llm.codec`) reads and writes these; any two of them make a translation. Text is str;
base64 stays base64; JSON that nobody looks into stays raw.
"""

from typing import Any, Literal

import msgspec

from tollhouse.core.call import Usage

__all__ = [
    "Answer",
    "ArgumentsDelta",
    "Audio",
    "Began",
    "Cache",
    "Chat",
    "Choice",
    "Citation",
    "CitationDelta",
    "Document",
    "Ended",
    "Event",
    "Extra",
    "Format",
    "Image",
    "Json",
    "LogprobsDelta",
    "Media",
    "Message",
    "Opaque",
    "OpaqueTool",
    "Part",
    "PartBegan",
    "PartEnded",
    "Reasoning",
    "Refusal",
    "RefusalDelta",
    "Role",
    "SignatureDelta",
    "Stop",
    "Text",
    "TextDelta",
    "Thinking",
    "ThinkingDelta",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolResult",
    "Used",
]

Raw = msgspec.Raw

Extra = dict[str, Any]
"""Fields that only the request's own API knows, by name: unparsed (Raw), or an Extra of its own for an object that the
codec reads in part."""

Role = Literal["system", "developer", "user", "assistant", "tool"]

Stop = Literal[
    "stop",  # said all
    "length",  # the bound on output tokens
    "tool_calls",  # wants tools called
    "stop_sequence",
    "content_filter",  # withheld by a filter
    "refusal",  # the model refuses
    "pause",  # long work of the provider's own; to be continued by sending it back
    "context_window",  # the window is full
    "error",  # the provider could not finish, e.g. a malformed call
]


class Cache(msgspec.Struct, frozen=True):
    """A cache-control marker: the prompt up to here may be cached. ttl: "5m" or "1h", "" for the default."""

    ttl: str = ""


class Media(msgspec.Struct):
    """Where a picture, sound or document comes from: exactly one of data (base64), url, file (an id at the provider)
    and text. type: the media type, "" when it is not said."""

    type: str = ""
    data: str = ""
    url: str = ""
    file: str = ""
    text: str = ""


class Citation(msgspec.Struct):
    """Where a stretch of text comes from. kind: "url", "char", "page", "block" or "search" (what start and end count;
    None: not said). source: URL, or the index of a document in the request. begin, end: the stretch of the answer's
    text, in characters."""

    kind: str
    title: str | None = None
    url: str | None = None
    document: int | None = None
    start: int | None = None
    stop: int | None = None
    quote: str | None = None
    begin: int | None = None
    end: int | None = None
    extra: Extra | None = None


# ---- parts of a message


class Text(msgspec.Struct):
    text: str
    cache: Cache | None = None
    citations: list[Citation] | None = None
    extra: Extra | None = None


class Image(msgspec.Struct):
    """detail: "low", "high", "auto" ..., None when it is not said."""

    media: Media
    detail: str | None = None
    cache: Cache | None = None
    extra: Extra | None = None


class Audio(msgspec.Struct):
    """media.type: "audio/wav", "audio/mpeg" ..."""

    media: Media
    cache: Cache | None = None
    extra: Extra | None = None


class Document(msgspec.Struct):
    """A file to read: PDF, text, video. citations: whether the answer may cite it."""

    media: Media
    title: str | None = None
    context: str | None = None
    citations: bool | None = None
    cache: Cache | None = None
    extra: Extra | None = None


class Json(msgspec.Struct):
    """A value with structure, in a tool's result."""

    value: Raw


class ToolCall(msgspec.Struct):
    """arguments: JSON text of an object, as the model wrote it. signature: what a provider wants back with it."""

    id: str
    name: str
    arguments: str = "{}"
    signature: str | None = None
    cache: Cache | None = None
    extra: Extra | None = None


class ToolResult(msgspec.Struct):
    """id: of the ToolCall. name: of the tool, "" when it is not said (a codec that needs it looks for the call)."""

    id: str
    parts: "list[Part]"
    name: str = ""
    error: bool | None = None
    cache: Cache | None = None
    extra: Extra | None = None


class Thinking(msgspec.Struct):
    """What the model thought. signature: proves it to its provider. sealed: encrypted thought, with or without text
    that may be read."""

    text: str = ""
    signature: str | None = None
    sealed: str | None = None
    id: str | None = None
    extra: Extra | None = None


class Refusal(msgspec.Struct):
    text: str


class Opaque(msgspec.Struct):
    """A part that only the API `dialect` can say, whole, as it came."""

    dialect: str
    kind: str
    value: Raw


Part = Text | Image | Audio | Document | Json | ToolCall | ToolResult | Thinking | Refusal | Opaque


class Message(msgspec.Struct):
    """One turn, or a piece of one: an API that wants turns to alternate joins neighbours of one side. Instructions are
    messages of the roles system and developer; results of tools are parts of messages of the roles tool or user.
    name: of the participant."""

    role: Role
    parts: list[Part]
    name: str | None = None
    extra: Extra | None = None


# ---- the request


class Tool(msgspec.Struct):
    """A function the caller carries out. parameters: JSON Schema of its arguments, None when it has none."""

    name: str
    description: str | None = None
    parameters: Raw | None = None
    strict: bool | None = None
    cache: Cache | None = None
    extra: Extra | None = None


class OpaqueTool(msgspec.Struct):
    """A tool that only the API `dialect` knows: what the provider runs itself, and other kinds of functions."""

    dialect: str
    kind: str
    value: Raw


class ToolChoice(msgspec.Struct):
    """names: with "required", the only ones allowed; one of them forces that tool."""

    mode: Literal["auto", "none", "required"]
    names: tuple[str, ...] = ()


class Format(msgspec.Struct):
    """The form of the answer: any JSON object, or one that fits a schema."""

    kind: Literal["text", "json", "schema"]
    name: str = ""
    schema: Raw | None = None
    strict: bool | None = None
    description: str | None = None
    extra: Extra | None = None


class Reasoning(msgspec.Struct):
    """How much to think: effort ("none", "minimal", "low", "medium", "high" ...) or budget (tokens; 0 none, -1 the
    model decides). shown: whether thoughts are told. summary: how they are summed up."""

    effort: str | None = None
    budget: int | None = None
    shown: bool | None = None
    summary: str | None = None
    extra: Extra | None = None


class Chat(msgspec.Struct):
    """A request. dialect: the API it was made for (`Codec.name`), whose fields `extra` are. None: not said."""

    dialect: str
    model: str
    messages: list[Message]
    stream: bool = False
    tools: list[Tool | OpaqueTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel: bool | None = None
    format: Format | None = None
    reasoning: Reasoning | None = None
    max_output: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    include_usage: bool | None = None
    extra: Extra | None = None


# ---- the answer


class Choice(msgspec.Struct):
    """One answer. logprobs: OpenAI's form, a list of {token, logprob, bytes, top_logprobs}, raw. detail: the
    provider's own word for why it stopped."""

    parts: list[Part]
    stop: Stop = "stop"
    stop_sequence: str | None = None
    logprobs: Raw | None = None
    detail: str = ""
    extra: Extra | None = None


class Answer(msgspec.Struct):
    """created: unix seconds, 0 when it is not said. dialect: whose fields `extra` are."""

    dialect: str
    id: str
    model: str
    choices: list[Choice]
    created: int = 0
    usage: Usage | None = None
    extra: Extra | None = None


# ---- the stream: Began, then for each part PartBegan, its deltas, PartEnded; then Ended for each choice.
# `part` counts the parts of a choice from 0. Used may come at any time; the last one counts.


class Began(msgspec.Struct, gc=False):
    id: str
    model: str
    created: int = 0


class PartBegan(msgspec.Struct):
    """value: the part as far as it is known: mostly empty, a ToolCall has its id and name (and "" for arguments). An
    Opaque or a sealed Thinking is whole."""

    part: int
    value: Part
    choice: int = 0


class TextDelta(msgspec.Struct, gc=False):
    part: int
    text: str
    choice: int = 0


class ThinkingDelta(msgspec.Struct, gc=False):
    part: int
    text: str
    choice: int = 0


class SignatureDelta(msgspec.Struct, gc=False):
    """More of a Thinking's signature, or the whole of a ToolCall's."""

    part: int
    signature: str
    choice: int = 0


class ArgumentsDelta(msgspec.Struct, gc=False):
    """More of a ToolCall's arguments, JSON text cut anywhere."""

    part: int
    text: str
    choice: int = 0


class RefusalDelta(msgspec.Struct, gc=False):
    part: int
    text: str
    choice: int = 0


class CitationDelta(msgspec.Struct):
    part: int
    citation: Citation
    choice: int = 0


class LogprobsDelta(msgspec.Struct):
    """Of the text that the part's last delta brought; the form of Choice.logprobs."""

    part: int
    logprobs: Raw
    choice: int = 0


class PartEnded(msgspec.Struct, gc=False):
    part: int
    choice: int = 0


class Used(msgspec.Struct):
    usage: Usage


class Ended(msgspec.Struct, gc=False):
    """The choice is whole."""

    stop: Stop = "stop"
    stop_sequence: str | None = None
    detail: str = ""
    choice: int = 0


Event = (
    Began
    | PartBegan
    | TextDelta
    | ThinkingDelta
    | SignatureDelta
    | ArgumentsDelta
    | RefusalDelta
    | CitationDelta
    | LogprobsDelta
    | PartEnded
    | Used
    | Ended
)
