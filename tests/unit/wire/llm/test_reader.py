"""The short cut for events that are alike: it says what decoding each would say."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.llm import CHAT, GENERATE, MESSAGES, RESPONSES, SPEECH
from tollhouse.wire.llm.dialect import Dialect, StreamReader
from tollhouse.wire.llm.reader import TextReader

TEXTS = st.text(alphabet='aé"\\\n/ }]{:,日', max_size=6) | st.sampled_from(["content", "text", "index", "\ud83d\ude00"])
Form = Callable[[str, int], bytes]


def chunk(delta: dict[str, object], *, spaced: bool = False, ascii: bool = False, **further: object) -> bytes:
    fields = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **further}
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(fields, separators=separators, ensure_ascii=ascii)
    return b"data: %b\n\n" % text.encode("utf-16", "surrogatepass").decode("utf-16").encode()


def said(kind: str, name: str, text: str, pad: int) -> bytes:
    data = json.dumps({"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: text}})
    return b"event: content_block_delta\ndata: %b%b}\n\n" % (data[:-1].encode(), b" " * pad)


CHAT_FORMS: list[Form] = [
    lambda text, pad: chunk({"content": text}),
    lambda text, pad: chunk({"content": text}, spaced=True),
    lambda text, pad: chunk({"content": text}, ascii=True),
    lambda text, pad: chunk({"content": text, "role": "assistant"}, usage=None, obfuscation="x" * pad),
    lambda text, pad: chunk({"content": text, "role": "assistant"}, obfuscation="x" * pad, spaced=True),
    lambda text, pad: chunk({"content": None, "reasoning": text, "reasoning_content": text}),
    lambda text, pad: chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}),
    lambda text, pad: chunk({"content": text}, created=pad),
]
MESSAGE_FORMS: list[Form] = [
    lambda text, pad: said("text_delta", "text", text, 0),
    lambda text, pad: said("text_delta", "text", text, pad),
    lambda text, pad: said("thinking_delta", "thinking", text, pad),
    lambda text, pad: said("input_json_delta", "partial_json", text, 0),
]
FIRST = {
    "chat": chunk({"role": "assistant", "content": ""}),
    "messages": b'event: message_start\ndata: {"type":"message_start","message":{"model":"m"}}\n\n',
}


class Counted:
    """How often a reader had to look."""

    def __init__(self, reader: StreamReader) -> None:
        assert isinstance(reader, TextReader)
        self.reader = reader
        self.times = 0

    def read(self, block: bytes) -> bytes:
        before = self.reader._learned, self.reader._tries
        known = self.reader.read(block)
        self.times += (self.reader._learned, self.reader._tries) != before
        return known


def both(kind: str, blocks: list[bytes]) -> None:
    dialect = {"chat": CHAT, "messages": MESSAGES}[kind]
    short, long = dialect.reader(strip=True), dialect.reader(strip=True)
    assert isinstance(long, TextReader)
    for block in [FIRST[kind], *blocks]:
        assert short.read(block) == long.look(block)
        for name in ("text", "began", "finished", "failure", "counted", "model"):
            assert getattr(short, name) == getattr(long, name), name


@given(st.lists(st.tuples(st.sampled_from(CHAT_FORMS), TEXTS, st.integers(0, 3)), max_size=20))
def test_chat(events: list[tuple[Form, str, int]]) -> None:
    both("chat", [form(text, pad) for form, text, pad in events])


@given(st.lists(st.tuples(st.sampled_from(MESSAGE_FORMS), TEXTS, st.integers(0, 3)), max_size=20))
def test_messages(events: list[tuple[Form, str, int]]) -> None:
    both("messages", [form(text, pad) for form, text, pad in events])


@pytest.mark.parametrize("form", [*CHAT_FORMS[:5], *MESSAGE_FORMS])
def test_what_is_alike_is_not_decoded_again(form: Form) -> None:
    dialect, kind = (CHAT, "chat") if form in CHAT_FORMS else (MESSAGES, "messages")
    reader = Counted(dialect.reader(strip=True))
    reader.read(FIRST[kind])
    for n in range(60):
        block = form(f"some words {n}", n % 4)
        assert reader.read(block) == block
    assert reader.times <= 3
    assert reader.reader.text == sum(len(f"some words {n}") for n in range(60))


def test_events_that_are_never_alike_are_learned_from_a_few_times_only() -> None:
    reader = Counted(CHAT.reader(strip=True))
    for n in range(100):
        reader.read(chunk({"content": "word"}, created=n))
    assert reader.reader._tries == 0
    assert reader.times <= 10
    assert reader.reader.text == 400


@given(
    st.sampled_from([(CHAT, "chat", CHAT_FORMS), (MESSAGES, "messages", MESSAGE_FORMS)]),
    st.lists(st.tuples(st.integers(0, 7), TEXTS, st.integers(0, 3)), max_size=20),
    st.integers(2, 30),
)
def test_events_that_come_together_are_read_as_those_that_come_alone(
    api: tuple[Dialect, str, list[Form]], events: list[tuple[int, str, int]], many: int
) -> None:
    dialect, kind, forms = api
    raws = [FIRST[kind], *(forms[n % len(forms)](text, pad) for n, text, pad in events)]
    if kind == "chat":
        raws.append(b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n')
        raws.append(b"data: [DONE]\n\n")
    alone, together = dialect.reader(strip=True), dialect.reader(strip=True)
    passed = b"".join(map(alone.read, raws))
    assert b"".join(together.read(b"".join(raws[n : n + many])) for n in range(0, len(raws), many)) == passed
    for name in ("text", "began", "finished", "failure", "counted", "model", "usage"):
        assert getattr(together, name) == getattr(alone, name), name


@pytest.mark.parametrize("form", [*CHAT_FORMS[:5], *MESSAGE_FORMS])
def test_events_that_come_together_are_not_decoded_again_either(form: Form) -> None:
    dialect, kind = (CHAT, "chat") if form in CHAT_FORMS else (MESSAGES, "messages")
    reader = Counted(dialect.reader(strip=True))
    block = FIRST[kind] + b"".join(form(f"some words {n}", n % 4) for n in range(60))
    assert reader.read(block) is block
    assert reader.reader._learned >= 0  # a form, and it was not given up
    assert reader.reader._tries >= 6
    assert reader.reader.text == sum(len(f"some words {n}") for n in range(60))


def test_what_ends_or_fails_is_seen_behind_events_that_are_alike() -> None:
    usage = b'data: {"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    both("chat", [chunk({"content": "a"}), chunk({"content": "b"}), usage, b"data: [DONE]\n\n"])
    reader = CHAT.reader(strip=True)
    for text in ("", "a", "b", "c"):
        reader.read(chunk({"content": text}))
    two = chunk({"content": "d"}) + b'data: {"error":{"message":"no"}}\n\n'
    assert reader.read(two) == chunk({"content": "d"})
    assert reader.failure is not None


FIRSTS: dict[str, tuple[Dialect, bytes]] = {
    "chat": (CHAT, FIRST["chat"]),
    "messages": (MESSAGES, FIRST["messages"]),
    "responses": (RESPONSES, b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'),
    "generate": (GENERATE, b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}]}\n\n'),
    "speech": (SPEECH, b'event: speech.audio.delta\ndata: {"type":"speech.audio.delta","audio":"QQ=="}\n\n'),
}
NO_JSON = (b"<html>", b"{", b'{"a":NaN}', b"\xff", b"Internal Server Error")


@pytest.mark.parametrize("api", FIRSTS)
@pytest.mark.parametrize("data", NO_JSON)
def test_an_event_that_is_no_json(api: str, data: bytes) -> None:
    dialect, first = FIRSTS[api]
    odd = b"data: %b\n\n" % data
    # Nothing came before it: somebody else may be asked.
    reader = dialect.reader(strip=True)
    assert reader.read(b": a comment\n\n") == b": a comment\n\n"
    assert reader.read(odd) == b""
    assert reader.failure is not None
    assert (reader.failure.status, reader.failure.retry, reader.began) == (502, True, False)
    # The caller has begun to read: what came before it is passed on, and nothing after it.
    for blocks in ((first, odd), (first + odd + first,)):
        reader = dialect.reader(strip=True)
        assert b"".join(map(reader.read, blocks)) == first
        assert reader.failure is not None
        assert (reader.failure.status, reader.began) == (502, True)


@pytest.mark.parametrize("form", [CHAT_FORMS[0], MESSAGE_FORMS[0]])
def test_a_text_that_is_none_is_seen_among_events_that_are_alike(form: Form) -> None:
    dialect, kind = (CHAT, "chat") if form is CHAT_FORMS[0] else (MESSAGES, "messages")
    reader = dialect.reader(strip=True)
    for block in (FIRST[kind], *(form(text, 0) for text in ("a", "b", "日本"))):
        assert reader.read(block) == block
    good = form("c", 0)
    broken = form("abc", 0).replace(b"abc", b"a\xff\xfe")
    assert reader.read(good + broken + good) == good
    assert reader.failure is not None


TEXTS_OF = {
    "chat": chunk({"content": "abc"}),
    "messages": said("text_delta", "text", "abc", 0),
    "responses": b'event: x\ndata: {"type":"response.output_text.delta","delta":"abc"}\n\n',
    "generate": b'data: {"candidates":[{"content":{"parts":[{"text":"abc"}]}}]}\n\n',
    "speech": b'event: x\ndata: {"type":"transcript.text.delta","delta":"abc"}\n\n',
}


@pytest.mark.parametrize("api", FIRSTS)
def test_a_text_that_is_not_utf_8(api: str) -> None:
    """Its form is that of an event; it is no JSON all the same."""
    dialect, first = FIRSTS[api]
    broken = TEXTS_OF[api].replace(b"abc", b"a\xff\xfe")
    reader = dialect.reader(strip=True)
    assert reader.read(broken) == b""
    assert reader.failure is not None
    reader = dialect.reader(strip=True)
    assert reader.read(first) + reader.read(broken) == first
    assert reader.failure is not None


@pytest.mark.parametrize("api", FIRSTS)
@pytest.mark.parametrize("data", [b"[DONE]", b"[]", b"5", b'{"type":5,"choices":5,"candidates":5}'])
def test_what_is_only_of_another_form_passes(api: str, data: bytes) -> None:
    reader = FIRSTS[api][0].reader(strip=True)
    block = b"data: %b\n\n" % data
    assert reader.read(block) == block
    assert (reader.failure, reader.began) == (None, True)


@pytest.mark.parametrize("together", [False, True])
def test_a_first_event_that_names_no_model_hides_it_from_nobody(together: bool) -> None:
    """As Azure's, which says what it thinks of the prompt."""
    events = [b'data: {"id":"","model":"","choices":[]}\n\n', chunk({"content": "a"}), chunk({"content": "b"})]
    reader = CHAT.reader(strip=False)
    for block in [b"".join(events)] if together else events:
        assert reader.read(block) == block
    assert (reader.model, reader.text) == ("m", 2)
