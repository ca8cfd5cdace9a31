"""Answers for requests that mean the same: what is compared, what is not, and what must agree besides."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.cache.house import Behind, House, Sunk, asked, over, state, streamed
from tests.unit.policies.cache.test_store import entry
from tests.unit.policies.floor import Shelf, counted, who

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.agree import agree, facts_of
from tollhouse.policies.cache.embedder import Local, Remote
from tollhouse.policies.cache.key import Path
from tollhouse.policies.cache.purges import purge
from tollhouse.policies.cache.semantic import said
from tollhouse.policies.cache.spec import CacheSpec
from tollhouse.policies.cache.turn import question_of
from tollhouse.policies.cache.vectors import Item, Vectors
from tollhouse.policies.local_vectors import LocalVectors
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

PAIRS = FilePath(__file__).parents[4] / "bench" / "bodies" / "paraphrases.txt"
RESET, STEPS, DELETE = (
    "How do I reset my password?", "What are the steps to reset my password?", "How do I delete my account?",
)  # fmt: skip


# ---- what must agree besides
def pairs() -> list[tuple[str, str, bool]]:
    lines = [line for line in PAIRS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = [[part.strip() for part in line.split("|")] for line in lines]
    return [(row[0], other, number == 0) for row in rows for number, other in enumerate(row[1:])]


def test_what_means_something_else_does_not_agree() -> None:
    found = [(one, other) for one, other, same in pairs() if not same]
    assert len(pairs()) >= 200
    assert [pair for pair in found if agree(facts_of(pair[0], "names"), facts_of(pair[1], "names"))] == []
    right = [agree(facts_of(one, "names"), facts_of(other, "names")) for one, other, same in pairs() if same]
    assert sum(right) / len(right) > 0.4


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("What is 12 + 5?", "What is 12 + 6?", False),
        ("What is 12 + 5?", "What is 12 - 5?", False),
        ("pay 1,000 euros", "pay 1000 euros", True),
        ("pay 1.50", "pay 1.5", True),
        ("pay 1.05", "pay 1.5", False),
        ("two cats", "2 cats", True),
        ("\uff11\uff12 cats", "12 cats", True),
        ("it works", "it does not work", False),
        ("it works", "it doesn't work", False),
        ("it works", "it doesn\u2019t work", False),
        ("Ist das gut?", "Ist das nicht gut?", False),
    ],
)
def test_numbers_and_denials(one: str, other: str, same: bool) -> None:
    assert agree(facts_of(one, "numbers"), facts_of(other, "numbers")) is same
    assert agree(facts_of(one, "off"), facts_of(other, "off"))


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_agrees_with_itself_and_it_is_mutual(one: str, other: str) -> None:
    for verify in ("names", "numbers"):
        facts = facts_of(one, verify), facts_of(other, verify)
        assert agree(facts[0], facts[0])
        assert agree(*facts) == agree(*reversed(facts))


# ---- the last turn
def question(operation: str, **fields: Any) -> Any:
    call = asked()
    call.operation = operation
    call.fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    return question_of(call)


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "operation, fields, text",
    [
        ("chat", {"messages": [USER]}, "hi"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "hi"),
        ("messages", {"messages": [{"role": "assistant", "content": "x"}, USER]}, "hi"),
        ("responses", {"input": "hi"}, "hi"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, "hi"),
        ("generate", {"contents": [{"parts": [{"text": "hi"}, {"text": "you"}]}]}, "hi\nyou"),
        ("converse", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, "hi"),
    ],
)
def test_what_the_user_says_last(operation: str, fields: Any, text: str) -> None:
    found = question(operation, **fields)
    assert found is not None
    assert found.text == text


@pytest.mark.parametrize(
    "operation, fields",
    [
        ("chat", {"messages": []}),
        ("chat", {}),
        ("chat", {"messages": "hi"} | {"messages": 1}),
        ("chat", {"messages": [USER, {"role": "assistant", "content": "hi"}]}),
        ("chat", {"messages": [{"role": "tool", "content": "hi"}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]}),
        ("generate", {"contents": [{"parts": [{"inlineData": {}}]}]}),
        ("embeddings", {"input": "hi"}),
    ],
)
def test_what_is_no_question_in_text(operation: str, fields: Any) -> None:
    assert question(operation, **fields) is None


# ---- vectors
def row(*values: float) -> Any:
    return numpy.array(values, dtype=numpy.float32)


def item(key: bytes) -> Item:
    return Item(key, facts_of("", "off"), 1e18)


def test_spaces_are_apart_and_bounded() -> None:
    vectors = Vectors(8, numpy)
    for n in range(8):
        vectors.add(b"a" if n % 2 else b"b", item(b"%d" % n), row(n, 0))
    items, rows = vectors.view(b"a") or ([], row())
    assert [one.key for one in items] == [b"1", b"3", b"5", b"7"]
    assert [r[0] for r in rows] == [1, 3, 5, 7]
    vectors.add(b"c", item(b"new"), row(1, 1))  # `b` was used least lately
    assert len(vectors) <= 8
    assert vectors.view(b"a") is not None
    items, _ = vectors.view(b"b") or ([], row())
    assert b"0" not in [one.key for one in items]
    vectors.drop(b"a", b"3")
    vectors.add(b"a", item(b"7"), row(9, 9))
    items, rows = vectors.view(b"a") or ([], row())
    assert [one.key for one in items] == [b"1", b"5", b"7"]
    assert rows[2][0] == 9
    vectors.add(b"a", item(b"wide"), row(1, 2, 3))  # another model's: nothing before it can be compared
    items, _ = vectors.view(b"a") or ([], row())
    assert [one.key for one in items] == [b"wide"]


@given(st.lists(st.tuples(st.sampled_from("ad"), st.sampled_from([b"x", b"y", b"z"]), st.integers(0, 9)), max_size=60))
def test_its_count_is_what_is_in_it(steps: list[tuple[str, bytes, int]]) -> None:
    vectors = Vectors(10, numpy)
    for what, space, key in steps:
        if what == "a":
            vectors.add(space, item(b"%d" % key), row(key, 0))
        else:
            vectors.drop(space, b"%d" % key)
        views = [vectors.view(name) for name in (b"x", b"y", b"z")]
        assert len(vectors) == sum(len(view[0]) for view in views if view is not None) <= 10
        for view in views:
            if view is not None:
                assert [int(one.key) for one in view[0]] == [int(r[0]) for r in view[1]]


async def test_the_model_in_the_process() -> None:
    shared = LocalVectors()
    model = Local(shared)
    request = Request(b"POST", b"/", Headers())
    try:
        one, same, other = [await model.vector(request, text) for text in (RESET, STEPS, "Bananas are yellow.")]
        assert float(one @ one) == pytest.approx(1.0, abs=1e-3)
        assert float(one @ same) > 0.95 > float(one @ other)
        for text in ("before\0after", "x " * 600, "\ud800"):  # what it would not read to its end, or at all
            assert await model.vector(request, text) is None
        many = await asyncio.gather(*(model.vector(request, RESET) for _ in range(40)))
        assert sum(vector is None for vector in many) == 24  # so many do not wait
    finally:
        await shared.close()


async def test_a_model_that_is_configured() -> None:
    async def embed(request: Request, texts: Sequence[str]) -> list[list[float]]:
        if texts == ["fail"]:
            raise Failure(503, Reason.NO_HEALTHY_BACKEND, "x")
        return [[0.0, 0.0]] if texts == ["nothing"] else [[3.0, 4.0]]

    remote = Remote(numpy, embed)
    request = Request(b"POST", b"/", Headers())
    assert list(await remote.vector(request, "x")) == pytest.approx([0.6, 0.8])
    assert await remote.vector(request, "fail") is None
    assert await remote.vector(request, "nothing") is None


# ---- the whole of it
class Meaning(House):
    """The cache with a semantic one."""

    def __init__(self, **semantic: Any) -> None:
        super().__init__()
        self.state = MemoryState(self.time.clock)
        self.shelf = Shelf()
        self.parts = self.made(state=self.state)
        settings = {"exact": {"ttl": "10m"}, "semantic": {"ttl": "5m", "sample": 0.0} | semantic}
        self.handler = self.chain(settings)

    async def close(self) -> None:
        await super().close()
        await self.state.close()


@pytest.fixture
async def meaning() -> AsyncIterator[Meaning]:
    made = Meaning()
    yield made
    await made.close()


async def test_the_same_in_other_words(meaning: Meaning) -> None:
    first = await meaning.ask(text=RESET)
    call = asked(STEPS)
    again = await meaning.ask(call)
    assert again.first == first.first
    assert state(again) == "hit"
    assert dict(again.headers)[b"x-tollhouse-cache-kind"] == b"semantic"
    assert (call.context.cached, call.context.saved_nano) == ("semantic", 35)
    assert state(await meaning.ask(text=DELETE)) == "stored"
    assert len(meaning.upstream.calls) == 2
    found = counted(meaning.parts, "cache_requests_total")
    assert found[("semantic", "hit", "chat")] == 1
    assert found[("semantic", "miss", "chat")] == 2
    assert ("exact", "hit", "chat") not in found


async def test_a_stream_in_other_words(meaning: Meaning) -> None:
    reply, source = streamed(b"data: 1\n\n")
    meaning.upstream.answers.append(reply)
    call = asked(RESET, stream=True)
    got = await meaning.handler(call)
    Sunk(got)
    source.say(b"data: 2\n\n")
    source.end()
    over(call, got)
    sunk = Sunk(await meaning.handler(asked(STEPS, stream=True)))
    assert sunk.data == b"data: 1\n\ndata: 2\n\n"
    assert sunk.over
    assert state(await meaning.ask(text=STEPS)) == "stored"  # a whole answer is another request


@pytest.mark.parametrize(
    "changes",
    [
        {"principal": who(id="bob", org="acme")},
        {"max_tokens": 5},
        {"label": "other"},
        {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": STEPS}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": STEPS}]}]},
        {"messages": [{"role": "user", "content": STEPS, "name": "x"}]},
        {"headers": [(b"cache-control", b"no-cache")]},
    ],
)
async def test_all_else_must_be_the_same(meaning: Meaning, changes: Any) -> None:
    await meaning.ask(text=RESET)
    assert state(await meaning.ask(asked(STEPS, **changes))) == "stored"


async def test_what_vectors_are_blind_to() -> None:
    for verify, same in (("numbers", "stored"), ("names", "stored"), ("off", "hit")):
        meaning = Meaning(verify=verify)
        await meaning.ask(text="What is 12 + 5?")
        assert state(await meaning.ask(text="What is 12 + 6?")) == same
        await meaning.close()


async def test_a_threshold() -> None:
    meaning = Meaning(threshold=0.999)
    await meaning.ask(text=RESET)
    assert state(await meaning.ask(text=STEPS)) == "stored"
    await meaning.close()


async def test_its_time_is_its_own(meaning: Meaning) -> None:
    await meaning.ask(text=RESET)
    meaning.time.advance(301)
    assert state(await meaning.ask(text=RESET)) == "hit"
    assert state(await meaning.ask(text=STEPS)) == "stored"


async def test_a_purge_concerns_it_too(meaning: Meaning) -> None:
    await meaning.ask(text=RESET)
    await purge(meaning.state, "user:ada")
    assert state(await meaning.ask(text=STEPS)) == "stored"


async def test_it_is_as_fresh_as_the_caller_wants(meaning: Meaning) -> None:
    await meaning.ask(text=RESET)
    for word, found in ((b"max-age=100", "hit"), (b"min-fresh=700", "stored")):
        assert state(await meaning.ask(asked(STEPS, headers=[(b"cache-control", word)]))) == found


async def test_what_failed_is_not_learnt(meaning: Meaning) -> None:
    meaning.upstream.answers += [Failure(502, Reason.UPSTREAM_FAILURE, "x"), Reply(400, [], b"{}")]
    with pytest.raises(Failure):
        await meaning.ask(text=RESET)
    assert state(await meaning.ask(text=RESET)) == "miss"
    assert state(await meaning.ask(text=STEPS)) == "stored"


async def test_one_in_so_many_is_asked_all_the_same_and_compared() -> None:
    meaning = Meaning(sample=1.0)
    answer = b'{"choices":[{"message":{"content":"%b"}}]}'
    for content in (b"Click on forgot password.", b"Click on forgot password.", b"There are 7 colours in a rainbow."):
        meaning.upstream.answers.append(Reply(200, [], answer % content))
    await meaning.ask(text=RESET)
    assert state(await meaning.ask(text=STEPS)) == "stored"
    assert state(await meaning.ask(text="How can I reset my password?")) == "stored"
    store = meaning.shelf.parts[("cache", 64 << 20)]
    while store._tasks:
        await asyncio.wait(tuple(store._tasks))
    found = counted(meaning.parts, "cache_semantic_samples_total")
    assert found == {("agree",): 1, ("disagree",): 1}
    assert len(meaning.upstream.calls) == 3
    await meaning.close()


async def test_too_long_or_empty_is_not_compared(meaning: Meaning) -> None:
    for text in ("", "  ", RESET * 20):
        await meaning.ask(text=text)
    assert len(meaning.shelf.parts[("cache meanings", "local", 20_000)].vectors) == 0


async def test_a_configured_model_makes_the_vectors() -> None:
    seen: list[tuple[str, str]] = []

    def embed(name: str) -> Any:
        async def vectors(request: Request, texts: Sequence[str]) -> list[list[float]]:
            seen.append((name, texts[0]))
            return [[1.0, 0.0]]

        return vectors

    meaning = Meaning()
    meaning.parts = meaning.made(state=meaning.state, embed=embed)
    meaning.handler = meaning.chain(
        {"exact": {"ttl": "10m"}, "semantic": {"ttl": "5m", "model": "vectors", "sample": 0.0, "verify": "off"}}
    )
    await meaning.ask(text=RESET)
    assert state(await meaning.ask(text=DELETE)) == "hit"
    assert seen == [("vectors", RESET), ("vectors", DELETE)]
    await meaning.close()


async def test_vectors_of_another_model_are_not_compared_with_these() -> None:
    def embed(name: str) -> Any:
        async def vectors(request: Request, texts: Sequence[str]) -> list[list[float]]:
            return [[1.0, 0.0]]

        return vectors

    class Ways(Behind):
        vectors = b"one model"

        def __call__(self, model: str) -> Path:
            return Path(self.vectors if model == "vectors" else self.fingerprint)

    meaning = Meaning()
    ways = Ways()
    meaning.parts = meaning.made(state=meaning.state, embed=embed, behind=ways)
    settings: Any = {
        "exact": {"ttl": "10m"},
        "semantic": {"ttl": "5m", "model": "vectors", "sample": 0.0, "verify": "off"},
    }
    for text, found in ((RESET, "stored"), (STEPS, "hit")):
        assert state(await meaning.chain(settings)(asked(text))) == found
    ways.vectors = b"another"
    assert state(await meaning.chain(settings)(asked(DELETE))) == "stored"
    settings["semantic"]["verify"] = "names"  # what was remembered of texts is less than is asked for now
    ways.vectors = b"one model"
    assert state(await meaning.chain(settings)(asked("What?"))) == "stored"
    await meaning.close()


def test_what_an_answer_says() -> None:
    whole = entry(blocks=[b'{"id":"1","choices":[{"message":{"role":"assistant","content":"Hi."}}]}'])
    assert said(whole) == "Hi."
    events = [
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n',
        b'data: {"delta":{"text":" you"}}\n\ndata: [DONE]\n\n',
    ]
    assert said(entry(blocks=events, times=[0, 1], stream=True)) == "Hi you"
    assert said(entry(blocks=[b"nonsense"])) == ""


def test_it_needs_the_exact_one_beside_it() -> None:
    with pytest.raises(ValueError, match="say how long answers are kept"):
        CacheSpec.model_validate({"semantic": {"ttl": "5m"}})


async def test_several_ask_in_other_words_at_once(meaning: Meaning) -> None:
    await meaning.ask(text=RESET)
    calls: list[ModelCall] = [asked(STEPS) for _ in range(5)]
    replies = await asyncio.gather(*(meaning.ask(call) for call in calls))
    assert {state(reply) for reply in replies} == {"hit"}
    assert len(meaning.upstream.calls) == 1
