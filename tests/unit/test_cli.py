"""The commands: what they print, where, and with which exit status."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
from argon2 import PasswordHasher

from tollhouse.cli import main
from tollhouse.cli.command import since_of
from tollhouse.config.load import demo_path
from tollhouse.config.schema import schema
from tollhouse.ledger.base import BY
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord

Said = Callable[[], tuple[str, str]]
GOOD = "routes: [{name: a, path: /, to: http://127.0.0.1:9}]\n"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


def program(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tollhouse.cli", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=30, check=False)


# ---- without a command


def test_no_command_and_an_unknown_one_are_status_2(said: Said) -> None:
    for arguments in ([], ["sevre"], ["check"], ["serve", "--log-level", "loud"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said()[1].startswith("usage: tollhouse")


def test_help_names_every_command(said: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = said()[0]
    assert all(f"\n    {name} " in shown for name in ("serve", "check", "schema", "init", "usage", "version"))


def test_version(said: Said) -> None:
    assert main(["version"]) == 0
    assert said() == (f"{version('tollhouse')}\n", "")


def test_schema(said: Said) -> None:
    assert main(["schema"]) == 0
    out, err = said()
    assert json.loads(out) == schema()
    assert err == ""
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_a_reader_that_has_seen_enough_is_no_traceback(here: Path) -> None:
    command = [sys.executable, "-m", "tollhouse.cli", "schema"]
    running = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    with running.stderr:
        assert running.stderr.read() == b""
    assert running.wait(30) == 1


# ---- check


def test_check_of_what_is_right(here: Path, said: Said) -> None:
    (here / "a.yaml").write_text(GOOD)
    assert main(["check", "a.yaml"]) == 0
    assert said() == ("a.yaml: fine\n", "")


def test_check_of_what_serve_serves_without_a_file(said: Said) -> None:
    assert main(["check", str(demo_path())]) == 0
    assert said()[1] == ""


@pytest.mark.parametrize(
    "text,problems",
    [
        ("routs: []\n", ["a.yaml:1:1: routs: unknown key `routs`; did you mean `routes`?"]),
        ("", ["a.yaml:1:1: the file is empty"]),
        (
            "state: redis\nledger: mysql:x\n",
            [
                (
                    "a.yaml:1:8: state: not a place for state; write `memory`, file:PATH, redis://host:6379/0, "
                    "rediss://host:6379/0 (TLS) or redis+cluster://host:6379,host:6379. "
                    "What a password has of / @ ? # % is written as %2F %40 %3F %23 %25"
                ),
                (
                    "a.yaml:2:9: ledger: not a ledger; write `sqlite:` and the name of a file, like "
                    "sqlite:tollhouse.db, or postgresql://user:password@host:5432/database"
                ),
            ],
        ),
    ],
)
def test_check_of_what_is_wrong(here: Path, said: Said, text: str, problems: list[str]) -> None:
    (here / "a.yaml").write_text(text)
    assert main(["check", "a.yaml"]) == 2
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration"
    assert said() == ("", "\n".join([*problems, count, ""]))


BUILT = """\
server:
  listen: {address: 127.0.0.1:0, tls: {cert: nonsense.pem, key: nonsense.pem}}
routes:
  - {name: own, exact: /status, to: http://127.0.0.1:9}
  - {name: a, path: /a, to: https://127.0.0.1:9, tls: {ca: nonsense.pem}, health: {check: {path: /}}}
mcp:
  servers:
    tools: {url: https://127.0.0.1:9/mcp, tls: {ca: nonsense.pem}}
"""


def test_check_finds_what_only_building_finds_all_of_it(here: Path, said: Said) -> None:
    (here / "nonsense.pem").write_text("nonsense")
    (here / "a.yaml").write_text(BUILT)
    assert main(["check", "a.yaml"]) == 2
    out, err = said()
    assert out == ""
    places = [line.split(": ")[:2] for line in err.splitlines()[:-1]]
    assert ["a.yaml:2:46", "server.listen[0].tls.cert"] in places
    assert ["a.yaml:5:5", "routes[1]"] in places
    assert ["a.yaml:8:12", "mcp.servers.tools"] in places
    assert err.splitlines()[-1] == f"{len(places)} problems in the configuration"


def test_check_of_a_file_that_is_not_there(said: Said) -> None:
    assert main(["check", "nowhere.yaml"]) == 2
    assert said()[1].startswith("nowhere.yaml: cannot be read: No such file or directory\n")


# ---- init


def test_init_writes_a_file_that_is_right_once(here: Path, said: Said) -> None:
    assert main(["init"]) == 0
    assert said() == ("wrote tollhouse.yaml; now: tollhouse serve tollhouse.yaml\n", "")
    assert (here / "tollhouse.yaml").read_text() == demo_path().read_text()
    assert main(["check", "tollhouse.yaml"]) == 0
    (here / "tollhouse.yaml").write_text("mine")
    said()
    assert main(["init"]) == 1
    assert said() == ("", "tollhouse.yaml is already there; name another file or remove it first\n")
    assert (here / "tollhouse.yaml").read_text() == "mine"


def test_init_where_nothing_can_be_written(said: Said) -> None:
    assert main(["init", "nowhere/a.yaml"]) == 1
    assert said() == ("", "cannot write nowhere/a.yaml: No such file or directory\n")


# ---- usage


def record(at: datetime, **fields: object) -> UsageRecord:
    micros = int(at.timestamp() * 1e6)
    return UsageRecord(admitted_at=micros, ended_at=micros + 1, **{"outcome": "ok", **fields})  # type: ignore[arg-type]


@pytest.fixture
def used(here: Path) -> Path:
    """A configuration whose ledger has three calls, left in the journal of a process that is gone."""
    (here / "tollhouse.yaml").write_text(f"ledger: sqlite:{here}/usage.db\n{GOOD}")
    journal = Journal(here / "usage.db.journal")
    journal.open()
    now = datetime.now(UTC)
    journal.append(record(now, model_asked="smart", org="red", input=1200, output=30, cost_nano=12_003_450_000))
    journal.append(record(now, model_asked="smart", org="blue", input=5, output=6, outcome="timeout"))
    journal.append(record(now - timedelta(days=3), model_asked="old", org="red", input=7, output=8))
    journal.close()
    return here


def test_usage_is_a_table(used: Path, said: Said) -> None:
    assert main(["usage"]) == 0
    out, err = said()
    assert err == ""
    assert [line.split() for line in out.splitlines()] == [
        [
            "model",
            "requests",
            "errors",
            "input",
            "output",
            "cache_read",
            "cache_write",
            "reasoning",
            "unpriced",
            "saved_usd",
            "usd",
        ],
        ["smart", "2", "1", "1,205", "36", "0", "0", "0", "1", "0.000000", "12.003450"],
    ]


def test_usage_by_several_and_as_json(used: Path, said: Said) -> None:
    assert main(["usage", "tollhouse.yaml", "--by", "org, model", "--since", "30d", "--json"]) == 0
    rows = [json.loads(line) for line in said()[0].splitlines()]
    assert [(row["org"], row["model"], row["input"], row["cost_nano"], row["unpriced"]) for row in rows] == [
        ("blue", "smart", 5, 0, 1),
        ("red", "old", 7, 0, 1),
        ("red", "smart", 1200, 12_003_450_000, 0),
    ]


def test_usage_asks_what_can_be_asked(used: Path, said: Said) -> None:
    assert main(["usage", "--by", "model,colour,size"]) == 2
    assert said()[1] == f"cannot group by colour, size; use some of: {', '.join(BY)}\n"


@pytest.mark.parametrize(
    "since",
    ["999999999d", "99999999999999999999d", "²d", "1w", "yesterday", "", "d", "-1d", "2026-13-01", "0001-01-01",
     "0001-01-01T00:00+14:00", "1969-12-31"],
)  # fmt: skip
def test_what_is_no_time(used: Path, said: Said, since: str) -> None:
    assert main(["usage", f"--since={since}"]) == 2
    assert said() == ("", f"not a time: {since!r}; write 6h, 30d or a date like 2026-11-01\n")


@pytest.mark.parametrize(
    "since,moment",
    [
        ("6h", NOW - timedelta(hours=6)),
        ("90m", NOW - timedelta(minutes=90)),
        ("30d", NOW - timedelta(days=30)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T06:30", datetime(2026, 11, 1, 6, 30, tzinfo=UTC)),
        ("2026-11-01T00:00+02:00", datetime(2026, 10, 31, 22, 0, tzinfo=UTC)),
        ("2026-11-01T00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(since: str, moment: datetime) -> None:
    found = since_of(since, NOW)
    assert found == moment
    assert found.tzinfo is UTC


def test_usage_without_a_ledger(here: Path, said: Said) -> None:
    (here / "tollhouse.yaml").write_text(GOOD)
    assert main(["usage"]) == 1
    assert said() == ("", "this configuration keeps no ledger\n")


def test_asking_makes_no_ledger(here: Path, said: Said) -> None:
    (here / "tollhouse.yaml").write_text(f"ledger: sqlite:{here}/nowhere/usage.db\n{GOOD}")
    assert main(["usage"]) == 1
    assert said() == ("", f"nothing is recorded yet: there is no {here}/nowhere/usage.db\n")
    assert os.listdir(here) == ["tollhouse.yaml"]


def test_a_ledger_that_is_none(here: Path, said: Said) -> None:
    (here / "tollhouse.yaml").write_text(f"ledger: sqlite:{here}/usage.db\n{GOOD}")
    (here / "usage.db").write_bytes(b"no database" * 1000)
    assert main(["usage"]) == 1
    out, err = said()
    assert out == ""
    assert err.startswith("the ledger cannot be read: ")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(here / "usage.db").execute("select * from usage")


# ---- serve


def test_the_demo_says_that_it_is_the_demo_and_how_to_change_it(here: Path) -> None:
    (here / "tollhouse.db.journal").write_text("not a directory: so it does not come to ports that may be in use")
    refused = program("serve", where=here)
    assert refused.returncode == 2
    lines = refused.stderr.splitlines()
    assert lines[0].endswith("serving the built-in demo: there is no tollhouse.yaml here")
    assert lines[1].startswith("built-in demo:10:9: ledger: the ledger's journal cannot be written in ")
    assert lines[2:] == ["1 problem in the configuration", "`tollhouse init` writes the demo as a file to change"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ledger_in_a_directory_that_is_not_there_makes_none(here: Path, workers: int) -> None:
    (here / "a.yaml").write_text(
        f"server: {{listen: 127.0.0.1:0, metrics: null, workers: {workers}}}\nledger: sqlite:nowhere/x/usage.db\n{GOOD}"
    )
    refused = program("serve", "a.yaml", where=here)
    assert refused.returncode == 2
    lines = refused.stderr.splitlines()
    assert lines[0].endswith("serving a.yaml")
    missing = f"there is no directory '{here}/nowhere/x'; make it, or name a file in another one"
    assert lines[1:] == [f"a.yaml:2:9: ledger: {missing}", "1 problem in the configuration"]
    assert os.listdir(here) == ["a.yaml"]


# ---- hash-password


def test_a_password_is_read_from_standard_input_and_hashed(here: Path) -> None:
    command = [sys.executable, "-m", "tollhouse.cli", "hash-password"]
    done = subprocess.run(command, cwd=here, input="correct horse\r\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0
    hashed = done.stdout.strip()
    assert PasswordHasher().verify(hashed, "correct horse")
    assert "correct horse" not in done.stdout + done.stderr


@pytest.mark.parametrize("given", ["", "\n", "a\tb\n", "x" * 2000])
def test_what_nobody_could_type_in_is_not_hashed(here: Path, given: str) -> None:
    command = [sys.executable, "-m", "tollhouse.cli", "hash-password"]
    done = subprocess.run(command, cwd=here, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "a password has 1 to 1024 characters, and no control characters\n"
