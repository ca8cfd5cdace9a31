"""FileSource with real files: every way in which editors, tools and Kubernetes replace a file."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tollhouse.config.secrets import ABSENT, digest
from tollhouse.config.sources.file import FileSource

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is of Linux")


class Changes:
    """Counts calls, and waits for them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.files: dict[str, str] = {}
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.times.append(time.monotonic())
        self._event.set()

    async def next(self, timeout: float = 5.0) -> float:
        await asyncio.wait_for(self._event.wait(), timeout)
        self._event.clear()
        return self.times[-1]

    async def none(self, seconds: float) -> None:
        before = len(self.times)
        await asyncio.sleep(seconds)
        assert len(self.times) == before


@asynccontextmanager
async def following(*paths: Path, poll: float = 30.0) -> AsyncIterator[Changes]:
    changes = Changes()
    source = FileSource(poll=poll)
    source.watch({str(path): digest(path.read_bytes()) if path.exists() else ABSENT for path in paths})
    source.start(changes)
    await asyncio.sleep(0.02)
    try:
        yield changes
    finally:
        source.close()


def in_place(path: Path) -> None:
    path.write_text("b: 1\n")


def renamed_over(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text("b: 1\n")
    other.replace(path)


def recreated(path: Path) -> None:
    path.unlink()
    path.write_text("b: 1\n")


def moved_away_and_recreated(path: Path) -> None:  # vim with `backupcopy=no`
    path.rename(path.with_suffix(".bak"))
    path.write_text("b: 1\n")


def relinked(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_text("b: 1\n")
    path.unlink()
    path.symlink_to(other)


def hard_linked(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_text("b: 1\n")
    path.unlink()
    os.link(other, path)


@linux
@pytest.mark.parametrize("way", [in_place, renamed_over, recreated, moved_away_and_recreated, relinked, hard_linked])
async def test_every_way_of_writing_is_seen_once(tmp_path: Path, way: Callable[[Path], None]) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path) as changes:
        way(path)
        await changes.next()
        await changes.none(0.05)
        path.write_text("c: 1\n")
        await changes.next()


@linux
async def test_a_change_is_told_soon(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path) as changes:
        took = []
        for n in range(10):
            path.write_text(f"a: {n + 2}\n")
            ended = time.monotonic()
            took.append(await changes.next() - ended)
    assert min(took) < 0.015  # a machine with others on it may be late now and then


@linux
async def test_a_kubernetes_volume_is_swapped(tmp_path: Path) -> None:
    """ConfigMaps and Secrets: the file is a link through `..data`, a link to a directory that is replaced."""
    for n in (1, 2, 3):
        (tmp_path / f"..{n}").mkdir()
        (tmp_path / f"..{n}" / "tollhouse.yaml").write_text(f"a: {n}\n")
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "tollhouse.yaml"
    path.symlink_to("..data/tollhouse.yaml")
    async with following(path) as changes:
        for n in (2, 3):
            (tmp_path / "..data_tmp").symlink_to(f"..{n}")
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            await changes.next()
            await changes.none(0.03)


@linux
async def test_what_does_not_change_the_contents_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path) as changes:
        path.touch()
        path.write_text("a: 1\n")
        renamed = tmp_path / "same"
        renamed.write_text("a: 1\n")
        renamed.replace(path)
        (tmp_path / "tollhouse.db").write_text("another file")
        await changes.none(0.1)
        path.unlink()
        path.write_text("a: 1\n")
        await changes.none(0.1)


@linux
async def test_a_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path) as changes:
        path.unlink()
        with path.open("w") as file:
            file.write("b: ")
            file.flush()
            await changes.none(0.05)
            file.write("1\n")
        await changes.next()


@linux
async def test_other_files_named_in_it_are_followed(tmp_path: Path) -> None:
    path, secret, later = tmp_path / "tollhouse.yaml", tmp_path / "run" / "secret", tmp_path / "run" / "later"
    path.write_text("a: 1\n")
    secret.parent.mkdir()
    secret.write_text("one")
    async with following(path, secret, later) as changes:
        secret.write_text("two")
        await changes.next()
        later.write_text("was missing")
        await changes.next()


async def test_what_changed_since_it_was_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    changes = Changes()
    source = FileSource()
    source.start(changes)
    try:
        source.watch({str(path): digest(b"a: 0\n")})
        await changes.next()
    finally:
        source.close()


@pytest.fixture
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "elsewhere")


@pytest.mark.usefixtures("no_inotify")
@pytest.mark.parametrize("way", [in_place, renamed_over, recreated, relinked])
async def test_without_inotify_changes_are_seen_by_looking(tmp_path: Path, way: Callable[[Path], None]) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path, poll=0.02) as changes:
        path.touch()
        await changes.none(0.1)
        way(path)
        await changes.next()
        await changes.none(0.1)


async def test_a_file_that_stays_away_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path, poll=0.03) as changes:
        path.unlink()
        await changes.next()
        await changes.none(0.15)
        path.write_text("a: 1\n")
        await changes.next()


@linux
async def test_a_directory_that_is_replaced_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "tollhouse.yaml"
    path.write_text("a: 1\n")
    async with following(path, poll=0.03) as changes:
        folder.rename(tmp_path / "old")
        folder.mkdir()
        path.write_text("a: 2\n")
        await changes.next()
        await asyncio.sleep(0.1)
        path.write_text("a: 3\n")
        await changes.next()


async def test_close_gives_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_text("a: 1\n")
    changes = Changes()

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0

    before = descriptors()
    source = FileSource(poll=0.01)
    source.start(changes)
    source.watch({str(path): digest(path.read_bytes())})
    await asyncio.sleep(0.02)
    path.write_text("a: 2\n")
    source.close()
    source.close()
    assert descriptors() == before
    await changes.none(0.05)
