"""Calls that wait until an operator says yes: the policy, its queue, and both places where operators see them."""

import asyncio
import gc
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.policies.floor import Shelf, answer, counted, layer, model, parts, request, respond, tool, who

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.handler import compose
from tollhouse.net.timer import Timer
from tollhouse.policies.authorize import APPROVE, APPROVE_ROUTE, GuardSpec
from tollhouse.policies.authorize.desk import Answer, Desk, Directory, Entry, Shared
from tollhouse.policies.base import Parts
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

PAY: dict[str, Any] = {"approve": 'mcp.tool.name == "pay"', "name": "pay"}


class Place(MemoryState):
    """State of a process, as others would share it."""

    shared = True


@asynccontextmanager
async def world(there: Path | None = None) -> AsyncIterator[tuple[Parts, Desk]]:
    """there: calls wait in a directory below it; else in the state."""
    clock = Clock()
    timer, shelf = Timer(clock), Shelf()
    timer.start()
    state = Place(clock) if there is None else MemoryState(clock)
    desk: Desk = Shared(state) if there is None else Directory(there / "db.approvals")
    spool = "" if there is None else str(there / "db.approvals")
    p = replace(parts(entrance="mcp", shared=shelf, state=state, spool=spool), clock=clock)
    try:
        yield p, desk
    finally:
        await shelf.close()
        await state.close()
        timer.stop()


@pytest.fixture(params=["state", "directory"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "directory" else None


def guarded(p: Parts, *rules: dict[str, Any], last: Any = answer, **approvals: Any) -> Callable[[Any], Awaitable[Any]]:
    written: dict[str, Any] = {"rules": rules or [PAY]}
    if approvals:
        written["approvals"] = approvals
    policy = APPROVE.make((layer(GuardSpec.model_validate(written)),), p)
    assert policy is not None
    return compose((policy,), last)


async def seen(desk: Desk, count: int = 1) -> list[Entry]:
    """What operators see, once it is so much."""
    async with asyncio.timeout(10):
        while len(found := await desk.entries()) != count:
            await asyncio.sleep(0.005)
    return found


async def outcome(call: Awaitable[Any]) -> tuple[int, str]:
    try:
        await call
    except Failure as failure:
        return failure.status, failure.code or ""
    return 200, ""


async def test_approved(there: Path | None) -> None:
    async with world(there) as (p, desk):
        handler = guarded(p)
        principal = who(agent="bot", org="acme")
        call = tool("pay", principal, amount=5)
        running = asyncio.ensure_future(handler(call))
        (entry,) = await seen(desk)
        assert (entry.what, entry.rule, entry.user, entry.agent) == ("shop/pay", "top: pay", "ada", "bot")
        assert entry.arguments == '{"amount":5}'
        assert 290 < entry.until - time.time() <= 300
        assert not running.done()
        assert await desk.answer(entry.id, Answer(True, "eve"))
        await running
        assert (call.context.decision, call.context.rule) == ("approved", "top: pay")
        assert call.context.approver == "operator:eve"
        assert await desk.entries() == []
        assert not await desk.answer(entry.id, Answer(True))
        assert counted(p, "approvals_total") == {("operator", "approved"): 1}
        assert counted(p, "approvals_waiting") == {}
        # One approval is for one call.
        again = asyncio.ensure_future(handler(tool("pay", principal, amount=5)))
        await seen(desk)
        again.cancel()
        await asyncio.wait((again,))
        assert await desk.entries() == []  # who leaves takes the entry away


async def test_denied_and_late(there: Path | None) -> None:
    async with world(there) as (p, desk):
        call = tool("pay")
        running = asyncio.ensure_future(outcome(guarded(p)(call)))
        (entry,) = await seen(desk)
        assert await desk.answer(entry.id, Answer(False, "eve"))
        assert not await desk.answer(entry.id, Answer(True))  # the first one holds
        assert await running == (403, "not_approved")
        assert (call.context.decision, call.context.approver) == ("deny", "operator:eve")
        assert await outcome(guarded(p, PAY, timeout="100ms")(call)) == (403, "approval_timeout")
        assert call.context.approver == "timeout"
        assert await desk.entries() == []


async def test_nobody_is_asked_beyond_the_deadline_of_the_request() -> None:
    async with world() as (p, _):
        call = tool("pay")
        call.context.deadline = time.monotonic() + 0.1
        assert await outcome(guarded(p)(call)) == (403, "approval_timeout")


async def test_what_is_not_asked_about() -> None:
    async with world() as (p, _):
        handler = guarded(p)
        for call in (tool("search"), tool("pay", method="prompts/get"), model(), tool("", method="tools/list")):
            assert await outcome(handler(call)) == (200, "")
            assert call.context.decision == ""
        assert await outcome(guarded(p, {"approve": 'mcp.method == "tools/list"'})(tool("", method="tools/list"))) == (
            200,
            "",
        )


async def test_doubt_is_asked_about() -> None:
    async with world() as (p, desk):
        running = asyncio.ensure_future(outcome(guarded(p, {"approve": "mcp.arguments.amount > 100"})(tool("pay"))))
        (entry,) = await seen(desk)
        assert entry.rule == "top: rule 1"
        await desk.answer(entry.id, Answer(True))
        assert await running == (200, "")


async def test_kept_for_a_time(there: Path | None) -> None:
    async with world(there) as (p, desk):
        handler = guarded(p, PAY | {"remember": "1h"})
        principal = who(agent="bot")
        running = asyncio.ensure_future(outcome(handler(tool("pay", principal, amount=5))))
        (entry,) = await seen(desk)
        await desk.answer(entry.id, Answer(True, "eve"))
        assert await running == (200, "")
        call = tool("pay", principal, amount=7)
        assert await outcome(handler(call)) == (200, "")
        assert (call.context.decision, call.context.approver) == ("approved", "kept")
        for other in (
            tool("pay", who(agent="other")),
            tool("pay", who(id="eve", agent="bot")),
            tool("pay", principal, server="x"),
        ):
            waiting = asyncio.ensure_future(outcome(handler(other)))
            (entry,) = await seen(desk)
            await desk.answer(entry.id, Answer(False))
            assert await waiting == (403, "not_approved")
        changed = guarded(p, PAY | {"remember": "1h", "approve": 'mcp.tool.name in ["pay"]'})  # another rule
        waiting = asyncio.ensure_future(outcome(changed(tool("pay", principal))))
        (entry,) = await seen(desk)
        await desk.answer(entry.id, Answer(False))
        await waiting


async def test_an_operator_says_for_how_long() -> None:
    async with world() as (p, desk):
        principal = who()
        for handler, said, kept in (
            (guarded(p, PAY | {"name": "a"}), Answer(True, remember=60.0), True),
            (guarded(p, PAY | {"name": "b", "remember": "1h"}), Answer(True, remember=0.0), False),
        ):
            running = asyncio.ensure_future(outcome(handler(tool("pay", principal))))
            (entry,) = await seen(desk)
            await desk.answer(entry.id, said)
            assert await running == (200, "")
            again = asyncio.ensure_future(outcome(handler(tool("pay", principal))))
            if not kept:
                (entry,) = await seen(desk)
                await desk.answer(entry.id, Answer(False))
            assert await again == ((200, "") if kept else (403, "not_approved"))


async def test_the_strictest_rule_is_asked() -> None:
    async with world() as (p, desk):
        lax = {"approve": "true", "by": "user", "name": "user"}
        running = asyncio.ensure_future(outcome(guarded(p, lax, PAY | {"by": "operator"})(tool("pay"))))
        (entry,) = await seen(desk)
        assert entry.rule == "top: pay"
        await desk.answer(entry.id, Answer(True))
        assert await running == (200, "")
        assert await outcome(guarded(p, lax)(tool("pay"))) == (403, "not_approved")  # nobody could be asked


async def test_shadow_asks_nobody() -> None:
    async with world() as (p, desk):
        call = tool("pay")
        assert await outcome(guarded(p, PAY | {"shadow": True})(call)) == (200, "")
        assert call.context.shadow == "top: pay"
        assert await desk.entries() == []
        assert counted(p, "approvals_total") == {("nobody", "shadow"): 1}


async def test_so_many_may_wait() -> None:
    async with world() as (p, desk):
        handler = guarded(p, PAY, waiting=3, waiting_each=2)
        ada, eve = who(), who(id="eve")
        running = [asyncio.ensure_future(outcome(handler(tool("pay", ada)))) for _ in range(2)]
        await seen(desk, 2)
        assert await outcome(handler(tool("pay", ada))) == (429, "approvals_full")
        running.append(asyncio.ensure_future(outcome(handler(tool("pay", eve)))))
        entries = await seen(desk, 3)
        assert [entry.principal for entry in entries] == ["jwt:ada", "jwt:ada", "jwt:eve"]
        assert await outcome(handler(tool("pay", eve))) == (429, "approvals_full")
        for entry in entries:
            await desk.answer(entry.id, Answer(True))
        assert await asyncio.gather(*running) == [(200, "")] * 3
        assert await outcome(guarded(p, {"approve": "false"})(tool("pay", ada))) == (200, "")


async def test_models_and_routes() -> None:
    async with world() as (p, desk):
        running = asyncio.ensure_future(outcome(guarded(p, {"approve": 'llm.model == "dear"'})(model("dear"))))
        (entry,) = await seen(desk)
        assert (entry.what, entry.arguments) == ("model dear", "")
        await desk.answer(entry.id, Answer(True))
        assert await running == (200, "")
        rule = {"approve": 'request.method == "DELETE"'}
        policy = APPROVE_ROUTE.make((layer(GuardSpec.model_validate({"rules": [rule]})),), p)
        assert policy is None  # it stands before MCP
        policy = APPROVE_ROUTE.build((layer(GuardSpec.model_validate({"rules": [rule]})),), p)
        assert policy is not None
        handler = compose((policy,), respond)
        assert (await handler(request(b"GET", b"/x", principal=who()))).status == 200
        waiting = asyncio.ensure_future(outcome(handler(request(b"DELETE", b"/x", principal=who()))))
        (entry,) = await seen(desk)
        assert entry.what == "http unknown DELETE /x"
        await desk.answer(entry.id, Answer(False))
        assert await waiting == (403, "not_approved")
        # Who approves sees what is asked for, and nothing that acts on a terminal or makes lines in a log.
        asked = request(b"DELETE", b"/x%0ay?to=eve%1b&n=" + b"1" * 2000, principal=who())
        asked.path = b"/x\ny\x1b[31m"
        waiting = asyncio.ensure_future(outcome(handler(asked)))
        (entry,) = await seen(desk)
        assert entry.what == "http unknown DELETE /x<U+000A>y<U+001B>[31m"
        assert entry.arguments.startswith("?to=eve%1b&n=111")
        assert len(entry.arguments) < 1100
        await desk.answer(entry.id, Answer(False))
        await waiting


async def test_what_a_caller_writes_is_shown_harmless_and_short() -> None:
    async with world() as (p, desk):
        running = asyncio.ensure_future(outcome(guarded(p)(tool("pay", text="a\u202eb\x1b[31m" + "x" * 5000))))
        (entry,) = await seen(desk)
        assert "<U+202E>" in entry.arguments
        assert "\x1b" not in entry.arguments
        assert len(entry.arguments) < 1100
        await desk.answer(entry.id, Answer(False))
        await running


async def test_nobody_could_look() -> None:
    with pytest.raises(ConfigError, match="nobody could see") as caught:
        guarded(parts(entrance="mcp"))
    assert caught.value.problems[0].path == "top: authorize.rules"
    assert await outcome(guarded(parts(entrance="mcp"), PAY | {"by": "user"})(tool("look"))) == (200, "")


async def test_the_end_of_a_configuration_ends_what_waits() -> None:
    async with world() as (p, desk):
        running = asyncio.ensure_future(outcome(guarded(p)(tool("pay"))))
        await seen(desk)
        shelf = p.shared
        assert isinstance(shelf, Shelf)
        await shelf.close()
        assert await running == (403, "approval_timeout")


async def test_a_call_that_goes_on_is_not_asked_about_again() -> None:
    async with world() as (p, _):
        call = tool("pay")
        call.round = 1
        assert await outcome(guarded(p)(call)) == (200, "")


# ---- the directory
async def test_nobody_else_looks_into_the_directory(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    os.umask(0)
    try:
        desk = Directory(tmp_path / "a")
        await desk.put(Entry("abcd", 0.0, time.time() + 60, "w", "r"))
        assert await desk.answer("abcd", Answer(True))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    for file in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"abcd.json", "abcd.answer"}


@pytest.mark.parametrize("id", ["../x", "a/b", "", "ABCD", "abcd\0", "a" * 50])
async def test_ids_are_no_paths(tmp_path: Path, id: str) -> None:
    (tmp_path / "x.json").write_bytes(b'{"id":"x","asked":0,"until":9e12,"what":"","rule":""}')
    assert not await Directory(tmp_path / "a").answer(id, Answer(True))
    clock = Clock()
    assert not await Shared(MemoryState(clock)).answer(id, Answer(True))


async def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "abcd.json").write_text("{")
    (tmp_path / "efgh.json").write_text("[]")
    desk = Directory(tmp_path)
    assert await desk.entries() == []
    assert not await desk.answer("abcd", Answer(True))
    with pytest.raises(Failure, match="cannot wait"):
        await Directory(tmp_path / "abcd.json" / "x").put(Entry("abcd", 0.0, 1.0, "w", "r"))


async def test_entries_whose_time_is_over_count_for_nothing(there: Path | None) -> None:
    async with world(there) as (_, desk):
        await desk.put(Entry("abcd", 0.0, time.time() - 1, "w", "r"))
        assert await desk.entries() == []
        assert not await desk.answer("abcd", Answer(True))


async def test_no_cycles() -> None:
    async with world() as (p, _):
        handler, principal = guarded(p), who()
        await handler(tool("search", principal))
        gc.collect()
        await handler(tool("search", principal))
        assert gc.collect() == 0


async def test_what_was_approved_for_one_without_a_name_is_kept_for_nobody() -> None:
    async with world() as (p, desk):
        handler = guarded(p, PAY | {"remember": "1h"})
        nobody = Principal("anonymous", source="anonymous")
        for principal in (nobody, nobody, None):
            call = tool("pay")
            call.principal = principal
            waiting = asyncio.ensure_future(outcome(handler(call)))
            (entry,) = await seen(desk)
            await desk.answer(entry.id, Answer(True, "eve", remember=3600.0))
            assert await waiting == (200, "")
