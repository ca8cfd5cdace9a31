"""What has been revoked: tokens, grants, sessions, users, clients, keys; known to every worker within a second.

Rule: asking costs nothing that waits, so a worker has all of it in memory; what is revoked is appended to a log in the
state before anybody is told that it is, and pushed to the others by the bus. Whoever missed the push reads the log,
which is looked at twice a second. When the state has lost what was written, whoever remembers it writes it again.

The log is pages of up to 100 entries. The last one grows by swaps until it is full; every operation touches one key:

    rv:head      the first page there may be, and the last
    rv:<page>    entries; the page lives as long as the longest of them
"""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256
from time import time
from typing import Literal, get_args

import msgspec

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import State, unavailable
from tollhouse.wire.jose import Header, header_of

__all__ = ["Kind", "Revocation", "Revocations", "grant_id"]

log = logging.getLogger("tollhouse.store")

Kind = Literal["jti", "gid", "sid", "sub", "client", "grant", "kid", "key", "agent", "run"]
"""A token; all tokens of a grant, or of a session; those of a user, of a client, or of a user's for one client
(`grant_id`) that were issued by now; those signed with a key; an API key; all that an agent asks; an agent run."""

_WATERMARKS = ("sub", "client", "grant")
_PAGE = 100
_MOST = 1_000_000
_SWEPT = 512
_TRIES = 32
_LONGEST = 390 * 86400.0
_LONGEST_ID = 1024
_TOPIC = "rv"
_AHEAD = 5.0
"""Seconds that another node's clock may be ahead, whose tokens are taken all the same (`iat`): what it has just issued
is of before, too. So what is issued in this time after a user, client or grant was revoked does not count either."""


class Revocation(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """at: unix seconds; of users, clients and grants only what was issued by then is revoked. until: when nothing can
    be left that it would concern. issuer: whose tokens are meant, "" for anybody's."""

    kind: Kind
    id: str
    at: float
    until: float
    issuer: str = ""


class _Head(msgspec.Struct, frozen=True, array_like=True):
    first: int
    last: int


_decode_page = msgspec.msgpack.Decoder(list[Revocation]).decode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_encode = msgspec.msgpack.Encoder().encode


class Revocations:
    """A `core.identity.RevocationView`. prefix: of the keys in the state. every: seconds between two looks at the log.
    load() comes first, then start()."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        now: Callable[[], float] = time,
        prefix: str = "iss:",
        every: float = 0.5,
    ) -> None:
        self._values = state.values
        self._bus = state.bus
        self._shared = state.shared
        self._clock = clock
        self._now = now
        self._prefix = prefix
        self._every = every
        self._known: dict[str, dict[tuple[str, str], Revocation]] = {kind: {} for kind in get_args(Kind)}
        self._sweeping: list[tuple[str, tuple[str, str]]] = []
        self._callbacks: list[Callable[[Revocation], None]] = []
        self._page = 0  # the one that is read next, and what it held when it was read
        self._raw: bytes | None = None
        self._any = False
        self._audit = True  # the next reading begins at the beginning
        self._read_at = -1e18
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._waiting: list[Revocation] = []  # what is in force here and not in the log yet
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._ends: list[Callable[[], None]] = []
        self.epoch = 0

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    @property
    def lag(self) -> float:
        """Seconds since the log was last read; 0 where nobody else writes it."""
        return max(0.0, self._now() - self._read_at) if self._shared else 0.0

    # ---- asking

    def revoked(self, principal: Principal) -> bool:
        """Whether what it was made from has been revoked."""
        return self._any and self._is_revoked(principal)

    def _is_revoked(self, principal: Principal) -> bool:
        known, issuer = self._known, principal.issuer
        return (
            _there(known["jti"], principal.jti, issuer)
            or _there(known["gid"], principal.family, issuer)
            or _there(known["sid"], principal.sid, issuer)
            or _there(known["key"], principal.key, issuer)
            or _there(known["agent"], principal.agent, issuer)
            or _before(known["sub"], principal.subject, issuer, principal.issued)
            or _before(known["client"], principal.client, issuer, principal.issued)
            or (bool(known["grant"]) and _before(known["grant"], _grant_of(principal), issuer, principal.issued))
            or (bool(known["kid"]) and _there(known["kid"], _kid(principal.token), issuer))
        )

    def stopped(self, run: str) -> bool:
        """Whether an agent run was stopped."""
        return self._any and (run, "") in self._known["run"]

    def has(self, kind: Kind, id: str, issuer: str = "", issued: float = 0.0) -> bool:
        """Whether one name is revoked, for who has no Principal. issued: unix seconds, for users and clients."""
        if kind in _WATERMARKS:
            return _before(self._known[kind], id, issuer, issued)
        return _there(self._known[kind], id, issuer)

    def on_revoked(self, callback: Callable[[Revocation], None]) -> Callable[[], None]:
        """Have `callback` told of each revocation that is new here, wherever it was made: what ends that. It does not
        wait."""
        self._callbacks.append(callback)

        def end() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return end

    def in_force(self) -> list[Revocation]:
        """All that is revoked now, as this worker knows it, in no order."""
        now = self._now()
        return [entry for entries in self._known.values() for entry in entries.values() if entry.until > now]

    # ---- revoking

    async def revoke(self, kind: Kind, id: str, until: float, issuer: str = "") -> None:
        """Revoke it for all workers. until: unix seconds, when the last thing it concerns has expired anyhow. issuer:
        whose it is, where names of several could be the same. Returns when it is in the log and in force here; raises
        Failure 503 when it cannot be written: it is in force here all the same."""
        if not 0 < len(id) <= _LONGEST_ID:
            raise ValueError(f"what is revoked has a name of 1 to {_LONGEST_ID} characters")
        now = self._now()
        at = now + _AHEAD if self._shared and kind in _WATERMARKS else now
        entry = Revocation(kind, id, at, min(until, now + _LONGEST), issuer)
        if entry.until <= now:
            return
        if len(self) >= _MOST:
            raise unavailable(f"{_MOST} revocations are in force, and there is no room for more", reached=False)
        self._apply(entry)
        await self._append(entry)
        try:
            await self._bus.publish(self._prefix + _TOPIC, _encode([entry]))
        except Failure as failure:
            log.warning("a revocation could not be pushed: %s; the others read it in the log", failure.detail)

    # ---- what comes from others

    async def load(self) -> None:
        """Read the log from its beginning. Raises Failure 503."""
        async with self._lock:
            await self._read_all()

    def start(self) -> None:
        """Follow it from now on. Where nobody else writes it, only what has expired is forgotten."""
        self._clock.every_turn(self._sweep)
        self._ends = [lambda: self._clock.remove(self._sweep)]
        if self._shared:
            self._ends.append(self._bus.subscribe(self._prefix + _TOPIC, self._pushed, self._woken.set))
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        for end in self._ends:
            end()
        self._ends = []
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _follow(self) -> None:
        said = False
        while True:
            try:
                async with asyncio.timeout(self._every):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                async with self._lock:
                    await self._read()
                said = False
            except Failure as failure:
                if not said:
                    log.warning("revocations cannot be read: %s; those that are known hold", failure.detail)
                said = True
            except Exception:  # the root of the following task: the next round must come
                log.exception("reading revocations failed")

    def _pushed(self, message: bytes) -> None:
        try:
            entries = _decode_page(message)
        except (msgspec.DecodeError, ValueError):
            log.warning("a message about revocations cannot be read; the log has it too")
            return
        for entry in entries:
            self._apply(entry)

    def _apply(self, entry: Revocation) -> None:
        """Hold it, unless it is held already or over."""
        if entry.until <= self._now():
            return
        name, known = (entry.id, entry.issuer), self._known[entry.kind]
        there = known.get(name)
        if there is not None:
            if there.until >= entry.until and there.at >= entry.at:
                return
            entry = Revocation(
                entry.kind, entry.id, max(there.at, entry.at), max(there.until, entry.until), entry.issuer
            )
        known[name] = entry
        self._any = True
        self.epoch += 1
        for callback in tuple(self._callbacks):
            try:
                callback(entry)
            except Exception:  # as a task's root: it is revoked all the same, and the others must hear of it
                log.exception("who was to be told of a revocation failed")

    # ---- the log

    async def _read(self) -> None:
        """What is new in it."""
        found = await self._head()
        if self._audit or found is None or found[1].last < self._page:
            await self._read_all()
            return
        head = found[1]
        while True:
            raw = await self._values.get(self._key(self._page))
            if raw != self._raw:
                entries = self._entries(raw)
                if not self._goes_on(entries):
                    await self._read_all()
                    return
                for entry in entries:
                    self._apply(entry)
                self._raw = raw
            if self._page >= head.last:
                break
            self._page, self._raw = self._page + 1, None
        self._read_at = self._now()

    def _goes_on(self, entries: list[Revocation]) -> bool:
        """Whether a page still has what was read of it, but for what is over."""
        before = self._entries(self._raw)
        if not entries:
            return all(entry.until <= self._now() + 1.0 for entry in before)
        return entries[: len(before)] == before or not any(entry.until > self._now() for entry in before)

    async def _read_all(self) -> None:
        """All there is; and write again what we know and it has not."""
        async with self._writing:
            self._audit = False
            found = await self._head()
            head = found[1] if found is not None else None
            held: set[tuple[str, str, str]] = set()
            self._page, self._raw = (head.first, None) if head is not None else (0, None)
            while head is not None:
                self._raw = await self._values.get(self._key(self._page))
                for entry in self._entries(self._raw):
                    held.add((entry.kind, entry.id, entry.issuer))
                    self._apply(entry)
                if self._page >= head.last:
                    break
                self._page += 1
            now = self._now()
            known = (entry for entries in self._known.values() for entry in entries.values())
            lacking = [e for e in known if e.until > now and (e.kind, e.id, e.issuer) not in held]
            if len(lacking) > len(self._waiting):
                lost = len(lacking) - len(self._waiting)
                log.warning("%d revocations are missing in the state; they are written again", lost)
            await self._write(lacking)
            self._read_at = now

    async def _append(self, entry: Revocation) -> None:
        """Write it at the end of the log. Raises Failure 503; then it is written when the log is next read."""
        self._waiting.append(entry)
        async with self._writing:
            if any(entry is waiting for waiting in self._waiting):  # else whoever wrote before has written it too
                await self._write(list(self._waiting))

    async def _write(self, entries: list[Revocation]) -> None:
        """Write what is waiting, and more. One at a time: swaps of one worker must not lose against each other."""
        waiting = len(self._waiting)
        try:
            for at in range(0, len(entries), _PAGE):
                await self._write_some(entries[at : at + _PAGE])
        except Failure:
            self._audit = True
            raise
        del self._waiting[:waiting]

    async def _write_some(self, left: list[Revocation]) -> None:
        for _ in range(_TRIES):
            found = await self._head()
            if found is None:
                # Before the page: whoever looks for the end must find it.
                await self._values.add(self._key("head"), _encode(_Head(0, 0)), _LONGEST)
                continue
            head_raw, head = found
            key = self._key(head.last)
            raw = await self._values.get(key)
            there = self._entries(raw)
            room = _PAGE - len(there)
            if room <= 0 or (raw is not None and not there):
                await self._begin(head_raw, head)
                continue
            page = [*there, *left[:room]]
            ttl = max(max(entry.until for entry in page) - self._now(), 1.0)
            if raw is not None:
                written = await self._values.swap(key, raw, _encode(page), ttl)
            else:
                written = await self._values.add(key, _encode(page), ttl)
                if not written and await self._values.get(key) is None:
                    await self._begin(head_raw, head)  # something is there that cannot be read
            if written:
                left = left[room:]
                if not left:
                    return
        raise unavailable("the log of revocations in the state cannot be read, or is written all the time")

    async def _begin(self, raw: bytes, head: "_Head") -> None:
        """Begin the next page, unless somebody else has."""
        first = head.first
        while first <= head.last and await self._values.get(self._key(first)) is None:
            first += 1
        moved = _Head(min(first, head.last + 1), head.last + 1)
        await self._values.swap(self._key("head"), raw, _encode(moved), _LONGEST)

    async def _head(self) -> tuple[bytes, _Head] | None:
        """Where the log begins and ends; None where there is none, or none that can be read."""
        raw = await self._values.get(self._key("head"))
        try:
            return None if raw is None else (raw, _decode_head(raw))
        except (msgspec.DecodeError, ValueError):
            return None

    def _entries(self, raw: bytes | None) -> list[Revocation]:
        try:
            return _decode_page(raw) if raw is not None else []
        except (msgspec.DecodeError, ValueError):
            log.warning("a page of revocations in the state cannot be read and is left aside")
            return []

    def _key(self, page: int | str) -> str:
        return f"{self._prefix}rv:{page}"

    def _sweep(self) -> None:
        """Forget what is over, some of it in each turn."""
        if not self._sweeping:
            if not self._any:
                return
            self._sweeping = [(kind, name) for kind, entries in self._known.items() for name in entries]
            self._any = bool(self._sweeping)
        now = self._now()
        part, self._sweeping[-_SWEPT:] = self._sweeping[-_SWEPT:], []
        for kind, name in part:
            entry = self._known[kind].get(name)
            if entry is not None and entry.until <= now:
                del self._known[kind][name]


def _there(known: dict[tuple[str, str], Revocation], id: str, issuer: str) -> bool:
    return bool(known and id) and ((id, "") in known or (id, issuer) in known)


def _before(known: dict[tuple[str, str], Revocation], id: str, issuer: str, issued: float) -> bool:
    if not known or not id:
        return False
    for name in ((id, ""), (id, issuer)):
        entry = known.get(name)
        if entry is not None and issued <= entry.at:
            return True
    return False


def grant_id(client: str, sub: str) -> str:
    """The name of what a user has allowed a client: a digest, because both may be long."""
    return sha256(f"{len(client)}:{client}{sub}".encode("utf-8", "surrogatepass")).hexdigest()


def _grant_of(principal: Principal) -> str:
    return grant_id(principal.client, principal.subject) if principal.client and principal.subject else ""


def _kid(token: bytes) -> str:
    """The key that a JWT names; "" for any other token."""
    if token.count(b".") != 2:
        return ""
    header = header_of(token[: token.index(b".")])
    return header.kid or "" if isinstance(header, Header) else ""
