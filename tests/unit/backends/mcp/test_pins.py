"""backends.mcp_pins: the file on a real disk, followed and written by several at once."""

import asyncio
import multiprocessing
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tollhouse.backends.mcp.pins import PinsFile, change, read
from tollhouse.core.clock import Clock
from tollhouse.wire.mcp.integrity import digest
from tollhouse.wire.mcp.pins import MOST, BadPins, Pin, merged, render

pytestmark = pytest.mark.anyio


def pin(name: str, description: str = "") -> Pin:
    tool = {"name": name, "description": description}
    return Pin(digest(tool), tool)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tools.lock"


class Now:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0
        self.clock = Clock(source=lambda: self.time)

    def later(self, seconds: float = 3.0) -> None:
        self.time += seconds
        for _ in range(32):
            self.clock.turn()


async def settled(pins: PinsFile) -> None:
    while pins._task is not None and not pins._task.done():
        await asyncio.wait([pins._task])


async def test_new_pins_are_written_and_read_by_the_next(path: Path) -> None:
    pins = PinsFile(path, Clock())
    assert pins.of("a") == {}
    assert pins.add("a", "send", pin("send"))
    assert pins.add("a", "send", pin("send"))
    assert not pins.add("a", "send", pin("send", "other"))
    assert pins.add("b", "get", pin("get"))
    await pins.close()
    assert read(path) == {"a": {"send": pin("send")}, "b": {"get": pin("get")}}
    assert PinsFile(path, Clock()).of("a") == {"send": pin("send")}
    assert pins.version == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["tools.lock"]


async def test_a_server_has_so_many_pins_and_no_more(path: Path) -> None:
    path.write_bytes(render({"a": {str(n): pin(str(n)) for n in range(MOST)}}))
    pins = PinsFile(path, Clock())
    assert not pins.add("a", "one more", pin("one more"))
    assert pins.add("b", "another", pin("another"))
    await pins.close()


async def test_what_others_write_is_seen_and_told(path: Path) -> None:
    now = Now()
    told: list[str] = []
    pins = PinsFile(path, now.clock, told.append)
    pins.start()
    pins.start()
    await asyncio.to_thread(change, path, partial(merged, more={"a": {"x": pin("x")}, "b": {"y": pin("y")}}, anew=True))
    now.later()
    await settled(pins)
    assert pins.of("a") == {"x": pin("x")}
    assert sorted(told) == ["a", "b"]
    assert pins.version == 1
    await asyncio.to_thread(change, path, partial(merged, more={"a": {"x": pin("x", "2")}}, anew=True))
    now.later()
    await settled(pins)
    assert pins.of("a") == {"x": pin("x", "2")}
    assert sorted(told) == ["a", "a", "b"]
    now.later()
    assert pins.version == 2
    await pins.close()
    assert not any(now.clock._slices)


async def test_the_first_of_two_writers_is_right(path: Path) -> None:
    """Another worker has pinned something else in the same moment."""
    told: list[str] = []
    pins = PinsFile(path, Clock(), told.append)
    change(path, partial(merged, more={"a": {"x": pin("x", "theirs")}}, anew=True))
    assert pins.add("a", "x", pin("x", "ours"))
    assert pins.add("a", "y", pin("y"))
    await settled(pins)
    assert pins.of("a") == read(path)["a"] == {"x": pin("x", "theirs"), "y": pin("y")}
    assert told == ["a"]
    await pins.close()


async def test_a_file_that_is_gone_for_a_moment_changes_nothing(path: Path) -> None:
    now = Now()
    path.write_bytes(render({"a": {"x": pin("x")}}))
    pins = PinsFile(path, now.clock)
    pins.start()
    data = path.read_bytes()
    for gone in (path.unlink, partial(path.write_bytes, b"")):
        gone()
        now.later()
        await settled(pins)
        assert pins.of("a") == {"x": pin("x")}
        path.write_bytes(data)
        now.later()
        await settled(pins)
        assert pins.of("a") == {"x": pin("x")}
    path.unlink()
    now.later()
    now.later()
    await settled(pins)
    assert pins.of("a") == {}
    await pins.close()


async def test_a_file_that_cannot_be_used_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = Now()
    path.write_bytes(render({"a": {"x": pin("x")}}))
    pins = PinsFile(path, now.clock)
    pins.start()
    path.write_text("{\n<<<<<<< ours\n")
    for _ in range(3):
        now.later()
        await settled(pins)
    assert pins.of("a") == {"x": pin("x")}
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(f"pins file {path}: line 2, column 1: not JSON: ")
    assert said.endswith("; what it said before holds")
    assert pins.add("a", "y", pin("y"))
    await settled(pins)
    assert "<<<" in path.read_text()
    path.write_bytes(render({"a": {"x": pin("x", "2")}}))
    now.later()
    await settled(pins)
    assert pins.of("a") == {"x": pin("x", "2"), "y": pin("y")}
    await settled(pins)
    assert read(path)["a"] == pins.of("a")
    await pins.close()


async def test_where_it_cannot_be_written_pins_are_in_memory(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = Now()
    away = path.parent / "gone" / "tools.lock"
    pins = PinsFile(away, now.clock)
    pins.start()
    for name in "xyz":
        pins.add("a", name, pin(name))
        await settled(pins)
    assert set(pins.of("a")) == set("xyz")
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        f"pins file {away}: cannot be written: No such file or directory; new tools are pinned in memory"
    )
    away.parent.mkdir()
    pins.add("a", "w", pin("w"))
    await settled(pins)
    assert set(read(away)["a"]) == set("xyzw")
    await pins.close()


def test_a_link_stays_one_and_a_mode_too(path: Path) -> None:
    there = path.parent / "there"
    there.mkdir()
    (there / "real.lock").write_bytes(b"")
    (there / "real.lock").chmod(0o600)
    path.symlink_to(there / "real.lock")
    change(path, partial(merged, more={"a": {"x": pin("x")}}, anew=True))
    assert path.is_symlink()
    assert read(there / "real.lock") == {"a": {"x": pin("x")}}
    assert stat.S_IMODE((there / "real.lock").stat().st_mode) == 0o600


def test_what_changes_nothing_writes_nothing(path: Path) -> None:
    change(path, partial(merged, more={"a": {"x": pin("x")}}, anew=True))
    before = path.stat()
    change(path, partial(merged, more={"a": {"x": pin("x")}}, anew=False))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_broken_file_is_not_replaced(path: Path) -> None:
    path.write_text("{")
    with pytest.raises(BadPins):
        change(path, partial(merged, more={"a": {"x": pin("x")}}, anew=True))
    assert path.read_text() == "{"
    path.unlink()
    path.mkdir()
    with pytest.raises(BadPins, match="cannot be read"):
        read(path)


def write(path: Path, who: int) -> None:
    for n in range(10):
        more: Any = {f"s{n}": {f"t{who}": pin(f"t{who}")}}
        change(path, partial(merged, more=more, anew=False))


def test_several_processes_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    assert read(path) == {f"s{n}": {f"t{who}": pin(f"t{who}") for who in range(4)} for n in range(10)}
    assert os.listdir(path.parent) == ["tools.lock"]
