"""OpenAI chat completions and the neutral model: requests.

What others have is said the way servers of this API have come to say it: thoughts as `reasoning_content`, what proves
them as `reasoning_details`, a prompt's cache markers as `cache_control`, a call's signature as `extra_content`. OpenAI
caches by itself, so a cache marker is never lost. A tool's failed result says so in its text; there is no flag for it.

Messages are in `openai_chat_messages`, answers in `openai_chat_answer`, the stream in `openai_chat_stream` and
`openai_chat_encoder`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec

from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder
from tollhouse.wire.llm.codec.effort import effort_of
from tollhouse.wire.llm.codec.openai_chat_answer import read_answer, write_answer
from tollhouse.wire.llm.codec.openai_chat_encoder import ChatEncoder
from tollhouse.wire.llm.codec.openai_chat_messages import place_of_part, read_messages, write_messages
from tollhouse.wire.llm.codec.openai_chat_stream import ChatDecoder
from tollhouse.wire.llm.codec.places import named
from tollhouse.wire.llm.codec.reading import Fields, cache_control, encoded, is_utf8, own_value, put_back, read_cache
from tollhouse.wire.llm.model import Answer, Chat, Format, OpaqueTool, Reasoning, Tool, ToolChoice

__all__ = ["OpenAIChatCodec"]

Raw = msgspec.Raw

_NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_ABSENT = Raw()
_WITHIN = {"arguments": "function.arguments", "detail": "image_url.detail", "title": "file.filename"}
_PLACES = {
    "format": "response_format",
    "parallel": "parallel_tool_calls",
    "reasoning": "reasoning_effort",
    "reasoning.effort": "reasoning_effort",
}
_PLAIN = (*_NUMBERS, "seed", "n", "logprobs", "top_logprobs", "user", "stop")
_SIMPLE: dict[str, Callable[[Fields, str], Any]] = {
    **dict.fromkeys(_NUMBERS, Fields.number),
    **dict.fromkeys(("top_k", "seed", "n", "top_logprobs"), Fields.integer),
    "logprobs": Fields.flag,
    "user": Fields.text,
}
"""What has the same name in the neutral model."""


class OpenAIChatCodec(Codec):
    """`POST /chat/completions` of OpenAI and of who took it over. bound: the field for the bound on output tokens;
    servers that are not OpenAI's mostly know `max_tokens`."""

    __slots__ = ("_bound",)

    name = "chat"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {
        "cache_control": (),
        "include_obfuscation": (),
        "modalities": (b'["text"]',),
        "prompt_cache_breakpoint": (),
        "prompt_cache_key": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "service_tier": (b'"auto"', b'"default"'),
        "store": (b"false",),
        "verbosity": (b'"medium"',),
    }

    def __init__(self, bound: str = "max_completion_tokens") -> None:
        self._bound = bound

    # ---- requests
    def bounded(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        return {self._bound if name == "max_completion_tokens" else name: raw for name, raw in fields.items()}

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Chat:
        f = Fields(fields)
        f.drop("model", "stream")
        chat = Chat(self.name, model, read_messages(f), stream=stream)
        bound, older = f.integer("max_completion_tokens"), f.integer("max_tokens")
        chat.max_output = bound if bound is not None else older
        chat.tools = _tools(f)
        chat.tool_choice = _tool_choice(f)
        chat.parallel = f.flag("parallel_tool_calls")
        chat.format = _format(f)
        effort = f.text("reasoning_effort")
        if effort is not None:
            chat.reasoning = Reasoning(effort=effort)
        for name in f.present(_SIMPLE):
            setattr(chat, name, _SIMPLE[name](f, name))
        chat.stop = [f.need_text("stop")] if f.is_text("stop") else f.texts("stop")
        options = f.child("stream_options")
        if options is not None:
            chat.include_usage = options.flag("include_usage")
            f.leave("stream_options", options)
        chat.extra = f.rest()
        return chat

    def encode(self, chat: Chat, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        own = chat.dialect == self.name
        body: dict[str, Any] = {"model": model, "messages": write_messages(chat, own, lost)}
        if chat.stream:
            body["stream"] = True
        if chat.include_usage is not None and (own or (chat.stream and chat.include_usage)):
            body["stream_options"] = {"include_usage": chat.include_usage}
        if chat.max_output is not None:
            body[self._bound] = chat.max_output
        tools = None if chat.tools is None else _write_tools(chat.tools, own, lost)
        if tools or own:  # a choice of none, and none in a list, are refused there
            if tools is not None:
                body["tools"] = tools
            if chat.tool_choice is not None:
                body["tool_choice"] = _write_choice(chat.tool_choice)
            if chat.parallel is not None:
                body["parallel_tool_calls"] = chat.parallel
        if chat.format is not None:
            body["response_format"] = _write_format(chat.format, own, lost)
        if chat.reasoning is not None:
            effort = _effort(chat.reasoning)
            if effort is not None:
                body["reasoning_effort"] = effort
            put_back(body, chat.reasoning.extra, own, lost, "reasoning.")
        for name in _PLAIN:
            value = getattr(chat, name)
            if value is not None:
                body[name] = value
        if chat.top_k is not None:
            if own:
                body["top_k"] = chat.top_k
            else:
                lost.add("top_k")
        put_back(body, chat.extra, own, lost, "")
        return encoded(body)

    def place(self, chat: Chat, place: str) -> str:
        name = named(place, _PLACES, "messages[{}]".format, partial(place_of_part, chat))
        before, dot, last = name.rpartition("].")
        return f"{before}{dot}{_WITHIN.get(last, last)}"

    # ---- answers
    def decode_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def encode_answer(self, answer: Answer, chat: Chat) -> bytes:
        return write_answer(answer, own=answer.dialect == self.name)

    def decoder(self) -> StreamDecoder:
        return ChatDecoder()

    def encoder(self, chat: Chat) -> StreamEncoder:
        return ChatEncoder(usage=bool(chat.include_usage))


# ---- reading


class _PlainFunction(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: Raw = _ABSENT
    strict: bool | None = None


class _PlainTool(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual tool."""

    type: Literal["function"]
    function: _PlainFunction


_plain_tools = msgspec.json.Decoder(list[_PlainTool]).decode


def _tools(f: Fields) -> list[Tool | OpaqueTool] | None:
    plain = f.taken("tools", _plain_tools)
    if plain is not None:
        f.bounded("tools", len(plain))
        return [_plain_tool(tool.function, f, n) for n, tool in enumerate(plain)]
    tools = f.children("tools")
    return None if tools is None else [_tool(t) for t in tools]


def _plain_tool(function: _PlainFunction, f: Fields, number: int) -> Tool:
    tool = Tool(function.name, function.description, None, function.strict)
    schema = function.parameters
    if bytes(schema) not in (b"", b"null"):
        if bytes(schema)[:1] != b"{" or not is_utf8(schema):
            f.fail(f"tools[{number}].function.parameters", "must be an object, in UTF-8")
        tool.parameters = schema
    return tool


def _tool(f: Fields) -> Tool | OpaqueTool:
    kind = f.text("type") or "function"
    if kind != "function":
        return OpaqueTool("chat", kind, f.untouched())
    function = f.need_child("function", "an object with a name")
    tool = Tool(function.need_text("name"), function.text("description"), function.object("parameters"))
    tool.strict = function.flag("strict")
    tool.cache = read_cache(f)
    f.leave("function", function)
    tool.extra = f.rest()
    return tool


def _tool_choice(f: Fields) -> ToolChoice | None:
    """None also for what only this API can say (a tool of another kind), which then rides along."""
    if f.is_text("tool_choice"):
        mode = f.need_text("tool_choice")
        if mode not in ("auto", "none", "required"):
            f.fail("tool_choice", f"{mode!r} is not one of auto, none, required")
        return ToolChoice(mode)  # type: ignore[arg-type]
    choice = f.peek("tool_choice")
    if choice is None:
        return None
    kind = choice.need_text("type")
    if kind == "function":
        f.raw("tool_choice")
        function = choice.need_child("function", "an object with a name")
        return ToolChoice("required", (function.need_text("name"),))
    if kind != "allowed_tools":
        return None
    allowed = choice.need_child(kind, "an object with mode and tools")
    mode = allowed.need_text("mode")
    if mode not in ("auto", "required"):
        allowed.fail("mode", f"{mode!r} is not one of auto, required")
    names = []
    for tool in allowed.children("tools") or ():
        if (tool.text("type") or "function") != "function":
            return None
        names.append(tool.need_child("function", "an object with a name").need_text("name"))
    if not names:
        allowed.fail("tools", "must be a list of at least one tool")
    f.raw("tool_choice")
    return ToolChoice(mode, tuple(names))  # type: ignore[arg-type]


def _format(f: Fields) -> Format | None:
    """None also for a form that only a server of its own knows, which then rides along."""
    form = f.peek("response_format")
    if form is None:
        return None
    kind = form.need_text("type")
    if kind not in ("text", "json_object", "json_schema"):
        return None
    f.raw("response_format")
    if kind != "json_schema":
        return Format("text" if kind == "text" else "json", extra=form.rest())
    schema = form.need_child("json_schema", "an object with name and schema")
    found = Format("schema", schema.need_text("name"), schema.object("schema"))
    found.strict = schema.flag("strict")
    found.description = schema.text("description")
    form.leave("json_schema", schema)
    found.extra = form.rest()
    return found


# ---- writing


def _write_tools(tools: list[Tool | OpaqueTool], own: bool, lost: Lost) -> list[Any]:
    found: list[Any] = []
    for n, tool in enumerate(tools):
        if isinstance(tool, OpaqueTool):
            found += own_value(tool, "chat", f"tools[{n}]", lost)
            continue
        function: dict[str, Any] = {"name": tool.name}
        for name in ("description", "parameters", "strict"):
            value = getattr(tool, name)
            if value is not None:
                function[name] = value
        form: dict[str, Any] = {"type": "function", "function": function}
        if tool.cache is not None and own:
            form["cache_control"] = cache_control(tool.cache.ttl)
        put_back(form, tool.extra, own, lost, f"tools[{n}].")
        found.append(form)
    return found


def _write_choice(choice: ToolChoice) -> Any:
    if not choice.names or choice.mode == "none":
        return choice.mode
    if choice.mode == "required" and len(choice.names) == 1:
        return {"type": "function", "function": {"name": choice.names[0]}}
    tools = [{"type": "function", "function": {"name": name}} for name in choice.names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _write_format(format: Format, own: bool, lost: Lost) -> dict[str, Any]:
    form: dict[str, Any]
    if format.kind == "schema":
        schema: dict[str, Any] = {"name": format.name or "answer"}
        for name in ("description", "schema", "strict"):
            value = getattr(format, name)
            if value is not None:
                schema[name] = value
        form = {"type": "json_schema", "json_schema": schema}
    else:
        form = {"type": "json_object" if format.kind == "json" else "text"}
    put_back(form, format.extra, own, lost, "format.")
    return form


def _effort(reasoning: Reasoning) -> str | None:
    """`reasoning_effort`; None where the model decides."""
    budget = reasoning.budget
    if budget == 0:
        return "none"
    if reasoning.effort is not None:
        return reasoning.effort
    return None if budget is None or budget < 0 else effort_of(budget)
