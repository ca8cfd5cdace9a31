"""Bedrock Converse and the neutral model: requests and whole answers. Its stream is in `converse_stream`, its blocks
are in `converse_parts`, its tools in `converse_tools`.

The model and whether to stream are in the URL, not in the body. Instructions before the first turn are the field
`system`; neighbours of one side are joined into one turn. What only one family of models has stands in
`additionalModelRequestFields`, in that family's words, so what can be said depends on the model too.
"""

import re
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder, misread
from tollhouse.wire.llm.codec.claude import Thought, asked_thinking, sampling, version_of, written_thinking
from tollhouse.wire.llm.codec.converse_parts import PartWriter, read_parts
from tollhouse.wire.llm.codec.converse_stream import ConverseDecoder, ConverseEncoder, stop_sequence
from tollhouse.wire.llm.codec.converse_tools import place_of_tool, read_tools, write_tools
from tollhouse.wire.llm.codec.effort import effort_of
from tollhouse.wire.llm.codec.places import Turns, named, place_of_content, place_of_turn
from tollhouse.wire.llm.codec.reading import Fields, encoded, put_back, written
from tollhouse.wire.llm.model import (
    Answer,
    Chat,
    Choice,
    Format,
    Json,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Stop,
    Text,
)
from tollhouse.wire.llm.usage import ConverseUsage, counted, tiered

__all__ = ["REASONS", "STOPS", "ConverseCodec"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode
_usage = msgspec.json.Decoder(ConverseUsage, strict=False).decode

STOPS: dict[str, Stop] = {
    "end_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
    "model_context_window_exceeded": "context_window",
}
"""`stopReason` to ours."""

REASONS: dict[Stop, str] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "stop_sequence": "stop_sequence",
    "content_filter": "content_filtered",
    "refusal": "content_filtered",
    "context_window": "model_context_window_exceeded",
    "error": "malformed_model_output",
    "pause": "end_turn",
}
"""Ours to `stopReason`."""

_ROLES = ("user", "assistant", "system")
_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}", re.ASCII)
_PLACES = {
    "format": "outputConfig.textFormat.structure.jsonSchema",
    "reasoning": "additionalModelRequestFields.thinking",
    "reasoning.effort": "outputConfig.effort",
    "reasoning.thinking": "additionalModelRequestFields.thinking",
    "stop": "inferenceConfig.stopSequences",
    "temperature": "inferenceConfig.temperature",
    "top_k": "additionalModelRequestFields.top_k",
    "top_p": "inferenceConfig.topP",
}
_CACHING = ("anthropic", "nova", "")
_ADDITIONAL = "additionalModelRequestFields"
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_EFFORTS = {**_LEVELS, "xhigh": "xhigh", "max": "max"}


class ConverseCodec(Codec):
    """Bedrock's `POST /model/{model}/converse` and `/converse-stream`."""

    __slots__ = ()

    name = "converse"

    # ---- requests
    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Chat:
        f = Fields(fields)
        f.raw("model")
        f.raw("stream")
        turns = f.children("messages")
        if turns is None:
            f.fail("messages", "is missing: it must be a list of messages")
        messages = Turns([_message(m) for m in turns], [m.where for m in turns])
        system = f.children("system")
        if system is not None:
            messages.insert(0, Message("system", read_parts(system)))
            messages.wheres.insert(0, "system.")
        chat = Chat(self.name, model, messages, stream=stream, include_usage=True)
        extra: dict[str, Raw] = {}
        for name, read in (
            ("inferenceConfig", _read_inference),
            ("toolConfig", read_tools),
            (_ADDITIONAL, _read_additional),
            ("outputConfig", _read_output),
        ):
            below = f.child(name)
            if below is not None:
                read(below, chat)
                rest = below.rest()
                if rest:
                    extra[name] = written(rest)
        extra.update(f.rest() or {})
        chat.extra = extra or None
        return chat

    def encode(self, chat: Chat, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        """model: the provider's name for it, which tells its family. A bound on the output is not needed."""
        own = chat.dialect == self.name
        family = _family(model)
        writer = PartWriter(lost, own=own, markers=own or family in _CACHING)
        body: dict[str, Any] = {}
        system, turns = _write_messages(chat, writer, own, lost)
        body["messages"] = turns
        if system:
            body["system"] = system
        thought: Thought | None = None
        if own or family != "anthropic":
            chance = _chance(chat, own, family, lost)
        else:
            version = version_of(model)
            thought = written_thinking(chat, version, lost)
            chance = sampling(chat, version, thought.thinks, lost)
        inference = _write_inference(chat, chance)
        if inference:
            body["inferenceConfig"] = inference
        tools = write_tools(chat, own, own or family in _CACHING, lost)
        if tools:
            body["toolConfig"] = tools
        output: dict[str, Any] = {}
        additional: dict[str, Any] = {}
        _write_format(chat, output, own, lost)
        if thought is not None:
            _write_thought(chat.reasoning, thought, output, additional, lost)
        elif chat.reasoning is not None:
            _write_reasoning(chat.reasoning, output, additional, family, own, lost)
        if "top_k" in chance:
            if family == "nova" and not own:
                additional["inferenceConfig"] = {"topK": chance["top_k"]}
            else:
                additional["top_k"] = chance["top_k"]
        if additional:
            body[_ADDITIONAL] = additional
        if output:
            body["outputConfig"] = output
        if chat.stop and chat.dialect == "messages" and family == "anthropic":
            # Which of them it was is told to who asks for it, and a caller of that API expects it.
            body["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
        _no_place(chat, body, lost)
        put_back(body, chat.extra, own, lost, "")
        return encoded(body)

    def place(self, chat: Chat, place: str) -> str:
        effort = chat.reasoning is not None and chat.reasoning.budget is None
        fields = {**_PLACES, "reasoning": _PLACES["reasoning.effort"]} if effort else _PLACES
        return named(
            place, fields, partial(place_of_turn, chat), partial(_place_of_block, chat), partial(place_of_tool, chat)
        )

    # ---- answers
    def decode_answer(self, body: bytes) -> Answer:
        f = Fields.of(body, "answer.", misread)
        output = f.child("output")
        message = output.child("message") if output is not None else None
        if message is None:
            f.fail("output.message", "is missing")
        reason = f.text("stopReason") or "end_turn"
        choice = Choice(read_parts(message.children("content") or []), STOPS.get(reason, "stop"), detail=reason)
        answer = Answer(self.name, "", "", [choice])
        usage = f.raw("usage")
        if usage is not None:
            answer.usage = counted(_usage, usage)
        answer.extra = f.rest()
        if answer.extra is not None:
            if "serviceTier" in answer.extra:
                tiered(answer.usage, answer.extra["serviceTier"])
            choice.stop_sequence = stop_sequence(answer.extra.get("additionalModelResponseFields"))
        return answer

    def encode_answer(self, answer: Answer, chat: Chat) -> bytes:
        own = answer.dialect == self.name
        choice = answer.choices[0] if answer.choices else Choice([])
        cut = choice.stop in ("length", "context_window")
        content = PartWriter(Lost(), own=own, answer=True, cut=cut).blocks(choice.parts, "")
        form: dict[str, Any] = {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": choice.detail if own and choice.detail else REASONS[choice.stop],
            "usage": ConverseUsage.form(answer.usage or Usage()),
            "metrics": {"latencyMs": 0},
        }
        if choice.stop_sequence is not None:
            form["additionalModelResponseFields"] = {"stop_sequence": choice.stop_sequence}
        if own and answer.extra:
            form.update(answer.extra)
        return _encode(form)

    def decoder(self) -> StreamDecoder:
        return ConverseDecoder(STOPS)

    def encoder(self, chat: Chat) -> StreamEncoder:
        return ConverseEncoder(REASONS)


# ---- reading a request


def _message(f: Fields) -> Message:
    role = f.need_text("role")
    if role not in _ROLES:
        f.fail("role", f"{role!r} is not a role; it is one of {', '.join(_ROLES)}")
    blocks = f.children("content")
    if blocks is None:
        f.fail("content", "is missing: it must be a list of blocks")
    return Message(role, read_parts(blocks), extra=f.rest())  # type: ignore[arg-type]


def _read_inference(f: Fields, chat: Chat) -> None:
    chat.max_output = f.integer("maxTokens")
    chat.temperature = f.number("temperature")
    chat.top_p = f.number("topP")
    chat.stop = f.texts("stopSequences")


def _read_additional(f: Fields, chat: Chat) -> None:
    """What Anthropic's models take there, and others in the same words."""
    chat.top_k = f.integer("top_k")
    raw = f.raw("thinking")
    if raw is None:
        return
    thinking = Fields.of(raw, f.where + "thinking.")
    reasoning = chat.reasoning = chat.reasoning or Reasoning()
    kind = thinking.need_text("type")
    if kind == "disabled":
        reasoning.budget = 0
    elif kind == "adaptive":
        reasoning.budget = -1
    elif kind == "enabled":
        reasoning.budget = thinking.integer("budget_tokens")
        if reasoning.budget is None:
            thinking.fail("budget_tokens", "is missing: it must be an integer")
    else:
        reasoning.extra = {"thinking": raw}
        return
    display = thinking.text("display")
    if display is not None:
        reasoning.shown = display != "omitted"
    rest = thinking.rest()
    if rest:
        reasoning.extra = {"thinking": written(rest)}


def _read_output(f: Fields, chat: Chat) -> None:
    effort = f.text("effort")
    if effort is not None:
        chat.reasoning = chat.reasoning or Reasoning()
        chat.reasoning.effort = effort
    form = f.child("textFormat")
    if form is None:
        return
    kind = form.need_text("type")
    structure = form.child("structure")
    schema = structure.child("jsonSchema") if structure is not None else None
    if kind != "json_schema" or schema is None:
        form.fail("structure", "must be an object with jsonSchema, and type must be json_schema")
    text = schema.need_text("schema")
    try:
        _any(text)
    except UNREADABLE:
        schema.fail("schema", "must be the JSON text of a schema")
    chat.format = Format("schema", schema.text("name") or "", Raw(text.encode()))
    chat.format.description = schema.text("description")
    chat.format.extra = schema.rest()


def _place_of_block(chat: Chat, n: int, k: int, inner: int | None) -> str:
    content = place_of_content(chat, n)
    if content == "messages":
        return content
    parts = chat.messages[n].parts
    block = f"{content}[{k + sum(map(_has_marker, parts[:k]))}]"
    return block if inner is None else f"{block}.toolResult.content[{inner}]"


def _has_marker(part: Part) -> bool:
    """Whether a block of its own follows it. One of a marker alone was read as an empty text."""
    return getattr(part, "cache", None) is not None and not (isinstance(part, Text) and not part.text)


# ---- writing a request


def _family(model: str) -> str:
    """Whose model it is, as far as that matters; "" where the name does not say (a profile's ARN)."""
    name = model.lower()
    if "anthropic." in name or "claude" in name:
        return "anthropic"
    if "amazon.nova" in name:
        return "nova"
    if "openai.gpt-oss" in name:
        return "gpt-oss"
    if "openai." in name:
        return "openai"
    return "" if name.startswith("arn:") and "foundation-model/" not in name else "other"


def _write_messages(
    chat: Chat, writer: PartWriter, own: bool, lost: Lost
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    first = True
    for n, message in enumerate(chat.messages):
        where = f"messages[{n}]"
        if message.name is not None:
            lost.add(f"{where}.name")
        instructs = message.role in ("system", "developer")
        parts = message.parts
        if instructs and not own:
            parts = _instructions(parts, where, lost)
        blocks = writer.blocks(parts, where)
        if instructs and first and (not own or n == 0):
            lost.fields(message.extra, where + ".")
            system += blocks
            continue
        first = False
        if not blocks and not own:
            continue  # a turn without content is refused there
        role = "system" if instructs else "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role and not own:
            turns[-1]["content"] += blocks
            lost.fields(message.extra, where + ".")
            continue
        turn: dict[str, Any] = {"role": role, "content": blocks}
        put_back(turn, message.extra, own, lost, where + ".")
        turns.append(turn)
    return system, turns


def _instructions(parts: list[Part], where: str, lost: Lost) -> list[Part]:
    """Those that instructions may have."""
    found: list[Part] = []
    for n, part in enumerate(parts):
        if isinstance(part, (Text, Json, Refusal, Opaque)):
            found.append(part)
        else:
            lost.add(f"{where}.parts[{n}]: {type(part).__name__} among instructions")
    return found


def _chance(chat: Chat, own: bool, family: str, lost: Lost) -> dict[str, float | int]:
    """`temperature`, `top_p` and `top_k` as far as models that are no Claude take them."""
    told: dict[str, float | int] = {}
    if chat.temperature is not None:
        if own or chat.temperature <= 1:
            told["temperature"] = chat.temperature
        else:
            lost.add("temperature: above 1")
    if chat.top_p is not None:
        told["top_p"] = chat.top_p
    if chat.top_k is not None:
        if own or family == "nova":
            told["top_k"] = chat.top_k
        else:
            lost.add("top_k")
    return told


def _write_inference(chat: Chat, chance: dict[str, float | int]) -> dict[str, Any]:
    told = (
        ("maxTokens", chat.max_output),
        ("temperature", chance.get("temperature")),
        ("topP", chance.get("top_p")),
        ("stopSequences", chat.stop),
    )
    return {name: value for name, value in told if value is not None}


def _write_format(chat: Chat, output: dict[str, Any], own: bool, lost: Lost) -> None:
    form = chat.format
    if form is None or form.kind == "text":
        return
    if form.kind == "json":
        lost.add("format: JSON without a schema")
        return
    schema: dict[str, Any] = {}
    try:
        schema["schema"] = "{}" if form.schema is None else bytes(form.schema).decode()
    except UnicodeDecodeError:
        raise lost.invalid("format.schema", "must be UTF-8") from None
    if form.name:
        schema["name"] = form.name
    if form.description is not None:
        schema["description"] = form.description
    put_back(schema, form.extra, own, lost, "format.")
    output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}


def _write_thought(
    reasoning: Reasoning | None, thought: Thought, output: dict[str, Any], additional: dict[str, Any], lost: Lost
) -> None:
    """A Claude's."""
    if thought.form:
        additional["thinking"] = thought.form
    if thought.effort is not None:
        output["effort"] = thought.effort
    if reasoning is not None:
        lost.fields(reasoning.extra, "reasoning.")


def _write_reasoning(
    reasoning: Reasoning, output: dict[str, Any], additional: dict[str, Any], family: str, own: bool, lost: Lost
) -> None:
    """In the words of the model's family; in the API's own, `effort`, where we know no others. Not to think at all is
    what they do unasked."""
    effort, budget = reasoning.effort, reasoning.budget
    if own:
        if effort is not None:
            output["effort"] = effort
        thinking = asked_thinking(reasoning)
        if thinking:
            additional["thinking"] = thinking
    else:
        if effort is None and budget is not None and budget >= 0:
            effort = effort_of(budget)
        if effort is not None and effort != "none":
            word = (_LEVELS if family in ("nova", "gpt-oss") else _EFFORTS).get(effort)
            if word is None:
                lost.add(f"reasoning.effort: {effort}")
            elif family == "nova":
                additional["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": word}
            elif family == "gpt-oss":
                additional["reasoning_effort"] = word
            elif family == "openai":
                additional["reasoning"] = {"effort": word}
            else:
                output["effort"] = word
    put_back(additional, reasoning.extra, own, lost, "reasoning.")


def _no_place(chat: Chat, body: dict[str, Any], lost: Lost) -> None:
    """Wishes for which there is no field; who it is for stands in what is logged with the request."""
    for name, default in (("frequency_penalty", 0), ("presence_penalty", 0), ("n", 1), ("logprobs", False)):
        value = getattr(chat, name)
        if value is not None and value != default:
            lost.add(name)
    if chat.top_logprobs:
        lost.add("top_logprobs")
    if chat.seed is not None:
        lost.add("seed")
    user = chat.user
    if user is None:
        return
    if _METADATA.fullmatch(user) is None:
        lost.add("user: with characters that request metadata does not take, or too long")
    else:
        body["requestMetadata"] = {"user": user}
