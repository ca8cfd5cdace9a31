"""AWS event streams: golden bytes (made with botocore's reader as the judge), any cut, damage of any byte."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.errors import Failure
from tollhouse.wire.eventstream import (
    Framer,
    Header,
    Message,
    frame,
    headers,
    opened,
    parse,
    sealed,
    split,
    text_headers,
)

EVENT = bytes.fromhex(
    "000000760000005296d5fade0b3a6576656e742d7479706507000c6d65737361676553746172740d3a636f6e74656e742d747970650700"
    "106170706c69636174696f6e2f6a736f6e0d3a6d6573736167652d74797065070005"
    "6576656e747b22726f6c65223a22617373697374616e74227d6fa8c599"
)
EVERY_TYPE = bytes.fromhex(
    "000000660000004f95330185016100016201016302fb016403fe0c016504fffeee90016605ffffff0000000000016706000378797a01680700"
    "03c3a9780169080000018bcfe56800016a09000000000000000000000000000000077b2278223a317d98894d81"
)
EXCEPTION = bytes.fromhex(
    "0000008300000061a9d144e50f3a657863657074696f6e2d747970650700137468726f74746c696e67457863657074696f6e0d3a636f6e7465"
    "6e742d747970650700106170706c69636174696f6e2f6a736f6e0d3a6d6573736167652d74797065070009657863657074696f6e"
    "7b226d657373616765223a22736c6f77227d9350311c"
)
EMPTY = bytes.fromhex("000000100000000005c248eb7d98c8ff")


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def run(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    framer = Framer()
    blocks = [block for piece in pieces if (block := framer.feed(piece))]
    return [message for block in blocks for message in split(block)], framer.rest()


def test_golden_messages() -> None:
    head: dict[str, Header] = {
        ":event-type": "messageStart",
        ":content-type": "application/json",
        ":message-type": "event",
    }
    assert parse(EVENT) == Message(head, b'{"role":"assistant"}')
    assert frame(b"messageStart", b'{"role":"assistant"}') == EVENT
    assert frame(b"throttlingException", b'{"message":"slow"}', kind=b"exception") == EXCEPTION
    assert parse(EXCEPTION).headers[":exception-type"] == "throttlingException"
    assert parse(EMPTY) == Message({}, b"")
    assert sealed(b"", b"") == EMPTY


def test_every_type_of_header() -> None:
    message = parse(EVERY_TYPE)
    assert message.payload == b'{"x":1}'
    assert message.headers == {
        "a": True,
        "b": False,
        "c": -5,
        "d": -500,
        "e": -70_000,
        "f": -(1 << 40),
        "g": b"xyz",
        "h": "éx",
        "i": 1_700_000_000_000,
        "j": UUID(int=7),
    }
    assert isinstance(message.headers["a"], bool)


messages = st.lists(
    st.tuples(
        st.dictionaries(st.binary(min_size=1, max_size=8).filter(bytes.isascii), st.just(b"v"), max_size=3),
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=6,
)


@given(messages, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_cut_gives_the_same_messages_and_loses_no_byte(
    said: list[tuple[dict[bytes, bytes], bytes]], places: list[int]
) -> None:
    raw = [sealed(text_headers(fields), payload) for fields, payload in said]
    found, rest = run(cut(b"".join(raw), places))
    assert found == raw
    assert rest == b""
    for one, (fields, payload) in zip(found, said, strict=True):
        assert parse(one) == Message({name.decode(): "v" for name in fields}, payload)


@given(messages)
def test_every_byte_alone(said: list[tuple[dict[bytes, bytes], bytes]]) -> None:
    data = b"".join(sealed(text_headers(fields), payload) for fields, payload in said)
    assert run([bytes([b]) for b in data]) == run([data])


def test_a_block_passes_without_a_copy() -> None:
    assert Framer().feed(EVENT) is EVENT
    assert split(EVENT)[0] is EVENT


def test_a_cut_stream_leaves_its_rest() -> None:
    framer = Framer()
    assert framer.feed(EVENT + EXCEPTION[:50]) == EVENT
    assert framer.feed(b"") == b""
    assert framer.rest() == EXCEPTION[:50]
    assert framer.rest() == b""


@pytest.mark.parametrize("at", range(len(EVENT)))
def test_damage_is_found_wherever_it_is(at: int) -> None:
    damaged = EVENT[:at] + bytes([EVENT[at] ^ 1]) + EVENT[at + 1 :]
    with pytest.raises(Failure) as caught:
        for message in split(Framer().feed(damaged)):
            parse(message)
    assert caught.value.status == 502


def test_a_message_has_a_bound() -> None:
    framer = Framer(limit=200)
    assert framer.feed(EVENT) == EVENT
    with pytest.raises(Failure, match="more than 200 bytes"):
        framer.feed(sealed(b"", b"x" * 200)[:12])


def test_a_large_message_in_small_pieces_is_not_quadratic() -> None:
    data = sealed(b"", b"x" * 2_000_000)
    framer = Framer()
    for at in range(0, len(data) - 50, 50):
        assert framer.feed(data[at : at + 50]) == b""
    assert len(framer.feed(data[len(data) - len(data) % 50 or -50 :])) == len(data)


def unless_refused(call: Callable[[], Message | None]) -> Message | None:
    """What `call` gives, None for a Failure of the upstream's; anything else is an error."""
    try:
        return call()
    except Failure as failure:
        if failure.status != 502:
            raise
        return None


@given(st.binary(max_size=200))
def test_garbage_is_a_failure_and_nothing_else(data: bytes) -> None:
    for read in (Framer().feed, split, opened, headers):
        unless_refused(partial(read, data))  # type: ignore[arg-type]
    unless_refused(partial(parse, data))


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_garbage_in_the_headers_is_a_failure_and_nothing_else(head: bytes, payload: bytes) -> None:
    message = unless_refused(partial(parse, sealed(head, payload)))
    assert message is None or message.payload == payload


@pytest.mark.parametrize(
    "head",
    [
        b"\x01a\x0a",
        b"\x01a",
        b"\x05a",
        b"\x01a\x07\x00\x05abc",
        b"\x01a\x00\x01a\x00",
        b"\x01\xff\x00",
        b"\x01a\x09abc",
    ],
)
def test_headers_that_are_not_in_their_form(head: bytes) -> None:
    with pytest.raises(Failure, match="headers"):
        headers(head)
