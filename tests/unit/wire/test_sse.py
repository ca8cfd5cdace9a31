"""SSE framing: the same bytes cut anywhere give the same events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.errors import Failure
from tollhouse.wire.sse import Framer, frame, parse, split

ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
fields = st.sampled_from(
    [b"data: x", b"data:y", b"data", b"event: ping", b": comment", b"id: 1", b'data: {"a": 1}', b"event:", b"nonsense"]
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream of whole events, and the events, each with its own mix of line ends."""
    events = []
    for lines in draw(st.lists(st.lists(fields, min_size=1, max_size=4), min_size=1, max_size=6)):
        event = b""
        for line in lines:
            event += line + draw(ends)
        last = draw(ends)
        if event.endswith(b"\r") and last == b"\n":
            last = b"\r\n"  # CR LF would be one line end
        events.append(event + last)
    return b"".join(events), events


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def run(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    framer = Framer()
    blocks = [block for piece in pieces if (block := framer.feed(piece))]
    return [event for block in blocks for event in split(block)], framer.rest()


def meaning(raw: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [parsed for event in raw if (parsed := parse(event)) != (b"", b"")]


@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_cut_gives_the_same_events_and_loses_no_byte(stream: tuple[bytes, list[bytes]], places: list[int]) -> None:
    data, events = stream
    raw, rest = run(cut(data, places))
    assert b"".join(raw) + rest == data
    # A stream that ends in a lone CR may still be waiting for its LF.
    assert meaning([*raw, *([rest] if data.endswith(b"\r") else [])]) == meaning(events)
    if not data.endswith(b"\r"):
        assert rest == b""


@given(streams())
def test_every_byte_alone(stream: tuple[bytes, list[bytes]]) -> None:
    data, _ = stream
    one, _ = run([bytes([b]) for b in data])
    all_at_once, _ = run([data])
    assert meaning(one) == meaning(all_at_once)


@given(st.binary(max_size=64), st.lists(st.integers(0, 64), max_size=6))
def test_garbage_is_kept_whole(data: bytes, places: list[int]) -> None:
    raw, rest = run(cut(data, places))
    assert b"".join(raw) + rest == data
    assert meaning([*raw, rest]) == meaning([*run([data])[0], run([data])[1]])


@pytest.mark.parametrize(
    ("pieces", "blocks"),
    [
        ([b"data: a\n\n"], [b"data: a\n\n"]),
        ([b"data: a\n", b"\ndata: b\n\nda"], [b"data: a\n\ndata: b\n\n"]),
        ([b"data: a\r\n\r", b"\n"], [b"data: a\r\n\r\n"]),
        ([b"data: a\r\n\r", b"data: b"], [b"data: a\r\n\r"]),
        ([b"data: a\r", b"\r", b"x"], [b"data: a\r\r"]),
        ([b"data: a\r", b"\ndata: b\r\n"], []),
        ([b"data: a\n", b"\r", b"\n"], [b"data: a\n\r\n"]),
        ([b"\n\n"], [b"\n\n"]),
        ([b""], []),
    ],
)
def test_blocks(pieces: list[bytes], blocks: list[bytes]) -> None:
    framer = Framer()
    assert [b for p in pieces if (b := framer.feed(p))] == blocks


def test_a_block_passes_without_a_copy() -> None:
    data = b"data: {}\n\n"
    assert Framer().feed(data) is data


def test_an_event_has_a_bound() -> None:
    framer = Framer(limit=100)
    framer.feed(b"data: " + b"x" * 90)
    with pytest.raises(Failure, match="more than 100 bytes") as caught:
        framer.feed(b"x" * 90)
    assert caught.value.status == 502


def test_a_large_event_in_small_pieces_is_not_quadratic() -> None:
    framer = Framer()
    for _ in range(40_000):
        assert framer.feed(b"x" * 50) == b""
    assert len(framer.feed(b"\n\n")) == 2_000_002


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (b"data: {}\n\n", (b"", b"{}")),
        (b"data:{}\n\n", (b"", b"{}")),
        (b"data:  {}\n\n", (b"", b" {}")),
        (b"\xef\xbb\xbfdata: {}\n\n", (b"", b"{}")),
        (b"event: ping\r\ndata: {}\r\n\r\n", (b"ping", b"{}")),
        (b"data: a\ndata: b\n\n", (b"", b"a\nb")),
        (b"event: ping\ndata: {}\n\n", (b"ping", b"{}")),
        (b"event: ping\ndata: a\ndata: b\n\n", (b"ping", b"a\nb")),
        (b"event: ping\nid: 1\ndata: {}\n\n", (b"ping", b"{}")),
        (b"event: ping\rdata: a\ndata: b\n\n", (b"ping", b"a\nb")),
        (b"event: ping\n\n", (b"ping", b"")),
        (b"data\n\n", (b"", b"")),
        (b": note\n\n", (b"", b"")),
        (b"\n\ndata: a\n\n", (b"", b"a")),
        (b"data: a\rdata: b\r\r", (b"", b"a\nb")),
    ],
)
def test_parse(raw: bytes, event: tuple[bytes, bytes]) -> None:
    assert parse(raw) == event


@given(st.lists(st.sampled_from([b"data: a", b"event: b", b":", b"", b"\n", b"\n\n"]), max_size=12).map(b"\n".join))
def test_a_block_without_cr_is_split_as_one_with_crlf(block: bytes) -> None:
    long = split(block.replace(b"\n", b"\r\n"))
    assert split(block) == [raw.replace(b"\r\n", b"\n") for raw in long]


def test_frame() -> None:
    assert parse(frame(b"{}", b"error")) == (b"error", b"{}")
    assert frame(b"[DONE]") == b"data: [DONE]\n\n"
