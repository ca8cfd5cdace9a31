"""Where the admin API uses the ledger.

Rule: in a thread, and what goes wrong there is told in one way.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from tollhouse.admin.operation import missing, unconfigured
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.gateway.ledger import NothingRecorded
from tollhouse.ledger.base import LedgerError

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(use: Callable[[], T], nothing: T | None = None) -> T:
    """What `use` gives. nothing: the answer where nothing is recorded yet. Raises Failure 409 where the configuration
    has no ledger, 404 where nothing is recorded, and 503 where the ledger cannot be used."""
    try:
        return await asyncio.to_thread(use)
    except ConfigError as error:
        raise unconfigured(error) from None
    except NothingRecorded as error:
        if nothing is not None:
            return nothing
        raise missing(str(error)) from None
    except LedgerError as error:
        raise Failure(
            503,
            Reason.INTERNAL,
            "the ledger cannot be used at the moment",
            code="ledger_unavailable",
            detail=str(error),
            retry_after=1.0,
        ) from None
