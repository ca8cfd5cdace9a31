"""Passwords are checked a few at a time, and give no sign of who exists."""

import asyncio

import pytest
from argon2 import PasswordHasher, extract_parameters

from tollhouse.core.errors import Failure
from tollhouse.net.passwords import Passwords
from tollhouse.wire.password_hash import hash_password

pytestmark = pytest.mark.anyio


async def test_the_right_password_fits_and_no_other() -> None:
    passwords = Passwords()
    hashed = hash_password("grün wie Gras")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.fits(hashed, "grün wie Gras")
    assert await passwords.fits(hashed, "gru\u0308n wie Gras")  # however the keyboard composed it
    assert not await passwords.fits(hashed, "grün wie gras")
    assert not await passwords.fits(hashed, "")
    assert not await passwords.fits(hashed, "x" * 5000)
    assert not await passwords.fits(None, "grün wie Gras")
    await passwords.close()


async def test_no_more_than_may_wait_do() -> None:
    passwords = Passwords(queue=1)
    hashed = hash_password("right")
    answers = await asyncio.gather(*(passwords.fits(hashed, "right") for _ in range(6)), return_exceptions=True)
    assert answers[:3] == [True, True, True]
    for answer in answers[3:]:
        assert isinstance(answer, Failure)
        assert (answer.status, answer.retry_after) == (503, 2.0)
    assert await passwords.fits(hashed, "right")
    await passwords.close()


async def test_who_does_not_exist_costs_what_most_do() -> None:
    cheap = PasswordHasher(1, 8 * 1024, 1)
    hashes = [cheap.hash("a"), cheap.hash("b"), hash_password("c")]
    passwords = Passwords(hashes)
    found = extract_parameters(passwords._decoy)
    assert (found.memory_cost, found.time_cost, found.parallelism) == (8 * 1024, 1, 1)
    assert not await passwords.fits(None, "a")
    await passwords.close()
