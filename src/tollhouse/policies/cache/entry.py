"""An answer as it is kept, in memory and in a state that is shared.

Rule: an entry is never changed, so everybody who is answered with it may hold it. What cannot be read back (another
version's, damaged, of another key) is not there.
"""

from time import time
from typing import Final

import msgspec

__all__ = ["Entry", "opened", "packed"]

_FORMAT: Final = b"\1"

_LONGEST: Final = 31 * 86400.0
_MOST: Final = 1 << 53

_BESIDE: Final = 400
"""Bytes that an entry takes in memory besides what it holds, about."""


class Entry(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A whole answer.

    key: that it is kept under. at: unix seconds when it was whole. ttl: seconds it is good for. generation: what
    was known of purges when it was asked for (`purges`). headers: of the answer, as lines "name: value". blocks:
    its bytes; a stream's whole events as they came, in milliseconds since the first at the places of `times`.
    model: the configured one, "" for a tool of `server`. user, org, owner: who has asked for it, by user, org and
    key. provider, backend, answered, sent: as in Context. cost: nano-dollars that asking again would cost, -1 where
    that is not known. tokens: that were used. place: what its request is besides what the user says last; b"" where
    that is not compared.
    """

    key: bytes
    at: float
    ttl: float
    generation: int
    headers: list[tuple[bytes, bytes]]
    blocks: list[bytes]
    times: list[int]
    model: str
    user: str = ""
    org: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()
    provider: str = ""
    backend: str = ""
    answered: str = ""
    sent: str = ""
    cost: int = -1
    tokens: int = 0
    stream: bool = False
    server: str = ""
    place: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the answer."""
        return sum(map(len, self.blocks))

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory, about."""
        blocks = len(self.blocks)
        return _BESIDE + self.size + 48 * blocks + sum(len(n) + len(v) + 120 for n, v in self.headers)

    @property
    def age(self) -> float:
        """Seconds since it was whole, by this node's clock: 0 where that goes behind the other's."""
        return max(time() - self.at, 0.0)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def packed(entry: Entry) -> bytes:
    """The entry as a value of a state."""
    return _FORMAT + _encode(entry)


def opened(value: bytes, key: bytes) -> Entry | None:
    """What was packed under that key; None for anything else."""
    if value[:1] != _FORMAT:
        return None
    try:
        entry = _decode(value[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return None
    return entry if entry.key == key and _is_sound(entry) else None


def _is_sound(entry: Entry) -> bool:
    """Whether one could have been kept: nothing that a state says may end up where it does harm."""
    if not entry.blocks or len(entry.times) != len(entry.blocks) or not 0.0 < entry.ttl <= _LONGEST:
        return False
    if not -1 <= entry.cost <= _MOST or not 0 <= entry.tokens <= _MOST:
        return False
    return not any(b"\r" in part or b"\n" in part or b"\0" in part for pair in entry.headers for part in pair)
