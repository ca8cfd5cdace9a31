"""Hashes of passwords: argon2id in PHC form (RFC 9106).

Rule: a hash that nobody has a password for costs the same work as one that somebody has, so that whoever guesses
learns nothing from the time it takes. Hashing is dear on purpose: who does it for others bounds it (`net.passwords`).
"""

import os
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable
from typing import Final

__all__ = ["checked", "decoy", "fits", "hash_password"]

MEMORY: Final = 19 * 1024  # KiB; OWASP's first choice: m=19 MiB, t=2, p=1
ROUNDS: Final = 2
_SALT: Final = 16
_TAG: Final = 32
_LONGEST: Final = 1024
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_MISSING: Final = "passwords need the extra `issuer`: pip install 'tollhouse[issuer]'"


def hash_password(password: str) -> str:
    """The hash for a setting `password_hash`. Raises ValueError for what nobody could type in at a login page, or
    without the extra."""
    try:
        from argon2 import PasswordHasher  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise ValueError(_MISSING) from None
    if not 0 < len(password) <= _LONGEST or _CONTROLS.search(password) is not None:
        raise ValueError(f"a password has 1 to {_LONGEST} characters, and no control characters")
    return PasswordHasher(ROUNDS, MEMORY, 1, _TAG, _SALT).hash(_normal(password))


def checked(hashed: str) -> str:
    """`hashed` itself. Raises ValueError for one that cannot be used here."""
    _cost(hashed)
    return hashed


def fits(hashed: str, password: str) -> bool:
    """Whether the password is the one that was hashed. It takes about as long for any that is not."""
    from argon2 import PasswordHasher  # noqa: PLC0415 - an optional extra
    from argon2.exceptions import InvalidHashError, VerificationError  # noqa: PLC0415

    given = _normal(password[: 2 * _LONGEST]).encode("utf-8", "surrogatepass")
    try:
        PasswordHasher().verify(hashed, given)
    except (VerificationError, InvalidHashError):
        return False
    return len(password) <= _LONGEST


def decoy(hashes: Iterable[str]) -> str:
    """A hash that costs as much as most of these, and that nobody knows a password for. Raises ValueError for one that
    cannot be used here."""
    seen: dict[tuple[int, int, int], int] = {}
    for hashed in hashes:
        cost = _cost(hashed)
        seen[cost] = seen.get(cost, 0) + 1
    memory, rounds, lanes = max(seen, key=lambda cost: seen[cost]) if seen else (MEMORY, ROUNDS, 1)
    salt, tag = (b64encode(os.urandom(size)).decode().rstrip("=") for size in (_SALT, _TAG))
    return f"$argon2id$v=19$m={memory},t={rounds},p={lanes}${salt}${tag}"


def _cost(hashed: str) -> tuple[int, int, int]:
    """KiB, rounds and lanes."""
    try:
        from argon2 import Type, extract_parameters  # noqa: PLC0415 - an optional extra
        from argon2.exceptions import InvalidHashError  # noqa: PLC0415
    except ImportError:
        raise ValueError(_MISSING) from None
    try:
        found = extract_parameters(hashed)
    except InvalidHashError:
        found = None
    if found is None or found.type is not Type.ID:
        raise ValueError("not an argon2id hash; make one with: tollhouse hash-password")
    return found.memory_cost, found.time_cost, found.parallelism


def _normal(password: str) -> str:
    """One spelling of each character, however the keyboard composed it (RFC 8265 section 4.2.2)."""
    return unicodedata.normalize("NFC", password)
