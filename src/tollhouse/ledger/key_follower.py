"""Follows the keys in the ledger, so that one that is made or ended counts within a second in every worker.

Rule: its thread asks twice a second for what is new; of a file only whether anybody has written to it, which costs
some microseconds. What it has found is looked up without a lock: a row is put in or replaced, never changed. A ledger
that cannot be read leaves the keys as they are, and the log says so.
"""

import logging
from collections.abc import Callable
from threading import Event, Thread

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.keys import PREFIX, IssuedKey, KeyLedger

__all__ = ["KeyFollower"]

log = logging.getLogger("tollhouse.ledger")

_EVERY = 0.5
_SPARED = 4  # times as long, while a database does not answer or does not let us in
_PATIENCE = 2.0
"""Seconds that a gateway waits, when it starts and when it ends, for a database that does not answer."""


class KeyFollower:
    """The keys of a ledger as they are now. `version` moves with each change; `find` gives the row of a digest."""

    def __init__(self, ledger: KeyLedger, every: float = _EVERY) -> None:
        self._ledger = ledger
        self._every = every
        self._keys: dict[bytes, IssuedKey] = {}
        self._stop = Event()
        self._looked = Event()
        self._thread: Thread | None = None
        self._failing = False
        self._ended: set[str] = set()
        self._told: Callable[[], object] | None = None
        self.version = 0

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, digest: bytes) -> IssuedKey | None:
        """The key with that SHA-256 digest, good or not."""
        return self._keys.get(digest)

    def has_ended(self, id: str) -> bool:
        """Whether the key that begins so has ended."""
        return id in self._ended

    def on_ended(self, told: Callable[[], object] | None) -> None:
        """Have `told` called, by the thread that follows, when keys were found to have ended."""
        self._told = told

    def start(self) -> None:
        """Read all there are, and follow them until `stop`; again does nothing. Blocks while it reads, for two seconds
        at most; a ledger that cannot be read is tried again."""
        if self._thread is not None:
            return
        self._thread = Thread(target=self._run, name="tollhouse-keys", daemon=True)
        self._thread.start()
        self._looked.wait(_PATIENCE)

    def stop(self) -> None:
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_PATIENCE)
            if thread.is_alive():
                return  # it waits for a database that does not answer, and ends with the process
        self._ledger.close()

    def look(self) -> None:
        """Read what is new. Raises LedgerError."""
        changes = self._ledger.changes(self.version) or ()
        for key in changes:
            self._keys[key.digest] = key
            self.version = key.changed
        ended = {PREFIX + key.id for key in changes if key.revoked_at is not None}
        self._ended |= ended
        told = self._told
        if ended and told is not None:
            told()

    def _run(self) -> None:
        while True:
            try:
                self._try()
            except Exception:  # the root of this thread: a bug must not end the following silently
                log.exception("following the keys failed")
            self._looked.set()
            if self._stop.wait(self._every * _SPARED if self._failing else self._every):
                return

    def _try(self) -> None:
        try:
            self.look()
        except LedgerError as error:
            if not self._failing:
                log.error("keys cannot be followed, and are as they were: %s", error)
            self._failing = True
        else:
            if self._failing:
                log.info("keys are followed again")
            self._failing = False
