"""What Specs of this package do by themselves."""

from pathlib import Path

import pytest

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config


@pytest.mark.parametrize(
    "written,file",
    [
        ("sqlite:usage.db", str(Path("usage.db").absolute())),
        ("sqlite:/var/lib/usage.db", "/var/lib/usage.db"),
        ("sqlite:///var/lib/usage.db", "/var/lib/usage.db"),
    ],
)
def test_a_ledger_is_written_where_the_gateway_was_started(written: str, file: str) -> None:
    config = parse(f"ledger: {written}\n", "/etc/tollhouse/tollhouse.yaml", {}).config
    assert str(config.ledger_file) == file
    assert config.ledger is not None
    assert not config.ledger.is_postgres


@pytest.mark.parametrize("written", ["sqlite:", "sqlite", "sqlite://usage.db", "sqlite::memory:", "mysql:x", ""])
def test_what_is_no_ledger(written: str) -> None:
    with pytest.raises(ValueError, match="not a ledger"):
        Config.model_validate({"ledger": written})


def _postgres(tls: object) -> Config:
    return Config.model_validate({"ledger": {"url": "postgresql://ada:secret@db.example.com/usage", "tls": tls}})


@pytest.mark.parametrize(
    "tls,mode",
    [(None, "verify-full"), ({}, "verify-full"), ({"ca": "ca.pem"}, "verify-full"), ({"verify": False}, "require"),
     (False, "disable")],
)  # fmt: skip
def test_how_the_line_to_a_ledger_is_protected(tls: object, mode: str) -> None:
    ledger = _postgres(tls).ledger
    assert ledger is not None
    assert ledger.place.options()["sslmode"] == mode
    assert "secret" not in repr(ledger) + str(ledger.place) + ledger.model_dump_json()


@pytest.mark.parametrize(
    "tls,why",
    [
        ({"cert": "c"}, "`cert` and `key` go together"),
        ({"key": "c"}, "`key` without `cert`"),
        ({"verify": False, "ca": "c"}, "`ca` has no effect"),
        ("off", "write {ca: FILE}, or false"),
        (True, "write {ca: FILE}, or false"),
    ],
)
def test_how_it_is_not(tls: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _postgres(tls)


def test_the_settings_of_a_ledger_reach_its_place() -> None:
    url = "postgresql://ada:secret@%2Frun%2Fpostgresql/usage"
    given = {"url": url, "schema": "ours", "timeout": "3s", "files": "/var/lib/t/ledger"}
    config = Config.model_validate({"ledger": given})
    assert config.ledger is not None
    place = config.ledger.place
    assert (place.schema, place.timeout, place.hosts[0][0]) == ("ours", 3.0, "/run/postgresql")
    assert str(config.ledger_file) == "/var/lib/t/ledger"


@pytest.mark.parametrize("name", ["smart", "openai/*", "*", "*-latest", "org/team:v1.2@x"])
def test_names_of_models(name: str) -> None:
    text = f"providers: {{p: {{kind: local}}}}\nmodels: [{{name: '{name}', targets: [{{provider: p}}]}}]\n"
    assert parse(text, "t.yaml", {}).config.models[0].name == name


@pytest.mark.parametrize(
    "written,meant",
    [
        ("https://gateway.example.com/", "https://gateway.example.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://example.com/ai", "https://example.com/ai"),
    ],
)
def test_public_urls(written: str, meant: str) -> None:
    assert parse(f"server: {{public_url: '{written}'}}\n", "t.yaml", {}).config.server.public_url == meant


@pytest.mark.parametrize(
    "written",
    [
        "gateway", "https://", "https://u:p@x", "https://x?q", "https://x#f", "https://x:0", "https://x:99999",
        "https://x/a{b", "https://x/a b", "https://x/é",
    ],
)  # fmt: skip
def test_what_is_no_public_url(written: str) -> None:
    with pytest.raises(ValueError, match="not a URL of a server"):
        Config.model_validate({"server": {"public_url": written}})
