"""The second wall: what a process that has raised it cannot do any more, though its code is any code."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3] / "src"
BEGIN = """
import ctypes, os, signal, socket, subprocess, sys, threading, resource, mmap
from tollhouse.net.wall import raise_wall
libc = ctypes.CDLL(None, use_errno=True)
stands = raise_wall([sys.argv[1]], memory=1 << 30, cpu=2)
"""


def behind(code: str, program: str = "/bin/true") -> tuple[int, str]:
    """(exit status, output) of code behind the wall."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BEGIN + code, program],
        env={"PYTHONPATH": str(ROOT), "SECRET": "s3cret"},
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp and Landlock are Linux's")
# Asked of the kernel, not of the wall: one that does not close files where it could must not skip its own tests.
ABI = (
    ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if sys.platform.startswith("linux")
    else -1
)
landlock = pytest.mark.skipif(ABI < 1, reason="no Landlock here")


def test_honest_work_goes_on() -> None:
    status, said = behind("t = threading.Thread(target=lambda: print(sum(range(10)))); t.start(); t.join()")
    assert (status, said) == (0, "45")


@linux
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "os.fork()",
        "os.chroot('/')",
        "os.posix_spawn('/bin/sh', ['sh'], {})",
        "os.setns(0) if hasattr(os, 'setns') else (_ for _ in ()).throw(PermissionError())",
    ],
)
def test_calls_that_are_gone(attempt: str) -> None:
    status, said = behind(attempt)
    assert status == 1
    assert "PermissionError" in said


@linux
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("ptrace", "16, os.getppid(), 0, 0"),
        ("process_vm_readv", "os.getppid(), 0, 0, 0, 0, 0"),
        ("unshare", "0x10000000"),
        ("mount", "0, 0, 0, 0, 0"),
        ("syscall", "425, 4, 0"),
        ("syscall", "321, 0, 0, 0"),
        ("syscall", "41 | 0x40000000, 2, 1, 0"),
    ],
)
def test_calls_below_python(name: str, arguments: str) -> None:
    code = f"libc.{name}({arguments}); print(ctypes.get_errno())"
    if name == "syscall" and "425" not in arguments and platform.machine() != "x86_64":
        pytest.skip("numbers of x86-64")
    assert behind(code) == (0, "1")


@linux
def test_clone3_is_unknown() -> None:
    assert behind("libc.syscall(435, 0, 0); print(ctypes.get_errno())") == (0, "38")


@landlock
@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "open(f'/proc/{os.getppid()}/environ')",
        "open('/tmp/x-of-a-program', 'w')",
        "os.listdir('/')",
        "os.listdir('/home')",
        "os.mkdir('/tmp/x-of-a-program')",
        "os.unlink('/etc/hostname')",
        "os.execv('/bin/sh', ['sh', '-c', 'echo out'])",
        "os.execv(sys.executable, ['python', '-c', 'print(1)'])",
    ],
)
def test_files_that_are_gone(attempt: str) -> None:
    status, said = behind(attempt)
    assert status == 1
    assert "PermissionError" in said


@pytest.mark.skipif(ABI < 6, reason="Landlock keeps signals in from ABI 6 on")
def test_other_processes_cannot_be_signalled() -> None:
    assert "PermissionError" in behind("os.kill(os.getppid(), 0)")[1]
    assert behind("os.kill(os.getpid(), 0)") == (0, "")


@landlock
def test_the_named_program_can_be_started() -> None:
    true = str(Path("/bin/true").resolve())
    assert behind("os.execv(sys.argv[1], ['true'])", true) == (0, "")
    spawned = "p = os.posix_spawn(sys.argv[1], ['true'], {}); print(os.waitpid(p, 0)[1])"
    assert behind(spawned, true) == (0, "0")


def test_limits() -> None:
    status, said = behind("b = bytearray(2 << 30)")
    assert (status, "MemoryError" in said) == (1, True)  # which 3.13 cannot print as it would
    status, _ = behind("while True: pass")
    assert status < 0
    assert "True" in behind("print(all(resource.getrlimit(r)[1] == 0 for r in (resource.RLIMIT_CORE,)))")[1]
