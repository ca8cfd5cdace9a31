"""What commands change, recorded in the audit like what operators do by the admin API.

Rule: the record's place is made before anything is changed, so that nothing is done that could not be recorded. Who
has done it is the account that the command runs under, as the system knows it; nobody says it of himself.
"""

import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import msgspec

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.gateway.audit import chain_of, seal_of, setting
from tollhouse.gateway.ledger import caught_up, journal_of
from tollhouse.ledger.audit import AuditFacts, Chain, Seal
from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.keys import KeyTaken
from tollhouse.ledger.records import Outcome
from tollhouse.policies.audit import AuditSpec

__all__ = ["Deed", "done_by", "recorded"]

log = logging.getLogger("tollhouse.audit")

_SOURCE = "command"
_LONGEST = 2048  # characters of what it was done to


class _Facts(AuditFacts, gc=False, omit_defaults=True, kw_only=True):
    """Of a deed. took_us: microseconds."""

    took_us: int = 0


class Deed:
    """Something that is being done. target: what it is done to. outcome: how it ends, if it raises nothing."""

    __slots__ = ("operation", "outcome", "target")

    def __init__(self, operation: str, target: str) -> None:
        self.operation = operation
        self.target = target
        self.outcome = Outcome.OK

    def found_nothing(self) -> None:
        """There was nothing to do it to."""
        self.outcome = Outcome.INVALID


@contextmanager
def recorded(config: Config, operation: str, target: str = "") -> Iterator[Deed]:
    """Record what is done inside, with how it ended, where the audit is on. operation: as the admin API names it:
    `admin.keys.create`. What it is done to may be said of the Deed later. Raises Failure 503 where it could not be
    recorded, before it is done; ConfigError."""
    deed = Deed(operation, target)
    spec = setting(config)
    path = config.ledger_file
    if spec is None or path is None:
        yield deed
        return
    with ExitStack() as stack:
        writer = _writer(config, spec, path, stack)
        began = monotonic()
        outcome = Outcome.ERROR
        try:
            yield deed
            outcome = deed.outcome
        except (ConfigError, KeyTaken, ValueError, Failure):
            outcome = Outcome.INVALID
            raise
        finally:
            if writer is not None:
                _write(*writer, spec, _facts(deed, outcome, began))
    if writer is not None:
        try:
            with caught_up(config):
                pass
        except LedgerError as error:  # it is in the journal: whoever reads the ledger next takes it over
            log.info("the record is not in the ledger yet: %s", error)


def done_by() -> str:
    """The account that this process runs under."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _writer(config: Config, spec: AuditSpec, path: Path, stack: ExitStack) -> tuple[Chain, Seal] | None:
    """None where it cannot be recorded, and need not be."""
    journal = Journal(journal_of(path))
    try:
        journal.open()
        stack.callback(journal.close)
        return chain_of(config, journal), seal_of(config, spec)
    except OSError as error:
        failure = _unrecorded(f"the ledger's journal cannot be written in {journal.directory}: {error.strerror}")
        if spec.on_failure == "block":
            raise failure from None
        log.error("an audit record is lost, as configured (on_failure: allow): %s", failure.detail)
        return None


def _write(chain: Chain, seal: Seal, spec: AuditSpec, facts: _Facts) -> None:
    try:
        chain.append(seal, b"," + msgspec.json.encode(facts)[1:-1])
        chain.end()
    except Failure as failure:
        if spec.on_failure == "block":
            raise _unrecorded(f"it may have been done: {failure.detail or failure.message}") from None
        log.error("an audit record is lost, as configured (on_failure: allow): %s", failure.detail)


def _facts(deed: Deed, outcome: Outcome, began: float) -> _Facts:
    who = done_by()
    return _Facts(
        operation=deed.operation,
        principal=f"operator:{who}",
        source=_SOURCE,
        user=who,
        target=deed.target[:_LONGEST].encode("utf-8", "replace").decode(),
        outcome=outcome,
        took_us=int((monotonic() - began) * 1e6),
    )


def _unrecorded(detail: str) -> Failure:
    return Failure(
        503,
        Reason.INTERNAL,
        "what is done cannot be recorded",
        code="audit_unavailable",
        detail=detail,
    )
