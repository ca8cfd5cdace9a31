"""Dialect: what of a request is read, and what is refused because a provider might read it otherwise."""

import pytest

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm import CHAT, EMBEDDINGS, MESSAGES
from tollhouse.wire.llm.dialect import Dialect


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


def test_of_equal_names_the_last_counts_and_other_fields_pass() -> None:
    body = b'{"model":"a","Temperature":1,"temperature":2,"stream":false,"model":"b","metadata":{"Model":"x"}}'
    asked = CHAT.decode(body)
    assert (asked.model, asked.stream) == ("b", False)
    assert list(asked.fields) == ["model", "Temperature", "temperature", "stream", "metadata"]
    assert bytes(asked.fields["model"]) == b'"b"'
