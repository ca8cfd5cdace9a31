"""The second wall around code that is not ours: what this process gives up, for good and for all that it starts.

Rule: nothing here is undone, and it holds whatever the process becomes. Resource limits everywhere; on Linux a filter
of system calls (seccomp) that leaves no sockets, no forks and no looking into other processes; and where the kernel
has Landlock, no files but those named. Standard library alone, for a child that imports little.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Walled", "raise_wall"]

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_DUMPABLE, _FILTER = 38, 22, 4, 2
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCH, _FLAGS = 0, 4, 16  # where a filter finds them
_X32 = 0x40000000
_THREAD_OR_SPAWN = 0x00010000 | 0x00004000  # CLONE_THREAD, CLONE_VFORK

# The numbers of what is refused, in each table (arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h).
_NEWER = (425, 428, 429, 430, 431, 432, 433, 438, 440, 442)  # io_uring_setup, new mount calls, pidfd_getfd, madvise
_TABLES = {
    "x86_64": (
        0xC000003E,
        56,
        (
            41, 42, 43, 49, 50, 288,  # socket connect accept bind listen accept4
            57, 58,  # fork vfork
            101, 310, 311, 312,  # ptrace process_vm_readv process_vm_writev kcmp
            248, 249, 250, 298, 321, 323,  # keys, perf_event_open bpf userfaultfd
            161, 155, 165, 166, 272, 308, 303, 304,  # chroot mounts namespaces, files by handle
            175, 176, 313, 246, 320, 167, 168, 169, 163, 164, 227, 305, 103, 135, 172, 173, 179, 279,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (
            198, 203, 202, 200, 201, 242,
            117, 270, 271, 272,
            217, 218, 219, 241, 280, 282,
            51, 41, 40, 39, 97, 268, 264, 265,
            105, 106, 273, 104, 294, 224, 225, 142, 89, 170, 112, 266, 116, 92, 60, 239,
        ),
    ),
}  # fmt: skip
_CLONE3 = 435

_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # bits of a Landlock ABI; 16 in newer ones
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")


class Walled:
    """What stands: calls: the filter of system calls. files: Landlock."""

    __slots__ = ("calls", "files")

    def __init__(self, calls: bool, files: bool) -> None:
        self.calls = calls
        self.files = files


def raise_wall(programs: Iterable[str], *, memory: int, cpu: int) -> Walled:
    """programs: the only ones that may be started from here on. memory: bytes of address space of each process. cpu:
    seconds of each. Raises OSError when something that every Linux has cannot be done."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
    ]
    for name, most in limits:
        if sys.platform == "darwin" and name == resource.RLIMIT_AS:
            continue  # it refuses to lower this one
        resource.setrlimit(name, (most, most))
    if not sys.platform.startswith("linux"):
        return Walled(calls=False, files=False)
    libc = ctypes.CDLL(None, use_errno=True)
    _done(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _done(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    files = _close_files(libc, programs)
    _filter_calls(libc)
    return Walled(calls=True, files=files)


def _done(answer: int, what: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


def _filter_calls(libc: ctypes.CDLL) -> None:
    """Raises OSError, also on a processor whose numbers are not known here."""
    machine = platform.machine()
    if machine not in _TABLES:
        raise OSError(f"system calls of {machine} are not known here")
    arch, clone, refused = _TABLES[machine]
    lines: list[tuple[int, str, str, int]] = [(_LD, "", "", _ARCH), (_JEQ, "", "kill", arch), (_LD, "", "", _NUMBER)]
    lines.append((_JGE, "refuse", "", _X32))
    lines += [(_JEQ, "refuse", "", number) for number in (*refused, *_NEWER)]
    lines.append((_JEQ, "unknown", "", _CLONE3))  # its flags cannot be seen; libraries then use clone
    lines += [(_JEQ, "", "allow", clone), (_LD, "", "", _FLAGS), (_JSET, "allow", "refuse", _THREAD_OR_SPAWN)]
    answers = {"allow": _ALLOW, "refuse": _EPERM, "unknown": _ENOSYS, "kill": _KILL}
    places = {answer: len(lines) + n for n, answer in enumerate(answers)}
    code = b"".join(
        struct.pack("<HBBI", op, *(places[to] - at - 1 if to else 0 for to in (then, otherwise)), value)
        for at, (op, then, otherwise, value) in enumerate(lines)
    ) + b"".join(struct.pack("<HBBI", _RET, 0, 0, answer) for answer in answers.values())
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    _done(libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0), "seccomp")


def _close_files(libc: ctypes.CDLL, programs: Iterable[str]) -> bool:
    """Landlock: what may be started, and the libraries for it. False where the kernel has none. Raises OSError."""
    version = libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    handled = struct.pack("<QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _done(libc.syscall(444, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0)), "landlock")
    try:
        allowed = [(path, _READ | _READ_DIR) for path in _LIBRARIES]
        allowed += [(path, _READ | _EXECUTE) for path in (*_LOADERS, *programs)]
        allowed.append(("/dev/null", _READ | _WRITE))
        for path, access in allowed:
            try:
                file = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            if not Path(path).is_dir():
                access &= ~_READ_DIR
            rule = struct.pack("<Qi", access, file)
            _done(libc.syscall(445, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0)), "landlock")
            os.close(file)
        _done(libc.syscall(446, ctypes.c_int(rules), ctypes.c_uint32(0)), "landlock")
    finally:
        os.close(rules)
    return True
