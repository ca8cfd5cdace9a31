"""Instructions that a program executes, in user mode and in the kernel, by the processor's own counters (perf events).

Rule: counting costs the counted program time at each switch of context, so nothing is timed while it is counted. Where
the machine or the kernel allows no counters there are no figures, and all else is measured as ever.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SYSTEM_CALL = {"x86_64": 298, "aarch64": 241}  # perf_event_open
_HARDWARE, _INSTRUCTIONS = 0, 1
_TIMES = 0b11  # with each count come the times it was wanted and was running: there may be fewer counters than events
_INHERIT, _EXCLUDE_USER, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 4, 1 << 5, 1 << 6
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")  # struct perf_event_attr as first published, 64 bytes
_VALUE = struct.Struct("=QQQ")


@dataclass
class Instructions:
    """How many were executed so far."""

    user: float = 0.0
    kernel: float = 0.0


def _open(thread: int, exclude: int) -> int:
    flags = _INHERIT | _EXCLUDE_HYPERVISOR | exclude
    attributes = _ATTRIBUTES.pack(_HARDWARE, _ATTRIBUTES.size, _INSTRUCTIONS, 0, 0, _TIMES, flags, 0, 0, 0)
    call = ctypes.CDLL(None, use_errno=True).syscall
    file: int = call(
        ctypes.c_long(_SYSTEM_CALL[platform.machine()]),
        ctypes.c_char_p(attributes),
        ctypes.c_int(thread),
        ctypes.c_int(-1),
        ctypes.c_int(-1),
        ctypes.c_ulong(0),
    )
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return file


def _read(file: int) -> float:
    count, wanted, running = _VALUE.unpack(os.read(file, _VALUE.size))
    return count * wanted / running if running else 0.0


def _threads(processes: Sequence[int]) -> list[int]:
    return [int(thread.name) for process in processes for thread in Path(f"/proc/{process}/task").glob("*")]


@contextmanager
def counted(processes: Sequence[int]) -> Iterator[Instructions | None]:
    """What these processes, their threads and what they start execute within the block; known at its end. None where it
    cannot be counted."""
    user: list[int] = []
    kernel: list[int] = []
    try:
        try:
            if platform.machine() not in _SYSTEM_CALL:
                raise OSError("not known here")
            for thread in _threads(processes):
                user.append(_open(thread, _EXCLUDE_KERNEL))
                kernel.append(_open(thread, _EXCLUDE_USER))
        except OSError:
            yield None
            return
        total = Instructions()
        yield total
        total.user, total.kernel = sum(map(_read, user)), sum(map(_read, kernel))
    finally:
        for file in user + kernel:
            os.close(file)
