"""State in memory that survives its process: what was promised is in the file, whatever ended the process."""

import asyncio
import logging
import os
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.timer import Timer
from tollhouse.store.file import FileState, FileValues

pytestmark = pytest.mark.anyio

KEY = b"a secret that has thirty-two bytes or more"
OTHER = b"another secret of thirty-two bytes and more"
NOW = 1_800_000_000.0


class Moment:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


Open = Callable[..., FileValues]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the file, as one process after another would."""
    made: list[FileValues] = []

    def open_(*secrets: bytes, clock: Clock | None = None, **more: Any) -> FileValues:
        values = FileValues(clock or Clock(), tmp_path / "state", ("iss:",), secrets, **more)
        made.append(values)
        return values

    yield open_
    for values in made:
        await values.finish()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_was_put_is_there_again(opened: Open) -> None:
    values = opened()
    await values.put("iss:a", b"one", 60.0)
    await values.put("iss:b", b"two", 60.0)
    await values.put("iss:b", b"three", 60.0)
    await values.add("iss:c", b"", 60.0)
    await values.put("iss:gone", b"x", 60.0)
    await values.put("iss:taken", b"x", 60.0)
    await values.swap("iss:a", b"one", b"four", 60.0)
    assert not await values.swap("iss:a", b"one", b"five", 60.0)
    assert not await values.add("iss:a", b"five", 60.0)
    await values.remove("iss:gone")
    await values.take("iss:taken")
    await values.put("session:x", b"not kept", 60.0)
    await values.finish()
    again = opened()
    assert len(again) == 3
    assert [await again.get(key) for key in ("iss:a", "iss:b", "iss:c")] == [b"four", b"three", b""]
    assert await again.get("session:x") is None


async def test_times_go_on_while_nobody_is_there(opened: Open) -> None:
    moment = Moment()
    values = opened(now=moment)
    await values.put("iss:short", b"x", 60.0)
    await values.put("iss:long", b"x", 600.0)
    await values.put("iss:touched", b"x", 60.0)
    assert await values.touch("iss:touched", 600.0)
    await values.finish()
    moment.now += 100.0
    source = [1000.0]
    clock = Clock(source=lambda: source[0])
    again = opened(now=moment, clock=clock)
    assert await again.get("iss:short") is None
    assert await again.get("iss:long") == b"x"
    assert await again.get("iss:touched") == b"x"
    source[0] += 499.0
    clock.turn()
    assert await again.get("iss:long") == b"x"
    source[0] += 2.0
    clock.turn()
    assert await again.get("iss:long") is None


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from tollhouse.core.clock import Clock
from tollhouse.store.file import FileValues

async def main():
    values = FileValues(Clock(), Path(sys.argv[1]), ("iss:",))
    for number in range(10_000):
        await values.put(f"iss:{number % 50}", b"%d" % number, 600.0)
        os.write(1, b"%d\\n" % number)

asyncio.run(main())
"""


async def test_what_was_promised_survives_kill_9(opened: Open, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "state")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(300)]
    child.kill()
    said += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    child.wait()
    values = opened()
    for number in said[-50:]:
        found = await values.get(f"iss:{number % 50}")
        assert found is not None
        assert int(found) >= number


async def test_a_torn_tail_is_put_aside(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    values = opened()
    await values.put("iss:a", b"one", 60.0)
    await values.finish()
    whole = path.read_bytes()
    values = opened()
    await values.put("iss:b", b"two", 60.0)
    await values.finish()
    both = path.read_bytes()
    for cut in range(len(whole), len(both)):
        path.write_bytes(both[:cut])
        values = opened()
        assert await values.get("iss:a") == b"one"
        assert await values.get("iss:b") is None
        await values.put("iss:c", b"three", 60.0)  # and it goes on from there
        await values.finish()
        values = opened()
        assert await values.get("iss:c") == b"three"
        await values.finish()
    assert "are no record" in caplog.text
    assert both.startswith(whole + (tmp_path / "state.damaged").read_bytes())
    assert (tmp_path / "state.damaged").stat().st_mode & 0o777 == 0o600


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=9) | st.none()), max_size=12),
    cut=st.integers(0, 400),
    flip=st.none() | st.tuples(st.integers(0, 400), st.integers(1, 255)),
    junk=st.binary(max_size=20),
)
def test_a_damaged_file_has_what_was_there_up_to_the_damage(
    tmp_path: Path, before: list[tuple[str, bytes | None]], cut: int, flip: tuple[int, int] | None, junk: bytes
) -> None:
    async def run() -> None:
        path = tmp_path / "state"
        path.unlink(missing_ok=True)
        values = FileValues(Clock(), path, ("",))
        states: list[tuple[int, dict[str, bytes]]] = [(path.stat().st_size, {})]
        model: dict[str, bytes] = {}
        for key, value in before:
            if value is None:
                await values.remove(key)
                model.pop(key, None)
            else:
                await values.put(key, value, 600.0)
                model[key] = value
            states.append((path.stat().st_size, dict(model)))
        await values.finish()
        content = bytearray(path.read_bytes())
        first = states[0][0]
        intact = len(content)
        if flip is not None and len(content) > first:
            at = first + flip[0] % (len(content) - first)
            content[at] ^= flip[1]
            intact = at
        end = max(first, min(cut, len(content)))
        path.write_bytes(bytes(content[:end]) + junk)
        again = FileValues(Clock(), path, ("",))
        found = {key: value for key in "abc" if (value := await again.get(key)) is not None}
        sure = [state for size, state in states if size <= min(end, intact)]
        assert found == sure[-1] or (not junk and flip is None and found in [state for _, state in states])
        await again.finish()

    asyncio.run(run())


async def test_the_file_is_its_owners_alone(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state"
    mask = os.umask(0)
    try:
        await opened().finish()
    finally:
        os.umask(mask)
    for name in ("state", "state.lock"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    opened()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "could be read by others (mode 644)" in caplog.text


async def test_a_file_has_one_process(opened: Open) -> None:
    first = opened()
    with pytest.raises(ValueError, match=r"another process has the state in .*state; each needs a file of its own"):
        opened()
    await first.finish()
    await opened().finish()


@pytest.mark.parametrize(
    "content", [b"#!/bin/sh\n", b"TLHS\2\0\0\0abcd", b"x", b"TLHJ" + bytes(40), b"TLHS" + bytes(40)]
)
async def test_a_file_that_is_not_ours_is_left_alone(opened: Open, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match="is not one that state is kept in"):
        opened()
    assert (tmp_path / "state").read_bytes() == content
    (tmp_path / "state").unlink()
    opened()  # the lock was let go of


@pytest.mark.parametrize("size", [0, 1, 4, 11])
async def test_a_crash_before_the_header_was_written(opened: Open, tmp_path: Path, size: int) -> None:
    await opened().finish()
    head = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(head[:size])
    values = opened()
    await values.put("iss:a", b"one", 60.0)
    await values.finish()
    assert await opened().get("iss:a") == b"one"


# ---- encryption


async def test_what_is_sealed_cannot_be_read_in_the_file(opened: Open, tmp_path: Path) -> None:
    values = opened(KEY)
    await values.put("iss:a", b"a private key", 60.0)
    await values.finish()
    assert b"a private key" not in (tmp_path / "state").read_bytes()
    again = opened(OTHER, KEY)  # rotated: the old one still opens
    assert await again.get("iss:a") == b"a private key"
    await again.finish()
    again = opened(OTHER)  # and is not needed any more
    assert await again.get("iss:a") == b"a private key"
    await again.finish()


async def test_without_its_key_a_file_is_not_opened(opened: Open, tmp_path: Path) -> None:
    values = opened(KEY)
    await values.put("iss:a", b"one", 60.0)
    await values.finish()
    content = (tmp_path / "state").read_bytes()
    with pytest.raises(ValueError, match="is encrypted; give the `encryption_key`"):
        opened()
    with pytest.raises(ValueError, match="no `encryption_key` opens what is in") as wrong:
        opened(OTHER)
    assert OTHER.decode() not in str(wrong.value)
    assert (tmp_path / "state").read_bytes() == content


async def test_a_file_that_was_not_sealed_is_sealed_when_there_is_a_key(opened: Open, tmp_path: Path) -> None:
    values = opened()
    await values.put("iss:a", b"a private key", 60.0)
    await values.finish()
    assert b"a private key" in (tmp_path / "state").read_bytes()
    values = opened(KEY)
    assert b"a private key" not in (tmp_path / "state").read_bytes()
    await values.put("iss:b", b"two", 60.0)
    await values.finish()
    again = opened(KEY)
    assert [await again.get(key) for key in ("iss:a", "iss:b")] == [b"a private key", b"two"]


async def test_a_value_opens_under_its_own_key_only(opened: Open, tmp_path: Path) -> None:
    values = opened(KEY)
    await values.put("iss:a", b"one", 60.0)
    await values.finish()
    path = tmp_path / "state"
    content = path.read_bytes()
    changed = content.replace(b"iss:a", b"iss:b")
    body = changed[12 + 8 :]
    path.write_bytes(changed[:12] + struct.pack("<II", len(body), crc32(body)) + body)
    with pytest.raises(ValueError, match="no `encryption_key` opens"):
        opened(KEY)


# ---- a file that grows


@pytest.mark.parametrize("secrets", [(), (KEY,)])
async def test_the_past_is_left_behind(opened: Open, tmp_path: Path, secrets: tuple[bytes, ...]) -> None:
    clock = Clock(period=0.16)
    timer = Timer(clock)
    timer.start()
    values = opened(*secrets, clock=clock, waste=10_000)
    await values.put("iss:kept", b"kept", 60.0)
    for number in range(3000):
        await values.put(f"iss:{number % 20}", b"%0200d" % number, 60.0)
        if number % 100 == 0:
            await asyncio.sleep(0.005)  # changes come while the new file is written
    await until(lambda: values.bytes_kept < 150_000)
    await values.remove("iss:3")
    timer.stop()
    await values.finish()
    assert (tmp_path / "state").stat().st_size < 160_000  # of 700,000 that were written
    assert not (tmp_path / "state.new").exists()
    again = opened(*secrets)
    assert await again.get("iss:kept") == b"kept"
    assert [await again.get(f"iss:{n}") for n in range(20)] == [
        None if n == 3 else b"%0200d" % (2980 + n) for n in range(20)
    ]


async def test_a_new_file_that_a_crash_left_is_removed(opened: Open, tmp_path: Path) -> None:
    values = opened()
    await values.put("iss:a", b"one", 60.0)
    await values.finish()
    (tmp_path / "state.new").write_bytes(b"half of it")
    assert await opened().get("iss:a") == b"one"
    assert not (tmp_path / "state.new").exists()


async def test_it_is_synced_off_the_loop(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        threads.append(threading.current_thread())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    clock = Clock(period=0.16)
    values = opened(clock=clock)
    timer = Timer(clock)
    timer.start()
    await until(lambda: threads)
    threads.clear()
    await values.put("iss:a", b"one", 60.0)
    await until(lambda: threads)
    assert threading.main_thread() not in threads
    timer.stop()
    await values.finish()


# ---- a disk that is full


class Limited:
    """`os.write` on a disk with so many bytes left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def __call__(self, fd: int, content: bytes) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        written = self._write(fd, content[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 20])
async def test_what_cannot_be_written_is_not_promised(opened: Open, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    values = opened()
    await values.put("iss:a", b"one", 60.0)
    await values.put("session:x", b"x", 60.0)
    disk = Limited(room)
    monkeypatch.setattr(os, "write", disk)
    changes: list[Callable[[], Awaitable[Any]]] = [
        lambda: values.put("iss:a", b"two" * 20, 60.0),
        lambda: values.put("iss:b", b"two" * 20, 60.0),
        lambda: values.add("iss:c", b"two" * 20, 60.0),
        lambda: values.swap("iss:a", b"one", b"two" * 20, 60.0),
        lambda: values.take("iss:a"),
        lambda: values.touch("iss:a", 600.0),
    ]
    for change in changes:
        disk.room = room
        with pytest.raises(Failure) as failure:
            await change()
        assert failure.value.code == "state_unavailable"
        assert await values.get("iss:a") == b"one"
        assert await values.get("iss:b") is None
    await values.put("session:x", b"y", 60.0)  # what is not kept needs no room
    disk.room = 1 << 20
    await values.put("iss:d", b"four", 60.0)
    await values.finish()
    again = opened()
    assert [await again.get(key) for key in ("iss:a", "iss:b", "iss:c", "iss:d")] == [b"one", None, None, b"four"]


async def test_a_state_that_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    state = FileState(Clock(), tmp_path / "state", ("iss:",), (KEY,))
    assert state.keys == (KEY,)
    assert not state.shared
    await state.values.put("iss:a", b"one", 60.0)
    await state.close()
    again = FileState(Clock(), tmp_path / "state", ("iss:",), (KEY,))
    assert await again.values.get("iss:a") == b"one"
    await again.close()
    assert caplog.text == ""
    other = FileState(Clock(), tmp_path / "other", ("iss:",), keys=(OTHER,))
    assert other.keys == (OTHER,)
    await other.close()
