"""The gateway's own token at an issuer elsewhere, which says there who acts (`actor_token`, RFC 8693 section 2.1).

Rule: it goes back to the issuer that has given it and to nobody else, and is renewed before it ends.
"""

import asyncio
from collections.abc import Callable

from tollhouse.backends.exchange.asked import Unusable, token_in

__all__ = ["OwnToken"]

_PART = 0.8
"""Of its life, in which it is used."""


class OwnToken:
    """now: unix seconds. turn: taken by who gets another one."""

    __slots__ = ("_now", "_token", "_until", "turn")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._token = ""
        self._until = 0.0
        self.turn = asyncio.Lock()

    @property
    def current(self) -> str:
        """The one to use, "" where another is to be got."""
        return self._token if self._now() < self._until else ""

    def keep(self, answer: bytes, asked: float) -> str:
        """The token in an answer of status 200. asked: when, in unix seconds. Raises Unusable."""
        token, life = token_in(answer)
        if life <= 0.0:
            raise Unusable("it has expired already")
        self._token, self._until = token, asked + _PART * life
        return token

    def forget(self) -> None:
        self._until = 0.0
