"""The machine and its processes as the kernel shows them: what it is, who runs where, CPU time and memory."""

import mmap
import os
import platform
import resource
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_CORES = sorted(os.sched_getaffinity(0))
PINNED = len(_CORES) > 1
PROXY_CORE = _CORES[0]
LOAD_CORE = _CORES[-1]


def describe() -> dict[str, str | int]:
    """What a reader must know to compare figures; nothing that identifies the machine."""
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    facts = {name.strip(): value.strip() for name, value in lines}
    return {
        "cpu": facts.get("model name", platform.machine()),
        "cores": len(_CORES),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": f"{platform.system()} {platform.release()}",
        "pinning": "the proxy on one core, load and upstream on another" if PINNED else "none: one core for all",
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files for us and what we start; the limit that is now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def core_busy_seconds(core: int) -> float:
    """CPU time that core has spent on anything, stolen time included, since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def round_trip_ns(times: int = 1500) -> float:
    """How long a byte takes from the one core to the other and back; 0 where all runs on one.

    Two processes take turns at changing the same byte, which moves it from cache to cache. Of a virtual machine the
    host decides, anew every few seconds, whether its cores share a cache or sit on different parts of the chip."""
    if not PINNED:
        return 0.0
    before, clock, taken = os.sched_getaffinity(0), time.perf_counter_ns, []
    with mmap.mmap(-1, mmap.PAGESIZE) as shared:
        child = os.fork()
        if child == 0:
            try:
                os.sched_setaffinity(0, {PROXY_CORE})
                for turn in range(times):
                    mine = turn % 100 * 2 + 1
                    while shared[0] != mine:
                        pass
                    shared[0] = mine + 1
            finally:
                os._exit(0)
        os.sched_setaffinity(0, {LOAD_CORE})
        for turn in range(times):
            mine = turn % 100 * 2 + 1
            began = clock()
            shared[0] = mine
            while shared[0] != mine + 1:
                pass
            taken.append(clock() - began)
        os.waitpid(child, 0)
    os.sched_setaffinity(0, before)
    return statistics.median(taken)


def on_core(core: int) -> list[str]:
    """What stands before a command that is to run there."""
    return ["taskset", "--cpu-list", str(core)] if PINNED else []


class Program:
    """One running command with its children, on one core, its output in a file. A context: it ends with the block."""

    def __init__(
        self, command: Sequence[str | Path], *, core: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*on_core(core), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=log.parent,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end; after three seconds, make it."""
        pids = self.pids()
        for number in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(3)
                except subprocess.TimeoutExpired:
                    continue
        for pid in pids[1:]:  # children that outlived it
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def wait_until_it_listens(self, port: int, seconds: float = 60.0) -> None:
        """Raises RuntimeError with the end of its output when it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{self._process.args!r} does not listen on port {port}:\n{self.output()[-2000:]}")

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def pids(self) -> list[int]:
        """The process and all below it that live now."""
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += map(int, children.read_text().split())
                except OSError:  # it has just ended
                    continue
        return found

    def cpu_seconds(self) -> float:
        """CPU time of all its processes and threads so far, to the nanosecond."""
        total = 0
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    total += int(thread.read_text().split()[0])
                except OSError:
                    continue
        return total / 1e9

    def rss_mb(self) -> float:
        """Resident memory of all its processes."""
        total = 0
        for pid in self.pids():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
            total += pages * os.sysconf("SC_PAGE_SIZE")
        return total / 1e6
