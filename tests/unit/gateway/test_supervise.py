"""The supervisor with real processes: dead workers come back, signals are passed on, hopeless ones end it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import logging, os, signal, sys, time
from tollhouse.gateway.supervise import TOLD, Supervisor
where = sys.argv[1]
logging.basicConfig(level="INFO", format="%(message)s", filename=f"{where}/log")
def work(index):
    if sys.argv[2] == "die" or (sys.argv[2] == "one" and index): return 3
    if sys.argv[2] == "second" and os.path.exists(f"{where}/lived"): return 3
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1) if sys.argv[2] != "deaf" else None)
    signal.signal(signal.SIGHUP, lambda *_: open(f"{where}/hup-{index}", "w").close())
    with open(f"{where}/{index}-{os.getpid()}", "w"): pass
    if sys.argv[2] == "tell": os.kill(os.getppid(), TOLD)
    while not ended: time.sleep(0.01)
    return 0
def told():
    with open(f"{where}/told", "a") as file: file.write("x")
sys.exit(Supervisor(2, work, float(sys.argv[3]), told=told, quick=0.2).run())
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
    for ended in workers(tmp_path):
        assert not Path(f"/proc/{ended}").exists()
    delayed = f"worker {index} (pid {pid}) ended with signal 9; starting it again in 0.2 s"
    at_once = delayed.replace("in 0.2 s", "at once")
    said = (tmp_path / "log").read_text().splitlines()
    assert said in ([delayed, "stopping"], [at_once, "stopping"])  # as quick as this test was


def test_a_worker_that_lived_is_started_again_at_once(tmp_path: Path) -> None:
    supervisor = start(tmp_path)
    until(lambda: len(workers(tmp_path)) == 2)
    time.sleep(0.3)  # longer than "quick"
    os.kill(next(iter(workers(tmp_path))), signal.SIGKILL)
    until(lambda: len(workers(tmp_path)) == 3)
    assert "ended with signal 9; starting it again at once\n" in (tmp_path / "log").read_text()
    supervisor.terminate()
    assert supervisor.wait(10) == 0


def test_a_worker_that_never_lives_ends_the_supervisor(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "die")
    assert supervisor.wait(30) == 1


def test_what_keeps_a_worker_from_starting_does_not_end_those_that_serve(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "second")
    until(lambda: len(workers(tmp_path)) == 2)
    time.sleep(0.3)  # they live longer than "quick"
    (tmp_path / "lived").touch()
    dead, other = workers(tmp_path)
    os.kill(dead, signal.SIGKILL)
    time.sleep(3.5)  # five quick deaths take 0.2 + 0.4 + 0.8 + 1.6 s
    assert supervisor.poll() is None
    assert Path(f"/proc/{other}").exists()
    supervisor.terminate()
    assert supervisor.wait(10) == 0


def test_a_worker_that_never_lives_does_not_end_one_that_serves(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "one")
    until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("status 3") == 5)
    assert supervisor.poll() is None
    assert list(workers(tmp_path).values()) == [0]
    assert "giving up" not in (tmp_path / "log").read_text()
    supervisor.terminate()
    assert supervisor.wait(10) == 0


def test_what_a_worker_tells_is_heard(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "tell")
    until((tmp_path / "told").exists)
    assert supervisor.poll() is None
    supervisor.terminate()
    assert supervisor.wait(10) == 0


def test_workers_that_do_not_end_are_killed_after_the_grace(tmp_path: Path) -> None:
    supervisor = start(tmp_path, "deaf", 0.3)
    until(lambda: len(workers(tmp_path)) == 2)
    time.sleep(0.1)
    supervisor.terminate()
    assert supervisor.wait(10) == 0
    for pid in workers(tmp_path):
        assert not Path(f"/proc/{pid}").exists()
