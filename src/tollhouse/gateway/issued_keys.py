"""`tollhouse keys`: API keys that live in the ledger, made, listed and ended from the command line.

Rule: what is done here is in force in every gateway that has the ledger within a second; one that shares the state
only is told that a key has ended, and never knew of those that were made elsewhere.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.gateway.build import takes_issued_keys
from tollhouse.gateway.ledger import keys_of
from tollhouse.gateway.state import opened_state
from tollhouse.ledger.keys import PREFIX, IssuedKey, KeyLedger, NewKey
from tollhouse.store.revocation import Revocations

__all__ = ["create", "keys_in", "revoke", "shown", "table", "tell"]

_KEPT = 380 * 86400.0
"""Seconds for which a state that others share remembers that a key has ended; the ledger does for ever."""


def keys_in(config: Config) -> KeyLedger:
    """The keys of the ledger that `config` names. Raises ConfigError without one."""
    path = config.ledger_file
    if path is None:
        raise ConfigError([Problem("keys live in the ledger: name one, like sqlite:tollhouse.db", path="ledger")])
    if not path.parent.is_dir():
        raise ConfigError([Problem(f"there is no directory {str(path.parent)!r}", path="ledger")])
    return keys_of(config)


def create(config: Config, new: NewKey) -> tuple[str, IssuedKey]:
    """A new key and its row. Raises ConfigError where nobody would take it; KeyTaken, ValueError, LedgerError."""
    ledger = keys_in(config)
    if not takes_issued_keys(config):
        message = "keys that are made here would not be taken: write `issued: true`"
        raise ConfigError([Problem(message, path="authenticate")])
    for scope in (config, *config.routes):
        if scope.authenticate is not None and any(key.name == new.name for key in scope.authenticate.keys):
            raise ConfigError(
                [Problem(f"a key in the configuration has the name `{new.name}`", path="authenticate.keys")]
            )
    return ledger.create(new)


def revoke(config: Config, name_or_id: str) -> list[IssuedKey]:
    """End the keys of that name, or the one of that id (with or without `thk_`): those that were ended. Raises
    ConfigError, LedgerError; Failure where the ledger knows, and gateways with the state alone could not be told."""
    ended = keys_in(config).revoke(name_or_id.removeprefix(PREFIX))
    if ended and not config.state.is_memory:
        asyncio.run(_tell(config, ended))
    return ended


def shown(key: IssuedKey) -> dict[str, Any]:
    """A key for programs: its settings, `id` as it begins, `state` (good, expired or ended), and times as RFC 3339."""
    now = datetime.now(UTC).timestamp()
    state = "ended" if key.revoked_at is not None else "good" if key.is_good(now) else "expired"
    settings = {name: getattr(key, name) for name in NewKey.__struct_fields__ if name != "expires_at"}
    times = {
        name: None if value is None else datetime.fromtimestamp(value, UTC).isoformat()
        for name, value in (
            ("created_at", key.created_at),
            ("expires_at", key.expires_at),
            ("revoked_at", key.revoked_at),
        )
    }
    return {"id": PREFIX + key.id, **settings, "state": state, **times}


def table(keys: Sequence[IssuedKey]) -> list[str]:
    """Keys for people, a line each, with a head."""
    rows = [("id", "name", "user", "org", "state", "created", "for")]
    for key in keys:
        told = shown(key)
        bounds = [f"{kind}: {', '.join(told[kind])}" for kind in ("models", "servers", "tools", "routes") if told[kind]]
        what = "; ".join(bounds) or "everything"
        rows.append((told["id"], key.name, key.user, key.org, told["state"], told["created_at"][:10], what))
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    return ["  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6])) for row in rows]


async def tell(revocations: Revocations, ended: Sequence[IssuedKey], *, load: bool = False) -> None:
    """Say to all that share the state that these keys have ended. load: read what it has first. Raises Failure 503."""
    try:
        if load:
            await revocations.load()
        for key in ended:
            assert key.revoked_at is not None
            await revocations.revoke("jti", PREFIX + key.id, key.revoked_at + _KEPT)
    except Failure as failure:
        message = "the keys have ended in the ledger; gateways that share only the state could not be told"
        raise Failure(503, failure.reason, message, detail=failure.detail) from None


async def _tell(config: Config, ended: list[IssuedKey]) -> None:
    async with opened_state(config.state) as (state, clock):
        await tell(Revocations(state, clock), ended, load=True)
