"""What the suite expects, judged by the providers' own SDKs: each request fits what they declare of it, each answer and
each event is one that they read, and a stream that was put together is the whole answer.

What stands outside of a declaration on purpose is listed with the reason, and must go on standing outside.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as BetaParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as MessagesParams
from botocore.loaders import Loader
from botocore.model import ServiceModel
from google.genai.types import GenerateContentResponse
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming as ResponsesParams
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.fixtures.sdk_forms import gemini_misfit, misfit
from tests.golden.llm.apis import APIS, DONE
from tests.golden.llm.test_golden import told
from tests.golden.llm.translations import PAIRS, answers, expected, requests

from tollhouse.wire.llm.fold import fold

EACH_PAIR = pytest.mark.parametrize("source, target", PAIRS)

NEWER = {"temperature", "top_p", "top_k"}  # the newest SDK leaves out what only the older models take

REQUESTS = {
    # A message of the model's without its id is taken, as a text is; declared is only that.
    ("responses", "a refusal before"): "'refusal' is none of",
    # There is nothing left to ask: everything is lost.
    ("generate", "a file by its id"): "contents missing",
}

ANSWERS = {
    "store",  # of responses: in each answer, in no declaration
    "reasoning_content", "reasoning_details", "extra_content",  # what other servers than OpenAI's have beside the text
    "annotations",  # of chat, in a stream: declared for whole answers only
    "bytes",  # of a token in a stream of responses: declared for whole answers only
    "cache_creation",  # of messages: a stream begins before it is known
}  # fmt: skip

FOLDED = {
    # What is cut has no arguments in a whole answer, and those that came in a stream.
    ("chat", "messages", "a call cut by its bound"),
    ("chat", "converse", "a call cut by its bound"),
    # The id of a thought, which its seal has in it.
    ("responses", "chat", "a thought summed up"),
}


# ---- AWS: its SDK checks types and lengths; what it describes beside them is checked here


@functools.cache
def converse(operation: str) -> Any:
    described = Loader().load_service_model("bedrock-runtime", "service-2")
    return ServiceModel(described).operation_model(operation)


def unfit(value: Any, shape: Any, at: str = "body") -> Iterator[str]:
    """What of a value is not as its shape is described. Bytes stand as base64 text."""
    kind, limits = shape.type_name, shape.metadata
    types = {
        "structure": dict, "map": dict, "list": list, "string": str, "blob": str, "boolean": bool, "integer": int,
        "long": int, "float": (int, float), "double": (int, float),
    }  # fmt: skip
    if kind == "structure" and shape.is_document_type:
        return
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{at}: {value!r} is no {kind}"
        return
    if kind == "structure":
        if shape.is_tagged_union and len(value) != 1:
            yield f"{at}: {sorted(value)} instead of one"
        yield from (f"{at}: no {name}" for name in shape.required_members if name not in value)
        for name, inner in value.items():
            if name in shape.members:
                yield from unfit(inner, shape.members[name], f"{at}.{name}")
            else:
                yield f"{at}: unknown field {name!r}"
    elif kind == "map":
        for name, inner in value.items():
            yield from unfit(inner, shape.value, f"{at}.{name}")
    elif kind == "list":
        for n, inner in enumerate(value):
            yield from unfit(inner, shape.member, f"{at}[{n}]")
    elif kind == "string" and "enum" in limits and value not in limits["enum"]:
        yield f"{at}: {value!r} is none of {limits['enum']}"
    elif kind == "string" and "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        yield f"{at}: {value!r} is not {limits['pattern']}"
    if kind != "boolean" and kind not in ("structure", "map"):
        size = value if isinstance(value, (int, float)) else len(value)
        if not limits.get("min", size) <= size <= limits.get("max", size):
            yield f"{at}: {size} is out of bounds"


# ---- requests


def _chat(body: dict[str, Any]) -> str:
    """Servers that think are told their thoughts by a field that OpenAI does not have."""
    thoughtless = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in body["messages"]]
    return misfit({**body, "messages": thoughtless}, ChatParams)


def _messages(body: dict[str, Any]) -> str:
    body = {name: value for name, value in body.items() if name not in NEWER}
    return misfit(body, MessagesParams) and misfit(body, BetaParams)  # a file by its id is beta


def _converse(body: dict[str, Any]) -> str:
    return next(unfit({**body, "modelId": "a.model"}, converse("Converse").input_shape), "")


REQUEST: dict[str, Callable[[dict[str, Any]], str]] = {
    "chat": _chat,
    "responses": lambda body: misfit(body, ResponsesParams),
    "messages": _messages,
    "generate": gemini_misfit,
    "converse": _converse,
}


@EACH_PAIR
def test_requests_fit(source: str, target: str) -> None:
    """What a provider is asked is what its SDK would ask."""
    for shape, form in expected("requests", source, target).items():
        if "refused" in form:
            continue
        no = REQUEST[target]({name: value for name, value in form["body"].items() if name != "stream"})
        known = REQUESTS.get((target, shape), "")
        assert known in no if known and no else not no, f"{shape}: {no}"


# ---- answers


@functools.cache
def adapter(api: str, streamed: bool) -> Any:
    whole, event = {
        "chat": (ChatCompletion, ChatCompletionChunk),
        "responses": (Response, ResponseStreamEvent),
        "messages": (Message, RawMessageStreamEvent),
        "generate": (GenerateContentResponse, GenerateContentResponse),
    }[api]
    return TypeAdapter(event if streamed else whole)


def undeclared(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from undeclared(getattr(value, name, None))
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from undeclared(inner)


def unread(api: str, value: Any, *, streamed: bool) -> str:
    """Why the SDK would not read an answer, or an event."""
    if value == DONE or (isinstance(value, dict) and ("refused" in value or value.get("type") == "ping")):
        return ""
    if api == "converse":
        shape = converse("ConverseStream" if streamed else "Converse").output_shape
        return next(unfit(value, shape.members["stream"] if streamed else shape), "")
    try:
        read = adapter(api, streamed).validate_json(json.dumps(value))
    except ValidationError as error:
        return str(error)
    return ", ".join(sorted(set(undeclared(read)) - ANSWERS))


@EACH_PAIR
def test_answers_are_read(source: str, target: str) -> None:
    for shape, form in expected("answers", source, target).items():
        assert not unread(target, form["unary"], streamed=False), shape
        for event in form["stream"]:
            assert not unread(target, event, streamed=True), (shape, event)


@EACH_PAIR
def test_streams_add_up_to_the_whole_answers(source: str, target: str) -> None:
    """Whether it streams or not, a caller is told the same."""
    form = APIS[target]
    for shape, found in expected("answers", source, target).items():
        if "refused" in found["unary"]:
            assert "refused" in found["stream"][-1], shape
            continue
        whole = form.codec.decode_answer(msgspec.json.encode(found["unary"]))
        decoder = form.codec.decoder()
        stream = b"".join(map(form.framed, found["stream"]))
        folded = fold([e for name, data in form.events(stream) for e in decoder.read(name, data)], target)
        assert decoder.finished, shape
        form.even(whole)
        form.even(folded)
        assert (told(folded) == told(whole)) == ((source, target, shape) not in FOLDED), shape


# ---- streams as the SDKs put them together


@pytest.mark.parametrize("source", [api for api in APIS if api != "messages"])
def test_messages_put_together(source: str) -> None:
    for shape, form in expected("answers", source, "messages").items():
        message: Any = None
        pieces: dict[int, bytes] = {}
        for event in form["stream"]:
            if "refused" not in event:
                message = accumulate_event(
                    event=adapter("messages", True).validate_python(event), current_snapshot=message, json_bufs=pieces
                )
        if "refused" in form["unary"] or (source, "messages", shape) in FOLDED:
            continue
        whole = adapter("messages", False).validate_python(form["unary"])
        assert message.stop_reason == whole.stop_reason, shape
        assert [b.model_dump(exclude_none=True) for b in message.content] == [
            b.model_dump(exclude_none=True) for b in whole.content
        ], shape
        assert message.usage.output_tokens == whole.usage.output_tokens, shape
        assert message.usage.input_tokens == whole.usage.input_tokens, shape


@pytest.mark.parametrize("source", [api for api in APIS if api != "chat"])
def test_chat_completions_put_together(source: str) -> None:
    for shape, form in expected("answers", source, "chat").items():
        if "refused" in form["unary"]:
            continue
        state: Any = ChatCompletionStreamState()
        for event in form["stream"]:
            if event != DONE:
                state.handle_chunk(ChatCompletionChunk.model_validate(event))
        whole = ChatCompletion.model_validate(form["unary"])
        for found, choice in zip(state.current_completion_snapshot.choices, whole.choices, strict=True):
            assert found.finish_reason == choice.finish_reason, shape
            assert (found.message.content or "") == (choice.message.content or ""), shape
            calls, others = found.message.tool_calls or [], choice.message.tool_calls or []
            assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
                (c.id, c.function.name, c.function.arguments) for c in others
            ], shape


@pytest.mark.parametrize("source", [api for api in APIS if api != "responses"])
def test_responses_are_told_whole_at_the_end(source: str) -> None:
    for shape, form in expected("answers", source, "responses").items():
        if "refused" not in form["unary"]:
            assert form["stream"][-1]["response"] == form["unary"], shape


# ---- the corpus itself


def test_what_the_corpus_says_fits() -> None:
    """The requests that callers make are what their SDKs make, but for shapes that are about what these do not know."""
    strange = {"what nobody knows", "a part nobody knows"}
    for shape, forms in requests().items():
        for api, body in forms.items():
            if shape in strange or api in ("chat", "responses", "messages"):
                continue  # their callers also say what servers of the same API know
            assert not REQUEST[api](body), f"{shape} ({api})"


@pytest.mark.parametrize("api", ["messages", "generate", "converse"])
def test_what_the_corpus_answers_is_read(api: str) -> None:
    for shape, form in answers(api).items():
        assert not unread(api, form["unary"], streamed=False), shape
        for event in form["stream"]:
            assert not unread(api, event, streamed=True), (shape, event)
