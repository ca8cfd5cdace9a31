"""The accounts at one server as this worker uses them: a token of the account that is good now.

Rule: one refresh for an account at a time, in this process (one task) and among all nodes (a lease), because refresh
tokens are used once (OAuth 2.1 section 4.3.1). What comes of it is kept before anybody has it. An account ends only by
its user, or where its issuer says so, or where the server refuses its tokens and names another issuer; whoever cannot
be reached ends none.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tollhouse.backends.accounts.asked import Asked, NotNow, Over
from tollhouse.backends.accounts.kept import Found, Kept
from tollhouse.backends.accounts.records import AccountRecord, Granted
from tollhouse.core.backoff import Backoff
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.store.base import Bus
from tollhouse.wire.oauth_client import ClientIdentity, Tokens

__all__ = ["Holdings", "needed"]

log = logging.getLogger("tollhouse.backends.accounts")

_EARLY: Final = 60.0  # seconds before its end that a token is replaced; of a short life a quarter
_SETTLED: Final = 10.0  # seconds between two refusals that lead to another token: sooner it is not the token's fault
_AGAIN: Final = 300.0  # seconds after which a record is read again
_LONGEST: Final = 60.0  # seconds that others may use a token without asking here
_MOST: Final = 10_000
_MOST_FLIGHTS: Final = 1024
_PATIENCE: Final = 16.0  # seconds to wait for another node's refresh
_LOOK: Final = 0.25
_PAUSE: Final = 1.0  # seconds that an issuer is not asked about an account again
_LONGEST_PAUSE: Final = 30.0
_SAVING: Final = Backoff(0.1, 1.0)
_SAVES: Final = 5
_CAME: Final = b"c"
_WENT: Final = b"w"
_NEW: Final = b"n"


class _Entry:
    """An account in memory. until: unix seconds; it is read again then. not_before: of the next refresh."""

    __slots__ = ("not_before", "record", "until")

    def __init__(self, record: AccountRecord, until: float) -> None:
        self.record = record
        self.until = until
        self.not_before = 0.0


class Holdings:
    """name: of the server. host: where its users log in. fits: whether an account is one of the present configuration.
    who: we are for the issuer of an account. ended(record): its issuer has ended it. changed(id): an account has come
    or gone, at any node; None for any. forget: the issuer does not know a client that it had registered. left(issuer):
    whether the server names others by now. now: unix seconds."""

    def __init__(
        self,
        name: str,
        host: Callable[[], str],
        kept: Kept,
        bus: Bus,
        asked: Asked,
        *,
        fits: Callable[[AccountRecord], bool],
        who: Callable[[AccountRecord], ClientIdentity],
        ended: Callable[[AccountRecord], None],
        changed: Callable[[str | None], None],
        forget: Callable[[str, str], Awaitable[None]],
        left: Callable[[str], Awaitable[bool]],
        count: Callable[[str], None],
        now: Callable[[], float],
    ) -> None:
        self.version = 0
        self._name = name
        self._host = host
        self._kept = kept
        self._bus = bus
        self._asked = asked
        self._fits = fits
        self._who = who
        self._ended = ended
        self._changed = changed
        self._forget = forget
        self._left = left
        self._count = count
        self._now = now
        self._me = os.urandom(8)
        self._topic = f"up:{name}"
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._refused: OrderedDict[str, tuple[str, float]] = OrderedDict()  # by the server, and when it said so
        self._doubted: OrderedDict[str, str] = OrderedDict()  # refused after those; "" once looked up
        self._unsaved: dict[str, tuple[Found, AccountRecord]] = {}  # what the state did not take
        self._flights: dict[str, asyncio.Task[Granted]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._end = bus.subscribe(self._topic, self._heard, self._missed)

    # ---- tokens
    def at_once(self, id: str) -> Granted | None:
        """The token of an account that needs nothing; None for one that must be waited for."""
        entry = self._entries.get(id)
        if entry is None:
            return None
        now, record = self._now(), entry.record
        if now >= entry.until or (self._is_due(record, now) and now >= entry.not_before) or self._must(id, record, now):
            return None
        if self._doubted.get(id) == record.access:
            return None
        self._entries.move_to_end(id)
        return _granted(record, now)

    async def token(self, id: str) -> Granted:
        """Raises Failure: 403 `account_needed`, 503."""
        flight = self._flights.get(id)
        if flight is None:
            if len(self._flights) >= _MOST_FLIGHTS:
                raise _unavailable(self._name, "too many accounts are refreshed at once", _PAUSE)
            flight = self._flights[id] = asyncio.get_running_loop().create_task(self._fly(id))
            flight.add_done_callback(_seen)
        await asyncio.wait((flight,))  # who leaves does not end it for the others
        if flight.cancelled():
            raise _unavailable(self._name, "its configuration is not in use any more", _PAUSE)
        failure = flight.exception()
        if isinstance(failure, Failure):  # each waiter its own: a raised one refers back to who raises it
            raise failure.copy()
        return flight.result()

    def refused(self, id: str, token: str) -> None:
        """The server does not take `token`: it is not given for this account again, where that can help."""
        entry, before, now = self._entries.get(id), self._refused.get(id), self._now()
        is_settled = before is None or now - before[1] >= _SETTLED
        if before is not None and before[0] != token and entry is not None and entry.record.access == token:
            if is_settled or self._doubted.get(id) != "":
                self._doubted[id] = token
                if len(self._doubted) > _MOST:
                    self._doubted.popitem(last=False)
                self.version += 1
            if not is_settled:
                log.warning("mcp server %s: it refuses a token that was made because it refused another", self._name)
                return
        self._refused[id] = token, now
        self._refused.move_to_end(id)
        if len(self._refused) > _MOST:
            self._refused.popitem(last=False)
        self._drop(id)

    # ---- accounts
    async def find(self, id: str) -> AccountRecord | None:
        """The account, if there is one of the present configuration. Raises Failure 503."""
        found = await self._kept.account(id)
        return found.value if found is not None and self._fits(found.value) else None

    async def put(self, id: str, record: AccountRecord) -> None:
        """Its user has connected it. Raises Failure 503."""
        await self._kept.put(id, record)
        await self._kept.satisfied(id)
        self._refused.pop(id, None)
        self._doubted.pop(id, None)
        self._unsaved.pop(id, None)
        self._drop(id)
        await self._tell(_CAME, id)

    async def take(self, id: str) -> AccountRecord | None:
        """Its user does not want it any more. Raises Failure 503."""
        record = await self._kept.take(id)
        self._unsaved.pop(id, None)
        self._drop(id)
        await self._tell(_WENT, id)
        return record

    async def connected(self, id: str, timeout: float) -> bool:
        """Whether there is one, now or within so many seconds. Raises Failure 503."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        woken = asyncio.Event()
        self._waiting.setdefault(id, set()).add(woken)
        try:
            while True:
                woken.clear()
                if await self.find(id) is not None and not await self._kept.wanted(id):
                    return True
                left = ends - loop.time()
                if left <= 0.0:
                    return False
                await _first(woken, min(left, 2.0))  # messages of other nodes may be lost
        finally:
            self._stop_waiting(id, woken)

    async def close(self) -> None:
        """Refreshes that are under way are waited for: a token that is used once must not be lost."""
        self._end()
        flights = set(self._flights.values())
        if flights:
            _, late = await asyncio.wait(flights, timeout=_PATIENCE)
            for flight in late:
                flight.cancel()
            if late:
                await asyncio.wait(late)

    # ---- the flight
    async def _fly(self, id: str) -> Granted:
        try:
            return await self._current(id)
        except Failure as failure:
            raise failure.with_traceback(None) from None
        finally:
            del self._flights[id]

    async def _current(self, id: str) -> Granted:
        if id in self._unsaved:
            granted = await self._save(id)
            if id in self._unsaved:
                return granted
        found = await self._kept.account(id)
        if found is None or not self._fits(found.value):
            self._entries.pop(id, None)
            raise needed(self._name, self._host())
        if self._doubted.get(id) == found.value.access:
            self._doubted[id] = ""
            if await self._left(found.value.issuer):
                raise await self._over(id, found, "the server refuses its tokens, and names another issuer by now")
        await self._kept.used(id)
        now, record = self._now(), found.value
        if not self._must(id, record, now) and not self._is_due(record, now):
            return self._remember(id, record)
        before = self._entries.get(id)
        if before is not None and now < before.not_before:
            return self._stale(id, record, "it has failed a moment ago", before.not_before - now)
        if not record.refresh:
            if not self._must(id, record, now):
                return self._remember(id, record)
            raise await self._over(id, found, "its token is not taken any more, and there is none to get another with")
        return await self._renew(id, found)

    def _must(self, id: str, record: AccountRecord, now: float) -> bool:
        """Its token is of no use."""
        refused = self._refused.get(id)
        return (refused is not None and refused[0] == record.access) or self._is_over(record, now)

    @staticmethod
    def _is_over(record: AccountRecord, now: float) -> bool:
        return bool(record.expires) and now >= record.expires

    @staticmethod
    def _is_due(record: AccountRecord, now: float) -> bool:
        """Its token should be replaced."""
        if not record.expires or not record.refresh:
            return False
        return now >= record.expires - min(_EARLY, (record.expires - record.made) / 4.0)

    # ---- refreshing
    async def _renew(self, id: str, found: Found) -> Granted:
        """New tokens, by whichever node is the first."""
        if not await self._leased(id, found):
            there = await self._kept.account(id)
            if there is None or not self._fits(there.value):
                self._drop(id)
                raise needed(self._name, self._host())
            if there.value.access == found.value.access:
                return self._stale(id, found.value, "another node is at it", _PAUSE)
            return self._remember(id, there.value)
        try:
            again = await self._kept.account(id)
            if again is None or not self._fits(again.value):
                self._drop(id)
                raise needed(self._name, self._host())
            now = self._now()
            if not self._must(id, again.value, now) and not self._is_due(again.value, now):
                return self._remember(id, again.value)  # another node was quicker
            marked = await self._kept.swap(again, msgspec.structs.replace(again.value, begun=now))
            if marked is None:
                raise _unavailable(self._name, "the account was changed in this moment", _PAUSE)
            return await self._refresh(id, marked, again.value.begun, now)
        finally:
            await self._let_go(id)

    async def _leased(self, id: str, found: Found) -> bool:
        """Whether it is ours to renew; False once another node has done it, or takes too long."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + _PATIENCE
        woken = asyncio.Event()
        self._waiting.setdefault(id, set()).add(woken)
        try:
            while not await self._kept.lease(id, self._me.hex()):
                await _first(woken, _LOOK)
                woken.clear()
                there = await self._kept.account(id)
                if there is None or there.value.access != found.value.access or loop.time() >= ends:
                    return False
            return True
        finally:
            self._stop_waiting(id, woken)

    async def _refresh(self, id: str, marked: Found, unfinished: float, now: float) -> Granted:
        record = marked.value
        try:
            tokens = await self._asked.refresh(record, self._who(record))
        except NotNow as why:
            self._count("failed")
            log.warning("mcp server %s: an account could not be refreshed: %s", self._name, why)
            if self._must(id, record, now) and await self._left(record.issuer):
                raise await self._over(
                    id, marked, "its issuer renews no token, and the server names another by now"
                ) from None
            if not why.is_open:
                await self._kept.swap(marked, msgspec.structs.replace(record, begun=unfinished))
            return self._stale(id, record, str(why), why.wait)
        except Over as over:
            return await self._refusal(id, marked, over, unfinished)
        fresh = _renewed(record, tokens, now)
        self._count("refreshed")
        self._unsaved[id] = (marked, fresh)
        return await self._save(id)

    async def _save(self, id: str) -> Granted:
        """Keep what was made; where the state does not take it, it is kept here for the time being."""
        marked, fresh = self._unsaved[id]
        for attempt in range(_SAVES):
            try:
                # Where it fails: its user has given it up or connected it anew; or an earlier attempt has done it all
                # the same.
                kept = await self._kept.swap(marked, fresh) or await self._kept.account(id)
                break
            except Failure as failure:
                if attempt == _SAVES - 1:
                    log.error(
                        "mcp server %s: new tokens of an account are kept by this worker alone, and lost with it, as "
                        "long as the state does not take them: %s", self._name, failure.detail,
                    )  # fmt: skip
                    return self._remember(id, fresh)
                await asyncio.sleep(_SAVING.delay(attempt + 1))
        self._unsaved.pop(id, None)
        if kept is None:
            why = await self._asked.revoke(fresh, self._who(fresh))
            if why:
                log.warning("mcp server %s: tokens of an account that was given up live on: %s", self._name, why)
        if kept is None or not self._fits(kept.value):
            self._drop(id)
            raise needed(self._name, self._host())
        self._drop(id)
        granted = self._remember(id, kept.value)
        await self._tell(_NEW, id)
        return granted

    async def _refusal(self, id: str, marked: Found, over: Over, unfinished: float) -> Granted:
        record = marked.value
        if over.error == "invalid_client" and not record.registered:
            # The operator's mistake or the issuer's: no user can mend it by connecting again.
            self._count("failed")
            log.error("mcp server %s: %s does not know the gateway as a client: %s", self._name, record.issuer, over)
            return self._stale(id, record, str(over), _LONGEST_PAUSE)
        if over.error == "invalid_client":
            await self._forget(record.issuer, record.client_id)
        why = f"its issuer refuses to renew it ({over})"
        if unfinished and over.error == "invalid_grant":
            why += (
                f"; a refresh was begun {self._now() - unfinished:.0f} s ago whose answer nobody has kept: a worker or "
                "its connection was lost meanwhile, and the tokens in that answer with it"
            )
        raise await self._over(id, marked, why)

    async def _over(self, id: str, found: Found, why: str) -> Failure:
        """The account has ended; the Failure to raise."""
        gone = await self._kept.end(found)
        self._refused.pop(id, None)
        self._doubted.pop(id, None)
        self._drop(id)
        if not gone:
            return _unavailable(self._name, "the account was changed in this moment", _PAUSE)
        self._count("refused")
        log.warning("mcp server %s: an account has ended: %s", self._name, why)
        await self._tell(_WENT, id)
        self._ended(found.value)
        return needed(self._name, self._host())

    async def _let_go(self, id: str) -> None:
        try:
            await self._kept.give_back(id)
        except Failure as failure:  # it ends by itself
            log.info("mcp server %s: a lease could not be given back: %s", self._name, failure.detail)

    # ---- what is in memory
    def _remember(self, id: str, record: AccountRecord) -> Granted:
        now = self._now()
        self._entries[id] = _Entry(record, now + _AGAIN)
        self._entries.move_to_end(id)
        if len(self._entries) > _MOST:
            self._entries.popitem(last=False)
        return _granted(record, now)

    def _stale(self, id: str, record: AccountRecord, why: str, wait: float | None) -> Granted:
        """What there is, as long as it is good. Raises Failure 503."""
        now = self._now()
        pause = min(max(wait or 0.0, _PAUSE), _LONGEST_PAUSE)
        granted = self._remember(id, record)
        self._entries[id].not_before = now + pause
        if self._must(id, record, now):
            raise _unavailable(self._name, why, pause)
        return granted

    def _drop(self, id: str) -> None:
        self._entries.pop(id, None)
        self.version += 1

    # ---- between nodes
    async def _tell(self, what: bytes, id: str) -> None:
        self._took_place(what, id)
        try:
            await self._bus.publish(self._topic, what + self._me + id.encode())
        except Failure as failure:
            log.warning("mcp server %s: other nodes hear of an account a minute late: %s", self._name, failure.detail)

    def _heard(self, message: bytes) -> None:
        what, who, id = message[:1], message[1:9], message[9:].decode("ascii", "replace")
        if who != self._me:
            self._drop(id)
            self._took_place(what, id)

    def _stop_waiting(self, id: str, woken: asyncio.Event) -> None:
        waiting = self._waiting[id]
        waiting.discard(woken)
        if not waiting:
            del self._waiting[id]

    def _took_place(self, what: bytes, id: str) -> None:
        for woken in self._waiting.get(id, ()):
            woken.set()
        if what != _NEW:
            self._changed(id)

    def _missed(self) -> None:
        self._entries.clear()
        self.version += 1
        for waiting in self._waiting.values():
            for woken in waiting:
                woken.set()
        self._changed(None)


def needed(name: str, host: str) -> Failure:
    """The caller's user has no account."""
    message = f"{name}: this needs an account of yours at {host}; connect one first"
    return Failure(403, Reason.AUTHORIZATION, message, code=ACCOUNT_NEEDED)


def _unavailable(name: str, detail: str, wait: float) -> Failure:
    return Failure(
        503,
        Reason.EXT_AUTH,
        f"{name}: no token of the account at this server can be had at the moment; try again in a moment",
        code="temporarily_unavailable",
        detail=detail,
        retry_after=max(wait, 1.0),
    )


def _granted(record: AccountRecord, now: float) -> Granted:
    ends = now + _LONGEST
    return Granted(record.access.encode("ascii"), "", min(ends, record.expires) if record.expires else ends)


def _renewed(record: AccountRecord, tokens: Tokens, now: float) -> AccountRecord:
    return msgspec.structs.replace(
        record,
        access=tokens.access,
        refresh=tokens.refresh or record.refresh,
        made=now,
        expires=now + tokens.life if tokens.life is not None else 0.0,
        scopes=record.scopes if tokens.scopes is None else tokens.scopes,
        begun=0.0,
    )


async def _first(woken: asyncio.Event, seconds: float) -> None:
    """Wait for it, so many seconds at most."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        pass


def _seen(flight: "asyncio.Task[Granted]") -> None:
    """Nobody may be left who waits for it."""
    if not flight.cancelled():
        flight.exception()
