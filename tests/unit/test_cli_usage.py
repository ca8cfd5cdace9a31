"""`tollhouse usage`: what it prints in each format, and what it changes."""

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tollhouse.cli import main
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord

Said = Callable[[], tuple[str, str]]
CONFIG = """
ledger: sqlite:{}/usage.db
audit: on
subscriptions: [{{name: max, usd: 100, models: ["claude-*"]}}]
routes: [{{name: a, path: /, to: http://127.0.0.1:9}}]
"""
NOW = datetime.now(UTC)


def record(ago: timedelta = timedelta(), **fields: Any) -> UsageRecord:
    micros = int((NOW - ago).timestamp() * 1e6)
    given: dict[str, Any] = {"admitted_at": micros, "ended_at": micros + 1, "outcome": "ok"}
    return UsageRecord(**(given | fields))


@pytest.fixture(autouse=True)
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tollhouse.yaml").write_text(CONFIG.format(tmp_path))
    journal = Journal(tmp_path / "usage.db.journal")
    journal.open()
    journal.append(record(user="ada", model_asked="claude-1", input=1200, output=30, cost_nano=212_003_450_000))
    journal.append(record(user="bob", model_asked="claude-1", input=5, saved_nano=70, cached="exact", run_id="r1"))
    journal.append(record(timedelta(days=3), user="=1+1", org="a\x1b[31m", model_asked="old", input=7, cost_nano=1))
    journal.close()
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


def table(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_order_top_and_where(said: Said) -> None:
    assert main(["usage", "--by", "user", "--since", "30d", "--order", "usd", "--top", "2"]) == 0
    assert [row[0] for row in table(said()[0])] == ["user", "ada", "=1+1"]
    assert main(["usage", "--by", "user", "--where", "user=bob", "--where", "user=ada", "--where=cached=exact"]) == 0
    assert table(said()[0])[1:] == [["bob", "1", "0", "5", "0", "0", "0", "0", "1", "0.00000007", "0.000000"]]
    assert main(["usage", "--by", "run,user"]) == 0
    assert [row[:2] for row in table(said()[0])] == [["run", "user"], ["ada", "1"], ["r1", "bob"]]


def test_until(said: Said) -> None:
    assert main(["usage", "--by", "user", "--since", "30d", "--until", "2d"]) == 0
    assert [row[0] for row in table(said()[0])] == ["user", "=1+1"]


def test_as_csv(said: Said) -> None:
    assert main(["usage", "--by", "user,org", "--since", "30d", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(said()[0])))
    assert [(row["user"], row["usd"], row["cost_nano"], row["unpriced"]) for row in rows] == [
        ("'=1+1", "0.000000001", "1", "0"),  # no spreadsheet reckons it
        ("ada", "212.003450", "212003450000", "0"),
        ("bob", "0.000000", "0", "1"),
    ]
    assert rows[0]["org"] == "a\x1b[31m"


def test_as_json(said: Said) -> None:
    assert main(["usage", "--by", "user", "--format", "json", "--where", "user=bob"]) == 0
    (line,) = said()[0].splitlines()
    row = json.loads(line)
    assert (row["user"], row["requests"], row["saved_nano"], row["saved_usd"]) == ("bob", 1, 70, "0.00000007")


def test_a_terminal_is_not_talked_to(said: Said) -> None:
    assert main(["usage", "--by", "org", "--since", "30d"]) == 0
    out, _ = said()
    assert "\x1b" not in out
    assert "a<U+001B>[31m" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--where", "user"], "not a condition: 'user'"),
        (["--where", "day=1"], "not a condition: 'day=1'"),
        (["--order", "size"], "cannot order by size"),
        (["--until", "soon"], "not a time: 'soon'"),
        (["--top", "-1"], "the number of rows is not negative"),
        (["a.yaml", "b.yaml"], "one configuration at a time, not a.yaml and b.yaml"),
        (["adjust"], "say which record"),
        (["adjust", "x"], "say which record"),
        (["adjust", "x", "--usd", "much"], "not a cost: 'much'"),
        (["adjust", "x", "--usd", "-1"], "a call costs from 0 to"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], problem: str, said: Said) -> None:
    assert main(["usage", *arguments]) == 2
    out, err = said()
    assert out == ""
    assert err.startswith(problem)


def test_seats(said: Said) -> None:
    assert main(["usage", "seats"]) == 0
    out, _ = said()
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "user"
    assert lines[1].split()[:4] == ["ada", "max", "1", "212.003450"]
    assert lines[2].split()[0] == "=1+1"
    assert lines[-2].startswith("1 of 3 users would be cheaper with a seat: 113.")
    assert lines[-1] == ("1 requests have no known price and count as nothing: name it in `prices`, or adjust them")
    assert main(["usage", "seats", "tollhouse.yaml", "--format", "json", "--since", "2d"]) == 0
    rows = [json.loads(line) for line in said()[0].splitlines()]
    assert [(row["user"], row["seat"]) for row in rows] == [("ada", "max"), ("bob", "")]


def test_seats_where_none_is_sold(used: Path, said: Said) -> None:
    (used / "other.yaml").write_text(f"ledger: sqlite:{used}/usage.db\n")
    assert main(["usage", "seats", "other.yaml"]) == 2
    assert "no subscription is named" in said()[1]


def test_records_and_a_correction(used: Path, said: Said) -> None:
    assert main(["usage", "records", "--format", "json", "--where", "user=bob"]) == 0
    (bob,) = [json.loads(line) for line in said()[0].splitlines()]
    assert (bob["cost_nano"], bob["run_id"]) == (None, "r1")
    assert main(["usage", "records", "--since", "30d"]) == 0
    assert bob["id"] in said()[0]
    assert main(["usage", "adjust", bob["id"], "--usd", "1.5", "--note", "invoice 7"]) == 0
    assert said() == (f"{bob['id']}: no price -> 1.500000 usd\n", "")
    assert main(["usage", "--by", "user", "--where", "user=bob", "--json"]) == 0
    row = json.loads(said()[0])
    assert (row["requests"], row["usd"], row["unpriced"], row["input"]) == (1, "1.500000", 0, 5)
    assert main(["usage", "records", "--where", "user=bob"]) == 0
    assert f"adjusts {bob['id']}" in said()[0]
    assert main(["audit", "list"]) == 0
    out, _ = said()
    assert "admin.usage.adjust" in out
    assert f"{bob['id']}: no price -> 1.500000 usd: invoice 7" in out
    db = sqlite3.connect(used / "usage.db")
    assert db.execute("SELECT count(*) FROM usage WHERE adjust_of <> ''").fetchone() == (1,)
    db.close()


def test_a_correction_of_nothing(said: Said) -> None:
    assert main(["usage", "adjust", "01234567-89ab-7cde-8f01-23456789abcd", "--usd", "1"]) == 1
    assert said()[1] == (
        "there is no record '01234567-89ab-7cde-8f01-23456789abcd'; `tollhouse usage records` shows them\n"
    )
    assert main(["audit", "list", "--outcome", "invalid"]) == 0
    assert "admin.usage.adjust" in said()[0]
