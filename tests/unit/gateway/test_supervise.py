"""The supervisor with real processes: dead workers come back, signals are passed on, hopeless ones end it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, signal, sys, time
from tollhouse.gateway.supervise import Supervisor
where = sys.argv[1]
def work(index):
    if sys.argv[2] == "die": return 3
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1) if sys.argv[2] != "deaf" else None)
    signal.signal(signal.SIGHUP, lambda *_: open(f"{where}/hup-{index}", "w").close())
    with open(f"{where}/{index}-{os.getpid()}", "w"): pass
    while not ended: time.sleep(0.01)
    return 0
sys.exit(Supervisor(2, work, float(sys.argv[3])).run())
"""


def start(where: Path, mode: str = "serve", grace: float = 10) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(where), mode, str(grace)])


def workers(where: Path) -> dict[int, int]:
    """pid -> index of every worker ever started"""
    found = {}
    for path in where.iterdir():
        index, _, pid = path.name.partition("-")
        if index.isdigit():
            found[int(pid)] = int(index)
    return found


def until(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_killed_worker_is_started_again_and_term_ends_all(tmp_path: Path) -> None:
    supervisor = start(tmp_path)
    until(lambda: len(workers(tmp_path)) == 2)
    pid, index = next(iter(workers(tmp_path).items()))
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(workers(tmp_path)) == 3)
    assert sorted(workers(tmp_path).values()) == sorted([0, 1, index])
    supervisor.send_signal(signal.SIGHUP)
    until(lambda: (tmp_path / "hup-0").exists() and (tmp_path / "hup-1").exists())
    supervisor.terminate()
    assert supervisor.wait(10) == 0
    for pid in workers(tmp_path):
        assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_never_lives_ends_the_supervisor(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "die")
    assert supervisor.wait(30) == 1


def test_workers_that_do_not_end_are_killed_after_the_grace(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "deaf", 0.3)
    until(lambda: len(workers(tmp_path)) == 2)
    time.sleep(0.1)
    supervisor.terminate()
    assert supervisor.wait(10) == 0
    for pid in workers(tmp_path):
        assert not Path(f"/proc/{pid}").exists()
