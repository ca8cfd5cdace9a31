"""How fast passwords and codes can be guessed: slower and slower, but nobody is locked out.

Rule: what failed counts, what succeeded is given back. An account that is asked from one address waits a second after
five failures, half a minute after ten, a quarter of an hour after twenty; all addresses together get further, so that
one who guesses hinders himself before he hinders its owner. Counted in the state: more nodes are no more guesses.
"""

import os
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from math import ceil, isfinite

from tollhouse.store.base import Charge, Counter, Rate
from tollhouse.wire.oauth import OAuthError

__all__ = ["Attempt", "LoginThrottle"]

# The slowest first: what is refused says its own wait, and that of the others is over by then.
_PAIR = (
    Rate("iss:login:pair:3", 20, 18_000.0),
    Rate("iss:login:pair:2", 10, 300.0),
    Rate("iss:login:pair:1", 5, 5.0),
)
_ACCOUNT = Rate("iss:login:account", 100, 1000.0)
_ADDRESS = Rate("iss:login:address", 60, 120.0)
_CODE_ADDRESS = Rate("iss:device:address", 10, 60.0)
_CODE_ACCOUNT = Rate("iss:device:account", 10, 60.0)
_BEGIN = Rate("iss:begin:address", 300, 60.0)
_LONGEST = 900.0


class Attempt:
    """One guess. wait: seconds until another may be made; 0 where this one may."""

    __slots__ = ("_charges", "_counter", "_id", "wait")

    def __init__(self, counter: Counter, id: str, charges: list[Charge], wait: float) -> None:
        self._counter = counter
        self._id = id
        self._charges = charges
        self.wait = wait

    def succeeded(self) -> None:
        """It was none."""
        self._counter.settle(self._id, self._charges, [0] * len(self._charges))


class LoginThrottle:
    """Counts in the state. throttled: told what must wait: password, user_code, begin. All methods raise Failure 503
    when the state cannot be reached."""

    __slots__ = ("_counter", "_throttled")

    def __init__(self, counter: Counter, throttled: Callable[[str], None] = lambda _: None) -> None:
        self._counter = counter
        self._throttled = throttled

    async def password(self, account: str, address: str) -> Attempt:
        """A password for an account, which need not be there."""
        key = _key(account)
        slowest, slow, first = (Charge(rate, f"{key}|{address}", 1) for rate in _PAIR)
        charges = [slowest, slow, Charge(_ACCOUNT, key, 1), Charge(_ADDRESS, address, 1), first]
        return await self._admit("password", charges)

    async def code(self, account: str, address: str) -> Attempt:
        """A device's code, typed in by a user."""
        charges = [Charge(_CODE_ACCOUNT, _key(account), 1), Charge(_CODE_ADDRESS, address, 1)]
        return await self._admit("user_code", charges)

    async def begin(self, address: str) -> float:
        """Something that is kept, or asked of others, before anybody has said who they are. Seconds to wait; 0 for
        none. It is not given back."""
        return (await self._admit("begin", [Charge(_BEGIN, address, 1)])).wait

    async def must_begin(self, address: str) -> None:
        """The same. Raises OAuthError 429 for who must wait."""
        wait = await self.begin(address)
        if wait:
            raise OAuthError(
                "temporarily_unavailable",
                "too many requests come from your network; try again in a moment",
                429,
                ((b"retry-after", b"%d" % int(wait)),),
            )

    async def _admit(self, what: str, charges: list[Charge]) -> Attempt:
        id = os.urandom(12).hex()
        verdict = await self._counter.admit(id, charges)
        if verdict.refused < 0:
            return Attempt(self._counter, id, charges, 0.0)
        self._throttled(what)
        wait = min(verdict.wait, _LONGEST) if isfinite(verdict.wait) else _LONGEST
        return Attempt(self._counter, id, charges, float(max(1, ceil(wait))))


def _key(account: str) -> str:
    """Of any length, and in no log."""
    return urlsafe_b64encode(sha256(account.encode("utf-8", "surrogatepass")).digest()[:18]).decode()
