"""wire.guard.measure: counts are those of the whole text, however it comes."""

from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.measure import Length


@given(st.text(alphabet=st.sampled_from("ab é\n\t日\ud800"), max_size=60), st.integers(1, 7))
def test_counts_do_not_depend_on_pieces(text: str, size: int) -> None:
    length = Length(characters=10_000, size=10_000, words=10_000, lines=10_000)
    for at in range(0, len(text), size):
        assert length.add(text[at : at + size]) is None
    assert length.characters == len(text)
    assert length.size == len(text.encode(errors="surrogatepass"))
    assert length.words == len(text.split())
    assert length.lines == (text.count("\n") + 1 if text else 0)


def test_the_bound_that_is_passed_is_named() -> None:
    for bounds, fits, passes, name in (
        ({"characters": 3}, "abc", "d", "characters"),
        ({"size": 3}, "aé", "b", "bytes"),
        ({"words": 2}, "a b", " c", "words"),
        ({"lines": 2}, "a\nb", "\n", "lines"),
    ):
        length = Length(**bounds)
        assert length.add(fits) is None
        assert length.add(passes) == name
        assert length.passed == name


def test_no_bounds() -> None:
    length = Length()
    assert length.add("x" * 1000) is None
    assert length.add("") is None
