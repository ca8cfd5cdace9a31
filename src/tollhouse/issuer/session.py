"""Sessions: a browser's login, which lasts while it is used, and a day at most.

Rule: the cookie is the record's id and nothing else knows it; what tokens call the session (`sid`) says nothing about
it. Each login has a new id and ends the one before, and a session counts only in the browser it was made in, by the
other cookie, which no neighbouring host can plant: so nobody is logged in as somebody else without knowing.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.call import Principal
from tollhouse.core.http import Request
from tollhouse.core.identity import Event
from tollhouse.issuer.cookies import Cookies, digest, fresh
from tollhouse.issuer.records import Session
from tollhouse.issuer.spec import TtlSpec
from tollhouse.store.table import Held, Table

__all__ = ["Sessions"]

_TRIES = 8
_TOUCH = 60.0
"""Seconds of use that may be forgotten: a session is not written at each request."""


class Sessions:
    """is_good: whether whose session it is may still log in. revoke: ends the tokens that live by a session. now: unix
    seconds."""

    __slots__ = ("_absolute", "_cookies", "_idle", "_is_good", "_now", "_revoke", "_table")

    def __init__(
        self,
        table: Table[Session],
        cookies: Cookies,
        ttl: TtlSpec,
        now: Callable[[], float],
        is_good: Callable[[Session], bool],
        revoke: Callable[[Session], Awaitable[None]],
    ) -> None:
        self._table = table
        self._cookies = cookies
        self._idle = ttl.session_idle
        self._absolute = ttl.session
        self._now = now
        self._is_good = is_good
        self._revoke = revoke

    async def current(self, request: Request) -> Held[Session] | None:
        """The session of the browser that asks; it lives on for that."""
        held = await self._table.get(self._cookies.read(request, self._cookies.session))
        if held is None:
            return None
        session, now = held.value, self._now()
        left = session.began + self._absolute - now
        if left <= 0 or now - session.seen > self._idle or not self._is_here(request, session):
            return None
        if not self._is_good(session):
            await self._table.remove(held.id)
            return None
        if now - session.seen >= min(_TOUCH, self._idle / 4):
            # Whoever swaps first has done the same; the session is good either way.
            seen = msgspec.structs.replace(session, seen=now)
            await self._table.swap(held, seen, min(self._idle, left))
        _name(request, session)
        return held

    def _is_here(self, request: Request, session: Session) -> bool:
        browser = self._cookies.read(request, self._cookies.browser)
        return bool(browser) and hmac.compare_digest(session.browser, digest(browser))

    async def begin(self, request: Request, session: Session) -> tuple[bytes, bytes]:
        """A new session in the place of the one that the browser has: the field that sets its cookie. `sid`, `began`
        and `seen` are set here: for the same user tokens go on to call it the same, and another one's end."""
        now = self._now()
        cookie = fresh()
        before = await self._table.get(self._cookies.read(request, self._cookies.session))
        sid = ""
        clients: tuple[str, ...] = ()
        if before is not None and before.value.sub == session.sub and self._is_good(before.value):
            sid, clients = before.value.sid, before.value.clients
        browser = digest(self._cookies.read(request, self._cookies.browser))
        session = msgspec.structs.replace(
            session, sid=sid or secrets.token_urlsafe(16), began=now, seen=now, browser=browser, clients=clients
        )
        await self._table.put(cookie, session, min(self._idle, self._absolute))
        if before is not None:
            if not sid:
                await self._revoke(before.value)
            await self._table.remove(before.id)
        _name(request, session)
        request.context.event = Event("issuer.login", subject=session.sub, session=session.sid)
        return self._cookies.set(self._cookies.session, cookie)

    async def entered(self, held: Held[Session], client_id: str) -> None:
        """Note that a client is to be told when it ends. Raises Failure 503."""
        now: Held[Session] | None = held
        for _ in range(_TRIES):
            if now is None or client_id in now.value.clients:
                return
            session = now.value
            left = min(self._idle, session.began + self._absolute - self._now())
            more = msgspec.structs.replace(session, clients=(*session.clients, client_id))
            if left <= 0 or await self._table.swap(now, more, left):
                return
            now = await self._table.get(held.id)

    async def end(self, held: Held[Session]) -> tuple[bytes, bytes]:
        """End it, and the tokens that live by it: the field that takes the cookie away."""
        await self._revoke(held.value)  # first: what is still there can be ended again
        await self._table.remove(held.id)
        return self._cookies.clear(self._cookies.session)


def _name(request: Request, session: Session) -> None:
    """For the access log: who it was."""
    user = session.user
    request.context.principal = Principal(
        f"user:{session.sub}", source="oidc", user=session.sub, org=user.org, email=user.email, groups=user.groups
    )
