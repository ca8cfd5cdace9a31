"""A process that is killed, at whichever instruction, loses no record whose answer had ended; and none counts twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "fixtures" / "kill_points.py"
ROOT = PROGRAM.parents[2]
WORKS = ("write", "fill", "ship", "take_over", "intend")


def killed(work: str, every: int) -> int:
    """How many places it was killed at."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(PROGRAM), work, str(every)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == 77:
        pytest.skip("processes may not be traced here")
    assert done.returncode == 0, done.stderr
    _, tried = done.stdout.split()
    return int(tried)


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace is Linux's")
@pytest.mark.parametrize(
    ("work", "every"), [("write", 11), ("fill", 13), ("ship", 29), ("take_over", 31), ("intend", 61)]
)
def test_killed_at_some_system_calls(work: str, every: int) -> None:
    """Others each time; all of them in the long form."""
    assert killed(work, every) >= 9


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="ptrace is Linux's")
@pytest.mark.parametrize("work", WORKS)
def test_killed_at_every_system_call(work: str) -> None:
    assert killed(work, 1) >= 100
