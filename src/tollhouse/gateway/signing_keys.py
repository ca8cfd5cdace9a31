"""`tollhouse signing-keys`: the auth provider's keys, looked at, rotated and dropped from the command line.

Rule: what is done here is done to the state. Gateways that share it hear of a dropped key at once, and of a rotation
within half a minute; a file has one process, so a gateway that keeps its state in one is stopped first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.gateway.deeds import Deed, recorded
from tollhouse.gateway.state import file_of, opened_state
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.store.revocation import Revocations

__all__ = ["longest_token", "run"]


def longest_token(spec: IssuerSpec) -> float:
    """Seconds that a token of this issuer lives at most."""
    ttl = spec.ttl
    return max(ttl.access, ttl.id_token, ttl.exchanged, *(client.access_ttl or 0.0 for client in spec.clients))


def run(config: Config, action: str, kid: str | None, say: Callable[[str], object]) -> int:
    """What the command does: its exit status. action: list, rotate, rotate-secret or drop. kid: of the key to drop.
    say: told each line. Raises ConfigError."""
    if action == "drop" and not kid:
        say("say which key to drop: `tollhouse signing-keys list` has them")
        return 2
    try:
        if action == "list":
            return asyncio.run(_done(config, action, "", say, None))
        with recorded(config, f"admin.signing-keys.{action}", kid or "") as deed:
            return asyncio.run(_done(config, action, kid or "", say, deed))
    except Failure as failure:
        what = "" if failure.code == "audit_unavailable" else "the state cannot be used: "
        say(f"{what}{failure.detail or failure.message}")
        return 1


async def _done(config: Config, action: str, kid: str, say: Callable[[str], object], deed: Deed | None) -> int:
    async with _opened(config) as keys:
        if action == "rotate":
            say(f"the next key signs from {_shown(await keys.rotate())} on")
        elif action == "rotate-secret":
            say(f"another secret makes refresh tokens and nonces from {_shown(await keys.rotate_secret())} on")
        elif action == "drop" and not await keys.drop(kid):
            say(f"there is no key {kid!r}")
            if deed is not None:
                deed.found_nothing()
            return 1
        for name, alg, what, end in keys.described():
            say(f"{name}  {alg:6}  {what:8}until {_shown(end)}")
    return 0


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[SigningKeys]:
    spec = config.issuer
    if spec is None:
        raise ConfigError([Problem("there is no auth provider here, and so there are no signing keys", path="issuer")])
    async with opened_state(config.state, file_of(config.state, config.ledger_file)) as (state, clock):
        revocations = Revocations(state, clock)
        await revocations.load()
        keys = SigningKeys(state.values, spec.keys, revocations=revocations, longest=longest_token(spec))
        await keys.load()
        yield keys


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
