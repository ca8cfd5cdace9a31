"""Interactions: what a browser has begun here, from the first page to the last.

Rule: an interaction belongs to the browser that began it, by a cookie of its own; whoever else knows its id (it stands
in addresses) is refused. So nobody can have another finish what they have begun, nor finish what another has
(RFC 9700 section 4.7, OpenID Connect Core section 3.1.2.1).
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256

import msgspec

from tollhouse.core.http import Request
from tollhouse.issuer.cookies import Cookies, digest, fresh
from tollhouse.issuer.records import Interaction
from tollhouse.store.table import Held, Table
from tollhouse.wire.oauth import OAuthError

__all__ = ["TTL", "Interactions", "gone"]

TTL = 600.0
"""Seconds that a browser has, from the first page to the last."""

_ID = re.compile(r"[A-Za-z0-9_-]{43}")


def gone() -> OAuthError:
    return OAuthError(
        "invalid_request",
        "this has expired, is done, or was begun in another browser; go back to the application and begin again",
    )


class Interactions:
    """now: unix seconds."""

    __slots__ = ("_cookies", "_now", "_table")

    def __init__(self, table: Table[Interaction], cookies: Cookies, now: Callable[[], float]) -> None:
        self._table = table
        self._cookies = cookies
        self._now = now

    def browser(self, request: Request) -> str:
        """The cookie that binds interactions to this browser; "" where it has none yet."""
        return self._cookies.read(request, self._cookies.browser)

    def bind(self, request: Request) -> tuple[str, list[tuple[bytes, bytes]]]:
        """That cookie, made where there is none, and the field that sets it then."""
        browser = self.browser(request)
        if browser:
            return browser, []
        browser = fresh()
        return browser, [self._cookies.set(self._cookies.browser, browser)]

    async def begin(
        self, request: Request, interaction: Interaction, reference: str = ""
    ) -> tuple[str, list[tuple[bytes, bytes]]]:
        """The id of a new one, and the fields of the answer that bind it to this browser.

        reference: what it was begun with, where that can be used only once: `again` finds it by that.
        """
        browser, headers = self.bind(request)
        bound = msgspec.structs.replace(interaction, browser=digest(browser), began=self._now())
        id = _referred(browser, reference) if reference else fresh()
        await self._table.put(id, bound, TTL)
        return id, headers

    async def again(self, request: Request, reference: str) -> str:
        """The id of the one that this browser has begun with `reference`; "" where there is none."""
        browser = self.browser(request)
        if not browser:
            return ""
        id = _referred(browser, reference)
        return id if await self._table.get(id) is not None else ""

    async def find(self, request: Request, id: str) -> Held[Interaction]:
        """Raises OAuthError `invalid_request` where there is none of that id, for this browser."""
        held = await self._table.get(id) if _ID.fullmatch(id) is not None else None
        browser = self.browser(request)
        if held is None or not browser or not hmac.compare_digest(held.value.browser, digest(browser)):
            raise gone()
        return held

    async def change(self, held: Held[Interaction], interaction: Interaction) -> None:
        """Raises OAuthError where somebody else has changed or finished it meanwhile."""
        left = held.value.began + TTL - self._now()
        if left <= 0 or not await self._table.swap(held, interaction, left):
            raise gone()

    async def finish(self, id: str) -> Interaction:
        """Take it: of several who finish one, one does. Raises OAuthError for the others."""
        interaction = await self._table.take(id)
        if interaction is None:
            raise gone()
        return interaction


def _referred(browser: str, reference: str) -> str:
    mac = hmac.new(browser.encode(), reference.encode("utf-8", "surrogatepass"), sha256).digest()
    return urlsafe_b64encode(mac).decode().rstrip("=")
