"""Nothing that an agent of either era is told by a server of either era changes unseen."""

import json

import pytest
from tests.golden.mcp.transcripts import COMBINATIONS, EXPECTED, transcript

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("agent,server", COMBINATIONS)
async def test_what_agents_are_told(agent: str, server: str) -> None:
    expected = json.loads((EXPECTED / f"{agent}_agent_{server}_server.json").read_text(encoding="utf-8"))
    told = await transcript(agent, server)
    assert list(told) == [row for row in told if row in expected]
    for row, seen in told.items():
        assert seen == expected[row], row
