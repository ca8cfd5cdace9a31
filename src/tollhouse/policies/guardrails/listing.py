"""What servers say of their tools, prompts and resources, before agents see it in a list.

Rule: a list is looked at once, when it is new, for all who get it. Guards that have to be asked are asked about each
entry by itself, and once for what it says (`verdicts`); who wants the list waits for them, within bounds, and what they
have not answered by then is asked again behind. An entry in which something is found that rejects is not listed, nor is
one whose address would have to be masked: nothing would be found there.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final

from tollhouse.core.call import Context
from tollhouse.core.clock import Clock
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.look import Look, Rules
from tollhouse.policies.guardrails.plan import Plan, plan_of
from tollhouse.policies.guardrails.verdicts import ask_each, judges_of, verdicts
from tollhouse.policies.stop import stop
from tollhouse.wire.mcp.catalogue import Kind, Listing

__all__ = ["Descriptions", "descriptions"]

log = logging.getLogger("tollhouse.policies.guardrails")

_SEEN = 16  # listings: four kinds, for callers of several eras
_TOOLS: Final = "tools/list"
_PATIENCE = 10.0  # seconds that a list waits for guards
_AGAIN, _LATER = 5.0, 60.0  # seconds until they are asked again, at first and at last
_TRIES = 30


class Descriptions:
    """The guards of one server's lists. rules: for all entries but those of tools with rules of their own, by the
    server's names for them; None where there are none. changed: told of a list (`wire.mcp.catalogue.Kind.changed`)
    that is another now, because guards have answered late. again: seconds until they are asked again."""

    __slots__ = (
        "_again",
        "_changed",
        "_clock",
        "_counts",
        "_looks",
        "_rules",
        "_server",
        "_tasks",
        "_tools",
        "rejects",
    )

    def __init__(
        self,
        server: str,
        rules: Rules | None,
        tools: Mapping[str, Rules],
        counts: Counts,
        changed: Callable[[str], None],
        *,
        clock: Clock,
        again: float = _AGAIN,
    ) -> None:
        self._clock = clock
        self._again = again
        self._server = server
        self._rules = rules
        self._tools = dict(tools)
        self._counts = counts
        self._changed = changed
        self._looks: dict[int, Look] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.rejects = any(one.rejects for one in (*tools.values(), *((rules,) if rules is not None else ())))

    async def close(self) -> None:
        """Nobody wants a list any more."""
        await stop(self._tasks)
        self._looks.clear()

    def shown(self, kind: Kind, listing: Listing) -> Listing | None:
        """The list as agents see it, the same where nothing is found; None where guards have to be asked before
        (`judged`)."""
        return self._look(kind, listing).given

    async def judged(self, kind: Kind, listing: Listing, until: float) -> Listing:
        """The same, with guards asked; waits to `until` (monotonic seconds) at most. Raises Failure 503 where nothing
        can be shown for want of them."""
        look = self._look(kind, listing)
        if look.given is None and not look.asked:
            if look.task is None:
                look.task = asyncio.get_running_loop().create_task(self._judge(look), name="guards of a list")
                self._tasks.add(look.task)
                look.task.add_done_callback(self._tasks.discard)
            await look.wait(min(_PATIENCE, max(until - monotonic(), 0.0)))
            if look.given is None:
                look.finish()
        if look.given is None:
            assert look.failure is not None
            raise look.failure.copy()
        return look.given

    def hides(self, kind: Kind, listing: Listing, name: str) -> bool | None:
        """Whether the server's `name` is left out of the list; None where guards have to be asked first (`judged`).
        Raises Failure 503 where it is left out for want of them."""
        look = self._look(kind, listing)
        if name in look.hidden:
            failure = look.hidden[name]
            if failure is not None:
                raise failure.copy()
            return True
        return None if look.given is None else False

    def _look(self, kind: Kind, listing: Listing) -> Look:
        known = self._looks.get(id(listing))
        if known is not None and known.listing is listing and not known.is_old:
            if known.is_whole and known.given is not None:
                known.given.until = listing.until
            return known
        same = next((one for one in self._looks.values() if one.kind is kind and one.is_like(listing)), None)
        if same is None or same.is_old:
            look = self._read(kind, listing)
            if same is not None and same.given and look.given and same.version != look.version:
                self._changed(kind.changed)
        else:
            look = same.of(listing)
            self._looks = {which: one for which, one in self._looks.items() if one is not look}
        self._drop(id(listing))
        if len(self._looks) >= _SEEN:
            self._drop(next(iter(self._looks)))
        self._looks[id(listing)] = look
        return look

    def _read(self, kind: Kind, listing: Listing) -> Look:
        look = Look(self._server, kind, listing, Acts(Context(), "response", self._counts), self._clock)
        for entry in listing.entries:
            look.read(entry, self._tools.get(entry.original, self._rules) if kind.method == _TOOLS else self._rules)
        if not look.unanswered:
            look.finish()
        return look

    def _drop(self, which: int) -> None:
        look = self._looks.pop(which, None)
        if look is not None:
            look.is_wanted = False

    async def _judge(self, look: Look) -> None:
        """Ask about what is not known; and again, until all of it is."""
        pause = self._again
        try:
            for _ in range(_TRIES):
                await ask_each(look.unanswered)
                told = look.given is not None or look.failure is not None
                before = look.version
                look.finish()
                look.asked = True
                look.wake()
                if told and look.version != before:
                    self._changed(look.kind.changed)
                if look.is_whole or not look.is_wanted:
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LATER)
        except Exception:  # a task's root: who waits has what was found until now
            log.exception("mcp server %s: guards failed on its %s", self._server, look.kind.method)
        finally:
            look.wake()


def descriptions(
    server: str,
    layers: Sequence[Layer],
    tools: Mapping[str, Sequence[Layer]],
    parts: Parts,
    changed: Callable[[str], None] = lambda _: None,
    *,
    again: float = _AGAIN,
) -> Descriptions | None:
    """The guards of these scopes, None where none looks at descriptions. tools: of those with scopes of their own.
    changed, again: as of `Descriptions`. Raises ConfigError."""
    rules = _described(layers, parts)
    own = {name: made for name, some in tools.items() if (made := _described(some, parts))}
    if rules is None and not own:
        return None
    guards = Descriptions(server, rules, own, Counts(parts.families), changed, clock=parts.clock, again=again)
    return parts.shared(("guards of lists", guards), lambda: guards, Descriptions.close)


def _described(layers: Sequence[Layer], parts: Parts) -> Rules | None:
    plan = plan_of(layers, "response", parts, watched=False)
    if plan is None:
        return None
    patterns = [one for one in plan.patterns if one.kinds is None or "descriptions" in one.kinds]
    judges = judges_of(plan.checks, verdicts(parts), "descriptions")
    if not patterns and not judges:
        return None
    return Rules(Plan("response", patterns, (), unsupported=True, opaque=True), judges)
