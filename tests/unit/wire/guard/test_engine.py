"""wire.guard.engine: positions are bytes, the longest match counts, and the character before is seen."""

import pytest

from tollhouse.wire.guard.engine import available, compiled, which
from tollhouse.wire.guard.expression import Refused


def test_it_is_here() -> None:
    assert available()


def test_the_longest_of_the_leftmost() -> None:
    search = compiled("a|ab|abc")
    assert search("éxabcab".encode(), 0, 8) == [(3, 6)]
    assert search(b"abcab", 1, 5) == [(3, 5)]
    assert search(b"abcab", 0, 2) == [(0, 2)]
    assert search(b"xyz", 0, 3) == [(-1, -1)]


def test_the_character_before_is_seen() -> None:
    assert compiled(r"\bfoo")(b"xfoo", 1, 4) == [(-1, -1)]
    assert compiled(r"\bfoo")(b" foo", 1, 4) == [(1, 4)]
    assert compiled("^foo")(b"xfoo", 1, 4) == [(-1, -1)]
    assert compiled(r"(?:\bfo?)?\z")(b" xf f", 1, 5) == [(4, 5)]


def test_anchored() -> None:
    assert compiled("b+", anchored=True)(b"abb", 0, 3) == [(-1, -1)]
    assert compiled("b+", anchored=True)(b"abb", 1, 3) == [(1, 3)]


def test_which_are_found() -> None:
    chosen = which(["a", "b", "[0-9]{2}", *["c"] * 40])
    assert chosen(b"12 a") == [0, 2]
    assert chosen(b"c") == list(range(3, 43))
    assert chosen(b"-") == []


def test_what_it_does_not_take() -> None:
    for pattern, why in (("(?=a)", "does not take this pattern"), ("(?:(?:a{999}){999}){999}", "repetition")):
        with pytest.raises(Refused, match=why):
            compiled(pattern)
    with pytest.raises(Refused, match="too large"):
        compiled("(?:" + "|".join(f"[{chr(0x4E00 + n)}-{chr(0x9000 + n)}]{{1000}}" for n in range(999)) + ")")


def test_which_are_found_where_an_automaton_of_all_would_not_fit() -> None:
    large = [rf"{char}\pL{{60}}\pN{{60}}" for char in "abcdefghijklmnop"]
    chosen = which([*large, "a", "z"])
    assert chosen(b"z") == [*range(16), 17]
    assert chosen(b"-") == list(range(16))
