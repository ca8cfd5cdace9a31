"""Gemini `generateContent` and the neutral model: requests. Whole answers are in `gemini_answer`, the stream is in
`gemini_stream`, turns and their parts are in `gemini_parts`.

The model and whether to stream are in the URL, not in the body. A turn is `user` or `model`, and instructions stand
before all of them. Functions' schemas come in two forms: JSON Schema, and an older one of its own, which is read as
JSON Schema and written as that. How much to think is a number of tokens up to the models 2.5, and a word since 3.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder
from tollhouse.wire.llm.codec.effort import budget_of, effort_of
from tollhouse.wire.llm.codec.gemini_answer import read_answer, write_answer
from tollhouse.wire.llm.codec.gemini_parts import (
    below,
    each,
    join_calls,
    join_thoughts,
    opened,
    read_content,
    read_system,
    write_contents,
)
from tollhouse.wire.llm.codec.gemini_schema import json_schema
from tollhouse.wire.llm.codec.gemini_stream import GenerateDecoder, GenerateEncoder
from tollhouse.wire.llm.codec.places import Turns, named
from tollhouse.wire.llm.codec.reading import Fields, encoded, own_value, put_back, written
from tollhouse.wire.llm.model import (
    Answer,
    Chat,
    Format,
    OpaqueTool,
    Reasoning,
    Tool,
    ToolChoice,
)

__all__ = ["GeminiCodec"]

Raw = msgspec.Raw

_object = msgspec.json.Decoder(dict[str, Raw]).decode

_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto", "MODE_UNSPECIFIED": "auto"}
_WRITTEN_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
_NUMBERS = (
    ("temperature", "temperature"),
    ("topP", "top_p"),
    ("presencePenalty", "presence_penalty"),
    ("frequencyPenalty", "frequency_penalty"),
)
_JSON, _PLAIN = "application/json", "text/plain"
_SYSTEM = "systemInstruction."
_PLACES = {
    **{ours: f"generationConfig.{theirs}" for theirs, ours in _NUMBERS},
    "format": "generationConfig.responseMimeType",
    "format.responseMimeType": "generationConfig.responseMimeType",
    "logprobs": "generationConfig.responseLogprobs",
    "messages": "contents",
    "n": "generationConfig.candidateCount",
    "reasoning": "generationConfig.thinkingConfig",
    "reasoning.effort": "generationConfig.thinkingConfig.thinkingLevel",
    "seed": "generationConfig.seed",
    "stop": "generationConfig.stopSequences",
    "top_k": "generationConfig.topK",
    "top_logprobs": "generationConfig.logprobs",
}
_GENERATION = re.compile(r"gemini-(\d+)")
_LEVELS = {"none": "MINIMAL", "minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH"}
_LEVELS |= {"xhigh": "HIGH", "max": "HIGH"}  # not every model of the third generation has more
_LARGEST_BUDGET = 24_576  # that every model up to 2.5 takes
_SMALLEST_BUDGET = 128  # of a model that always thinks
_LARGEST_SEED = 2**31 - 1


class GeminiCodec(Codec):
    """Gemini's `models/{model}:generateContent` and `:streamGenerateContent`, at the Gemini API and at Vertex AI."""

    __slots__ = ()

    name = "generate"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {
        "audioTimestamp": (b"false",),
        "displayName": (),
        "enableEnhancedCivicAnswers": (b"false",),
        "includeServerSideToolInvocations": (b"false",),
        "mediaResolution": (b'"MEDIA_RESOLUTION_UNSPECIFIED"',),
        "mode": (b'"VALIDATED"',),
        "responseModalities": (b'["TEXT"]', b'["text"]'),
        "serviceTier": (b'"standard"', b'"unspecified"'),
        "streamFunctionCallArguments": (),
        "thought": (),
        "thoughtSignature": (),
    }

    # ---- requests
    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Chat:
        f = opened(Fields(fields))
        f.raw("model")
        f.raw("stream")
        contents = each(f, "contents")
        if contents is None:
            f.fail("contents", "is missing: it must be a list of contents")
        messages = Turns([read_content(c) for c in contents], [c.where for c in contents])
        system = read_system(f)
        if system is not None:
            messages.insert(0, system)
            messages.wheres.insert(0, _SYSTEM)
        join_thoughts(messages)
        join_calls(messages)
        chat = Chat(self.name, model, messages, stream=stream, include_usage=True)
        tools = each(f, "tools")
        if tools is not None:
            chat.tools = [one for tool in tools for one in _read_tools(tool)]
        for name, read in (("generationConfig", _read_config), ("toolConfig", _read_choice)):
            inner = below(f, name)
            if inner is not None:
                read(inner, chat)
                f.leave(name, inner)
        chat.extra = f.rest()
        return chat

    def encode(self, chat: Chat, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        """model: the provider's name for it, which tells its generation. A bound on the output is not needed."""
        own = chat.dialect == self.name
        generation = _generation(model)
        third = generation is not None and generation >= 3
        body: dict[str, Any] = {}
        system, contents = write_contents(chat, own, lost, signed=third or generation is None)
        body["contents"] = contents
        if system is not None:
            body["systemInstruction"] = system
        tools = _write_tools(chat.tools, own, lost) if chat.tools else []
        if tools:
            body["tools"] = tools
        if chat.tool_choice is not None and (own or tools):
            body["toolConfig"] = {"functionCallingConfig": _write_choice(chat.tool_choice)}
        if chat.parallel is False and tools:
            lost.add("parallel")
        config = _write_config(chat, own, third, "-pro" in model, lost)
        if config:
            body["generationConfig"] = config
        if chat.user is not None:
            lost.add("user")
        put_back(body, chat.extra, own, lost, "")
        return encoded(body)

    def place(self, chat: Chat, place: str) -> str:
        return named(
            place,
            _PLACES,
            partial(_place_of_content, chat),
            partial(_place_of_part, chat),
            partial(_place_of_tool, chat),
        )

    # ---- answers
    def decode_answer(self, body: bytes) -> Answer:
        return read_answer(body)

    def encode_answer(self, answer: Answer, chat: Chat) -> bytes:
        return write_answer(answer, own=answer.dialect == self.name)

    def decoder(self) -> StreamDecoder:
        return GenerateDecoder()

    def encoder(self, chat: Chat) -> StreamEncoder:
        return GenerateEncoder()


# ---- reading a request


def _read_tools(f: Fields) -> list[Tool | OpaqueTool]:
    """An entry of `tools`: several functions, and what the provider runs itself."""
    found: list[Tool | OpaqueTool] = [_function(d) for d in each(f, "functionDeclarations") or ()]
    for name, value in (f.rest() or {}).items():
        found.append(OpaqueTool(GeminiCodec.name, name, written({name: value})))
    return found


def _function(f: Fields) -> Tool:
    tool = Tool(f.need_text("name"), f.text("description"), f.object("parametersJsonSchema"))
    if tool.parameters is None and (older := f.object("parameters")) is not None:
        tool.parameters = json_schema(older, f.where + "parameters")
    tool.extra = f.rest()
    return tool


def _read_choice(f: Fields, chat: Chat) -> None:
    peeked = f.peek("functionCallingConfig")
    calling = below(f, "functionCallingConfig")
    if peeked is None or calling is None:
        return
    mode = (opened(peeked).text("mode") or "AUTO").upper()
    ours = _MODES.get(mode)
    if ours is None:
        calling.fail("mode", f"{mode!r} is not one of AUTO, ANY, NONE, VALIDATED")
    names = tuple(calling.texts("allowedFunctionNames") or ())
    chat.tool_choice = ToolChoice(ours, names)  # type: ignore[arg-type]
    if mode != "VALIDATED" or names:
        calling.raw("mode")  # else it rides along: that arguments must fit is said with names only
    f.leave("functionCallingConfig", calling)


def _read_config(f: Fields, chat: Chat) -> None:
    for theirs, ours in _NUMBERS:
        setattr(chat, ours, f.number(theirs))
    top_k = f.number("topK")
    if top_k is not None:
        if not top_k.is_integer():
            f.fail("topK", "must be an integer")
        chat.top_k = int(top_k)
    chat.stop = f.texts("stopSequences")
    chat.max_output = f.integer("maxOutputTokens")
    chat.n = f.integer("candidateCount")
    chat.seed = f.integer("seed")
    chat.logprobs = f.flag("responseLogprobs")
    chat.top_logprobs = f.integer("logprobs")
    chat.format = _read_format(f)
    thinking = below(f, "thinkingConfig")
    if thinking is None:
        return
    level = thinking.text("thinkingLevel")
    if level is not None:
        level = None if level.upper() == "THINKING_LEVEL_UNSPECIFIED" else level.lower()
    chat.reasoning = Reasoning(level, thinking.integer("thinkingBudget"), thinking.flag("includeThoughts"))
    chat.reasoning.extra = thinking.rest()


def _read_format(f: Fields) -> Format | None:
    kind = f.text("responseMimeType")
    schema = f.object("responseJsonSchema")
    if schema is None and (older := f.object("responseSchema")) is not None:
        schema = json_schema(older, f.where + "responseSchema")
    if schema is not None:
        form = Format("schema", schema=schema)
    elif kind is not None:
        form = Format("json" if kind == _JSON else "text")
    else:
        return None
    if kind is not None and kind != (_PLAIN if form.kind == "text" else _JSON):
        form.extra = {"responseMimeType": written(kind)}
    return form


def _place_of_content(chat: Chat, n: int) -> str:
    """Thoughts that were put together may have left a content out; then none has a number."""
    messages = chat.messages
    if not isinstance(messages, Turns) or len(messages) != len(messages.wheres):
        return "contents"
    return messages.wheres[n][:-1]


def _place_of_part(chat: Chat, n: int, k: int, inner: int | None) -> str:
    where = _place_of_content(chat, n)
    if where == "contents":
        return where
    if inner is None:
        return f"{where}.parts[{k}]"
    answer = f"{where}.parts[{k}].functionResponse"
    return f"{answer}.parts[{inner - 1}]" if inner else f"{answer}.response"


def _place_of_tool(chat: Chat, n: int) -> str:
    tools = chat.tools or []
    if isinstance(tools[n], OpaqueTool):
        return "tools"
    return f"tools.functionDeclarations[{sum(isinstance(tool, Tool) for tool in tools[:n])}]"


# ---- writing a request


def _generation(model: str) -> int | None:
    """Of the model; None where its name does not say."""
    found = _GENERATION.search(model)
    if found is not None:
        return int(found[1][:4])
    return 3 if "gemini" in model and model.endswith("-latest") else None


def _write_tools(tools: list[Tool | OpaqueTool], own: bool, lost: Lost) -> list[Any]:
    """All functions stand in one entry, the first. There is no `strict`: arguments mostly fit their schema anyway."""
    found: list[Any] = []
    functions: list[dict[str, Any]] = []
    for n, tool in enumerate(tools):
        if isinstance(tool, OpaqueTool):
            found += own_value(tool, GeminiCodec.name, f"tools[{n}]", lost)
            continue
        form: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            form["description"] = tool.description
        if tool.parameters is not None:
            form["parametersJsonSchema"] = tool.parameters
        put_back(form, tool.extra, own, lost, f"tools[{n}].")
        functions.append(form)
    if functions:
        found.insert(0, {"functionDeclarations": functions})
    return found


def _write_choice(choice: ToolChoice) -> dict[str, Any]:
    """Which functions may be called is only said where calls must fit their schema."""
    mode = "VALIDATED" if choice.mode == "auto" and choice.names else _WRITTEN_MODES[choice.mode]
    calling: dict[str, Any] = {"mode": mode}
    if choice.names:
        calling["allowedFunctionNames"] = choice.names
    return calling


def _write_config(chat: Chat, own: bool, third: bool, pro: bool, lost: Lost) -> dict[str, Any]:
    config: dict[str, Any] = {}
    plain = (
        *_NUMBERS,
        ("topK", "top_k"),
        ("stopSequences", "stop"),
        ("maxOutputTokens", "max_output"),
        ("candidateCount", "n"),
        ("responseLogprobs", "logprobs"),
    )
    for theirs, ours in plain:
        value = getattr(chat, ours)
        if value is not None:
            config[theirs] = value
    if chat.top_logprobs is not None and (own or chat.logprobs):
        config["logprobs"] = chat.top_logprobs
    if chat.seed is not None:
        if own or -_LARGEST_SEED <= chat.seed <= _LARGEST_SEED:
            config["seed"] = chat.seed
        else:
            lost.add("seed: more than 31 bits")
    form = chat.format
    if form is not None:
        config["responseMimeType"] = _PLAIN if form.kind == "text" else _JSON
        if form.schema is not None:
            config["responseJsonSchema"] = _described(form)
        put_back(config, form.extra, own, lost, "format.")
    reasoning = chat.reasoning
    if reasoning is not None:
        thinking = _write_reasoning(reasoning, own, third, pro, lost)
        if thinking:
            config["thinkingConfig"] = thinking
    return config


def _described(form: Format) -> Raw:
    """The schema; a description of the format stands in it."""
    assert form.schema is not None
    if form.description is None:
        return form.schema
    try:
        fields = _object(form.schema)
    except UNREADABLE:
        return form.schema
    return form.schema if "description" in fields else written({**fields, "description": form.description})


def _write_reasoning(reasoning: Reasoning, own: bool, third: bool, pro: bool, lost: Lost) -> dict[str, Any]:
    """third: the model takes a word. pro: it cannot do without thought, and gets the least it takes."""
    thinking: dict[str, Any] = {}
    effort, budget = reasoning.effort, reasoning.budget
    if own:
        if effort is not None:
            thinking["thinkingLevel"] = effort.upper()
    elif third:
        if effort is None and budget is not None and budget >= 0:
            effort = effort_of(budget)
        budget = None  # to decide by itself is what it does unasked
        if effort is not None:
            level = _LEVELS.get(effort)
            if level is None:
                lost.add(f"reasoning.effort: {effort}")
            else:
                thinking["thinkingLevel"] = "LOW" if pro and level == "MINIMAL" else level
    elif budget is None and effort is not None:
        budget = budget_of(effort)
        if budget is None:
            lost.add(f"reasoning.effort: {effort}")
        else:
            budget = min(budget, _LARGEST_BUDGET)
    if budget is not None:
        thinking["thinkingBudget"] = _SMALLEST_BUDGET if pro and not own and 0 <= budget < _SMALLEST_BUDGET else budget
    shown = reasoning.shown
    if shown is None and not own and (budget or thinking.get("thinkingLevel") or reasoning.summary is not None):
        shown = effort != "none"
    if shown is not None:
        thinking["includeThoughts"] = shown
    put_back(thinking, reasoning.extra, own, lost, "reasoning.")
    return thinking
