"""Shared by all tests: asynchronous tests run on uvloop, as the gateway does; properties are tried on the same values
each time, so that a run that fails fails again. HYPOTHESIS_PROFILE=search looks for new ones, and for longer."""

import os

import pytest
from hypothesis import HealthCheck, settings

UNTIMED = {"suppress_health_check": [HealthCheck.too_slow], "deadline": None}  # what a busy machine takes tells nothing
settings.register_profile("same", derandomize=True, **UNTIMED)
settings.register_profile("search", max_examples=2_000, **UNTIMED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})
