"""Checksums of numbers that people have: what tells one from any other number of its length.

Rule: each takes the number as it is written, with its separators, and says whether it can be one. None looks anything
up, so that a number which passes may still belong to nobody.
"""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import date

__all__ = [
    "alike",
    "day",
    "digits",
    "entropy",
    "iso7064_mod11_10",
    "luhn",
    "mod97",
    "verhoeff",
    "weighted",
]


def digits(text: str) -> list[int]:
    """The decimal digits of a text."""
    return [ord(char) - 48 for char in text if "0" <= char <= "9"]


def alike(number: Sequence[int]) -> bool:
    """Whether all digits are the same: examples and blanks, which many checksums let pass."""
    return len(set(number)) < 2


def luhn(number: Sequence[int]) -> bool:
    """ISO/IEC 7812-1, annex B: payment cards and many national numbers."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        if place % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def mod97(text: str) -> bool:
    """ISO/IEC 7064 MOD 97-10 as IBANs use it: letters count from 10, the first four characters stand last."""
    text = "".join(filter(str.isalnum, text)).upper()
    return int("".join([str(int(char, 36)) for char in text[4:] + text[:4]])) % 97 == 1


def iso7064_mod11_10(number: Sequence[int]) -> bool:
    """ISO/IEC 7064 MOD 11,10."""
    check = 5
    for digit in number:
        check = ((check or 10) * 2 % 11 + digit) % 10
    return check == 1


def weighted(number: Sequence[int], weights: Sequence[int]) -> int:
    """The sum of the digits, each times its weight."""
    return sum(map(int.__mul__, number, weights))


_D = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_P = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def verhoeff(number: Sequence[int]) -> bool:
    """Verhoeff's dihedral check."""
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = int(_D[check][int(_P[place % 8][digit])])
    return check == 0


def day(year: int, month: int, of: int) -> bool:
    """Whether there is such a day; years of two digits are of this century or the last."""
    for century in (0,) if year > 99 else (1900, 2000):
        try:
            date(century + year, month, of)
        except ValueError:
            continue
        return True
    return False


def entropy(text: str) -> float:
    """Bits per character by Shannon, of the text's own letters."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values()) if size else 0.0
