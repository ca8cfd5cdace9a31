"""Writes what agents are told into expected/. Read the difference before it is committed:

python -m tests.golden.mcp.write && git diff --stat tests/golden
"""

import asyncio

from tests.golden.mcp.transcripts import COMBINATIONS, EXPECTED, transcript, written

if __name__ == "__main__":
    EXPECTED.mkdir(exist_ok=True)
    for agent, server in COMBINATIONS:
        path = EXPECTED / f"{agent}_agent_{server}_server.json"
        path.write_text(written(asyncio.run(transcript(agent, server))) + "\n", "utf-8")
