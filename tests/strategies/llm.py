"""Neutral chats and answers, made up: of every API (`chats`, `answers`), or of what one of them can say and in the form
it gives it (`said_in_chat`, `said_in_messages`)."""

from base64 import b64encode
from string import ascii_letters, digits
from typing import Any

from hypothesis import strategies as st
from tests.strategies.forms import raw

from tollhouse.core.call import Usage
from tollhouse.wire.llm.model import (
    Answer,
    Audio,
    Cache,
    Chat,
    Choice,
    Citation,
    Document,
    Format,
    Image,
    Media,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

APIS = ("chat", "responses", "messages", "generate", "converse")

names = st.text(ascii_letters + digits + "_-", min_size=1, max_size=8)
texts = st.text(max_size=12)
some_text = st.text(min_size=1, max_size=12)
base64 = st.binary(min_size=1, max_size=12).map(lambda data: b64encode(data).decode())
urls = names.map("https://x.test/{}".format)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(names, values, max_size=3)
arguments = objects.map(lambda value: bytes(raw(value)).decode())
schemas = st.builds(
    lambda names_: raw(
        {"type": "object", "properties": {name: {"type": "string"} for name in names_}, "required": names_[:1]}
    ),
    st.lists(names, max_size=3, unique=True),
)
caches = st.none() | st.sampled_from([Cache(), Cache("5m"), Cache("1h")])
said_values = st.integers(1, 9) | some_text
extras = st.none() | st.dictionaries(names.map("x_{}".format), said_values.map(raw), min_size=1, max_size=2)
"""Fields that nobody knows."""


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


pictures = st.builds(Media, st.sampled_from(["image/png", "image/jpeg"]), base64) | st.builds(Media, url=urls)
plain_texts = st.builds(Media, st.just("text/plain"), text=some_text)
pdfs = st.builds(Media, st.just("application/pdf"), base64)
citations = st.builds(
    Citation,
    st.sampled_from(["char", "page", "block"]),
    maybe(texts),
    document=st.integers(0, 5),
    start=st.integers(0, 9),
    stop=st.integers(0, 9),
    quote=texts,
) | st.builds(Citation, st.sampled_from(["url"]), maybe(texts), urls, quote=texts)

# ---- every API's


def _media() -> st.SearchStrategy[Media]:
    kinds = st.sampled_from(["", "image/png", "image/tiff", "audio/wav", "audio/ogg", "application/pdf", "text/plain"])
    return (
        st.builds(Media, kinds, base64)
        | st.builds(Media, kinds, url=urls | st.just("gs://b/o"))
        | st.builds(Media, file=names)
    )


_leaves: st.SearchStrategy[Part] = (
    st.builds(Text, texts, caches, maybe(st.lists(citations, min_size=1, max_size=2)))
    | st.builds(Image, _media(), maybe(st.sampled_from(["auto", "low", "high"])), caches)
    | st.builds(Audio, _media(), caches)
    | st.builds(Document, _media() | plain_texts, maybe(texts), maybe(texts), maybe(st.booleans()), caches)
    | st.builds(Refusal, some_text)
)
_thoughts = st.builds(Thinking, texts, maybe(texts), st.none(), maybe(names)) | st.builds(
    Thinking, texts, st.none(), base64, maybe(names)
)
_calls = st.builds(ToolCall, names, names, arguments, maybe(some_text), caches)
_results = st.builds(
    ToolResult, names, st.lists(_leaves, max_size=2), st.just("") | names, maybe(st.booleans()), caches
)
_opaque = st.builds(
    lambda api, kind, value: Opaque(
        api, kind, raw({kind: value} if api in ("generate", "converse") else {"type": kind, "value": value})
    ),
    st.sampled_from(APIS),
    st.text(ascii_letters + digits, max_size=5).map("x{}".format),
    objects,
)
_parts: st.SearchStrategy[Part] = _leaves | _thoughts | _calls | _results | _opaque


@st.composite
def chats(draw: st.DrawFn, dialect: str | None = None) -> Chat:
    """Whatever the neutral model can say, sense or not."""
    messages = st.lists(
        st.builds(
            Message,
            st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            st.lists(_parts, min_size=1, max_size=3),
            maybe(names),
        ),
        max_size=4,
    )
    chat = Chat(dialect or draw(st.sampled_from(APIS)), draw(names), draw(messages))
    first = next((m for m in chat.messages if m.role not in ("system", "developer")), None)
    if first is not None:
        first.parts.insert(0, Text(draw(some_text)))  # so that it is there, whatever else is lost of it
    chat.stream = draw(st.booleans())
    chat.tools = draw(
        maybe(st.lists(st.builds(Tool, names, maybe(texts), maybe(schemas), maybe(st.booleans())), max_size=2))
    )
    chat.tool_choice = draw(
        maybe(
            st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"]))
            | st.builds(ToolChoice, st.sampled_from(["auto", "required"]), st.lists(names, max_size=2).map(tuple))
        )
    )
    chat.parallel = draw(maybe(st.booleans()))
    chat.format = draw(
        maybe(
            st.builds(Format, st.sampled_from(["text", "json"]))
            | st.builds(Format, st.just("schema"), names, schemas, maybe(st.booleans()), maybe(texts))
        )
    )
    efforts = st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max", "utmost"])
    budgets = st.sampled_from([-1, 0, 100, 5000])
    chat.reasoning = draw(maybe(st.builds(Reasoning, maybe(efforts), maybe(budgets), maybe(st.booleans()))))
    _numbers(draw, chat)
    return chat


def _numbers(draw: st.DrawFn, chat: Chat) -> None:
    chat.max_output = draw(maybe(st.integers(1, 9000)))
    chat.temperature = draw(maybe(st.floats(0, 2)))
    chat.top_p = draw(maybe(st.floats(0, 1)))
    chat.top_k = draw(maybe(st.integers(1, 50)))
    chat.stop = draw(maybe(st.lists(some_text, max_size=2)))
    chat.seed = draw(maybe(st.integers(0, 9)))
    chat.frequency_penalty = draw(maybe(st.floats(-2, 2)))
    chat.presence_penalty = draw(maybe(st.floats(-2, 2)))
    chat.n = draw(maybe(st.integers(1, 2)))
    chat.logprobs = draw(maybe(st.booleans()))
    chat.top_logprobs = draw(maybe(st.integers(0, 5)))
    chat.user = draw(maybe(some_text))


usages = st.builds(
    Usage,
    st.integers(0, 99),
    st.integers(10, 99),
    st.integers(0, 99),
    st.just(0),
    st.integers(0, 9),
)
LOGPROBS = [
    {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}
]


@st.composite
def answers(draw: st.DrawFn, dialect: str | None = None, *, choices: int = 2) -> Answer:
    """What a provider may answer: thoughts, then texts, then a refusal or calls."""
    answer = Answer(dialect or draw(st.sampled_from(APIS)), draw(names), draw(names), [], draw(st.integers(1, 2**31)))
    for _ in range(draw(st.integers(1, choices))):
        parts: list[Part] = draw(st.lists(proved, max_size=2) | st.lists(bare, max_size=2))
        calls = draw(st.lists(st.builds(ToolCall, names, names, arguments), max_size=2, unique_by=lambda c: c.id))
        refusal = [] if calls else draw(st.lists(st.builds(Refusal, some_text), max_size=1))
        # What comes last may cite: some APIs tell citations at the end of a stream.
        cited = st.none() if calls or refusal else maybe(st.lists(citations, min_size=1, max_size=2))
        parts += draw(st.lists(st.builds(Text, some_text, citations=cited), max_size=1))
        choice = Choice([*parts, *refusal, *calls])
        if calls:
            choice.stop = "tool_calls"
        elif refusal:
            choice.stop = "refusal"
        else:
            choice.stop = draw(st.sampled_from(["stop", "length", "content_filter", "stop_sequence", "pause"]))
            choice.stop_sequence = draw(some_text) if choice.stop == "stop_sequence" else None
        choice.logprobs = draw(maybe(st.just(raw(LOGPROBS)))) if any(isinstance(p, Text) for p in parts) else None
        answer.choices.append(choice)
    answer.usage = draw(maybe(usages))
    return answer


proved = st.builds(Thinking, some_text, some_text) | st.builds(Thinking, sealed=base64)
bare = st.builds(Thinking, some_text)


# ---- what chat completions can say


@st.composite
def said_in_chat(draw: st.DrawFn) -> Chat:
    text = st.builds(Text, texts, caches, extra=extras)
    content = st.lists(
        text
        | st.builds(Image, pictures, maybe(st.sampled_from(["auto", "low"])), caches, extras)
        | st.builds(Audio, st.builds(Media, st.sampled_from(["audio/wav", "audio/mpeg"]), base64), caches, extras)
        | st.builds(Document, pdfs | st.builds(Media, file=names), maybe(texts), cache=caches, extra=extras)
        | st.builds(lambda value: Opaque("chat", "hologram", raw({"type": "hologram", "v": value})), values),
        min_size=1,
        max_size=3,
    )
    thoughts = st.lists(
        st.builds(Thinking, some_text, some_text, extra=extras) | st.builds(Thinking, sealed=some_text), max_size=2
    )
    calls = st.lists(st.builds(ToolCall, names, names, arguments, maybe(some_text), extra=extras), max_size=2)
    assistant = st.builds(
        lambda t, c, k, e: Message("assistant", [*t, *c, *k], extra=e),
        thoughts,
        st.lists(text | st.builds(Refusal, texts), max_size=2),
        calls,
        extras,
    )
    result = st.builds(ToolResult, names, st.lists(text, min_size=1, max_size=2))
    chat = Chat("chat", draw(names), [])
    chat.messages = draw(
        st.lists(
            st.builds(
                Message, st.just("system") | st.just("developer"), st.lists(text, min_size=1, max_size=2), maybe(names)
            )
            | st.builds(Message, st.just("user"), content, maybe(names), extras)
            | assistant
            | st.builds(lambda r, e: Message("tool", [r], extra=e), result, extras),
            max_size=4,
        )
    )
    chat.stream = draw(st.booleans())
    chat.include_usage = draw(maybe(st.booleans()))
    chat.tools = draw(
        maybe(
            st.lists(
                st.builds(Tool, names, maybe(texts), maybe(schemas), maybe(st.booleans()), caches, extras), max_size=2
            )
        )
    )
    chat.tool_choice = draw(
        maybe(
            st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"]))
            | st.builds(
                ToolChoice, st.sampled_from(["auto", "required"]), st.lists(names, min_size=1, max_size=2).map(tuple)
            )
        )
    )
    chat.parallel = draw(maybe(st.booleans()))
    chat.format = draw(
        maybe(
            st.builds(Format, st.sampled_from(["text", "json"]), extra=extras)
            | st.builds(Format, st.just("schema"), names, maybe(schemas), maybe(st.booleans()), maybe(texts), extras)
        )
    )
    chat.reasoning = draw(maybe(st.builds(Reasoning, st.sampled_from(["none", "low", "high", "utmost"]))))
    _numbers(draw, chat)
    chat.extra = draw(extras)
    return chat


# ---- what Anthropic messages can say


@st.composite
def said_in_messages(draw: st.DrawFn) -> Chat:
    cited = st.lists(citations, min_size=1, max_size=2)
    text = st.builds(Text, texts, caches, maybe(cited), extras)
    picture = st.builds(Image, pictures | st.builds(Media, file=names), st.none(), caches, extras)
    sources = pdfs | st.builds(Media, url=urls) | st.builds(Media, st.just("text/plain"), text=texts)
    document = st.builds(Document, sources, maybe(texts), maybe(texts), maybe(st.booleans()), caches, extras)
    opaque = st.builds(lambda v: Opaque("messages", "search_result", raw({"type": "search_result", "v": v})), values)
    result = st.builds(
        ToolResult,
        names,
        st.lists(text | picture | document, max_size=2),
        error=maybe(st.booleans()),
        cache=caches,
        extra=extras,
    )
    thoughts = st.builds(Thinking, texts, maybe(some_text), extra=extras) | st.builds(Thinking, sealed=some_text)
    calls = st.builds(ToolCall, names, names, arguments, cache=caches, extra=extras)
    user = st.builds(
        Message, st.just("user"), st.lists(text | picture | document | opaque | result, max_size=3), extra=extras
    )
    chat = Chat("messages", draw(names), [], include_usage=True)
    if draw(st.booleans()):
        chat.messages.append(Message("system", draw(st.lists(text, min_size=1, max_size=2))))
    chat.messages.append(draw(user))
    chat.messages += draw(
        st.lists(
            user
            | st.builds(
                Message, st.just("assistant"), st.lists(text | thoughts | calls | opaque, max_size=3), extra=extras
            )
            | st.builds(Message, st.just("system"), st.lists(text, min_size=1, max_size=1)),
            max_size=3,
        )
    )
    chat.stream = draw(st.booleans())
    chat.max_output = draw(st.integers(1, 9000))
    chat.temperature = draw(maybe(st.floats(0, 1)))
    chat.top_p = draw(maybe(st.floats(0, 1)))
    chat.top_k = draw(maybe(st.integers(1, 50)))
    chat.stop = draw(maybe(st.lists(some_text, max_size=2)))
    chat.user = draw(maybe(some_text))
    chat.tools = draw(
        maybe(st.lists(st.builds(Tool, names, maybe(texts), schemas, maybe(st.booleans()), caches, extras), max_size=2))
    )
    chat.tool_choice = draw(
        maybe(
            st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"]))
            | st.builds(ToolChoice, st.just("required"), names.map(lambda name: (name,)))
        )
    )
    if chat.tool_choice is not None and chat.tool_choice.mode != "none":
        chat.parallel = draw(maybe(st.booleans()))
    chat.format = draw(maybe(st.builds(Format, st.just("schema"), schema=schemas, extra=extras)))
    chat.reasoning = draw(
        maybe(
            st.builds(
                Reasoning,
                maybe(st.sampled_from(["low", "max"])),
                st.sampled_from([-1, 0, 2048]),
                maybe(st.booleans()),
                extra=extras,
            )
            | st.builds(Reasoning, st.sampled_from(["low", "max"]))
        )
    )
    chat.extra = draw(extras)
    return chat
