"""ledger.postgres_rows: lines that COPY takes are the rows that are meant."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.ledger.base import Entry
from tollhouse.ledger.postgres_rows import USUAL, Batch, Doubtful, Halves, bounded, halves, label_row, stored_row
from tollhouse.ledger.records import AUDIT, USAGE, UsageRecord
from tollhouse.ledger.rows import FACTS, LABELS, Labels, drawn

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
_SEPARATORS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def unescaped(value: str) -> str | None:
    if value == "\\N":
        return None
    text, rest = "", value
    while rest:
        pair = rest[:2]
        text += _SEPARATORS.get(pair, rest[:1])
        rest = rest[2:] if pair in _SEPARATORS else rest[1:]
    return text


@given(
    request_id=TEXT,
    run_id=TEXT,
    cost=st.none() | st.integers(-(1 << 50), 1 << 50),
    cached=st.integers(0, 9),
    seq=st.integers(1, 1 << 40),
    draws=st.lists(st.tuples(TEXT, st.integers(0, 1 << 53)), max_size=3),
)
def test_a_line_is_the_row(
    request_id: str, run_id: str, cost: int | None, cached: int, seq: int, draws: list[tuple[str, int]]
) -> None:
    record = UsageRecord(
        admitted_at=5, ended_at=6, request_id=request_id, run_id=run_id, cost_nano=cost, cache_read=cached,
        outcome="ok", draws=tuple(draws),
    )  # fmt: skip
    entry = Entry(seq, USAGE, msgspec.json.encode(record))
    batch = Batch()
    batch.read(3, [entry], halves([entry]), lambda _: 7, Halves().facts)
    [line] = batch.usual + batch.rest
    usual = bool(batch.usual)
    assert usual == (not run_id and not cached)
    facts = Halves().any_facts(entry.body)
    facts.journal, facts.seq, facts.labels = 3, seq, 7
    row = dict(zip(FACTS, stored_row(facts), strict=True))
    found = [unescaped(value) for value in line.split("\t")]
    columns = USUAL if usual else FACTS
    assert found == [None if row[name] is None else str(row[name]) for name in columns]
    lines = [[unescaped(value) for value in line.split("\t")] for line in batch.draws]
    assert lines == [[bounded(field), "3", str(seq), "5", str(amount)] for field, amount in drawn(facts)]
    assert sum(values[0] for values in batch.sums.values()) == 1


def test_other_kinds_are_looked_at_one_by_one() -> None:
    entry = Entry(1, AUDIT, b'{"admitted_at":1,"ended_at":2,"outcome":"ok"}')
    with pytest.raises(Doubtful):
        Batch().read(1, [entry], halves([entry]), lambda _: 1, Halves().facts)


@given(TEXT, st.integers(490, 600))
def test_what_is_found_by_an_index_fits_into_it(text: str, size: int) -> None:
    long = (text + "\U0001f600" * size)[:size]
    kept = bounded(long)
    assert "\x00" not in kept
    assert len(kept.encode()) < 2600
    assert bounded(long) == kept
    if size > 512:
        assert bounded(long + "x") != kept


def test_labels_have_no_nul_anywhere() -> None:
    digest, row = label_row(Labels(org="a\x00", tags=("x\x00", "\\u0000")))
    named = dict(zip(LABELS, row, strict=True))
    assert (named["org"], named["tags"]) == ("a␀", '["x␀","\\\\u0000"]')
    assert digest != label_row(Labels(org="a␀", tags=("x\x00", "\\u0000")))[0]
