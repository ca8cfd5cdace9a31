"""The token of an admin API whose configuration names no keys: made at the first start, kept in a file.

Rule: who can read the file is an operator, so only its owner can; a file that others can read is not trusted. Gateways
that share a ledger share it: the one that comes first makes it, whole or not at all.
"""

import errno
import os
import re
import secrets
import stat
from pathlib import Path

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem

__all__ = ["token_file", "token_in"]

_TOKEN = re.compile(r"[!-~]{32,512}")
_MOST = 1024


def token_file(config: Config) -> Path:
    """Where it is: beside the ledger, else where the gateway was started."""
    if config.ledger_file is None:
        return Path("tollhouse.admin-token").absolute()
    ledger = config.ledger_file.absolute()
    return ledger.with_name(f"{ledger.name}.admin-token")


def token_in(path: Path) -> str:
    """The token in the file, which is made where there is none. Raises ConfigError."""
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            _make(path)
            return _read(path)
    except OSError as error:
        raise _unusable(f"the file {str(path)!r}, which keeps its token, cannot be used: {error.strerror}") from None


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise _unusable(
                f"the file {str(path)!r}, which keeps its token, is not this user's alone; remove it, and another one "
                "is made"
            )
        text = os.read(descriptor, _MOST).decode("latin-1").strip()
    finally:
        os.close(descriptor)
    if _TOKEN.fullmatch(text) is None:
        raise _unusable(f"the file {str(path)!r} has no token in it; remove it, and another one is made")
    return text


def _make(path: Path) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    text = f"tha_{secrets.token_urlsafe(32)}\n".encode()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            if os.write(descriptor, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(fresh, path)
    except FileExistsError:  # another gateway was faster
        return
    finally:
        fresh.unlink(missing_ok=True)


def _unusable(message: str) -> ConfigError:
    return ConfigError([Problem(message, path="server.admin")])
