"""The nearest name."""

import pytest

from tollhouse.config.suggest import did_you_mean, nearest

KEYS = [
    "server",
    "state",
    "ledger",
    "providers",
    "models",
    "mcp",
    "routes",
    "authenticate",
    "authorize",
    "limits",
    "name",
]


@pytest.mark.parametrize(
    "written,meant",
    [
        ("modles", "models"),
        ("model", "models"),
        ("Models", "models"),
        ("provider", "providers"),
        ("authentication", "authenticate"),
        ("authorise", "authorize"),
        ("limit", "limits"),
        ("nmae", "name"),
        ("mpc", "mcp"),
        ("colour", None),
        ("x", None),
        ("", None),
    ],
)
def test_nearest(written: str, meant: str | None) -> None:
    assert nearest(written, KEYS) == meant


def test_dashes_and_underscores_are_the_same() -> None:
    assert nearest("base-url", ["base_url", "url"]) == "base_url"


def test_nothing_is_near_nothing() -> None:
    assert did_you_mean("models", []) == ""
    assert did_you_mean("modles", KEYS) == "; did you mean `models`?"
