"""What keeps a ledger in bounds while a worker serves: records that are older than `retention` says are deleted.

Rule: one worker does it, in its shipper's thread. That audit records go is said in the audit before: in the event loop,
to which a process's chain belongs.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.gateway.audit import seal_of, setting
from tollhouse.ledger.audit import Anchor, Chain, Seal
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.retention import Kept, Retention
from tollhouse.policies.audit import AuditSpec

__all__ = ["Upkeep"]

log = logging.getLogger("tollhouse.ledger")

_PATIENCE = 5.0
"""Seconds that the shipper's thread waits for the event loop."""


class Upkeep:
    """config: the one that serves, kept up to date by the worker. chain: of this process's audit records, once it is
    there; without it the audit's are not deleted. To be made in the event loop."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self.config = config
        self.chain: Chain | None = None
        self._loop = asyncio.get_running_loop()
        self._journal = journal
        self._retention = Retention(self._kept, self._say, lambda: journal.shipped)
        self.step = self._retention.step
        """For `ledger.ship.Shipper`."""

    def _kept(self) -> Kept:
        spec = self.config.retention
        return Kept(spec.usage, spec.rollup, None if self.chain is None else spec.audit)

    def _say(self, anchors: Sequence[Anchor]) -> int | None:
        config = self.config
        said: Future[int | None] = Future()
        try:
            seal = seal_of(config, setting(config) or config.audit or AuditSpec())
            self._loop.call_soon_threadsafe(self._write, seal, anchors, said)
            return said.result(_PATIENCE)
        except (ConfigError, OSError, RuntimeError, TimeoutError) as error:  # RuntimeError: the loop is closed
            said.cancel()
            log.error("a cut of the audit cannot be recorded: %s", error)
            return None

    def _write(self, seal: Seal, anchors: Sequence[Anchor], said: "Future[int | None]") -> None:
        if not said.set_running_or_notify_cancel():
            return
        try:
            if self.chain is not None:  # it has not ended meanwhile
                self.chain.cut(seal, anchors)
                said.set_result(self._journal.seq)
                return
        except Failure as failure:
            log.error("a cut of the audit cannot be recorded: %s", failure.detail)
        said.set_result(None)
