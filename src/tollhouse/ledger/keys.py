"""Virtual API keys: made by `tollhouse keys`, kept in the ledger, by their digest only.

Rule: the secret is shown once, when it is made, and is nowhere afterwards. A key is `thk_`, 8 characters that name it
in lists and logs, 43 of 256 random bits, and 6 of a checksum by which scanners (and typing errors) tell a key from
other text; its SHA-256 needs no salt and no slow function, because nobody guesses 256 bits. Rows are never deleted: who
had which key until when is a fact of the ledger. Each change gets the next number of `changed`, so that who follows
reads only what is new.
"""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from time import time
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec

__all__ = ["COLUMNS", "PREFIX", "IssuedKey", "KeyLedger", "KeyTable", "KeyTaken", "NewKey", "following", "is_whole"]

PREFIX = "thk_"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK = 8, 43, 6
_LENGTH = len(PREFIX) + _ID + 1 + _SECRET + _CHECK
_NAME = re.compile(r"[A-Za-z0-9._@:-]{1,64}")
COLUMNS: Final = (
    "id", "digest", "name", "user", "org", "agent", "email", "groups", "scopes", "metadata", "models", "servers",
    "tools", "routes", "created_at", "expires_at", "revoked_at", "changed",
)  # fmt: skip
_INSERT = f"INSERT INTO api_keys VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
_JSON = frozenset(("groups", "scopes", "metadata", "models", "servers", "tools", "routes"))


class NewKey(msgspec.Struct, kw_only=True):
    """What is said of a key that is to be made. models, servers, tools, routes: patterns with `*` of what it may be
    used for; where one of them is given, what is not given is not allowed; None for all of them: everything.
    expires_at: unix seconds, None for never."""

    name: str
    user: str = ""
    org: str = ""
    agent: str = ""
    email: str = ""
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    models: tuple[str, ...] | None = None
    servers: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    expires_at: int | None = None


class IssuedKey(NewKey, kw_only=True):
    """A key as the ledger has it. id: 8 characters, as they stand in it. digest: its SHA-256. created_at, revoked_at:
    unix seconds. changed: the number of its last change."""

    id: str
    digest: bytes
    created_at: int
    revoked_at: int | None
    changed: int

    def is_good(self, now: float) -> bool:
        """Whether it may be used at that time (unix seconds)."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyTaken(Exception):
    """Another key of that name is in use, for somebody else."""


def is_whole(key: str) -> bool:
    """Whether the text has the form of a key, and its checksum is right."""
    return (
        len(key) == _LENGTH
        and key.startswith(PREFIX)
        and key[len(PREFIX) + _ID] == "_"
        and key[-_CHECK:] == _checksum(key[:-_CHECK])
    )


def _checksum(text: str) -> str:
    value = crc32(text.encode("utf-8", "replace"))
    return "".join(_LETTERS[value // 62**n % 62] for n in reversed(range(_CHECK)))


def _word(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


class KeyTable(Protocol):
    """The table `api_keys`, which every ledger has alike, while it is open. In a statement `?` stands for the next
    value."""

    def rows(self, where: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        """The columns COLUMNS of the rows for which that is true, in the order it says."""
        ...

    def do(self, statement: str, values: Sequence[Any] = ()) -> None: ...


class KeyLedger(ABC):
    """The keys in a ledger. Every method blocks, and raises LedgerError where the ledger cannot be used; each opens it
    for itself but `changes`, whose connection stays open until `close`."""

    def __init__(self, now: Callable[[], float] = time) -> None:
        self._now = now

    @abstractmethod
    def changes(self, after: int) -> list[IssuedKey] | None:
        """What was changed after that number, in order; None when it is known that nobody has written to the ledger
        since it was asked last. Always by one thread."""

    @abstractmethod
    def close(self) -> None:
        """Of the connection for `changes`."""

    @abstractmethod
    def _open(self) -> AbstractContextManager[KeyTable]: ...

    @abstractmethod
    def _writing(self) -> AbstractContextManager[KeyTable]:
        """In one transaction, while nobody else writes keys."""

    def create(self, new: NewKey) -> tuple[str, IssuedKey]:
        """Make a key: its secret, which nobody can show again, and its row. Several keys may have one name, to change
        them without a gap, if they are the same caller's. Raises KeyTaken, and ValueError for a name that is none."""
        if _NAME.fullmatch(new.name) is None:
            raise ValueError(f"{new.name!r} is no name for a key: 1 to 64 letters, digits and ._@:-")
        with self._writing() as db:
            id = _word(_ID)
            while db.rows("id = ?", (id,)):
                id = _word(_ID)
            now = int(self._now())
            others = [key for key in _rows(db, "name = ?", (new.name,)) if key.is_good(now)]
            if any((key.user, key.org) != (new.user, new.org) for key in others):
                raise KeyTaken(
                    f"the name {new.name!r} is in use for {others[0].user or 'nobody'}; a name is one caller"
                )
            text = f"{PREFIX}{id}_{_word(_SECRET)}"
            secret = text + _checksum(text)
            key = IssuedKey(
                **{name: getattr(new, name) for name in NewKey.__struct_fields__},
                id=id,
                digest=sha256(secret.encode()).digest(),
                created_at=now,
                revoked_at=None,
                changed=_next(db),
            )
            db.do(_INSERT, [_stored(name, getattr(key, name)) for name in COLUMNS])
        return secret, key

    def revoke(self, name_or_id: str) -> list[IssuedKey]:
        """End the keys of that name, or the one of that id: those that were ended now."""
        with self._writing() as db:
            now = int(self._now())
            found = _rows(db, "(name = ? OR id = ?) AND revoked_at IS NULL", (name_or_id, name_or_id))
            for key in found:
                _end(db, key, now)
        return found

    def end(self, id: str) -> tuple[IssuedKey, bool] | None:
        """End the one key of that id, whatever others are called: it, and whether it was ended now; None where there is
        none."""
        with self._writing() as db:
            found = _rows(db, "id = ?", (id,))
            if not found:
                return None
            [key] = found
            if key.revoked_at is not None:
                return key, False
            _end(db, key, int(self._now()))
        return key, True

    def find(self, id: str) -> IssuedKey | None:
        """The key of that id."""
        with self._open() as db:
            found = _rows(db, "id = ?", (id,))
        return found[0] if found else None

    def page(self, after: tuple[int, str], limit: int) -> list[IssuedKey]:
        """As many keys, oldest first, of those made after the one with that `created_at` and id."""
        with self._open() as db:
            return _rows(db, "(created_at, id) > (?, ?) ORDER BY created_at, id LIMIT ?", (*after, limit))

    def all(self) -> list[IssuedKey]:
        """Every key there ever was, oldest first."""
        with self._open() as db:
            return _rows(db, "true ORDER BY created_at, id", ())


def following(db: KeyTable, after: int) -> list[IssuedKey]:
    """What was changed after that number, in order."""
    return _rows(db, "changed > ? ORDER BY changed", (after,))


def _next(db: KeyTable) -> int:
    last = _rows(db, "true ORDER BY changed DESC LIMIT 1")
    return last[0].changed + 1 if last else 1


def _end(db: KeyTable, key: IssuedKey, now: int) -> None:
    key.revoked_at, key.changed = now, _next(db)
    db.do("UPDATE api_keys SET revoked_at = ?, changed = ? WHERE id = ?", (now, key.changed, key.id))


def _rows(db: KeyTable, where: str, values: Sequence[Any] = ()) -> list[IssuedKey]:
    return [_key(row) for row in db.rows(where, values)]


def _key(row: Sequence[Any]) -> IssuedKey:
    fields = dict(zip(COLUMNS, row, strict=True))
    for name in _JSON:
        value = fields[name]
        fields[name] = None if value is None else msgspec.json.decode(value)
        if isinstance(fields[name], list):
            fields[name] = tuple(fields[name])
    return IssuedKey(**fields)


def _stored(name: str, value: Any) -> Any:
    return value if name not in _JSON or value is None else msgspec.json.encode(value).decode()
