"""ledger.records: ids and encoding."""

import uuid

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.ledger.records import OUTCOMES, Outcome, UsageFacts, UsageRecord, identify, labels

JOURNAL = "00112233445566778899aabbccddeeff"


def test_id_is_a_uuid_of_version_7() -> None:
    made = uuid.UUID(identify(JOURNAL, 77, 1_795_312_800_123_456))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == 1_795_312_800_123


@given(st.integers(1, 1 << 34), st.integers(1, 1 << 34), st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_ids_sort_by_time_and_differ_by_seq(one: int, two: int, early: int, late: int) -> None:
    early, late = sorted((early, late))
    a, b = identify(JOURNAL, one % (1 << 34), early), identify(JOURNAL, two % (1 << 34), late)
    if early // 1000 < late // 1000:
        assert a < b
    if one % (1 << 34) != two % (1 << 34):
        assert a != b


def test_ids_of_two_journals_differ() -> None:
    assert identify(JOURNAL, 1, 0) != identify("f" * 32, 1, 0)


def test_a_record_encodes_only_what_it_has_and_comes_back() -> None:
    record = UsageRecord(admitted_at=1, ended_at=2, model_asked="smart", outcome=Outcome.CUT)
    body = msgspec.json.encode(record)
    assert msgspec.json.decode(body) == {"admitted_at": 1, "ended_at": 2, "model_asked": "smart", "outcome": "cut"}
    assert msgspec.json.decode(body, type=UsageRecord) == record


def test_fields_of_a_later_version_are_no_error() -> None:
    assert (
        msgspec.json.decode(b'{"admitted_at":1,"ended_at":2,"outcome":"ok","new":[]}', type=UsageRecord).ended_at == 2
    )


def test_outcomes_are_their_words() -> None:
    assert "client_gone" in OUTCOMES
    assert all(o == o.value for o in OUTCOMES)


def test_facts_and_labels_are_a_record() -> None:
    own = UsageFacts.__struct_fields__
    assert own == tuple(f for f in UsageRecord.__struct_fields__ if f in own)
    words = dict.fromkeys(("reason", "user", "model_asked", "backend"), 'odd ","outcome":" \u2028 name')
    record = UsageRecord(
        admitted_at=1, ended_at=2, request_id='",outcome', outcome="ok", output=7, stream=True, **words
    )
    facts = UsageFacts(1, 2, '",outcome', output=7)
    assert msgspec.json.encode(facts)[:-1] + labels(record) == msgspec.json.encode(record)
