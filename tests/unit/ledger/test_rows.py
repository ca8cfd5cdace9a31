"""ledger.rows: labels are bounded and found by what they are; what a record drew is summed up."""

from hashlib import blake2b

import msgspec

from tollhouse.ledger.rows import LABELS, NOTHING, SUMS, Facts, Labels, Sums, digested, drawn, fact_row, sum_up


def facts(**fields: object) -> Facts:
    return Facts(admitted_at=7_200_000_000, ended_at=7_200_000_001, labels=3, **fields)  # type: ignore[arg-type]


def test_labels_that_are_too_long_are_cut_and_stay_apart() -> None:
    first, values = digested(Labels(org="x" * 1000, tags=("y" * 300, *(f"t{n}" for n in range(100)))))
    named = dict(zip(LABELS, values, strict=True))
    assert named["org"] == "x" * 255 + "…"
    assert str(named["tags"]).startswith('["' + "y" * 255 + '…","t0"')
    assert str(named["tags"]).count(",") == 31
    assert digested(Labels(org="x" * 1000))[0] != first
    assert digested(Labels(org="x" * 2000))[0] == digested(Labels(org="x" * 1000))[0]


def test_a_label_that_is_new_leaves_the_digests_of_before() -> None:
    """As these were, before there were tags, guard and cached."""
    body = b'{"outcome":"ok","user":"ada"}'
    decoded = msgspec.json.decode(body, type=Labels)
    assert digested(decoded)[0] == blake2b(body, digest_size=16).digest()


def test_draws_are_each_there_once() -> None:
    assert drawn(facts()) == ()
    assert drawn(facts(draws=(("a", 1), ("b", 2)))) == (("a", 1), ("b", 2))
    assert drawn(facts(draws=(("a", 1), ("b", 2), ("a", -5)))) == (("a", -4), ("b", 2))


def test_draws_are_no_column() -> None:
    row = fact_row(facts(draws=(("a", 1),), adjust_of="x", run_id="r"))
    assert "a" not in row
    assert row[-3:] == ("x", False, "")


def test_what_is_summed_up() -> None:
    sums: Sums = {}
    sum_up(sums, facts(input=5, saved_nano=7, withheld_tokens=2))
    sum_up(sums, facts(adjust_of="x", cost_nano=9, repriced=True))
    (values,) = sums.values()
    named = dict(zip(SUMS, values, strict=True))
    assert (named["requests"], named["cost_nano"], named["unpriced"], named["saved_nano"], named["withheld"]) == (
        1, 9, 0, 7, 2,
    )  # fmt: skip
    assert set(sums) == {(2, 3)}
    assert (0,) * len(SUMS) == NOTHING
