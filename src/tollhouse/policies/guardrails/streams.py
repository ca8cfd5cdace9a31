"""A stream that is looked at: it stands between the Reply's source and whoever reads.

Rule: what leaves is at every moment a beginning of what the whole answer would have become. A stream that is refused
in the middle ends with that, and its upstream is stopped. The end of the source is the end of every text: what was held
back leaves before it.
"""

from collections.abc import Callable, Hashable, Sequence

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Asked
from tollhouse.policies.guardrails.between import Between
from tollhouse.policies.guardrails.segments import Room, Segments
from tollhouse.policies.guardrails.stages import Item, Moved, Stage, entered, event_of
from tollhouse.wire.guard.llm import StreamTexts
from tollhouse.wire.guard.window import Overfull

__all__ = ["Guarded"]

_KEPT = 4 << 20  # characters of one answer that are kept for events which say them again
_AHEAD = 4  # segments that wait for a check before the upstream is paused


class Guarded(Between):
    """Source for the client, Sink of the upstream. It takes a Reply's place by `over`.

    texts: reads the API's events. stages: that they pass. checks: that are asked about what has passed them, by `call`.
    acts: what is noted; it is told when the answer ends. passes: whether what cannot be looked at does. room: of all
    answers that wait for checks. worded: how a failure may be told.
    """

    __slots__ = (
        "_call", "_checks", "_cut", "_kept", "_passes", "_said", "_segments", "_stages", "_texts", "_touched",
        "_worded",
    )  # fmt: skip

    def __init__(
        self,
        texts: StreamTexts,
        stages: Sequence[Stage],
        acts: Acts | None,
        *,
        checks: Sequence[Asked] = (),
        call: Call | None = None,
        passes: bool = True,
        room: Room | None = None,
        worded: Callable[[Failure], Failure] | None = None,
    ) -> None:
        super().__init__(acts)
        self._texts = texts
        self._stages = tuple(stages)
        self._checks = tuple(checks)
        self._call = call
        self._passes = passes
        self._segments = Segments(self._checks, room or Room()) if checks else None
        self._said: dict[Hashable, list[str]] | None = {} if texts.repeating else None
        self._touched: set[Hashable] = set()
        self._kept = 0
        self._cut = True  # until an event says how the answer ends
        self._worded = worded

    def over(self, reply: Reply) -> None:
        """Stand between the Reply and whoever gets it. Raises Failure; the Reply is closed then."""
        assert reply.source is not None
        first, taps = reply.first, reply.taps
        self._source, reply.source = reply.source, self
        reply.taps = self.taps
        reply.ends.insert(0, self._settle)
        try:
            for tap in taps or ():
                first = tap(first)
            reply.first = self._written(self._passed(first)) if first else b""
        except (Failure, Overfull, ValueError) as error:
            failure = self._told(error)
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise failure from None

    # ---- Sink of the upstream
    def send(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            out = self._given(self._passed(data))
        except (Failure, Overfull, ValueError) as error:
            self._refuse(self._told(error))
            return
        if out:
            sink.send(out)
        if self._segments is not None:
            self._go_on()

    def end(self, failure: Failure | None = None) -> None:
        if failure is not None and self._worded is not None:
            failure = self._worded(failure)
        self._source = None
        self._ended = True
        self._failure = failure
        sink = self._sink
        if sink is None:
            return
        try:
            items = self._closed(failure is None and not self._cut)
            if self._segments is not None:
                self._segments.add(items)
                self._segments.finish()
                self._go_on()
                return
            out = self._given(items)
        except (Failure, Overfull, ValueError) as error:
            self._refuse(self._told(error))
            return
        if out:
            sink.send(out)
        self._over(failure)

    # ---- events through the stages
    def _passed(self, block: bytes) -> list[Item]:
        """What has passed all stages of what a block brings."""
        out: list[Item] = []
        stages = self._stages
        for event in self._texts.read(block):
            if event.opaque and self._acts is not None:
                self._acts.unseen(f"{event.opaque[0]} in the answer", passes=self._passes)
            if event.ending:
                self._cut = event.ending == "cut"
            items: list[Item] = [event]
            for stage in stages:
                if len(items) == 1:
                    items = entered(stage, items[0])
                else:
                    items = [left for item in items for left in entered(stage, item)]
            out += items
        if self._segments is not None:
            self._segments.add(out)
            return []
        return out

    def _closed(self, whole: bool) -> list[Item]:
        items: list[Item] = []
        for stage in self._stages:
            items = [left for item in items for left in entered(stage, item)]
            items += stage.close(whole)
        return items

    # ---- events as bytes
    def _given(self, items: Sequence[Item]) -> bytes:
        """As who reads gets them. Raises a tap's Failure."""
        out = self._written(items)
        for tap in self.taps if out else ():
            out = tap(out)
        return out

    def _written(self, items: Sequence[Item]) -> bytes:
        if self._said is not None:
            return b"".join([self._retold(item) for item in items])
        texts = self._texts
        if len(items) == 1 and not isinstance(items[0], Moved) and not texts.altered:
            return items[0].raw
        out: list[bytes] = []
        for item in items:
            if isinstance(item, Moved):
                out.append(texts.write(item.event, item.texts, _nothing))
            else:
                # What was changed may have left something to change in events that follow.
                out.append(texts.write(item, None, _nothing) if texts.altered else item.raw)
        return b"".join(out)

    def _retold(self, item: Item) -> bytes:
        """Of an API whose events say whole texts again."""
        said = self._said
        assert said is not None
        event = event_of(item)
        texts = item.texts if isinstance(item, Moved) else None
        for n, (key, text) in enumerate(event.texts):
            new = text if texts is None else texts[n]
            if new != text:
                self._touched.add(key)
            self._kept += len(new)
            if self._kept > _KEPT:
                raise Overfull(f"an answer of more than {_KEPT} characters, which would have to be kept")
            said.setdefault(key, []).append(new)
        if texts is None and not self._texts.altered and not (event.repeats and self._touched):
            return event.raw
        return self._texts.write(event, texts, self._said_of)

    def _said_of(self, key: Hashable) -> str | None:
        """All that has left of a text, None where that is as it came."""
        if key not in self._touched or self._said is None:
            return None
        return "".join(self._said.get(key, ()))

    # ---- checks that have to be waited for
    def _is_behind(self) -> bool:
        return self._segments is not None and self._segments.waiting >= _AHEAD

    def _go_on(self) -> None:
        segments = self._segments
        assert segments is not None
        if segments.ready:
            self._begin()
        elif self._ended and self._task is None:
            self._over(self._failure)
        self._hold()

    async def _work(self) -> None:
        segments, acts, call = self._segments, self._acts, self._call
        assert segments is not None
        assert acts is not None
        assert call is not None
        while segments.ready:
            items = await segments.ask(acts, call)
            sink = self._sink
            if sink is None:
                return
            out = self._given(items)
            if out:
                sink.send(out)
            self._wake()

    # ---- the end
    def _drop(self) -> None:
        if self._segments is not None:
            self._segments.drop()

    def _over(self, failure: Failure | None) -> None:
        self._drop()
        self._stages = ()
        self._said = None
        super()._over(failure)


def _nothing(_: Hashable) -> str | None:
    return None
