"""gateway.audit: when records are kept, by which key they are sealed, and what the command line says of them."""

import sqlite3
from pathlib import Path

import pytest

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.call import Actor
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.audit import chain_of, records, said, seal_of, setting, verified
from tollhouse.gateway.build import validate
from tollhouse.ledger.audit import AuditRecord, Seal
from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.policies.audit import AuditSpec

LEDGER = "ledger: sqlite:t.db\n"
ALLOW = "authorize: {rules: [{allow: 'true'}]}"
ISSUER = (
    "issuer: {url: 'https://a.example', resources: [{uri: 'https://b.example', scopes: {r: Read}}],"
    " clients: [{id: c, secret: 0123456789abcdef0123456789abcdef, grants: [client_credentials]}]}\n"
)
KEY = "0123456789abcdef0123456789abcdef"


def config(text: str, where: Path | None = None) -> Config:
    return parse(text, str((where or Path("/nowhere")) / "t.yaml"), {}).config


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("server: {}\n", False),
        (LEDGER, False),
        (ALLOW, False),
        (LEDGER + ALLOW, True),
        (LEDGER + ISSUER, True),
        (LEDGER + f"routes: [{{name: a, path: /a, to: 'http://127.0.0.1:1', {ALLOW}}}]", True),
        (LEDGER + f"mcp: {{servers: {{s: {{command: x, {ALLOW}}}}}}}", True),
        (LEDGER + f"mcp: {{servers: {{s: {{command: x, tools: {{t: {{{ALLOW}}}}}}}}}}}", True),
        (LEDGER + "server: {admin: '127.0.0.1:15000'}\n", True),
        (LEDGER + "server: {admin: '127.0.0.1:15000'}\naudit: off\n", False),
        ("server: {admin: '127.0.0.1:15000'}\n", False),
        (LEDGER + "audit: on\n", True),
        (LEDGER + "audit: {}\n", True),
        (LEDGER + "audit: off\n" + ALLOW, False),
        (LEDGER + "audit: {mode: off}\n" + ALLOW, False),
    ],
)
def test_when_it_is_on(text: str, on: bool) -> None:
    assert (setting(config(text)) is not None) is on


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("audit: on\n", "audit: has no effect without a `ledger`, which keeps the records"),
        (LEDGER + "audit: {log: true}\n", "audit.log: has no effect without `telemetry.access_log`"),
        (LEDGER + "audit: sometimes\n", "not a way to audit; write on, off, or {arguments: hash, ...}"),
        (LEDGER + "audit: {mode: off, log: true}\n", "`log` has no effect with `mode: off`; leave it out"),
        (LEDGER + "audit: {key: short}\n", "shorter than 32 bytes"),
    ],
)
def test_what_would_have_no_effect(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert why in str(caught.value)
    assert "short\n" not in str(caught.value)


def test_checking_a_configuration_makes_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    validate(config(LEDGER + ALLOW, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_the_configured_one_or_one_beside_the_ledger(tmp_path: Path) -> None:
    text = f"ledger: sqlite:{tmp_path}/t.db\n"
    own = config(text + f"audit: {{key: {KEY}}}\n")
    assert seal_of(own, own.audit or AuditSpec()).id == Seal(KEY.encode()).id
    assert not (tmp_path / "t.db.audit-key").exists()
    made = config(text + "audit: on\n")
    first = seal_of(made, made.audit or AuditSpec())
    assert first.id == seal_of(made, made.audit or AuditSpec()).id != Seal(KEY.encode()).id
    (tmp_path / "t.db.audit-key").write_text("")
    with pytest.raises(ConfigError, match="has no key in it"):
        seal_of(made, AuditSpec())


def _served(where: Path, text: str, users: list[str]) -> None:
    """A process has been there, and was killed."""
    made = config(text)
    journal = Journal(where / "t.db.journal")
    journal.open()
    chain = chain_of(made, journal)
    spec = setting(made)
    assert spec is not None
    for user in users:
        chain.append(seal_of(made, spec), b',"operation":"tools/call","user":"%b"' % user.encode())
    journal.close()


def test_records_sealed_with_former_keys_still_hold(tmp_path: Path) -> None:
    text = f"ledger: sqlite:{tmp_path}/t.db\n"
    other = KEY[::-1]
    _served(tmp_path, text + "audit: on\n", ["a", "b"])
    _served(tmp_path, text + f"audit: {{key: {KEY}}}\n", ["c"])
    _served(tmp_path, text + f"audit: {{key: {other}, former_keys: [{KEY}]}}\n", ["d"])
    both = config(text + f"audit: {{key: {other}, former_keys: [{KEY}]}}\n")
    assert (verified(both).records, verified(both).breaks) == (7, ())
    assert [one.user for one in records(both, 0, 9, [])] == ["", "a", "b", "", "c", "", "d"]
    breaks = verified(config(text + f"audit: {{key: {other}}}\n")).breaks
    assert {one.why.partition(" (")[0] for one in breaks} == {"it is sealed with a key that is not given here"}


def test_what_is_noted_elsewhere_shows_a_ledger_that_was_put_back(tmp_path: Path) -> None:
    text = f"ledger: sqlite:{tmp_path}/t.db\naudit: {{key: {KEY}}}\n"
    heads = tmp_path / "elsewhere"
    _served(tmp_path, text, ["a"])
    made = config(text)
    assert verified(made, heads).breaks == ()
    before = heads.read_bytes()
    _served(tmp_path, text, ["b"])
    assert verified(made, heads).breaks == ()
    assert heads.read_bytes() != before
    noted = heads.read_bytes()
    with sqlite3.connect(tmp_path / "t.db") as db:
        newest = db.execute("SELECT max(journal) FROM audit").fetchone()
        db.execute("DELETE FROM audit WHERE journal = ?", newest)
        db.execute("DELETE FROM audit_chains WHERE journal = ?", newest)
    db.close()
    assert verified(made).breaks == ()
    assert len(verified(made, heads).breaks) == 1
    assert heads.read_bytes() == noted  # what is not right is not noted
    heads.write_text("no JSON")
    with pytest.raises(ValueError, match="is not what an earlier"):
        verified(made, heads)


def test_asking_makes_no_ledger(tmp_path: Path) -> None:
    made = config(f"ledger: sqlite:{tmp_path}/t.db\naudit: on\n")
    with pytest.raises(LedgerError, match="nothing is recorded yet"):
        verified(made)
    with pytest.raises(ConfigError):
        records(config("server: {}\n"), 0, 1, [])
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_before_there_was_an_audit(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "t.db").close()
    journal = Journal(tmp_path / "j")
    journal.open()
    chain = chain_of(config(f"ledger: sqlite:{tmp_path}/t.db\n"), journal)
    chain.append(Seal(b"k"), b',"operation":"x"')
    journal.close()


def test_a_record_in_words() -> None:
    record = AuditRecord(
        at=1_795_000_000_123_456,
        operation="tools/call",
        user="ada\n2026",
        agent="bot",
        actors=(Actor("", "bot"), Actor("", "planner")),
        server="bank",
        target="pay",
        decision="deny",
        rule="top: no",
        outcome="denied",
    )
    assert said(record) == (
        "2026-11-18T11:06:40.123Z  deny  denied  ada<U+000A>2026  by bot < planner  tools/call  bank/pay  (top: no)"
    )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"ledger: sqlite:{tmp_path}/t.db\naudit: {{key: {KEY}}}\n"
    file = tmp_path / "t.yaml"
    file.write_text(text)
    asked = ["audit", "list", "--config", str(file)]
    assert main(asked) == 1
    assert "nothing is recorded yet" in capsys.readouterr().err
    _served(tmp_path, text, ["ada", "bob"])
    assert main([*asked, "--user", "bob"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main([*asked, "--since", "yesterday"]) == 2
    assert main([*asked, "--limit", "0"]) == 2
    capsys.readouterr()
    verify = ["audit", "verify", "--config", str(file)]
    assert main(verify) == 0
    assert capsys.readouterr().out == "3 records in 1 chains: all there, as they were written\n"
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("UPDATE audit SET body = replace(body, '\"ada\"', '\"eve\"')")
    db.close()
    assert main(verify) == 1
    told = capsys.readouterr()
    assert told.out == "3 records in 1 chains: 1 breaks\n"
    assert told.err.endswith(", record 2: it was changed\n")
    assert main([*verify, "--heads", str(tmp_path)]) == 2
