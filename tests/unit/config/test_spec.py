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
    assert parse(f"ledger: {written}\n", "/etc/tollhouse/tollhouse.yaml", {}).config.ledger == f"sqlite:{file}"


@pytest.mark.parametrize("written", ["sqlite:", "sqlite", "sqlite://usage.db", "sqlite::memory:", "mysql:x", ""])
def test_what_is_no_ledger(written: str) -> None:
    with pytest.raises(ValueError, match="not a ledger"):
        Config.model_validate({"ledger": written})


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
