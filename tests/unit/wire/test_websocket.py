"""WebSocket frames: any messages in any frames, cut anywhere; what section 5 of RFC 6455 does not allow."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.wire.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameFailure,
    FrameReader,
    accepted,
    asked_key,
    close_frame,
    frame,
    protocols,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

keys = st.binary(min_size=4, max_size=4)
payloads = st.one_of(st.binary(max_size=200), st.sampled_from((125, 126, 127, 65_535, 65_536)).map(bytes))
controls = st.tuples(st.sampled_from((PING, PONG, CLOSE)), st.binary(max_size=125))
messages = st.lists(st.tuples(st.sampled_from((TEXT, BINARY)), st.lists(payloads, min_size=1, max_size=4)), max_size=4)


def unfinished(data: bytes, opcode: int) -> bytes:
    """A frame as one of several of its message: not the last, and with that opcode."""
    return bytes(((data[0] & 0x70) | opcode,)) + data[1:]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


@settings(max_examples=60)
@given(st.booleans(), messages, st.data(), keys, st.lists(st.integers(0, 1 << 30), max_size=12))
def test_any_messages_in_any_frames_cut_anywhere(
    client: bool, said: list[tuple[int, list[bytes]]], data: st.DataObject, mask: bytes, places: list[int]
) -> None:
    key = mask if client else b""
    stream = b""
    expected: list[tuple[int, bytes]] = []
    for opcode, parts in said:
        for n, part in enumerate(parts):
            one = frame(opcode if not n else 0, part, key)
            stream += one if n == len(parts) - 1 else unfinished(one, 0 if n else opcode)
            if n < len(parts) - 1 and data.draw(st.booleans()):
                control = data.draw(controls)
                stream += frame(*control, key)
                expected.append(control)
        expected.append((opcode, b"".join(parts)))
    reader = FrameReader(client=client, keep=1 << 20)
    got = []
    for piece in cut(stream, places):
        for message in reader.feed(piece):
            assert message.whole
            assert -1 <= message.begin < message.end <= len(piece)
            got.append((message.opcode, message.payload))
    assert got == expected
    assert reader.between_messages


@given(st.lists(payloads, min_size=1, max_size=4), st.integers(0, 300), keys, st.lists(st.integers(0, 1 << 30)))
def test_no_more_is_kept_than_wanted(parts: list[bytes], keep: int, key: bytes, places: list[int]) -> None:
    frames = [frame(TEXT if not n else 0, part, key) for n, part in enumerate(parts)]
    stream = b"".join(unfinished(one, 0 if n else TEXT) for n, one in enumerate(frames[:-1])) + frames[-1]
    reader = FrameReader(client=True, keep=keep)
    (message,) = [message for piece in cut(stream, places) for message in reader.feed(piece)]
    whole = b"".join(parts)
    assert (message.payload, message.size) == (whole[:keep], len(whole))
    assert message.whole is (len(whole) <= keep)


@given(st.booleans(), st.binary(max_size=400), st.lists(st.integers(0, 1 << 30), max_size=4))
def test_any_bytes_are_frames_or_a_failure(client: bool, noise: bytes, places: list[int]) -> None:
    def run(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], int]:
        reader = FrameReader(client=client, keep=100)
        got: list[tuple[int, bytes]] = []
        for piece in pieces:
            try:
                got += [(m.opcode, m.payload) for m in reader.feed(piece)]
            except FrameFailure as failure:
                return got, failure.close
        return got, 0

    pieces = run(cut(noise, places))
    whole = run([noise])
    assert pieces[1] == whole[1]
    assert whole[1] or pieces[0] == whole[0]  # a failure takes along what came with it


def test_where_another_frame_or_message_may_stand() -> None:
    reader = FrameReader(client=False, keep=10)
    first, last = unfinished(frame(TEXT, b"ab"), TEXT), frame(0, b"c")
    reader.feed(first[:1])
    assert not reader.between_frames
    reader.feed(first[1:3])
    assert not reader.between_frames
    reader.feed(first[3:])
    assert reader.between_frames
    assert not reader.between_messages
    (ping, text) = reader.feed(frame(PING, b"p") + last + frame(TEXT, b"")[:1])
    assert (ping.begin, ping.end) == (0, 3)
    assert (text.begin, text.end) == (-1, 6)  # it began before
    assert not reader.between_frames
    (empty,) = reader.feed(frame(TEXT, b"")[1:])
    assert (empty.payload, empty.whole, empty.begin) == (b"", True, -1)
    assert reader.between_messages


@pytest.mark.parametrize(
    ("client", "data", "close"),
    [
        (False, b"\xc1\x00", 1002),  # a reserved bit: permessage-deflate, which nobody agreed on
        (False, b"\x83\x00", 1002),  # opcode 3
        (False, b"\x8b\x00", 1002),  # opcode 11
        (False, frame(TEXT, b"", b"mask"), 1002),
        (True, frame(TEXT, b"x"), 1002),
        (False, b"\x09\x00", 1002),  # a ping in pieces
        (False, b"\x89\x7e\x00\x7e" + bytes(126), 1002),  # a ping of 126 bytes
        (False, frame(0, b"x"), 1002),  # goes on with nothing
        (False, unfinished(frame(TEXT, b"a"), TEXT) + frame(TEXT, b"b"), 1002),
        (False, b"\x82\x7f" + (1 << 63).to_bytes(8), 1009),
        (False, b"\x82\x7f" + (1001).to_bytes(8), 1009),
        (False, unfinished(frame(TEXT, bytes(600)), TEXT) + frame(0, bytes(600)), 1009),
    ],
)
def test_what_is_no_frame(client: bool, data: bytes, close: int) -> None:
    with pytest.raises(FrameFailure) as failure:
        FrameReader(client=client, longest=1000).feed(data)
    assert failure.value.close == close
    assert failure.value.status == (400 if client else 502)
    assert failure.value.reason is (Reason.INVALID_REQUEST if client else Reason.UPSTREAM_FAILURE)


def test_close_frames() -> None:
    assert close_frame(1000) == b"\x88\x02\x03\xe8"
    (message,) = FrameReader(client=True).feed(close_frame(1001, "é" * 100, b"mask"))
    assert message.opcode == CLOSE
    assert len(message.payload) == 2 + 122  # a character is not cut in two
    assert message.payload[2:].decode() == "é" * 61


def test_the_client_s_handshake() -> None:
    good = Headers([(b"upgrade", b"WebSocket"), (b"sec-websocket-version", b"13"), (b"sec-websocket-key", KEY)])
    assert asked_key(good, True) == KEY

    def refused(name: bytes, value: bytes | None, upgrade: bool = True) -> Failure:
        headers = Headers(good)
        headers.drop((name,))
        if value is not None:
            headers.append((name, value))
        with pytest.raises(Failure) as failure:
            asked_key(headers, upgrade)
        return failure.value

    assert refused(b"upgrade", b"h2c").status == 426
    assert refused(b"x", None, upgrade=False).status == 426
    assert (b"sec-websocket-version", b"13") in refused(b"sec-websocket-version", b"8").headers
    for key in (None, b"", b"short", b"c2hvcnQ=", b"\xff" * 24):
        assert refused(b"sec-websocket-key", key).status == 400
    twice = Headers([*good, (b"sec-websocket-key", KEY)])
    with pytest.raises(Failure):
        asked_key(twice, True)


def test_the_server_s_handshake() -> None:
    good = Headers([(b"upgrade", b"websocket"), (b"sec-websocket-accept", ACCEPT)])
    assert accepted(good, KEY, []) == ""
    assert accepted(Headers([*good, (b"sec-websocket-protocol", b"realtime")]), KEY, [b"realtime"]) == ""
    assert "protocol" in accepted(Headers([*good, (b"sec-websocket-protocol", b"other")]), KEY, [b"realtime"])
    assert "extension" in accepted(Headers([*good, (b"sec-websocket-extensions", b"permessage-deflate")]), KEY, [])
    assert "key" in accepted(good, b"AAAAAAAAAAAAAAAAAAAAAA==", [])
    assert "other" in accepted(Headers([(b"upgrade", b"h2c")]), KEY, [])


def test_protocols() -> None:
    headers = Headers([(b"sec-websocket-protocol", b"a, b"), (b"x", b"y"), (b"sec-websocket-protocol", b"c,")])
    assert protocols(headers) == [b"a", b"b", b"c"]
