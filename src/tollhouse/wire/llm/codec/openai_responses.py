"""OpenAI responses and the neutral model: requests. Conversations are in `openai_responses_items`, whole answers in
`openai_responses_answer`, the stream in `openai_responses_stream` and `openai_responses_encoder`.

What only tells the service to do what everybody does without it (`store: false`, `truncation: "disabled"`), how to
cache, or what more to put into an answer is no loss elsewhere. Here functions are strict unless they say otherwise and
answers are stored, so what comes from another API says that it wants neither.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder
from tollhouse.wire.llm.codec.effort import effort_of
from tollhouse.wire.llm.codec.openai_responses_answer import decode_response, encode_response
from tollhouse.wire.llm.codec.openai_responses_encoder import ResponsesEncoder
from tollhouse.wire.llm.codec.openai_responses_items import place_of_message, place_of_part, read_items, write_items
from tollhouse.wire.llm.codec.openai_responses_stream import ResponsesDecoder
from tollhouse.wire.llm.codec.places import named
from tollhouse.wire.llm.codec.reading import Fields, encoded, own_value, put_back, written
from tollhouse.wire.llm.model import (
    Answer,
    Chat,
    Extra,
    Format,
    Message,
    OpaqueTool,
    Reasoning,
    Text,
    Tool,
    ToolChoice,
)

__all__ = ["OpenAIResponsesCodec", "ResponsesChat"]

Raw = msgspec.Raw

_STORED = ("prompt", "previous_response_id", "conversation")  # what may stand in place of `input`
_LOGPROBS = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"

# Fields that the two APIs of this service have in common.
_COMMON = (
    "metadata",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
)
_PLACES = {"format": "text.format", "logprobs": "include", "messages": "input", "parallel": "parallel_tool_calls"}
_EMPTY_SCHEMA = Raw(b'{"type":"object","properties":{}}')


class ResponsesChat(Chat):
    """A request of this API. instructed: the first message is `instructions`."""

    instructed: bool = False


class OpenAIResponsesCodec(Codec):
    """OpenAI's `POST /v1/responses`."""

    __slots__ = ()

    name = "responses"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {
        "include": (),
        "stream_options": (),
        "prompt_cache_key": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "max_tool_calls": (),  # of tools the service itself runs, which are lost if there are any
        "store": (b"false",),
        "background": (b"false",),
        "truncation": (b'"disabled"',),
        "service_tier": (b'"auto"', b'"default"'),
        "verbosity": (b'"medium"',),
        "caller": (b'{"type":"direct"}',),
    }

    # ---- requests
    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Chat:
        f = Fields(fields)
        f.raw("model")
        f.raw("stream")
        chat = ResponsesChat(self.name, model, [], stream=stream, include_usage=True)
        instructions = f.text("instructions")
        if instructions is not None:
            chat.messages.append(Message("system", [Text(instructions)]))
            chat.instructed = True
        if f.is_text("input"):
            chat.messages.append(Message("user", [Text(f.need_text("input"))]))
        elif f.has("input"):
            items = read_items(f.children("input") or [])
            if chat.instructed:
                items.insert(0, chat.messages[0])
                items.wheres.insert(0, [])
            chat.messages = items
        elif not any(f.has(name) for name in _STORED):
            f.fail("input", "is missing: it must be a string or a list of items")
        tools = f.children("tools")
        if tools is not None:
            chat.tools = [_tool(t) for t in tools]
        extra: Extra = {}
        _tool_choice(f, chat, extra)
        chat.parallel = f.flag("parallel_tool_calls")
        chat.max_output = f.integer("max_output_tokens")
        chat.temperature = f.number("temperature")
        chat.top_p = f.number("top_p")
        chat.top_logprobs = f.integer("top_logprobs")
        chat.user = f.text("user")
        include = f.texts("include")
        if include is not None:
            extra["include"] = written(include)
        if chat.top_logprobs or _LOGPROBS in (include or ()):
            chat.logprobs = True
        _text(f, chat)
        _reasoning(f, chat)
        extra.update(f.rest() or {})
        chat.extra = extra or None
        return chat

    def encode(self, chat: Chat, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        body: dict[str, Any] = {"model": model}
        instructions = _instructions(chat)
        if instructions is not None:
            body["instructions"] = instructions
        body["input"] = write_items(chat.messages, int(instructions is not None), chat.dialect, lost)
        if chat.stream:
            body["stream"] = True
        body.update(_settings(chat, lost))
        return encoded(body)

    def place(self, chat: Chat, place: str) -> str:
        return named(place, _PLACES, partial(place_of_message, chat), partial(place_of_part, chat))

    # ---- answers
    def decode_answer(self, body: bytes) -> Answer:
        return decode_response(body)

    def encode_answer(self, answer: Answer, chat: Chat) -> bytes:
        return encode_response(answer, asked(chat))

    def decoder(self) -> StreamDecoder:
        return ResponsesDecoder()

    def encoder(self, chat: Chat) -> StreamEncoder:
        return ResponsesEncoder(asked(chat))


# ---- reading a request


def _tool(f: Fields) -> Tool | OpaqueTool:
    kind = f.need_text("type")
    if kind != "function":
        return OpaqueTool("responses", kind, f.whole(type=kind))
    tool = Tool(f.need_text("name"), f.text("description"), f.object("parameters"))
    tool.strict = f.flag("strict")
    tool.extra = f.rest()
    return tool


def _tool_choice(f: Fields, chat: Chat, extra: Extra) -> None:
    """Among functions it is a ToolChoice; what names other tools only this API knows."""
    if f.is_text("tool_choice"):
        mode = f.need_text("tool_choice")
        if mode not in ("auto", "none", "required"):
            f.fail("tool_choice", f"{mode!r} is not one of auto, none, required")
        chat.tool_choice = ToolChoice(mode)  # type: ignore[arg-type]
        return
    choice = f.child("tool_choice")
    if choice is None:
        return
    whole = choice.untouched()
    kind = choice.need_text("type")
    if kind == "function":
        chat.tool_choice = ToolChoice("required", (choice.need_text("name"),))
    elif kind == "allowed_tools":
        mode = choice.text("mode") or "auto"
        if mode not in ("auto", "required"):
            choice.fail("mode", f"{mode!r} is not one of auto, required")
        tools = choice.children("tools")
        if tools is None:
            choice.fail("tools", "is missing: it must be a list of tools")
        names = [t.need_text("name") for t in tools if t.text("type") == "function"]
        if len(names) == len(tools) > 0:
            chat.tool_choice = ToolChoice(mode, tuple(names))  # type: ignore[arg-type]
        else:
            extra["tool_choice"] = whole
    else:
        extra["tool_choice"] = whole


def _text(f: Fields, chat: Chat) -> None:
    text = f.child("text")
    if text is None:
        return
    form = text.child("format")
    if form is not None:
        kind = form.need_text("type")
        if kind == "text":
            chat.format = Format("text")
        elif kind == "json_object":
            chat.format = Format("json")
        elif kind == "json_schema":
            chat.format = Format("schema", form.need_text("name"), form.object("schema"))
            chat.format.strict = form.flag("strict")
            chat.format.description = form.text("description")
            chat.format.extra = form.rest()
        else:
            form.fail("type", f"{kind!r} is not one of text, json_object, json_schema")
    f.leave("text", text)


def _reasoning(f: Fields, chat: Chat) -> None:
    fields = f.child("reasoning")
    if fields is None:
        return
    chat.reasoning = Reasoning(effort=fields.text("effort"))
    summary = fields.text("summary")
    if summary is not None:
        chat.reasoning.summary = summary
        chat.reasoning.shown = True
    chat.reasoning.extra = fields.rest()


# ---- writing a request


def _instructions(chat: Chat) -> str | None:
    """The first message, where it is nothing but the text of instructions."""
    if isinstance(chat, ResponsesChat) and not chat.instructed:
        return None
    if not chat.messages:
        return None
    message = chat.messages[0]
    if message.role != "system" or message.name is not None or message.extra or len(message.parts) != 1:
        return None
    text = message.parts[0]
    return text.text if isinstance(text, Text) and not text.citations and not text.extra else None


def _settings(chat: Chat, lost: Lost) -> dict[str, Any]:
    """All but the conversation."""
    own = chat.dialect == "responses"
    body: dict[str, Any] = {}
    if chat.max_output is not None:
        body["max_output_tokens"] = chat.max_output
    tools = [] if chat.tools is None else _write_tools(chat.tools, own, lost)
    if tools or own:  # a choice of none is refused there
        if chat.tools is not None:
            body["tools"] = tools
        if chat.tool_choice is not None:
            body["tool_choice"] = _write_choice(chat.tool_choice)
        if chat.parallel is not None:
            body["parallel_tool_calls"] = chat.parallel
    if chat.format is not None:
        body["text"] = {"format": _write_format(chat.format, own, lost)}
    if chat.reasoning is not None:
        _write_reasoning(chat.reasoning, body, own, lost)
    for name in ("temperature", "top_p", "top_logprobs", "user"):
        value = getattr(chat, name)
        if value is not None:
            body[name] = value
    for name, default in (("n", 1), ("frequency_penalty", 0), ("presence_penalty", 0)):
        if getattr(chat, name) not in (None, default):
            lost.add(name)
    for name in ("top_k", "seed"):
        if getattr(chat, name) is not None:
            lost.add(name)
    if chat.stop:
        lost.add("stop")
    if not own:
        body["store"] = False
        include = [_LOGPROBS] if chat.logprobs else []
        if body.get("reasoning", {}).get("effort") not in (None, "none"):
            include.append(_SEALED)
        if include:
            body["include"] = include
    extra = chat.extra
    if extra and chat.dialect == "chat":
        extra = extra.copy()
        body.update({name: extra.pop(name) for name in _COMMON if name in extra})
        verbosity = extra.pop("verbosity", None)
        if verbosity is not None:
            body.setdefault("text", {})["verbosity"] = verbosity
    put_back(body, extra, own, lost, "")
    return body


def _write_tools(tools: list[Tool | OpaqueTool], own: bool, lost: Lost) -> list[Any]:
    found: list[Any] = []
    for n, tool in enumerate(tools):
        if isinstance(tool, OpaqueTool):
            found += own_value(tool, "responses", f"tools[{n}]", lost)
            continue
        form: dict[str, Any] = {"type": "function", "name": tool.name}
        if tool.description is not None:
            form["description"] = tool.description
        if tool.parameters is not None:
            form["parameters"] = tool.parameters
        elif not own:
            form["parameters"] = _EMPTY_SCHEMA
        if tool.strict is not None or not own:
            form["strict"] = bool(tool.strict)
        put_back(form, tool.extra, own, lost, f"tools[{n}].")
        found.append(form)
    return found


def _write_choice(choice: ToolChoice) -> Any:
    if not choice.names:
        return choice.mode
    if choice.mode == "required" and len(choice.names) == 1:
        return {"type": "function", "name": choice.names[0]}
    tools = [{"type": "function", "name": name} for name in choice.names]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": tools}


def _write_format(form: Format, own: bool, lost: Lost) -> dict[str, Any]:
    if form.kind == "text":
        return {"type": "text"}
    if form.kind == "json":
        return {"type": "json_object"}
    schema: dict[str, Any] = {"type": "json_schema", "name": form.name or "answer"}
    if form.description is not None:
        schema["description"] = form.description
    if form.schema is not None or not own:
        schema["schema"] = form.schema if form.schema is not None else Raw(b"{}")
    if form.strict is not None or not own:
        schema["strict"] = bool(form.strict)
    put_back(schema, form.extra, own, lost, "format.")
    return schema


def _write_reasoning(reasoning: Reasoning, body: dict[str, Any], own: bool, lost: Lost) -> None:
    form: dict[str, Any] = {}
    effort = reasoning.effort
    if effort is None and reasoning.budget is not None and reasoning.budget >= 0:
        effort = effort_of(reasoning.budget)
    if effort is not None:
        form["effort"] = effort
    if reasoning.summary is not None:
        form["summary"] = reasoning.summary
    elif reasoning.shown and not own:
        form["summary"] = "auto"
    put_back(form, reasoning.extra, own, lost, "reasoning.")
    if form or own:
        body["reasoning"] = form


# ---- what an answer repeats


def asked(chat: Chat) -> dict[str, Any]:
    """The fields of a request that its answer has in it, those not given as they are then."""
    said = _settings(chat, Lost())
    told: dict[str, Any] = {
        "background": False,
        "instructions": _instructions(chat),
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {},
        "temperature": None,
        "text": {},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }
    told.update({name: said[name] for name in told if name in said})
    told["tools"] = [{"parameters": None, "strict": None, **t} if isinstance(t, dict) else t for t in told["tools"]]
    told["reasoning"] = {"effort": None, "summary": None, **told["reasoning"]}
    told["text"] = {"format": {"type": "text"}, **told["text"]}
    told["store"] = False  # nothing is kept for a later answer
    return told
