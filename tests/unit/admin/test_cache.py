"""Purges by the admin API: in the state, for all who share it, or refused."""

from pathlib import Path

import pytest
from tests.unit.admin.house import House

from tollhouse.policies.cache.purges import KEY

pytestmark = pytest.mark.anyio


async def test_a_purge_is_in_the_state_when_the_answer_comes(tmp_path: Path) -> None:
    house = House(tmp_path)
    told: list[bytes] = []
    house.state.bus.subscribe("cache:purged", told.append)
    status, first, _ = await house.ask("POST", "/api/cache/purge", {"by": "model", "name": "smart"})
    assert (status, first["by"], first["name"]) == (200, "model", "smart")
    _, second, _ = await house.ask("POST", "/api/cache/purge", {"by": "all"})
    assert second["number"] > first["number"]
    kept = await house.state.values.get(KEY)
    assert kept is not None
    assert b'"model:smart"' in kept
    assert len(told) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"by": "model"}, {"by": "all", "name": "x"}, {"by": "nothing", "name": "x"}, {"name": "x"}, {},
        {"by": "tag", "name": "x" * 257}, {"by": "tag", "name": "a\nb"}, {"by": "tag", "name": "x", "more": 1},
    ],
)  # fmt: skip
async def test_what_names_nothing(tmp_path: Path, body: dict[str, str]) -> None:
    house = House(tmp_path)
    assert (await house.ask("POST", "/api/cache/purge", body))[0] == 400
    assert await house.state.values.get(KEY) is None


async def test_workers_that_share_nothing_are_not_told_half(tmp_path: Path) -> None:
    house = House(tmp_path)
    server = house.config.server.model_copy(update={"workers": 2})
    house.config = house.config.model_copy(update={"server": server})
    assert (await house.ask("POST", "/api/cache/purge", {"by": "all"}))[0] == 409
