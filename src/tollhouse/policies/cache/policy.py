"""The cache of models' answers: what was answered before is answered again, to whom it may be, without asking.

Rule: it stands behind everything that refuses, so nobody is answered who would not be let in now; and before everything
that makes an answer, so what is kept has passed all of that, and all of that is in its key. What is kept is whole, is
what was asked for and came with status 200. In doubt it is not kept.

A hit in memory waits for nothing. A miss is a `Flight`, which looks where other nodes keep theirs, then for what means
the same, and then asks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic, time
from typing import Protocol

from tollhouse.core.call import Call, Context, ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Count
from tollhouse.policies.cache.broadcast import Broadcast, Replay
from tollhouse.policies.cache.directives import NONE, Directives, directives_of
from tollhouse.policies.cache.entry import Entry
from tollhouse.policies.cache.fitness import has_failed, is_chancy, is_fit, is_kept_elsewhere
from tollhouse.policies.cache.flight import Flight, Rider
from tollhouse.policies.cache.key import Path, key_of_call, space_of
from tollhouse.policies.cache.memory import Kept
from tollhouse.policies.cache.spec import ExactSpec
from tollhouse.policies.cache.store import Store

__all__ = ["Cache", "Kindred", "Price", "Tally", "nothing_kept", "whole"]

Price = Callable[[Context], int | None]
"""Nano-dollars of what a call used, None where no price is known (`ledger.prices.Prices.cost`)."""

_TRIES = 2
"""Flights of others that may fail before one asks alone."""

_HEADER = b"x-tollhouse-cache"
_HIT, _MISS, _STORED, _BYPASS = ((_HEADER, word) for word in (b"hit", b"miss", b"stored", b"bypass"))
_SHOWN = frozenset(
    (
        b"content-type",
        b"x-tollhouse-dropped",
        b"x-tollhouse-estimated",
        b"x-tollhouse-fallback",
        b"x-tollhouse-guardrails",  # of those that have looked at the answer; who looks at requests does so each time
    )
)
"""Header fields of an answer that belong to it, and not to the moment in which it was given."""


class Kindred(Protocol):
    """Finds answers to requests that mean the same (`semantic`)."""

    async def find(self, key: bytes, call: ModelCall, space: bytes, path: Path, ignore: frozenset[str]) -> Entry | None:
        """None where there is none, or that cannot be said; then the question is remembered under its key, until it is
        known what has become of it. Raises no Failure."""
        ...

    def place(self, key: bytes) -> bytes:
        """What the question of this key is compared within; b"" where it is not."""
        ...

    def learn(self, entry: Entry) -> None:
        """This is the answer to the question of its key."""
        ...

    def forget(self, key: bytes) -> None:
        """There is none that may be kept."""
        ...


class Tally:
    """Counts what became of requests, by route."""

    __slots__ = ("_children", "_families")

    def __init__(self, families: Families) -> None:
        self._families = families
        self._children: dict[tuple[str, str, str], Count] = {}

    def __call__(self, kind: str, result: str, route: str) -> None:
        key = (kind, result, route)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families.cache_requests.child(kind, result, route)
        child.value += 1


class Cache:
    """The policy `handle` of one model's chain, or of several that have no settings of their own. behind: what each
    model's way is. price: of a call; None where none are known. kindred: None where only what is the same counts."""

    def __init__(
        self,
        spec: ExactSpec,
        store: Store,
        behind: Callable[[str], Path],
        tally: Tally,
        price: Price | None = None,
        kindred: Kindred | None = None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._behind = behind
        self._tally = tally
        self._price = price
        self._kindred = kindred
        self._reach = spec.scope
        self._ignore = frozenset(spec.ignore)
        self._paced = spec.replay == "paced"
        self._any = spec.any_temperature
        self._shares = spec.single_flight.mode == "on"
        self._nodes, self._streams = spec.single_flight.nodes, spec.single_flight.streams

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 504 where nothing is kept for a request that wants nothing else."""
        if type(call) is not ModelCall or not is_fit(call):
            return next(call)
        asked = directives_of(call.request.headers)
        if not (asked.keep or asked.only) or (not self._any and is_chancy(call)) or is_kept_elsewhere(call.fields):
            self._tally("exact", "bypass", call.context.route)
            call.context.cache = "bypass"
            if asked.only:
                raise nothing_kept()
            return _bypassing(next(call))
        if not self._store.started:
            self._store.start()
        space = space_of(call.principal, self._reach)
        path = self._behind(call.label)
        key = key_of_call(call, space, path, self._ignore)
        if asked.find:
            kept = self._store.find(key)
            if kept is not None and self._serves(kept, asked):
                return self._found(call, kept)
        return self._missed(call, next, key, asked, space, path)

    # ---- hits
    def _serves(self, kept: Kept, asked: Directives) -> bool:
        """Whether it is as fresh as is wanted."""
        age = self._store.age(kept)
        return age <= asked.oldest and self._store.left(kept) >= asked.freshest

    async def _found(self, call: ModelCall, kept: Kept) -> Reply:
        self._tally("exact", "hit", call.context.route)
        _had(call.context, kept.entry, "exact")
        return self._reply(kept.entry, self._store.age(kept), "exact")

    def _reply(self, entry: Entry, age: float, kind: str) -> Reply:
        headers = [*entry.headers, _HIT, (b"age", b"%d" % age)]
        if kind == "semantic":
            headers.append((b"x-tollhouse-cache-kind", b"semantic"))
        blocks = entry.blocks
        if not entry.stream:
            return Reply(200, headers, blocks[0])
        replay = Replay(blocks, entry.times) if self._paced else Replay(blocks[:1], None)
        first = blocks[0] if self._paced else b"".join(blocks)
        return Reply(200, headers, first, replay, replay.taps)

    # ---- misses
    async def _missed(
        self, call: ModelCall, next: Handler[Call, Reply], key: bytes, asked: Directives, space: bytes, path: Path
    ) -> Reply:
        store = self._store
        if asked.only:
            kept = await store.fetch(key) if asked.find else None
            if kept is None or not self._serves(kept, asked):
                self._missing(call.context)
                raise nothing_kept()
            return await self._found(call, kept)
        shares = self._shares and asked == NONE  # who wants a fresher one has his own
        if shares:
            for _ in range(_TRIES):
                flight = store.flight(key)
                if flight is None:
                    break
                rider = flight.join(call.context)
                await rider.landed()
                reply = self._given(rider)
                if reply is not None:
                    return reply
        flight = Flight(key, call.context, store.generation, store.landed)
        rider = flight.join(call.context)
        patience = 0.0
        if shares:
            now, context = monotonic(), call.context
            until = min(context.deadline, (context.began or now) + path.total)
            # Of what is left as much stays for asking oneself.
            patience = min(self._streams if call.stream else self._nodes, (until - now) / 2)
        work = self._fly(flight, call, next, asked, space, path, patience)
        if shares:
            store.take_off(flight)
            flight.task = store.run(work)
            await rider.landed()
        else:
            await work
        given = self._given(rider)
        assert given is not None  # who pays has an answer, or why there is none
        return given

    async def _fly(
        self,
        flight: Flight,
        call: ModelCall,
        next: Handler[Call, Reply],
        asked: Directives,
        space: bytes,
        path: Path,
        patience: float,
    ) -> None:
        """Find the answer, or ask for it. patience: seconds to wait for another node that does. What it raises is the
        payer's to raise."""
        try:
            if asked.find:
                if patience > 0.0:
                    kept, flight.claim = await self._store.meet(flight.key, patience)
                else:
                    kept = await self._store.fetch(flight.key) if self._store.reaches else None
                if kept is not None and self._serves(kept, asked):
                    flight.entry, flight.found = kept.entry, "exact"
                    return
                if self._kindred is not None:
                    entry = await self._kindred.find(flight.key, call, space, path, self._ignore)
                    if entry is not None and entry.age <= asked.oldest and entry.ttl - entry.age >= asked.freshest:
                        flight.entry, flight.found = entry, "semantic"
                        return
            self._landed(flight, call, await next(call))
        except asyncio.CancelledError:
            flight.failure = _let_go()  # who still waits, if anybody does, is told
            raise
        except Failure as failure:
            if self._kindred is not None:
                self._kindred.forget(flight.key)
            flight.failure = failure.with_traceback(None)  # which would lead back to this frame
        except Exception as error:  # noqa: BLE001 - a task's root: whoever waits for the answer raises it
            flight.failure = error
        finally:
            flight.land()

    def _landed(self, flight: Flight, call: ModelCall, reply: Reply) -> None:
        """There is an answer. Raises a tap's Failure."""
        flight.ends, reply.ends = reply.ends, []
        source = reply.source
        if reply.status != 200:
            flight.reply = reply
            if self._kindred is not None:
                self._kindred.forget(flight.key)
            return
        try:
            first = whole(reply)
        except Failure as failure:
            flight.settle(Ending(failure.status, failure.reason, 0, failure))
            raise
        if source is None:
            reply.first, reply.taps = first, None
            flight.reply = reply
            flight.entry = entry = self._entry(flight, call, reply.headers, [first], [0])
            if self._keeps(flight, entry, call):
                reply.headers.append(_STORED)
                self._keep(flight, entry)
            elif self._kindred is not None:
                self._kindred.forget(flight.key)
            return
        ended = partial(self._streamed, flight, call, reply.headers, flight.context.attempts)
        flight.reply = None
        flight.broadcast = Broadcast(source, first, self._spec.max_size, ended)
        flight.headers = reply.headers
        if flight.claim is not None:
            flight.claim.still = partial(self._may_keep, flight)

    def _streamed(
        self,
        flight: Flight,
        call: ModelCall,
        headers: Sequence[tuple[bytes, bytes]],
        attempts: int,
        failure: Failure | None,
    ) -> None:
        """The upstream's stream is over. attempts: to which it began; if there were more, another one has gone on."""
        broadcast = flight.broadcast
        status, reason = (200, Reason.UPSTREAM) if failure is None else (failure.status, failure.reason)
        flight.settle(Ending(status, reason, 0, failure))
        try:
            entry = None
            alone = flight.context.attempts == attempts
            if alone and broadcast is not None and failure is None and broadcast.blocks is not None:
                entry = self._entry(flight, call, headers, broadcast.blocks, broadcast.times)
            if entry is not None and self._keeps(flight, entry, call):
                self._keep(flight, entry)
            elif self._kindred is not None:
                self._kindred.forget(flight.key)
        finally:
            flight.closed()

    def _entry(
        self,
        flight: Flight,
        call: ModelCall,
        headers: Sequence[tuple[bytes, bytes]],
        blocks: list[bytes],
        times: list[int],
    ) -> Entry:
        context = flight.context
        price = self._price
        cost = price(context) if price is not None else None
        flight.cost = -1 if cost is None else cost
        if not self._paced:
            blocks, times = [b"".join(blocks)], [0]
        principal = call.principal
        return Entry(
            flight.key,
            time(),
            self._spec.ttl,
            flight.generation,
            [pair for pair in headers if pair[0] in _SHOWN],
            blocks,
            times,
            call.label,
            "" if principal is None else principal.user,
            "" if principal is None else principal.org,
            "" if principal is None else principal.key,
            tuple(sorted({*self._spec.tags, *context.tags})),
            context.provider,
            context.backend,
            context.model_answered,
            context.model_sent,
            flight.cost,
            0 if context.usage is None else context.usage.total,
            flight.broadcast is not None,
            place=b"" if self._kindred is None else self._kindred.place(flight.key),
        )

    def _keeps(self, flight: Flight, entry: Entry, call: ModelCall) -> bool:
        """Whether the answer is one to keep."""
        context = flight.context
        if context.guard_action == "failopen":  # nobody has looked at it
            return False
        if entry.size > self._spec.max_size or (context.fallback and not self._spec.fallback):
            return False
        return not has_failed(call.operation, entry.blocks, stream=entry.stream)

    def _may_keep(self, flight: Flight) -> bool:
        """Whether a stream may be one to keep, as far as it has come."""
        broadcast, context = flight.broadcast, flight.context
        if broadcast is None or broadcast.blocks is None or context.guard_action == "failopen":
            return False
        return self._spec.fallback or not context.fallback

    def _keep(self, flight: Flight, entry: Entry) -> None:
        flight.kept = self._store.keep(entry)
        if self._kindred is not None:
            self._kindred.learn(entry)

    def _missing(self, context: Context) -> None:
        self._tally("exact", "miss", context.route)
        context.cache = "miss"

    def _given(self, rider: Rider) -> Reply | None:
        """The rider's own Reply; None where he has to ask himself. Raises what there is instead."""
        flight = rider.flight
        context = rider.context
        pays = rider is flight.payer
        failure = flight.failure
        if failure is not None:
            flight.give_up(rider)
            if not pays:
                return None
            self._missing(context)
            try:
                raise failure
            finally:
                del failure
        entry = flight.entry
        if flight.found and entry is not None:
            kind = flight.found
            self._tally("exact", "hit" if kind == "exact" else "miss", context.route)
            if kind != "exact":
                self._tally("semantic", "hit", context.route)
            flight.leave(rider)
            _had(context, entry, kind)
            return self._reply(entry, entry.age, kind)
        if pays:
            self._missing(context)
            if self._kindred is not None:
                self._tally("semantic", "miss", context.route)
        leg = rider.leg
        broadcast = flight.broadcast
        if broadcast is not None and leg is not None:
            shown = list(flight.headers) if pays else [pair for pair in flight.headers if pair[0] in _SHOWN]
            shown.append(_MISS if pays else _HIT)
            if not pays:
                self._tally("exact", "hit", context.route)
                _rides(context, flight.context)
            return Reply(200, shown, broadcast.first, leg, leg.taps, [rider.ended])
        if pays and flight.reply is not None:
            reply, flight.reply = flight.reply, None
            if not any(name == _HEADER for name, _ in reply.headers):
                reply.headers.append(_MISS)
            reply.ends.append(rider.ended)
            return reply
        if entry is None:
            flight.leave(rider)
            return None
        self._tally("exact", "hit", context.route)
        _had(context, entry, "exact")
        reply = self._reply(entry, 0.0, "exact")
        reply.ends.append(rider.ended)
        return reply


def whole(reply: Reply) -> bytes:
    """What has come of a Reply, with its taps applied. Raises a tap's Failure; its source is closed then."""
    first = reply.first
    try:
        for tap in reply.taps or ():
            first = tap(first)
    except Failure:
        if reply.source is not None:
            reply.source.close()
        raise
    return first


def _had(context: Context, entry: Entry, kind: str) -> None:
    """He has this answer, and has used nothing."""
    context.cached = kind
    context.usage = Usage()
    context.cost_nano = 0
    context.provider = entry.provider
    context.backend = entry.backend
    context.model_answered = entry.answered
    context.model_sent = entry.sent
    context.saved_nano = max(entry.cost, 0)


def _rides(own: Context, made: Context) -> None:
    """The same, of an answer that is under way."""
    own.cached = "exact"
    own.usage = Usage()
    own.cost_nano = 0
    own.provider, own.backend = made.provider, made.backend
    own.model_answered, own.model_sent = made.model_answered, made.model_sent


async def _bypassing(answer: Awaitable[Reply]) -> Reply:
    reply = await answer
    reply.headers.append(_BYPASS)
    return reply


def _let_go() -> Failure:
    return Failure(503, Reason.OVERLOADED, "the gateway is stopping; try again", retry=True, sent=True)


def nothing_kept() -> Failure:
    """For a request that wants nothing but what is kept."""
    return Failure(
        504,
        Reason.NOT_FOUND,
        "no answer to this request is kept, and `only-if-cached` allows nothing else (RFC 9111 section 5.2.1.7)",
        code="not_cached",
        headers=((_HEADER, b"miss"),),
    )
