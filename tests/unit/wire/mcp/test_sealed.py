"""Sealed tokens: what was sealed opens, and nothing else does, for one reason to all the world."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp.sealed import LIMIT, Seals, Unsealed

A, B = b"a" * 32, b"b" * 32


class Ticket(msgspec.Struct, array_like=True):
    who: str
    seat: int
    inner: bytes = b""
    expires: int = 0


class Other(msgspec.Struct, array_like=True):
    name: dict[str, int]


TICKET = Ticket("ada", 7, b"\0\xff")


def why(seals: Seals, kind: str, token: str, type: type[msgspec.Struct] = Ticket) -> str:
    with pytest.raises(Unsealed) as caught:
        seals.open(kind, token, type)
    assert str(caught.value) == "the token is not valid here, or not any more"
    return caught.value.why


@given(st.text(), st.integers(0, 2**63), st.binary(max_size=500))
def test_what_was_sealed_opens(who: str, seat: int, inner: bytes) -> None:
    seals = Seals([A])
    ticket = Ticket(who, seat, inner)
    token = seals.seal("t", ticket)
    assert token.startswith("t1.")
    assert token.replace("-", "").replace("_", "").replace(".", "").isalnum()
    assert Seals([A]).open("t", token, Ticket) == ticket
    assert seals.seal("t", ticket) != token


def test_any_bit_matters() -> None:
    seals = Seals([A])
    token = seals.seal("t", TICKET)
    for at in range(len(token)):
        for bit in range(7):
            changed = token[:at] + chr(ord(token[at]) ^ (1 << bit)) + token[at + 1 :]
            why(seals, "t", changed)
    for more in ("=", "A", "\n", " ", "é"):
        why(seals, "t", token + more)
    for at in range(len(token)):
        why(seals, "t", token[:at])


@given(st.text(max_size=200))
def test_anything_else_opens_as_nothing(text: str) -> None:
    why(Seals([A]), "t", text)
    why(Seals([A]), "t", "t1." + text)


def test_a_token_is_of_one_kind() -> None:
    seals = Seals([A])
    token = seals.seal("r", TICKET)
    assert "kind" in why(seals, "s", token)
    assert why(seals, "s", "s" + token[1:]) == "it was changed"


def test_keys_are_rotated() -> None:
    old = Seals([A]).seal("t", TICKET)
    both = Seals([B, A])
    assert both.open("t", old, Ticket) == TICKET
    new = both.seal("t", TICKET)
    assert Seals([B]).open("t", new, Ticket) == TICKET
    assert "no key" in why(Seals([B]), "t", old)
    assert "no key" in why(Seals([A]), "t", new)


def test_a_token_expires() -> None:
    now = [1000.0]
    seals = Seals([A], clock=lambda: now[0])
    token = seals.seal("t", Ticket("ada", 1, expires=1010))
    assert seals.open("t", token, Ticket).seat == 1
    now[0] = 1011.0
    assert why(seals, "t", token) == "it has expired"


def test_fields_of_another_shape() -> None:
    seals = Seals([A])
    assert "version" in why(seals, "t", seals.seal("t", TICKET), Other)


def test_a_token_has_a_bound() -> None:
    assert "longer" in why(Seals([A]), "t", "t1." + "A" * LIMIT)


def test_without_a_key_it_is_this_process() -> None:
    seals, other = Seals(), Seals()
    assert seals.local
    assert not Seals([A]).local
    token = seals.seal("t", TICKET)
    assert seals.open("t", token, Ticket) == TICKET
    assert "no key" in why(other, "t", token)
    with pytest.raises(ValueError, match="16 bytes"):
        Seals([b"short"])
