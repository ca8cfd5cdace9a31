"""The request's deadline."""

from time import monotonic

import pytest
from tests.unit.policies.floor import layer, parts, request, respond

from tollhouse.core.handler import compose
from tollhouse.policies.timeout import TIMEOUT, TimeoutSpec

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "began, before, deadline", [(1000.0, 1e18, 1300.0), (1000.0, 1200.0, 1200.0), (1000.0, 1400.0, 1300.0)]
)
async def test_the_nearer_deadline_counts(began: float, before: float, deadline: float) -> None:
    policy = TIMEOUT.make((layer(TimeoutSpec.model_validate({"total": "5m"})),), parts())
    assert policy is not None
    asked = request()
    asked.context.began, asked.context.deadline = began, before
    await compose((policy,), respond)(asked)
    assert asked.context.deadline == deadline


async def test_without_a_beginning_it_begins_now() -> None:
    policy = TIMEOUT.make((layer(TimeoutSpec.model_validate({"total": "5m"})),), parts())
    assert policy is not None
    asked = request()
    await compose((policy,), respond)(asked)
    assert monotonic() + 299 < asked.context.deadline <= monotonic() + 300


def test_a_timeout_is_above_nothing() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        TimeoutSpec.model_validate({"total": "0s"})
