"""What commands have a gateway do by its admin API: with its token, and what is said where it does not do it."""

import asyncio
from pathlib import Path

import pytest
from tests.fixtures.api import Said, serving_api

from tollhouse.cli import main

pytestmark = pytest.mark.anyio

MODELS = "providers: {p: {kind: openai, api_key: k}}\nmodels: [{name: m, targets: [{provider: p}]}]\n"
TOKEN = "a-token-of-the-gateway-0123456789"
KILL = ["kill", "run", "key:ci/task-1", "--for", "1h"]
PURGE = ["cache", "purge", "model", "m"]


@pytest.mark.parametrize("command, path", [(KILL, "/api/revocations"), (PURGE, "/api/cache/purge")])
@pytest.mark.parametrize(
    "answer, status, said",
    [
        (Said(200, {}), 0, ""),
        (Said(201, {}), 0, ""),
        (Said(302, b"", (("location", "/"),)), 1, "refused it with 302"),
        (Said(403, b"not \x1b[31mthis\xff way"), 1, "refused it with 403: not"),
        (Said(cut=True), 1, "cannot be asked"),
    ],
)
async def test_what_the_gateway_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    path: str,
    answer: Said,
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tollhouse.admin-token").write_text(f"{TOKEN}\n")
    async with serving_api() as api:
        api.answer = lambda asked: answer
        place = api.url.removeprefix("http://")
        (tmp_path / "tollhouse.yaml").write_text(f"server: {{admin: '{place}'}}\nledger: null\n{MODELS}")
        assert await asyncio.to_thread(main, command) == status
        (asked,) = api.asked
        assert (asked.method, asked.target, asked.headers["authorization"]) == ("POST", path, f"Bearer {TOKEN}")
        told = capsys.readouterr()
        assert said in told.err
        assert "\x1b" not in told.err
        assert TOKEN not in told.err + told.out
