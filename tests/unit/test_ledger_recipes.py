"""The SQL in the guide runs on a ledger, and finds something there."""

import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.conformance.ledger import JOURNAL, entry

from tollhouse.ledger.sqlite import SqliteLedger

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "ledger.md"
RECIPES = [
    statement.strip()
    for block in re.findall(r"```sql\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    now = int(datetime.now(UTC).timestamp() * 1e6)
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(
        JOURNAL,
        [
            entry(1, admitted_at=now, run_id="r", cost_nano=7, tags=("a", "b"), team="search", stream=True),
            entry(2, admitted_at=now, cached="exact", saved_nano=5, run_id="r", server="shop", tool="buy"),
            entry(3, admitted_at=now, draws=(("usd:top/user:month|ada|1", 9),)),
        ],
    )
    ledger.close()
    return tmp_path / "l.db"


def test_there_are_some() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.splitlines()[0].strip("- ") for recipe in RECIPES])
def test_it_runs(recipe: str, ledger: Path) -> None:
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        assert db.execute(recipe).fetchall()
    finally:
        db.close()
