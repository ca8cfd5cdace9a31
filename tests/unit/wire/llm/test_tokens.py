"""Estimates."""

import base64
import os

from tollhouse.wire.llm.tokens import PICTURE, of_body, of_text


def test_text() -> None:
    assert [of_text(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_body_is_four_bytes_a_token() -> None:
    body = b'{"messages":[{"content":"%b"}]}' % (b"some words " * 4000)
    assert of_body(body) == len(body) // 4


def test_a_picture_does_not_count_by_its_bytes() -> None:
    picture = base64.b64encode(os.urandom(1 << 20))
    body = b'{"content":[{"url":"data:image/png;base64,%b"},{"data":"%b"}]}' % (picture, picture)
    assert 2 * PICTURE <= of_body(body) < 2 * PICTURE + 100
