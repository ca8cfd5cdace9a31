"""Anthropic messages and the neutral model: requests, and whole answers but for their blocks.

Here an answer needs a bound, a budget for thought is a part of it, and whether calls may be parallel belongs to the
choice of tools. Blocks are in `anthropic_blocks`, the stream in `anthropic_stream`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder, misread
from tollhouse.wire.llm.codec.anthropic_blocks import (
    read_block,
    read_content,
    read_turn,
    write_answer_blocks,
    write_cache,
    write_turns,
)
from tollhouse.wire.llm.codec.anthropic_stops import REASONS, STOPS
from tollhouse.wire.llm.codec.anthropic_stream import MessagesDecoder, MessagesEncoder
from tollhouse.wire.llm.codec.claude import Thought, asked_thinking, sampling, version_of, written_thinking
from tollhouse.wire.llm.codec.places import Turns, named, place_of_content, place_of_turn
from tollhouse.wire.llm.codec.reading import Fields, encoded, is_utf8, own_value, put_back, read_cache, restore, written
from tollhouse.wire.llm.model import (
    Answer,
    Chat,
    Choice,
    Format,
    Message,
    OpaqueTool,
    Part,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from tollhouse.wire.llm.usage import MessagesUsage, counted

__all__ = ["AnthropicCodec"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_usage = msgspec.json.Decoder(MessagesUsage, strict=False).decode

_EMPTY_SCHEMA = Raw(b'{"type":"object","properties":{}}')
_NONE = Thought()
_SYSTEM = "system."
_PLACES = {
    "format": "output_config.format",
    "parallel": "tool_choice.disable_parallel_tool_use",
    "reasoning": "thinking",
    "reasoning.effort": "output_config.effort",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
}


class AnthropicCodec(Codec):
    """Anthropic's `POST /v1/messages`."""

    __slots__ = ()

    name = "messages"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {
        "cache_control": (),
        "caller": (b'{"type":"direct"}',),
        "defer_loading": (b"false",),
        "eager_input_streaming": (),
        "service_tier": (b'"auto"',),
        "speed": (b'"standard"',),
    }

    # ---- requests
    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Chat:
        f = Fields(fields)
        f.raw("model")
        f.raw("stream")
        turns = f.children("messages")
        if turns is None:
            f.fail("messages", "is missing: it must be a list of messages")
        messages = Turns([read_turn(m) for m in turns], [m.where for m in turns])
        if f.has("system"):
            messages.insert(0, Message("system", read_content(f, "system")))
            messages.wheres.insert(0, _SYSTEM)
        chat = Chat(self.name, model, messages, stream=stream, include_usage=True)
        chat.max_output = f.integer("max_tokens")
        chat.stop = f.texts("stop_sequences")
        chat.temperature = f.number("temperature")
        chat.top_p = f.number("top_p")
        chat.top_k = f.integer("top_k")
        tools = f.children("tools")
        if tools is not None:
            chat.tools = [_tool(t) for t in tools]
        choice = f.child("tool_choice")
        if choice is not None:
            _tool_choice(choice, chat)
            f.leave("tool_choice", choice)
        _output(f, chat)
        _thinking(f, chat)
        metadata = f.child("metadata")
        if metadata is not None:
            chat.user = metadata.text("user_id")
            f.leave("metadata", metadata)
        chat.extra = f.rest()
        return chat

    def encode(self, chat: Chat, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        own = chat.dialect == self.name
        body: dict[str, Any] = {"model": model}
        body["max_tokens"] = chat.max_output if chat.max_output is not None else max_output
        system, messages = write_turns(chat, own, lost)
        if system is not None:
            body["system"] = system
        body["messages"] = messages
        if chat.stream:
            body["stream"] = True
        if chat.stop is not None:
            body["stop_sequences"] = chat.stop
        thought = _NONE if own or chat.reasoning is None else written_thinking(chat, version_of(model), lost)
        if chat.temperature is not None or chat.top_p is not None or chat.top_k is not None:
            body.update(_sampling(chat) if own else sampling(chat, version_of(model), thought.thinks, lost))
        tools = None if chat.tools is None else _write_tools(chat, own, lost)
        if tools or (own and tools is not None):
            body["tools"] = tools
        choice = _write_choice(chat) if tools or own else None  # a choice of none is refused there
        if choice is not None:
            body["tool_choice"] = choice
        config = _write_output(chat, own, lost)
        if thought.effort is not None:
            config["effort"] = thought.effort
        if config:
            body["output_config"] = config
        if chat.max_output is None:
            body["max_tokens"] += thought.tokens  # the gateway's own bound leaves room for it
        if chat.reasoning is not None:
            thinking = asked_thinking(chat.reasoning) if own else thought.form
            put_back(thinking, chat.reasoning.extra, own, lost, "reasoning.")
            if thinking:
                body["thinking"] = thinking
        if chat.user is not None:
            body["metadata"] = {"user_id": chat.user}
        _no_place(chat, lost)
        put_back(body, chat.extra, own, lost, "")
        return encoded(body)

    def place(self, chat: Chat, place: str) -> str:
        effort = chat.reasoning is not None and chat.reasoning.budget is None
        fields = {**_PLACES, "reasoning": "output_config.effort"} if effort else _PLACES
        return named(place, fields, partial(place_of_turn, chat), partial(_place_of_block, chat))

    # ---- answers
    def decode_answer(self, body: bytes) -> Answer:
        plain = _plain(body)
        if plain is not None:
            return plain
        f = Fields.of(body, "answer.", misread)
        blocks = f.children("content")
        if blocks is None:
            f.fail("content", "is missing")
        f.raw("type")
        f.raw("role")
        answer = Answer(self.name, f.text("id") or "", f.text("model") or "", [])
        reason = f.text("stop_reason") or "end_turn"
        choice = Choice([read_block(b) for b in blocks], STOPS.get(reason, "stop"), f.text("stop_sequence"))
        choice.detail = reason
        answer.choices.append(choice)
        usage = f.raw("usage")
        if usage is not None:
            answer.usage = counted(_usage, usage)
        answer.extra = f.rest()
        return answer

    def encode_answer(self, answer: Answer, chat: Chat) -> bytes:
        """There is one choice here; what others say is not told."""
        own = answer.dialect == self.name
        choice = answer.choices[0] if answer.choices else Choice([])
        form: dict[str, Any] = {
            "id": answer.id,
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": write_answer_blocks(choice.parts, own=own, cut=choice.stop in ("length", "context_window")),
            "stop_reason": choice.detail if own and choice.detail else REASONS[choice.stop],
            "stop_sequence": choice.stop_sequence,
            "usage": MessagesUsage.form(answer.usage or Usage()),
        }
        if own and answer.extra:
            restore(form, answer.extra)
        return _encode(form)

    def decoder(self) -> StreamDecoder:
        return MessagesDecoder()

    def encoder(self, chat: Chat) -> StreamEncoder:
        return MessagesEncoder()


# ---- reading an answer


class _PlainText(msgspec.Struct, gc=False, forbid_unknown_fields=True, tag="text", tag_field="type"):
    text: str
    citations: None = None


class _PlainCall(msgspec.Struct, gc=False, forbid_unknown_fields=True, tag="tool_use", tag_field="type"):
    id: str
    name: str
    input: Raw


class _PlainAnswer(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual answer: texts and calls, and no field that is only this API's."""

    id: str
    model: str
    content: list[_PlainText | _PlainCall]
    usage: MessagesUsage
    type: str = ""
    role: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None


_plain_answer = msgspec.json.Decoder(_PlainAnswer).decode


def _plain(body: bytes) -> Answer | None:
    """None for what is not the usual answer."""
    try:
        told = _plain_answer(body)
    except UNREADABLE:
        return None
    parts: list[Part] = []
    for block in told.content:
        if isinstance(block, _PlainText):
            parts.append(Text(block.text))
        elif bytes(block.input)[:1] == b"{" and is_utf8(block.input):
            parts.append(ToolCall(block.id, block.name, bytes(block.input).decode()))
        else:
            return None
    reason = told.stop_reason or "end_turn"
    choice = Choice(parts, STOPS.get(reason, "stop"), told.stop_sequence, detail=reason)
    return Answer("messages", told.id, told.model, [choice], usage=told.usage.normal())


# ---- reading a request


def _tool(f: Fields) -> Tool | OpaqueTool:
    kind = f.text("type")
    if kind is not None and kind != "custom":
        return OpaqueTool("messages", kind, f.untouched())
    tool = Tool(f.need_text("name"), f.text("description"), f.object("input_schema"))
    tool.strict = f.flag("strict")
    tool.cache = read_cache(f)
    tool.extra = f.rest()
    return tool


def _tool_choice(f: Fields, chat: Chat) -> None:
    kind = f.need_text("type")
    if kind == "tool":
        chat.tool_choice = ToolChoice("required", (f.need_text("name"),))
    elif kind in ("auto", "any", "none"):
        chat.tool_choice = ToolChoice("required" if kind == "any" else kind)  # type: ignore[arg-type]
    else:
        f.fail("type", f"{kind!r} is not one of auto, any, tool, none")
    single = f.flag("disable_parallel_tool_use")
    if single is not None:
        chat.parallel = not single


def _output(f: Fields, chat: Chat) -> None:
    """`output_config`: the answer's form, and how much effort it is worth."""
    config = f.child("output_config")
    if config is None:
        return
    effort = config.text("effort")
    if effort is not None:
        chat.reasoning = Reasoning(effort=effort)
    form = config.child("format")
    if form is not None:
        kind = form.need_text("type")
        if kind != "json_schema":
            form.fail("type", f"{kind!r} is not json_schema")
        schema = form.object("schema")
        if schema is None:
            form.fail("schema", "is missing: it must be an object")
        chat.format = Format("schema", schema=schema, extra=form.rest())
    f.leave("output_config", config)


def _thinking(f: Fields, chat: Chat) -> None:
    """`thinking`; a kind that only this API has rides along."""
    thinking = f.peek("thinking")
    if thinking is None:
        return
    kind = thinking.need_text("type")
    if kind not in ("disabled", "enabled", "adaptive"):
        return
    f.raw("thinking")
    reasoning = chat.reasoning = chat.reasoning or Reasoning()
    if kind == "enabled":
        reasoning.budget = thinking.integer("budget_tokens")
        if reasoning.budget is None:
            thinking.fail("budget_tokens", "is missing: it must be an integer")
    else:
        reasoning.budget = 0 if kind == "disabled" else -1
    display = thinking.text("display")
    if display is not None:
        reasoning.shown = display != "omitted"
    reasoning.extra = thinking.rest()


def _place_of_block(chat: Chat, n: int, k: int, inner: int | None) -> str:
    content = place_of_content(chat, n)
    if content == "messages":
        return content
    return f"{content}[{k}]" if inner is None else f"{content}[{k}].content[{inner}]"


# ---- writing a request


def _write_tools(chat: Chat, own: bool, lost: Lost) -> list[Any]:
    found: list[Any] = []
    choice = chat.tool_choice
    allowed = choice.names if choice is not None and _few(choice) else ()
    for n, tool in enumerate(chat.tools or ()):
        if isinstance(tool, OpaqueTool):
            found += own_value(tool, "messages", f"tools[{n}]", lost)
            continue
        if allowed and tool.name not in allowed:
            continue
        form: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            form["description"] = tool.description
        form["input_schema"] = tool.parameters if tool.parameters is not None else _EMPTY_SCHEMA
        if tool.strict or (own and tool.strict is not None):
            form["strict"] = tool.strict
        if tool.cache is not None:
            form["cache_control"] = write_cache(tool.cache, own)
        put_back(form, tool.extra, own, lost, f"tools[{n}].")
        found.append(form)
    return found


def _few(choice: ToolChoice) -> bool:
    """Whether only some tools may be called, and not one must be. Here the others are not named at all then."""
    return bool(choice.names) and (choice.mode == "auto" or len(choice.names) > 1)


def _write_choice(chat: Chat) -> dict[str, Any] | None:
    choice = chat.tool_choice
    form: dict[str, Any]
    if choice is None:
        if chat.parallel is None or chat.parallel or not chat.tools:
            return None
        form = {"type": "auto"}
    elif choice.mode == "required" and len(choice.names) == 1:
        form = {"type": "tool", "name": choice.names[0]}
    else:
        form = {"type": "any" if choice.mode == "required" else choice.mode}
    if chat.parallel is not None and form["type"] != "none" and (not chat.parallel or chat.dialect == "messages"):
        form["disable_parallel_tool_use"] = not chat.parallel
    return form


def _write_output(chat: Chat, own: bool, lost: Lost) -> dict[str, Any]:
    """`output_config`. Of a format its name and whether it is strict are not said: here it is always kept."""
    config: dict[str, Any] = {}
    form = chat.format
    if form is not None:
        told: dict[str, Any] = {}
        if form.kind == "schema":
            told = {"type": "json_schema", "schema": _described(form)}
            config["format"] = told
        elif form.kind == "json":
            lost.add("format: JSON without a schema")
        put_back(told, form.extra, own, lost, "format.")
    if own and chat.reasoning is not None and chat.reasoning.effort is not None:
        config["effort"] = chat.reasoning.effort
    return config


def _described(form: Format) -> Raw:
    """The schema; a description of the format stands in it."""
    schema = form.schema if form.schema is not None else Raw(b"{}")
    if form.description is None:
        return schema
    try:
        fields = _object(schema)
    except UNREADABLE:
        return schema
    if "description" in fields:
        return schema
    return written({**fields, "description": form.description})


def _sampling(chat: Chat) -> dict[str, Any]:
    """As a caller of this API said it."""
    told = {"temperature": chat.temperature, "top_p": chat.top_p, "top_k": chat.top_k}
    return {name: value for name, value in told.items() if value is not None}


def _no_place(chat: Chat, lost: Lost) -> None:
    """Wishes for which there is no field; a default is no wish."""
    for name, default in (
        ("frequency_penalty", 0),
        ("presence_penalty", 0),
        ("n", 1),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("seed", None),
    ):
        value = getattr(chat, name)
        if value is not None and value != default:
            lost.add(name)
