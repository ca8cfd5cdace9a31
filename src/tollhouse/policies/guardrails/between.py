"""What stands between a Reply's source and whoever reads, and may have to wait for somebody: the part that streams of
events and messages of tools have in common.

Rule: an answer that is refused in the middle ends with that, and its upstream is stopped. Whatever fails, who reads
gets an end, and nothing that was not looked at.
"""

import asyncio
import logging

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Source
from tollhouse.core.reply import Tap
from tollhouse.core.stand_in import StandIn
from tollhouse.policies.guardrails.acts import Acts, refusal
from tollhouse.wire.guard.window import Overfull

__all__ = ["Between"]

log = logging.getLogger("tollhouse.policies.guardrails")


class Between(StandIn):
    """Source for who reads; whoever inherits is the Sink of the upstream. acts: what is noted, None for nothing; it is
    told when the answer ends."""

    __slots__ = ("_acts", "_ended", "_failure", "_task", "taps")

    def __init__(self, acts: Acts | None) -> None:
        super().__init__()
        self._acts = acts
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._failure: Failure | None = None
        self.taps: list[Tap] = []

    # ---- what differs
    def _is_behind(self) -> bool:
        """Whether so much waits to be looked at that the upstream is to wait, too."""
        raise NotImplementedError

    async def _work(self) -> None:
        """Look at what waits, and give it out. Raises Failure, Overfull and ValueError."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Nobody gets any more: let go of what is held."""
        raise NotImplementedError

    # ---- Source
    @property
    def behind(self) -> Source | None:
        """What it stands before (`core.reply.innermost`)."""
        return self._source

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def close(self) -> None:
        self._sink = None
        self._drop()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._close_behind()

    # ---- what has to be waited for
    def _begin(self) -> None:
        """Work, unless it is being done."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="guards of an answer")

    def _hold(self) -> None:
        """Have the upstream wait, where too much waits here."""
        if self._source is not None and self._is_behind():
            self._source.pause()

    def _wake(self) -> None:
        """Have it go on, where nobody wants it to wait."""
        if self._source is not None and not self._paused and not self._is_behind():
            self._source.resume()

    async def _run(self) -> None:
        try:
            await self._work()
            self._task = None
            if self._ended:
                self._over(self._failure)
        except (Failure, Overfull, ValueError) as error:
            self._task = None
            self._refuse(self._told(error))
        except Exception:  # a task's root: who reads must get an end all the same, and nothing unlooked at
            log.exception("a guard failed on an answer")
            self._task = None
            self._refuse(Failure(500, Reason.INTERNAL, "internal error"))

    # ---- the end
    def _told(self, error: Failure | Overfull | ValueError) -> Failure:
        if isinstance(error, Failure):
            return error.copy()
        why = str(error)
        return refusal("response", "", why) if self._acts is None else self._acts.overfull(why)

    def _refuse(self, failure: Failure) -> None:
        self._drop()
        self._close_behind()
        self._over(failure)

    def _over(self, failure: Failure | None) -> None:
        sink, self._sink = self._sink, None
        self.taps = []
        self._failure = None
        if sink is not None:
            sink.end(failure)

    def _settle(self, _: Ending) -> None:
        if self._acts is not None:
            self._acts.done()
