"""What commands change is in the audit, sealed and chained like all else; and nothing is changed that could not be."""

import json
import os
import pwd
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.audit import records, verified
from tollhouse.gateway.deeds import done_by, recorded
from tollhouse.ledger.audit import AuditRecord

ME = pwd.getpwuid(os.getuid()).pw_name


def config(where: Path, more: str = "audit: on\n") -> Config:
    file = where / "t.yaml"
    file.write_text(f"ledger: sqlite:{where}/t.db\nauthenticate: {{issued: true}}\n{more}")
    return parse(file.read_text(), str(file), {}).config


def found(made: Config) -> list[AuditRecord]:
    assert not verified(made).breaks
    return [one for one in records(made, 0, 100, ()) if one.operation.startswith("admin.")]


def run(made: Config, where: Path, *arguments: str) -> int:
    return main([*arguments, "--config", str(where / "t.yaml")])


def test_keys_that_are_made_and_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path)
    assert run(made, tmp_path, "keys", "create", "ci", "--user", "bob", "--json") == 0
    key = json.loads(capsys.readouterr().out)
    assert run(made, tmp_path, "keys", "revoke", "ci") == 0
    assert run(made, tmp_path, "keys", "revoke", "never-was") == 1
    created, ended, nothing = found(made)
    assert (created.operation, created.target) == ("admin.keys.create", f"{key['id']} (ci) for user 'bob'")
    assert (ended.operation, ended.target) == ("admin.keys.revoke", f"{key['id']} (ci)")
    assert (nothing.operation, nothing.target, nothing.outcome) == ("admin.keys.revoke", "never-was", "invalid")
    for one in (created, ended):
        assert (one.user, one.source, one.principal, one.outcome) == (ME, "command", f"operator:{ME}", "ok")
        assert one.took_us > 0
    assert key["key"] not in json.dumps([str(one) for one in found(made)])
    assert key["key"].encode() not in (tmp_path / "t.db").read_bytes()


def test_what_fails_is_recorded_as_such(tmp_path: Path) -> None:
    made = config(tmp_path)
    assert run(made, tmp_path, "keys", "create", "ci", "--user", "ada") == 0
    assert run(made, tmp_path, "keys", "create", "ci", "--user", "bob") == 2  # the name is taken
    with pytest.raises(RuntimeError), recorded(made, "admin.other", "x"):
        raise RuntimeError
    assert [(one.operation, one.outcome) for one in found(made)] == [
        ("admin.keys.create", "ok"), ("admin.keys.create", "invalid"), ("admin.other", "error"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "is_on"),
    [("", False), ("audit: off\nserver: {admin: '127.0.0.1:0'}\n", False), ("server: {admin: '127.0.0.1:0'}\n", True)],
)
def test_where_only_the_admin_api_asks_for_it(tmp_path: Path, more: str, is_on: bool) -> None:
    made = config(tmp_path, more)
    assert run(made, tmp_path, "keys", "create", "ci") == 0
    assert (tmp_path / "t.db.audit-key").exists() is is_on
    assert len(found(made) if is_on else ()) == is_on


def test_nothing_is_done_that_could_not_be_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = config(tmp_path)
    (tmp_path / "t.db.journal").write_text("no directory can be here")
    assert run(made, tmp_path, "keys", "create", "ci") == 1
    assert "what is done cannot be recorded" in capsys.readouterr().err
    with pytest.raises(Failure) as caught, recorded(made, "admin.x"):
        raise AssertionError
    assert caught.value.code == "audit_unavailable"
    (tmp_path / "t.db.journal").unlink()
    assert run(made, tmp_path, "keys", "revoke", "ci") == 1  # there is none


def test_or_it_is_told_where_that_is_configured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(tmp_path, "audit: {on_failure: allow}\n")
    (tmp_path / "t.db.journal").write_text("no directory can be here")
    with recorded(made, "admin.x"):
        pass
    assert "an audit record is lost, as configured" in caplog.text


def test_a_record_outlives_a_command_that_is_killed_before_it_is_shipped(tmp_path: Path) -> None:
    made = config(tmp_path)
    pid = os.fork()
    if not pid:
        with recorded(made, "admin.x", "y") as deed:
            deed.target = "z"
            (tmp_path / "t.db").mkdir()  # no ledger: what is written stays in the journal
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    (tmp_path / "t.db").rmdir()
    (one,) = found(made)
    assert (one.operation, one.target) == ("admin.x", "z")


def test_signing_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    issuer = (
        "issuer: {url: 'http://127.0.0.1:8080', clients: [{id: robot, secret: %s, grants: [client_credentials]}]}\n"
    )
    made = config(tmp_path, issuer % secret)
    assert run(made, tmp_path, "signing-keys", "list") == 0
    assert run(made, tmp_path, "signing-keys", "rotate") == 0
    assert run(made, tmp_path, "signing-keys", "rotate", "--secret") == 0
    assert "another secret makes refresh tokens and nonces from 2" in capsys.readouterr().out
    assert run(made, tmp_path, "signing-keys", "drop", "never-was") == 1
    assert run(made, tmp_path, "signing-keys", "drop", "x", "--secret") == 2
    assert [(one.operation, one.target, one.outcome) for one in found(made)] == [
        ("admin.signing-keys.rotate", "", "ok"),
        ("admin.signing-keys.rotate-secret", "", "ok"),
        ("admin.signing-keys.drop", "never-was", "invalid"),
    ]


def test_tools_that_are_approved(tmp_path: Path) -> None:
    tools = Path(__file__).resolve().parents[2] / "fixtures" / "mcp_child.py"
    python = json.dumps(sys.executable)
    made = config(
        tmp_path,
        f"audit: on\nmcp: {{integrity: {{pins: '{tmp_path}/pins.json'}}, servers: {{tools: {{command: {python}, "
        f"args: ['{tools}']}}}}}}\n",
    )
    file = str(tmp_path / "t.yaml")
    assert main(["tools", "diff", file]) == 1
    assert main(["tools", "approve", file, "--tool", "echo", "--yes"]) == 0
    (one,) = found(made)
    assert (one.operation, one.outcome, one.user) == ("admin.tools.approve", "ok", ME)
    name, digest = one.target.split()
    pins: dict[str, Any] = json.loads((tmp_path / "pins.json").read_text())
    assert name == "tools/echo"
    assert digest in json.dumps(pins)


def test_the_account_is_the_systems_and_the_key_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert done_by() == ME
    made = config(tmp_path)
    with recorded(made, "admin.x"):
        pass
    assert stat.S_IMODE((tmp_path / "t.db.audit-key").stat().st_mode) == 0o600
