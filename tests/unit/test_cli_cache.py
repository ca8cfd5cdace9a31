"""`tollhouse cache`: what it cannot do it says in plain words."""

from pathlib import Path

import pytest

from tollhouse.cli import main

MODELS = "providers: {p: {kind: openai, api_key: k}}\nmodels: [{name: m, targets: [{provider: p}]}]\n"


@pytest.mark.parametrize(
    ("server", "words", "status", "said"),
    [
        ("", ["model"], 2, "all else one of up to 256 characters"),
        ("", ["all", "x"], 2, "`all` has no name"),
        ("", ["all"], 1, "in the gateway's own memory"),
        ("admin: 127.0.0.1:1", ["all"], 1, "token cannot be read"),
        ("admin: {address: '127.0.0.1:1', keys: [{name: a, key: %s}]}" % ("k" * 32), ["all"], 1, "show their own keys"),
    ],
)
def test_what_cannot_be_purged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: str,
    words: list[str],
    status: int,
    said: str,
) -> None:
    (tmp_path / "tollhouse.yaml").write_text(f"server: {{{server}}}\n{MODELS}")
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "purge", *words]) == status
    assert said in capsys.readouterr().err


def test_a_state_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tollhouse.yaml").write_text(f"ledger: null\nstate: redis://127.0.0.1:1/0\n{MODELS}")
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "purge", "tag", "docs"]) == 1
    assert "the state cannot be used" in capsys.readouterr().err
