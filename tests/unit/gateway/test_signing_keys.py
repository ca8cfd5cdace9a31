"""The auth provider's keys from the command line: a running gateway that shares the state hears of what is done."""

import asyncio
from pathlib import Path

import pytest
from tests.fixtures.valkey import valkey

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.signing_keys import longest_token, run
from tollhouse.gateway.state import open_state
from tollhouse.issuer.keys import SigningKeys
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.revocation import Revocations

ISSUER = """
issuer:
  url: http://127.0.0.1:8080
  clients: [{id: robot, secret: 0123456789abcdef0123456789abcdef, grants: [client_credentials], access_ttl: 20m}]
"""


def config(where: Path, state: str, more: str = ISSUER) -> Config:
    return parse(f"state: {state}\n{more}", str(where / "t.yaml"), {}).config


def said(made: Config, action: str, kid: str | None = None) -> tuple[int, list[str]]:
    lines: list[str] = []
    return run(made, action, kid, lines.append), lines


def test_keys_in_a_file(tmp_path: Path) -> None:
    made = config(tmp_path, f"file:{tmp_path}/kept.state")
    status, lines = said(made, "list")
    assert status == 0
    assert [line.split()[1:3] for line in lines] == [["ES256", "active"], ["ES256", "next"]]
    first, second = (line.split()[0] for line in lines)
    status, lines = said(made, "rotate")
    assert status == 0
    assert lines[0].startswith("the next key signs from 20")
    assert said(made, "drop", "never-was") == (1, ["there is no key 'never-was'"])
    status, lines = said(made, "drop", first)
    assert status == 0
    assert [line.split()[2] for line in lines] == ["active", "next"]
    assert lines[0].startswith(second)
    assert said(made, "list")[1] == lines
    assert said(made, "drop")[0] == 2


def test_a_gateway_that_shares_the_state_hears_of_it(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        made = config(tmp_path, f"{{url: 'redis://127.0.0.1:{server.port}/0', encryption_key: {'k' * 32}}}")

        async def other_gateway() -> None:
            clock = Clock()
            state = open_state(made.state, clock, Families(Metrics()))
            revocations = Revocations(state, clock)
            await revocations.load()
            assert made.issuer is not None
            keys = SigningKeys(state.values, made.issuer.keys, revocations=revocations)
            await keys.load()
            revocations.start()
            keys.start()
            await state.bus.ready()
            lost = keys.signer().kid
            status, _ = await asyncio.to_thread(said, made, "drop", lost)
            assert status == 0
            async with asyncio.timeout(10):
                while keys.signer().kid == lost or len(keys.described()) < 2:
                    await asyncio.sleep(0.01)
            assert revocations.has("kid", lost)
            await keys.close()
            await revocations.close()
            await state.close()

        asyncio.run(other_gateway())


def test_a_state_that_is_gone(tmp_path: Path) -> None:
    made = config(tmp_path, f"{{url: 'redis://127.0.0.1:1/0', encryption_key: {'k' * 32}}}")
    status, lines = said(made, "list")
    assert status == 1
    assert lines[0].startswith("the state cannot be used: ")
    with pytest.raises(ConfigError, match="there is no auth provider here"):
        said(config(tmp_path, "memory", ""), "list")


def test_the_longest_token(tmp_path: Path) -> None:
    spec = config(tmp_path, "memory").issuer
    assert spec is not None
    assert longest_token(spec) == 1200.0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tollhouse.yaml").write_text(f"state: memory\n{ISSUER}")
    assert main(["signing-keys", "list"]) == 0
    assert capsys.readouterr().out.count("ES256") == 2
    assert (tmp_path / "tollhouse.state").exists()
    assert main(["signing-keys", "drop", "x"]) == 1
