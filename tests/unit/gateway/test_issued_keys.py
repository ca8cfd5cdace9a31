"""Keys of the ledger from the command line, and gateways that share only the state."""

import asyncio
from pathlib import Path

import pytest
from tests.fixtures.valkey import valkey

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.call import Principal
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.gateway.issued_keys import create, keys_in, revoke, shown, table
from tollhouse.gateway.state import opened_state
from tollhouse.ledger.keys import NewKey
from tollhouse.store.revocation import Revocations


def config(where: Path, more: str = "", state: str = "memory") -> Config:
    text = f"ledger: sqlite:{where}/keys.db\nauthenticate: {{issued: true{more}}}\nstate: {state}\n"
    return parse(text, str(where / "t.yaml"), {}).config


def test_a_gateway_that_has_only_the_state_is_told(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        shared = config(tmp_path, state=f"redis://127.0.0.1:{server.port}/0")
        _, key = create(shared, NewKey(name="ci"))
        assert [ended.id for ended in revoke(shared, "thk_" + key.id)] == [key.id]

        async def heard() -> bool:
            async with opened_state(shared.state) as (state, clock):
                revocations = Revocations(state, clock)
                await revocations.load()
                holder = Principal("key:ci", source="key", key="ci", jti=f"thk_{key.id}")
                other = Principal("key:ci", source="key", key="ci", jti="thk_another1")
                return revocations.revoked(holder) and not revocations.revoked(other)

        assert asyncio.run(heard())


def test_a_state_that_is_gone_is_told_and_the_ledger_knows(tmp_path: Path) -> None:
    shared = config(tmp_path, state="redis://127.0.0.1:1/0")
    _, key = create(shared, NewKey(name="ci"))
    with pytest.raises(Failure, match="have ended in the ledger"):
        revoke(shared, "ci")
    assert [one.id for one in keys_in(shared).all() if one.revoked_at is not None] == [key.id]


def test_what_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a key in the configuration has the name"):
        create(config(tmp_path, ", keys: [{name: ci, key: sk-0123456789}]"), NewKey(name="ci"))
    with pytest.raises(ConfigError, match="issued: true"):
        create(parse(f"ledger: sqlite:{tmp_path}/k.db\n", "t.yaml", {}).config, NewKey(name="ci"))
    with pytest.raises(ConfigError, match="name one"):
        keys_in(parse("authenticate: {mode: optional}\n", "t.yaml", {}).config)
    with pytest.raises(ConfigError, match="no directory"):
        keys_in(parse(f"ledger: sqlite:{tmp_path}/nowhere/k.db\n", "t.yaml", {}).config)


def test_how_they_are_shown(tmp_path: Path) -> None:
    here = config(tmp_path)
    secret, _ = create(here, NewKey(name="ci", models=("gpt-*",), tools=("a", "b")))
    create(here, NewKey(name="old", expires_at=1))
    revoke(here, "ci")
    ended, old = sorted(map(shown, keys_in(here).all()), key=lambda key: str(key["name"]))
    assert (ended["id"], ended["state"], old["state"]) == (secret[:12], "ended", "expired")
    head, *lines = table(keys_in(here).all())
    assert head.split() == ["id", "name", "user", "org", "state", "created", "for"]
    assert any("models: gpt-*; tools: a, b" in line for line in lines)
    assert secret not in "".join(lines)
