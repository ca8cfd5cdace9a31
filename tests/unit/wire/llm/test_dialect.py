"""Dialect: what of a request is read, and what is refused because a provider might read it otherwise."""

import pytest
from msgspec import Raw

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm import CHAT, CONVERSE, EMBEDDINGS, GENERATE, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, MOST_OUTPUT


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES, EMBEDDINGS], ids=lambda dialect: dialect.operation)
@pytest.mark.parametrize(
    "more",
    [
        '"Model":"o1-pro"', '"MODEL":"o1-pro"', '"Stream":true', '"\u017ftream":true', '"Max_Tokens":1000000',
        '"max_to\u212aens":1000000', '"Max_Completion_Tokens":1000000', '"Stream_Options":{}', '"N":100',
        '"Messages":[]', '"Input":"x"', '"System":"x"', '"mode\\u004c":"o1-pro"',
    ],
)  # fmt: skip
def test_a_field_in_another_case_is_refused(dialect: Dialect, more: str) -> None:
    for body in (f'{{"model":"cheap",{more}}}', f'{{{more},"model":"cheap"}}'):
        with pytest.raises(Failure, match="differs only by case") as caught:
            dialect.decode(body.encode())
        failure = caught.value
        assert (failure.status, failure.reason, failure.code) == (400, Reason.INVALID_REQUEST, "ambiguous_field")


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES, MESSAGES])
def test_other_models_cannot_be_named_beside_the_one_that_rules_know_of(dialect: Dialect) -> None:
    with pytest.raises(Failure, match="name one model") as caught:
        dialect.decode(b'{"model":"cheap","models":["dear"]}')
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    for none in (b"null", b"[]"):
        assert dialect.decode(b'{"model":"cheap","models":%b}' % none).model == "cheap"


def test_of_equal_names_the_last_counts_and_other_fields_pass() -> None:
    body = b'{"model":"a","Temperature":1,"temperature":2,"stream":false,"model":"b","metadata":{"Model":"x"}}'
    asked = CHAT.decode(body)
    assert (asked.model, asked.stream) == ("b", False)
    assert list(asked.fields) == ["model", "Temperature", "temperature", "stream", "metadata"]
    assert bytes(asked.fields["model"]) == b'"b"'


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda dialect: dialect.operation)
@pytest.mark.parametrize("flag", ["1", '"yes"', '"true"', "0", "[]", "{}"])
def test_what_is_neither_true_nor_false_is_no_wish_to_stream(dialect: Dialect, flag: str) -> None:
    with pytest.raises(Failure, match="stream: must be true or false") as caught:
        dialect.decode(b'{"model":"m","stream":%b}' % flag.encode())
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    asked = dialect.decode(b'{"model":"m","stream":null}')
    assert not asked.stream


@pytest.mark.parametrize("bound", [10**9, 10**30])
def test_no_caller_reserves_more_than_an_answer_can_have(bound: int) -> None:
    """A call that is left is charged what it reserved: a record must be able to hold it."""
    told = b"%d" % bound
    each = [
        (CHAT, {"max_tokens": Raw(told)}),
        (MESSAGES, {"max_tokens": Raw(told)}),
        (GENERATE, {"generationConfig": Raw(b'{"maxOutputTokens":%b}' % told)}),
        (CONVERSE, {"inferenceConfig": Raw(b'{"maxTokens":%b}' % told)}),
    ]
    for dialect, fields in each:
        assert dialect.output_bound(fields) in (MOST_OUTPUT, DEFAULT_OUTPUT), dialect.operation
    assert CHAT.output_bound({"max_tokens": Raw(b"200000")}) == 200_000
