"""`${NAME}` and `${file:PATH}` in configuration values, and what keeps their values out of every message.

Rule: a value that came from outside the file is known here, and nothing that this package says to anybody passes
without `redact`. References are replaced after the YAML was read, so what a secret contains can never become
structure; `$${` writes a literal `${`.
"""

import errno
import hashlib
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ABSENT", "LIMIT", "Secrets", "content_of", "digest", "digest_of"]

ABSENT = ""
"""The digest of a file that cannot be read."""

LIMIT = 32 << 20
"""Bytes of a file that are read, and compared, at most. It is the same for whoever reads a file, so that all agree on
its digest."""

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_SECRET = 1 << 20
_FILE = "file:"


def digest(content: bytes) -> str:
    """What a file's content is compared by."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def content_of(name: str) -> bytes:
    """The first LIMIT + 1 bytes of a file. Raises OSError, also for what is no file: a pipe might never answer."""
    try:
        path = Path(name)
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        with path.open("rb") as file:
            return file.read(LIMIT + 1)
    except ValueError:  # NUL in the name
        raise OSError(errno.EINVAL, "it is not the name of a file") from None


def digest_of(name: str) -> str:
    """The digest of a file's content, or ABSENT."""
    try:
        return digest(content_of(name))
    except OSError:
        return ABSENT


class Secrets:
    """Resolves the references of one configuration file.

    env: where `${NAME}` is looked up. directory: what relative paths in `${file:...}` are relative to.
    files: the files that were asked for, with the digests of their contents (`ABSENT` when unreadable).
    """

    __slots__ = ("_contents", "_directory", "_env", "_values", "files")

    def __init__(self, env: Mapping[str, str], directory: str) -> None:
        self._env = env
        self._directory = directory
        self._values: dict[str, str] = {}
        self._contents: dict[str, str | None] = {}
        self.files: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Secrets: {len(self._values)} values>"

    def substitute(self, text: str, report: Callable[[str], None]) -> str:
        """`text` with its references replaced. What cannot be resolved is told to `report` and left as it stands."""

        def replace(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            reference, closed = match[1], match[2]
            if not closed:
                report("`${` is not closed; write ${NAME}, or $${ for a literal ${")
                return match[0]
            value = self._look_up(reference, report)
            if value is None:
                return match[0]
            self._values[value] = match[0]
            return value

        return _REFERENCE.sub(replace, text)

    def _look_up(self, reference: str, report: Callable[[str], None]) -> str | None:
        if reference.startswith(_FILE):
            return self._from_file(reference[len(_FILE) :].strip(), report)
        if _NAME.fullmatch(reference) is None:
            report(
                "`${...}` holds neither a name nor a file; write ${NAME} for an environment variable, "
                "${file:/run/secrets/x} for a file, or $${ for a literal ${"
            )
            return None
        value = self._env.get(reference)
        if value is None:
            report(f"the environment variable `{reference}` is not set")
        elif not value:
            report(f"the environment variable `{reference}` is empty")
            return None
        return value

    def _from_file(self, name: str, report: Callable[[str], None]) -> str | None:
        if not name:
            report("`${file:}` names no file; write ${file:/run/secrets/x}")
            return None
        path = str(Path(self._directory, name))
        if path not in self._contents:
            self._contents[path] = None
            self.files[path] = ABSENT
            try:
                content = content_of(path)
            except OSError as error:
                report(f"the file `{name}` cannot be read: {error.strerror}")
                return None
            self.files[path] = digest(content)
            if len(content) > _MAX_SECRET:
                report(f"the file `{name}` is larger than 1 MiB, so it is no secret")
                return None
            try:
                self._contents[path] = content.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                report(f"the file `{name}` is not UTF-8 text")
                return None
        value = self._contents[path]
        if value is None:
            report(f"the file `{name}` cannot be used")
        elif not value:
            report(f"the file `{name}` is empty")
            return None
        return value

    def redact(self, message: str, near: Any = None) -> str:
        """`message` with every resolved value put back to its reference.

        near: the configuration value that the message is about. A value of fewer than four characters is only
        replaced where it is part of that, because it would be found in half the words of any message.
        """
        for value in sorted(self._values, key=len, reverse=True):
            if len(value) < 4 and not _holds(near, value):
                continue
            for form in (value, repr(value)[1:-1], ascii(value)[1:-1]):
                if form in message:
                    message = message.replace(form, self._values[value])
        return message


def _holds(near: Any, value: str) -> bool:
    """Whether `value` is part of some text in a configuration value."""
    if isinstance(near, dict):
        return any(_holds(inner, value) for inner in (*near, *near.values()))
    if isinstance(near, list):
        return any(_holds(inner, value) for inner in near)
    return isinstance(near, str) and value in near
