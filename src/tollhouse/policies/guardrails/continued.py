"""Masks of conversations that the provider keeps: an answer may have placeholders of requests before it.

Rule: what was masked for an answer is remembered under the answer's id (and the conversation's), for the caller alone
who asked, and given back to nobody else. It is sealed wherever it is kept, for three days: in this process, the last
used ones; and in a state that is shared, so that any worker can go on. It is a help and never a condition: what is not
remembered stays a placeholder, and no store that is slow or gone fails a call.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from time import monotonic

import msgspec

from tollhouse.core.call import ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.policies.base import Parts
from tollhouse.policies.stop import stop
from tollhouse.store.base import KeyValue, State
from tollhouse.store.crypt import Box

__all__ = ["Continued", "before", "continued", "names"]

log = logging.getLogger("tollhouse.policies.guardrails")

_KEPT = 3 * 86_400.0  # seconds
_MOST = 64 << 10  # bytes of one answer's values; the latest of them count
_ROOM = 16 << 20  # bytes in this process
_WRITES = 64  # at once
_SLOW = 0.25  # seconds that a call waits for the state
_RESTS = 2.0  # seconds in which a state that was slow or gone is not asked
_QUIET = 60.0  # seconds between lines of the log
_LONGEST = 512  # characters of an id

_string = msgspec.json.Decoder(str).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_values = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder().encode


class Continued:
    """Of a process. state: None, or one that is not shared: it remembers alone. secrets: it seals with the first."""

    def __init__(self, clock: Clock, state: State | None, secrets: Sequence[bytes]) -> None:
        self._clock = clock
        self._shared: KeyValue | None = state.values if state is not None and state.shared else None
        self._box = Box(secrets, "a guard's value")
        self._own: dict[str, tuple[bytes, float]] = {}  # sealed, and when it is forgotten; the last used one at the end
        self._size = 0
        self._rests = -1e18
        self._quiet = -_QUIET
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await stop(self._tasks)
        self._own.clear()
        self._size = 0

    async def fetch(self, principal: Principal, ids: Sequence[str]) -> dict[str, str]:
        """The values of these answers and conversations, by placeholder."""
        values: dict[str, str] = {}
        for one in ids:
            name = _name(principal, one)
            sealed = self._mine(name)
            if sealed is None and self._reaches:
                sealed = await self._theirs(name)
            opened = self._box.open(name, sealed) if sealed is not None else None
            if opened is not None:
                values |= _values(opened)
        return values

    def keep(self, principal: Principal, ids: Sequence[str], values: Mapping[str, str]) -> "asyncio.Task[None] | None":
        """Remember them here at once, and where others find them soon: then gives the task that does it."""
        content = _fitting(values)
        written = []
        for one in ids:
            name = _name(principal, one)
            sealed = self._box.seal(name, content)
            self._put(name, sealed)
            written.append((name, sealed))
        if not self._reaches or not written:
            return None
        if len(self._tasks) >= _WRITES:
            self._complain("too many are being written")
            return None
        task = asyncio.get_running_loop().create_task(self._write(written), name="masks of an answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- here
    def _mine(self, name: str) -> bytes | None:
        found = self._own.pop(name, None)
        if found is None:
            return None
        if found[1] <= self._clock.now:
            self._size -= _weight(name, found[0])
            return None
        self._own[name] = found
        return found[0]

    def _put(self, name: str, sealed: bytes) -> None:
        before = self._own.pop(name, None)
        if before is not None:
            self._size -= _weight(name, before[0])
        self._own[name] = sealed, self._clock.now + _KEPT
        self._size += _weight(name, sealed)
        while self._size > _ROOM:
            oldest = next(iter(self._own))
            self._size -= _weight(oldest, self._own.pop(oldest)[0])

    # ---- where others are
    @property
    def _reaches(self) -> bool:
        return self._shared is not None and self._clock.now >= self._rests

    async def _theirs(self, name: str) -> bytes | None:
        assert self._shared is not None
        try:
            async with asyncio.timeout(_SLOW):
                sealed = await self._shared.get(name)
        except (Failure, TimeoutError):
            self._rest("read")
            return None
        if sealed is not None:
            self._put(name, sealed)
        return sealed

    async def _write(self, written: Sequence[tuple[str, bytes]]) -> None:
        assert self._shared is not None
        try:
            for name, sealed in written:
                await self._shared.put(name, sealed, _KEPT)
        except Failure:
            self._rest("written")

    def _rest(self, what: str) -> None:
        self._rests = self._clock.now + _RESTS
        self._complain(f"the state cannot be {what}")

    def _complain(self, why: str) -> None:
        now = monotonic()
        if now - self._quiet >= _QUIET:
            self._quiet = now
            log.warning("masks of earlier answers may stay placeholders: %s", why)


def continued(parts: Parts) -> Continued:
    """Made once for all chains."""

    def made() -> Continued:
        state = parts.state
        return Continued(parts.clock, state, [os.urandom(32)] if state is None else state.keys)

    found: Continued = parts.shared(("guard continued",), made, Continued.close)
    return found


def before(call: ModelCall) -> list[str]:
    """The ids of what a request goes on with; none where it begins, or nobody can tell whose it is."""
    if call.operation != "responses" or _nameless(call.principal):
        return []
    fields = call.fields
    found = [_id(fields[name]) for name in ("previous_response_id", "conversation") if name in fields]
    return [one for one in found if one]


def names(call: ModelCall, answer: str) -> list[str]:
    """The ids that its answer goes on under; none, if the provider is to forget it."""
    if _nameless(call.principal) or not 0 < len(answer) <= _LONGEST:
        return []
    conversation = _id(call.fields["conversation"]) if "conversation" in call.fields else ""
    if not conversation and bytes(call.fields.get("store", b"")) == b"false":
        return []
    return [answer, conversation] if conversation else [answer]


def _id(raw: msgspec.Raw) -> str:
    """An id, or an object that has it; "" for anything else."""
    try:
        if bytes(raw)[:1] == b"{":
            raw = _object(raw).get("id", msgspec.Raw(b'""'))
        found = _string(raw)
    except UNREADABLE:
        return ""
    return found if len(found) <= _LONGEST else ""


def _nameless(principal: Principal | None) -> bool:
    """Whether anybody else may come as the same: who has said nothing of himself."""
    return principal is None or not (principal.user or principal.key or principal.subject)


def _name(principal: Principal, id: str) -> str:
    """Nobody else's is the same: also not who has a key of that name later."""
    told = (principal.org, principal.id, principal.user, id)
    whose = "".join([f"{len(one)}:{one}" for one in told])
    return "guards:masks:" + hashlib.sha256(whose.encode(errors="surrogatepass")).hexdigest()


def _weight(name: str, sealed: bytes) -> int:
    return len(name) + len(sealed) + 200


def _fitting(values: Mapping[str, str]) -> bytes:
    content = _encode(values)
    while len(content) > _MOST:
        some = list(values.items())
        values = dict(some[len(some) // 4 + 1 :])
        content = _encode(values)
    return content
