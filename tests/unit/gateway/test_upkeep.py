"""What keeps a ledger in bounds while a worker serves: old records go, and the audit says so before its own do."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.ledger import record

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.gateway.audit import chain_of, records, seal_of, verified
from tollhouse.gateway.ledger import caught_up, journal_of, ledger_of
from tollhouse.gateway.upkeep import Upkeep
from tollhouse.ledger.audit import Chain
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.ship import Shipper
from tollhouse.policies.audit import AuditSpec

pytestmark = pytest.mark.anyio

DAY = 86400


def config(where: Path, retention: str) -> Config:
    return parse(f"ledger: sqlite:{where}/l.db\naudit: on\nretention: {retention}\n", "t.yaml", {}).config


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


class Worker:
    """What of a worker writes records."""

    def __init__(self, config: Config) -> None:
        self.config = config
        file = config.ledger_file
        assert file is not None
        self.journal = Journal(journal_of(file), spare=0)
        self.journal.open()
        self.days_ago = 0.0
        self.upkeep = Upkeep(config, self.journal)
        self.shipper = Shipper(self.journal, ledger_of(config), interval=0.01, upkeep=self.upkeep.step)
        self.chain = chain_of(config, self.journal)
        self.chain._now = lambda: time.time() - self.days_ago * DAY

    def work(self, *days_ago: float) -> None:
        seal = seal_of(self.config, AuditSpec())
        for self.days_ago in days_ago:
            self.chain.append(seal, b',"operation":"tools/call"')
            at = int((time.time() - self.days_ago * DAY) * 1e6)
            self.journal.append(record(admitted_at=at))
        self.days_ago = 0.0

    async def stop(self) -> None:
        self.upkeep.chain = None
        self.chain.end()
        assert await asyncio.to_thread(self.shipper.stop)
        self.journal.close()


def counts(config: Config) -> tuple[int, int]:
    """Records of usage, and of tool calls in the audit."""
    with caught_up(config) as ledger:
        used = len(ledger.records(0, 1 << 52, (), 1000))
    return used, len(records(config, 0, 1000, [("operation", "tools/call")]))


async def test_old_records_go_and_the_audit_can_be_verified(tmp_path: Path) -> None:
    kept = config(tmp_path, "{usage: 5d, audit: 20d}")
    worker = Worker(kept)
    worker.work(*range(39, 0, -2))
    worker.upkeep.chain = worker.chain
    worker.shipper.start()
    await until(lambda: counts(kept) == (2, 10))
    await worker.stop()
    verdict = await asyncio.to_thread(verified, kept)
    assert verdict.breaks == ()
    assert verdict.records == 10 + 2  # and the cut, and the end
    (cut,) = records(kept, 0, 10, [("operation", "audit.cut")])
    assert [(one.chain, one.n) for one in cut.anchors] == [(worker.journal.id, 11)]
    with caught_up(kept) as ledger:
        assert sum(row.requests for row in ledger.usage(0, 1 << 40)) == 20  # the sums stay


async def test_a_chain_that_has_ended_says_nothing_more(tmp_path: Path) -> None:
    """The worker stops while the shipper would delete."""
    kept = config(tmp_path, "{audit: 20d}")
    worker = Worker(kept)
    worker.work(39, 30, 1)
    worker.upkeep.chain = worker.chain
    worker.upkeep.chain = None
    worker.chain.end()
    worker.shipper.start()
    await until(lambda: worker.journal.shipped == worker.journal.seq)
    assert await asyncio.to_thread(worker.shipper.stop)
    worker.journal.close()
    assert counts(kept) == (3, 3)
    assert verified(kept).breaks == ()


async def test_what_cannot_be_said_is_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = config(tmp_path, "{audit: 20d}")
    worker = Worker(kept)
    worker.work(39, 30, 1)
    dead = Journal(tmp_path / "other", spare=0)  # which takes no records
    worker.upkeep.chain = Chain(dead)
    worker.shipper.start()
    await until(lambda: "could not be recorded" in caplog.text)
    worker.upkeep.chain = None
    await worker.stop()
    assert counts(kept) == (3, 3)


async def test_retention_is_that_of_the_configuration_that_serves(tmp_path: Path) -> None:
    worker = Worker(config(tmp_path, "{audit: 20d}"))
    worker.work(39, 30, 1)
    kept = worker.upkeep.config = config(tmp_path, "{usage: 35d}")
    worker.shipper.start()
    await until(lambda: counts(kept) == (2, 3))
    await worker.stop()
