"""ledger.catalogue: the table that comes with the package says what the package says that it was made of."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import genai_prices
import msgspec
import pytest
from genai_prices.data import providers

from tollhouse.core.call import Usage
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.rates import Rates

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def known(catalogue: Catalogue, provider: str, model: str, at: str) -> Rates:
    schedule = catalogue.find(provider, model)
    assert schedule is not None
    rates, _ = schedule.at(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
    assert rates is not None
    return rates


def test_it_is_what_the_locked_package_says(tmp_path: Path) -> None:
    file = ROOT / "src/tollhouse/ledger/catalogue.json"
    out = tmp_path / "catalogue.json"
    program = (ROOT / "scripts/prices").read_text()
    run = f"{program.rpartition('if __name__')[0]}\nOUT = Path({str(out)!r})\nmain()\n"
    subprocess.run([sys.executable, "-c", run.replace("Path(__file__).resolve().parents[1]", "Path()")], check=True)
    assert out.read_bytes() == file.read_bytes(), "run scripts/prices"
    assert json.loads(file.read_text())["source"] == f"genai-prices {version('genai-prices')}"


def test_its_licence_comes_along() -> None:
    notice = json.loads((ROOT / "src/tollhouse/ledger/catalogue.json").read_text())["notice"]
    assert "MIT" in notice
    assert "Copyright" in notice


def literals(match: Any) -> list[str]:
    for name in ("equals", "starts_with", "ends_with", "contains"):
        if (text := getattr(match, name, None)) is not None:
            return [text]
    inner = getattr(match, "or_", None) or getattr(match, "and_", None) or ()
    return [text for clause in inner for text in literals(clause)]


def test_costs_are_those_of_the_package(catalogue: Catalogue) -> None:
    """Every model by several of its names, at several times, with prompts short and long."""
    random = Random(1)
    compared = 0
    for provider in providers:
        for model in provider.models:
            for name in {model.id, *literals(model.match)[:2]}:
                at = random.choice([1.7e9, 1.76e9, 1.795e9, 1.8e9]) + random.random() * 86_400
                fresh, read, written = random.choice([(10, 0, 0), (150_000, 5, 9), (0, 100_000, 1000), (300_000, 7, 7)])
                output = random.choice([0, 0, 7, 5000])
                usage = Usage(fresh, output, read, written, output // 2, cache_write_1h=written // 2)
                theirs = genai_prices.Usage(
                    input_tokens=fresh + read + written,
                    output_tokens=output,
                    cache_read_tokens=read,
                    cache_write_tokens=written,
                    cache_write_1h_tokens=written // 2,
                    output_reasoning_tokens=output // 2,
                )
                try:
                    price = genai_prices.calc_price(
                        theirs, name, provider_id=provider.id, genai_request_timestamp=datetime.fromtimestamp(at, UTC)
                    )
                except LookupError:
                    assert catalogue.find(provider.id, name) is None, (provider.id, name)
                    continue
                schedule = catalogue.find(provider.id, name)
                assert schedule is not None, (provider.id, name)
                rates, _ = schedule.at(at)
                cost = None if rates is None else rates.cost(usage)
                if cost is not None:
                    assert abs(cost - price.total_price * 10**9) <= Decimal("0.5001"), (provider.id, name)
                    compared += 1
    assert compared > 2500


@pytest.mark.parametrize(
    ("provider", "model", "at", "usage", "cost"),
    [
        # 10 and 40 dollars a million until 10 June 2025, then 2 and 8; cached 0.5
        ("openai", "o3", "2025-06-09T23:59:59", Usage(1000, 100, cache_read=200), 10_000_000 + 4_000_000 + 100_000),
        ("openai", "o3-2025-04-16", "2025-06-10", Usage(1000, 100, cache_read=200), 2_000_000 + 800_000 + 100_000),
        # 5, 25, written 6.25 and for an hour 10; above 200,000 the double (output 37.5), and that only to 12 March 2026
        (
            "anthropic", "claude-opus-4-6", "2026-03-12", Usage(190_000, 1000, 5000, 6000, cache_write_1h=2000),
            190_000 * 10_000 + 1000 * 37_500 + 5000 * 1_000 + 4000 * 12_500 + 2000 * 20_000,
        ),
        (
            "anthropic", "claude-opus-4-6", "2026-03-13", Usage(190_000, 1000, 5000, 6000, cache_write_1h=2000),
            190_000 * 5_000 + 1000 * 25_000 + 5000 * 500 + 4000 * 6_250 + 2000 * 10_000,
        ),
        # sound 1, else 0.5; output 3
        (
            "google", "gemini-3-flash-preview", "2026-11-22", Usage(1000, 10, audio_input=400),
            600 * 500 + 400 * 1_000 + 10 * 3_000,
        ),
        # pictures 120, else 12
        (
            "google", "gemini-3-pro-image-preview", "2026-11-22", Usage(50, 1300, image_output=1290),
            50 * 2_000 + 10 * 12_000 + 1290 * 120_000,
        ),
    ],
)  # fmt: skip
def test_dated_prices(catalogue: Catalogue, provider: str, model: str, at: str, usage: Usage, cost: int) -> None:
    assert known(catalogue, provider, model, at).cost(usage) == cost


def test_service_tiers_are_those_of_the_package(catalogue: Catalogue) -> None:
    """Every model that has any, on the day before and after each price began."""
    compared = 0
    usage = Usage(300_000, 5000, 7, 9, 100, cache_write_1h=4)
    for provider in providers:
        for model in provider.models:
            for variant in model.price_variants or ():
                if variant.when.keys() - {"processing", "service_tier", "speed"}:
                    continue
                [tier] = variant.when.values()
                name = next((n for n in (model.id, *literals(model.match)) if provider.find_model(n) is model), None)
                if name is None:
                    continue
                if tier == "default":
                    assert catalogue.find(provider.id, name, tier) is None
                    continue
                schedule = catalogue.find(provider.id, name, tier)
                assert schedule is not None, (provider.id, model.id, tier)
                for day in ("2020-01-01", "2026-10-11", "2026-10-20", "2026-12-15", "2027-02-01"):
                    at = datetime.fromisoformat(f"{day}T12:00:00+00:00")
                    rates, _ = schedule.at(at.timestamp())
                    active = [v for v in model.price_variants or () if v.when == variant.when]
                    if not any(v.constraint is None or v.constraint.active(at) for v in active):
                        assert rates is None, (provider.id, model.id, tier, day)
                        continue
                    theirs = model.get_prices(at, variant.when).calc_price(
                        genai_prices.Usage(
                            input_tokens=300_016, output_tokens=5000, cache_read_tokens=7, cache_write_tokens=9,
                            cache_write_1h_tokens=4, output_reasoning_tokens=100,
                        )
                    )["total_price"]  # fmt: skip
                    if rates is not None and (cost := rates.cost(usage)) is not None:
                        assert abs(cost - theirs * 10**9) <= Decimal("0.5001"), (provider.id, model.id, tier, day)
                        compared += 1
    assert compared > 300


def test_names(catalogue: Catalogue) -> None:
    now = "2026-11-22"
    assert known(catalogue, "openai", "GPT-4o-2024-08-06", now).input == 2_500_000_000
    assert known(catalogue, "openai", "gpt-5.2-20251211", now).input == 1_750_000_000  # a date without dashes
    assert catalogue.find("openai", "gpt-5.2-20251332") is None  # and no date at all
    assert known(catalogue, "azure", "claude-opus-4-6", now).input == 5_000_000_000  # anthropic's, sold by azure
    assert catalogue.find("openai", "claude-opus-4-6") is None
    assert catalogue.find("openai", "x" * 100_000) is None
    assert catalogue.find("nobody", "gpt-4o") is None


def test_a_price_that_tokens_do_not_say_is_not_known(catalogue: Catalogue) -> None:
    schedule = catalogue.find("openai", "whisper-1")  # by the second
    assert schedule is not None
    assert schedule.at(1.8e9)[0] is None


def test_addresses(catalogue: Catalogue) -> None:
    assert catalogue.provider_at("https://api.openai.com/v1") == "openai"
    assert catalogue.provider_at("https://api.x.ai/v1") == "x-ai"
    assert catalogue.provider_at("https://openrouter.ai/api/v1") == "openrouter"
    assert catalogue.provider_at("http://127.0.0.1:9000/v1") is None
    assert catalogue.provider_at("https://proxy.example/https://api.openai.com") is None
    assert "anthropic" in catalogue.providers


def test_a_table_that_is_none() -> None:
    with pytest.raises(msgspec.DecodeError):
        Catalogue(b"{}")
