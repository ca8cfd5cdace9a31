"""Hashes of passwords: what fits, what it costs, and what is none."""

import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from tollhouse.wire.password_hash import checked, decoy, fits, hash_password


def test_a_hash_fits_its_password_however_that_is_typed() -> None:
    hashed = hash_password("gr\u00fcn")
    assert fits(hashed, "gr\u00fcn")
    assert fits(hashed, "gru\u0308n")
    for other in ("", "Gr\u00fcn", "gr\u00fcn ", "gr\u00fcn" + "x" * 5000, "\ud800"):
        assert not fits(hashed, other)
    assert not fits("no hash", "gr\u00fcn")


def test_a_decoy_costs_what_most_do() -> None:
    cheap = PasswordHasher(1, 64, 1)
    found = extract_parameters(decoy([cheap.hash("a"), hash_password("b"), cheap.hash("c")]))
    assert (found.type, found.memory_cost, found.time_cost, found.parallelism) == (Type.ID, 64, 1, 1)
    assert not fits(decoy([]), "")


OTHER_KIND = pytest.param(PasswordHasher(1, 64, 1, type=Type.I).hash("a"), id="argon2i")


@pytest.mark.parametrize("hashed", ["", "plain", "$argon2id$nonsense", OTHER_KIND])
def test_what_is_no_hash_is_refused(hashed: str) -> None:
    for use in (checked, lambda text: decoy([text])):
        with pytest.raises(ValueError, match="hash-password"):
            use(hashed)


@pytest.mark.parametrize("password", ["", "a\nb", "a\x00", "x" * 1025])
def test_what_nobody_could_type_in_is_not_hashed(password: str) -> None:
    with pytest.raises(ValueError, match="1 to 1024 characters"):
        hash_password(password)
