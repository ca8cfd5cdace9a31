"""Budgets by the admin API and by the command: what was spent of each, and what is left."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.house import House

from tollhouse.cli import main
from tollhouse.gateway.budget_accounts import budgets_of
from tollhouse.gateway.reconciliation import Drift, Reconciled
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord

pytestmark = pytest.mark.anyio

MORE = """
providers: {one: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key: k-of-provider}}
models: [{name: m, targets: [{provider: one}], budgets: [{per: user, calls: 5, window: year}]}]
budgets:
  - {per: user, usd: 10, window: year, name: money}
  - {per: 'request.headers["x-p"]', calls: 3, window: year, name: by-cel}
"""


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Three calls, left in the journal of a process that is gone."""
    journal = Journal(tmp_path / "keys.db.journal")
    journal.open()
    now = int(datetime.now(UTC).timestamp() * 1e6)
    year = int(datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC).timestamp())
    fields: dict[str, Any]
    for user, cost in (("ada", 2_500_000_000), ("ada", 1), ("bob", 11_000_000_000)):
        fields = {"outcome": "ok", "user": user, "model_asked": "m", "operation": "chat", "cost_nano": cost}
        drawn = ((f"calls:top/by-cel:year|x|{year}", 1),) if user == "ada" else ()
        journal.append(UsageRecord(admitted_at=now, ended_at=now, draws=drawn, **fields))
    journal.close()
    return tmp_path


async def test_the_admin_api(where: Path) -> None:
    house = House(where, MORE)
    status, found, _ = await house.ask("GET", "/api/budgets")
    assert status == 200
    accounts: list[dict[str, Any]] = found["accounts"]
    told = [(one["budget"], one["whose"], one["spent"], one["left"]) for one in accounts]
    assert told == [
        ("money", "bob", "11.000000000", "0.000000000"),
        ("money", "ada", "2.500000001", "7.499999999"),
        ("by-cel", "x", "2", "1"),
        ("user-calls-year", "ada", "2", "3"),
        ("user-calls-year", "bob", "1", "4"),
    ]
    assert accounts[0]["start"].endswith("-01-01T00:00:00Z")
    _, found, _ = await house.ask("GET", "/api/budgets?budget=by-cel")
    assert [one["budget"] for one in found["accounts"]] == ["by-cel"]
    assert (await house.ask("GET", "/api/budgets?user=ada"))[0] == 400
    assert (await house.ask("GET", "/api/budgets", key="another-key-of-32-characters-here"))[0] == 401


async def test_they_are_compared_with_the_ledger(tmp_path: Path) -> None:
    async def checks() -> Reconciled:
        budgets = {one.spec.unit: one for one in budgets_of(house.config)}
        drifts = [
            Drift(budgets["usd"], "ada", 1_790_000_000, -1_500_000_000), Drift(budgets["calls"], "o\x01t", 1, 2),
        ]  # fmt: skip
        return Reconciled(7, drifts)

    house = House(tmp_path, MORE, check_budgets=checks)
    status, found, _ = await house.ask("POST", "/api/budgets/check")
    assert (status, found["checked"]) == (200, 7)
    told = [(one["budget"], one["whose"], one["unit"], one["by"]) for one in found["drifts"]]
    assert told == [
        ("usd:top/money:year", "ada", "usd", "-1.500000000"), ("calls:model m/user:year", "o/t", "calls", "2"),
    ]  # fmt: skip
    assert (await House(tmp_path, MORE).ask("POST", "/api/budgets/check"))[0] == 409


async def test_without_a_ledger_yet(tmp_path: Path) -> None:
    assert (await House(tmp_path, MORE).ask("GET", "/api/budgets"))[1] == {"accounts": []}


def test_the_command(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = where / "t.yaml"
    file.write_text(f"ledger: sqlite:{where}/keys.db\n{MORE}", encoding="utf-8")
    assert main(["budgets", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["budget", "whose", "spent", "of", "left", "until"]
    assert lines[1].split()[:8] == ["money", "bob", "11.0000", "USD", "10.0000", "USD", "0.0000", "USD"]
    assert lines[3].split()[:6] == ["by-cel", "x", "2", "calls", "3", "calls"]
    assert main(["budgets", str(file), "--json", "--budget", "money"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["whose"], first["spent"], second["spent"]) == ("bob", 11_000_000_000, 2_500_000_001)
    file.write_text(MORE.partition("budgets:\n")[0].replace(", budgets: [{per: user, calls: 5, window: year}]", ""))
    assert main(["budgets", str(file)]) == 1
    assert "ledger" in capsys.readouterr().err
