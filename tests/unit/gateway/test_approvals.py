"""`tollhouse approvals`: a call waits in a gateway, and an operator answers it from another process."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.fixtures.valkey import Valkey

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.gateway.state import opened_state
from tollhouse.policies.authorize.desk import Answer, Directory, Entry, Shared

ROUTE = "routes: [{name: a, path: /, to: 'http://127.0.0.1:9'}]\n"


def entry(id: str = "abcd2345", seconds: float = 60.0) -> Entry:
    now = time.time()
    return Entry(id, now, now + seconds, "bank/pay", "top: pay", "jwt:ada", "ada", "bot\x1b[31m", arguments='{"a": 1}')


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tollhouse.yaml").write_text(ROUTE + "ledger: sqlite:own.db\n")
    return tmp_path


def test_list_approve_and_deny(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approvals", "list"]) == 0
    assert capsys.readouterr().out == "no call waits for approval\n"
    desk = Directory(there / "own.db.approvals")
    asyncio.run(desk.put(entry()))
    asyncio.run(desk.put(entry("efgh2345")))
    assert main(["approvals", "list"]) == 0
    out = capsys.readouterr().out
    assert "abcd2345  bank/pay  by user ada, agent bot<U+001B>[31m  until " in out
    assert '\n  top: pay\n  {"a": 1}\n' in out
    assert main(["approvals", "list", "--json"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["abcd2345", "efgh2345"]
    assert main(["approvals", "approve", "abcd2345", "--for", "8h", "--by", "eve"]) == 0
    assert capsys.readouterr().out == "abcd2345: approved\n"
    assert asyncio.run(desk.answered("abcd2345")) == Answer(True, "eve", 8 * 3600.0)
    assert main(["approvals", "deny", "efgh2345", "--by", ""]) == 0
    assert asyncio.run(desk.answered("efgh2345")) == Answer(False)
    assert main(["approvals", "deny", "abcd2345"]) == 1  # it is answered
    assert main(["approvals", "approve", "nobody22"]) == 1
    assert "no call 'nobody22' waits any more" in capsys.readouterr().err
    assert main(["approvals", "approve"]) == 2
    for wrong in ("8", "8y", "-1h", "400d", "0s"):
        assert main(["approvals", "approve", "abcd2345", f"--for={wrong}"]) == 2


def test_check_knows_where_calls_wait(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "authorize: {rules: [{approve: 'true'}]}\n"
    for text, status in (
        (ROUTE + rules, 2),
        (ROUTE + rules + "ledger: sqlite:own.db\n", 0),
        (ROUTE + rules + "state: redis://127.0.0.1:1/0\n", 0),
        (ROUTE + "authorize: {rules: [{approve: 'true', by: user}]}\n", 0),
        (ROUTE + "ledger: sqlite:own.db\nauthorize: {rules: [{deny: 'true'}], approvals: {timeout: 1m}}\n", 2),
        (ROUTE + "authorize: {approvals: {timeout: 1m}}\n", 2),
    ):
        (there / "tollhouse.yaml").write_text(text)
        assert main(["check", "tollhouse.yaml"]) == status, text
    assert "authorize.approvals: has no effect: no rule says `approve`" in capsys.readouterr().err
    assert not (there / "own.db.approvals").exists()


def test_nobody_could_look(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "tollhouse.yaml").write_text(ROUTE + "ledger: null\n")
    assert main(["approvals", "list"]) == 2
    assert "nobody could see" in capsys.readouterr().err


def test_in_a_state_on_the_network(there: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey")
    server.start()
    try:
        text = ROUTE + f"ledger: null\nstate: {{url: '{server.url}', encryption_key: {'k' * 32}}}\n"
        (there / "tollhouse.yaml").write_text(text)
        config = parse(text, str(there / "tollhouse.yaml"), {}).config

        async def wait() -> tuple[Answer | None, bool]:
            async with opened_state(config.state) as (state, _):
                desk = Shared(state)
                told = asyncio.Event()
                stop = desk.on_answer(told.set)
                await state.bus.ready()
                await desk.put(entry())
                assert await asyncio.to_thread(main, ["approvals", "approve", "abcd2345", "--by", "eve"]) == 0
                async with asyncio.timeout(10):
                    await told.wait()  # nobody has to look again and again
                answer = await desk.answered("abcd2345")
                await desk.drop("abcd2345")
                none_left = await desk.entries() == []
                stop()
                return answer, none_left

        assert asyncio.run(wait()) == (Answer(True, "eve"), True)
        assert main(["approvals", "list"]) == 0
        assert "no call waits" in capsys.readouterr().out
    finally:
        server.kill()
    assert main(["approvals", "list"]) == 1
    assert capsys.readouterr().err
