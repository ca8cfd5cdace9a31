"""gateway.ledger: which ledger a configuration means, and that asking makes none."""

from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import free_port

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.ledger import (
    NothingRecorded,
    audit_of,
    caught_up,
    check_ledger,
    journal_of,
    keys_of,
    ledger_of,
    sink_of,
)
from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.keys_sqlite import SqliteKeys
from tollhouse.ledger.postgres import PostgresLedger
from tollhouse.ledger.postgres_keys import PostgresKeys
from tollhouse.ledger.sqlite import SqliteLedger


def config(ledger: Any) -> Config:
    return Config.model_validate({"ledger": ledger})


@pytest.fixture
def away(tmp_path: Path) -> Config:
    """Nobody listens there."""
    url = f"postgresql://ada:hunter2@127.0.0.1:{free_port()}/usage"
    return config({"url": url, "timeout": "1s", "files": str(tmp_path / "ours")})


def test_which_it_is(tmp_path: Path, away: Config) -> None:
    file = config(f"sqlite:{tmp_path / 'l.db'}")
    assert (sink_of(file), sink_of(away)) == ("sqlite", "postgres")
    assert isinstance(ledger_of(file), SqliteLedger)
    assert isinstance(ledger_of(away), PostgresLedger)
    assert isinstance(keys_of(file), SqliteKeys)
    assert isinstance(keys_of(away), PostgresKeys)
    assert away.ledger_file is not None
    assert journal_of(away.ledger_file) == tmp_path / "ours.journal"


def test_there_is_none() -> None:
    none = Config.model_validate({})
    for ask in (ledger_of, keys_of, audit_of, sink_of):
        with pytest.raises(ConfigError, match="no ledger is named"):
            ask(none)
    with pytest.raises(ConfigError, match="no ledger is named"), caught_up(none):
        pass


def test_asking_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(NothingRecorded, match=r"there is no .*l\.db"), caught_up(config(f"sqlite:{tmp_path / 'l.db'}")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_away_is_said_to_be(away: Config) -> None:
    with pytest.raises(LedgerError, match="refused") as caught, caught_up(away):
        pass
    assert not isinstance(caught.value, NothingRecorded)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LedgerError):
        audit_of(away)


def test_certificates_that_cannot_be_used_are_said_before_anybody_connects(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not one")
    spec = config({"url": "postgresql://ada:hunter2@db/usage", "tls": {"ca": str(tmp_path / "ca.pem")}})
    for use in (lambda: check_ledger(spec.ledger), lambda: ledger_of(spec)):
        with pytest.raises(ConfigError, match=r"ca\.pem: it is no PEM file"):
            use()
