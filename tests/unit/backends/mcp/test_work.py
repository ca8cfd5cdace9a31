"""The tasks of a server: how many there may be, and how they end."""

import asyncio
import logging

import pytest

from tollhouse.backends.mcp.heal import UNAVAILABLE
from tollhouse.backends.mcp.work import Working
from tollhouse.core.errors import Failure, Reason

pytestmark = pytest.mark.anyio


async def test_there_is_a_bound_but_for_what_must_be_done(recwarn: pytest.WarningsRecorder) -> None:
    owner = Working("u")
    done: list[str] = []

    async def note(what: str) -> None:
        done.append(what)

    for _ in range(1024):
        owner.spawn(asyncio.sleep(600), cut=True)
    assert not owner.later(note("too much"))
    with pytest.raises(Failure) as refused:
        owner.spawn(note("too much"))
    assert (refused.value.status, refused.value.retry, refused.value.reached) == (503, True, False)
    assert owner.later(note("closed"), always=True)
    await owner.finish()
    assert done == ["closed"]
    assert owner.later(note("again"))
    await owner.finish()
    assert done == ["closed", "again"]
    assert not [one for one in recwarn if "never awaited" in str(one.message)]


async def test_finish_waits_for_what_is_not_cut() -> None:
    owner = Working("u")
    gate = asyncio.Event()
    cut = owner.spawn(asyncio.sleep(600), cut=True)
    kept = owner.spawn(gate.wait())
    finish = asyncio.ensure_future(owner.finish())
    await asyncio.wait([cut])
    assert cut.cancelled()
    assert not finish.done()
    gate.set()
    await finish
    assert kept.result() is True


async def test_what_went_wrong_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    owner = Working("u")

    async def fail(error: Exception) -> None:
        raise error

    owner.later(fail(Failure(502, Reason.UPSTREAM_FAILURE, "it said no", detail="because")))
    owner.spawn(fail(Failure(502, Reason.UPSTREAM_FAILURE, "who waits hears this")))
    owner.later(fail(ZeroDivisionError("a bug")))
    await owner.finish()
    assert [(one.levelno, one.message) for one in caplog.records] == [
        (logging.INFO, "mcp server u: it said no: because"),
        (logging.ERROR, "mcp server u: internal error"),
    ]


async def test_one_result_for_all_who_wait() -> None:
    owner = Working("u")
    gate = asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise Failure(502, Reason.UPSTREAM_FAILURE, "no")

    task = owner.spawn(fail())
    now = asyncio.get_running_loop().time
    with pytest.raises(Failure, match="u: not in time"):
        await owner.patiently(task, now(), "not in time")
    gate.set()
    waiting = [asyncio.ensure_future(owner.patiently(task, now() + 60, "")) for _ in range(2)]
    one, other = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(one, Failure)
    assert isinstance(other, Failure)
    assert one is not other
    removed = owner.spawn(asyncio.sleep(600), cut=True)
    await owner.finish()
    with pytest.raises(Failure, match="the server was removed"):
        await owner.patiently(removed, now() + 60, "")


def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    owner = Working("u")
    caplog.set_level(logging.INFO)

    def refused(why: str = "refused", code: str | None = None) -> bool:
        return owner.news(Failure(502, Reason.UPSTREAM_FAILURE, why, code=code, reached=False))

    assert [refused(), refused(), refused("another reason"), refused(), refused("3.2 s", UNAVAILABLE)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert owner.news(Failure(502, Reason.UPSTREAM_FAILURE, "refused"))  # that was no matter of reaching it
    assert sum(refused(str(n)) for n in range(100)) == 6
    owner.reached()
    owner.reached()
    assert [one.message for one in caplog.records] == ["mcp server u: it is reached again"]
    assert refused("3.2 s", UNAVAILABLE)
