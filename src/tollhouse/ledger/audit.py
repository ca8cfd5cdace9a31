"""The audit records of one process, each bound to the one before it by a hash.

Rule: a record's hash covers its bytes, and these have the hash of the record before; the first one has the hash of the
chain's name, which is its journal's. So what was changed, left out, put in or put elsewhere shows at the first record
behind it. The hash is an HMAC-SHA-256 (RFC 2104): who can write to the ledger and has not the key cannot make a chain
that holds.

What a chain cannot show of itself is that its last records are gone. So each chain begins with the last hashes of those
that were before it (`anchors`), and one that ends in good order says so. `verify` in `audit_verify` looks at it all.

A record's body is JSON: n, prev, at, seal (which key), its members, and at the end `hash`, over all that is before the
`,"hash":`.
"""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from time import time
from typing import Final

import msgspec

from tollhouse.core.call import Actor
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT, Anchor

__all__ = ["BEGIN", "CUT", "END", "MARK", "Anchor", "AuditFacts", "AuditRecord", "Chain", "Seal", "first_of", "key_in"]

BEGIN: Final = "audit.begin"
END: Final = "audit.end"
"""Operations of the records that a chain begins and ends with."""

CUT: Final = "audit.cut"
"""Operation of a record that says up to where other chains, or this one, are deleted: by its anchors."""

MARK: Final = b',"hash":"'
"""What stands before a record's own hash. Inside of a JSON string it cannot stand: a quote there has a backslash."""

_BLOCK = 64  # bytes, of SHA-256
_KEY_SIZE = 32


class AuditFacts(msgspec.Struct, gc=False, omit_defaults=True, kw_only=True):
    """What many calls have in common of an AuditRecord."""

    operation: str
    principal: str = ""
    source: str = ""
    user: str = ""
    org: str = ""
    agent: str = ""
    client: str = ""
    actors: tuple[Actor, ...] = ()
    key: str = ""
    issuer: str = ""
    jti: str = ""
    session: str = ""
    address: str = ""
    route: str = ""
    server: str = ""
    target: str = ""
    backend: str = ""
    decision: str = ""
    rule: str = ""
    approver: str = ""
    outcome: str = ""
    status: int = 0
    reason: str = ""


class AuditRecord(AuditFacts, gc=False, omit_defaults=True, kw_only=True):
    """One thing that was done, or was refused. Empty where it has none.

    chain, n: its place; id: computed from these and `at`, microseconds since 1970 (UTC), when it ended. took_us: since
    it began. seal: which key its hash is made with. request_id: as in the access log and the usage record.

    operation: `tools/call`, `prompts/get`, `chat`, `http`, `issuer.token` ... principal, source: who was let in, and by
    what; user, org, agent, client: on whose behalf and who acts; actors: the whole chain of those, outermost first;
    key, issuer, jti, session: the credential. address: of the client.

    server, target: the MCP server, and the tool, prompt, model or path; route, backend: which of the gateway's.
    arguments: JSON, as far as it is kept; arguments_hash: HMAC-SHA-256 of the whole.

    decision: allow | deny | approve (somebody was asked to) | approved | shadow-deny, "" where nobody was asked; rule:
    which said so; approver: who.
    minted: `jti` of the token that the upstream was shown. outcome, status, reason: how it ended (`records.Outcome`).
    subject, scopes, audience: of the auth provider's records: for whom what was issued. anchors: see `Chain`.
    """

    id: str = ""
    chain: str = ""
    n: int = 0
    prev: str = ""
    at: int = 0
    seal: str = ""
    request_id: str = ""
    took_us: int = 0
    arguments_hash: str = ""
    arguments: str = ""
    minted: str = ""
    subject: str = ""
    scopes: tuple[str, ...] = ()
    audience: str = ""
    anchors: tuple[Anchor, ...] = ()
    hash: str = ""


class Seal:
    """Makes and checks hashes with one key. id: names the key in records, and says nothing of it."""

    __slots__ = ("_arguments", "_records", "id", "member")

    def __init__(self, key: bytes) -> None:
        self._records = _hmac(_derived(key, b"tollhouse audit record"))
        self._arguments = _hmac(_derived(key, b"tollhouse audit arguments"))
        self.id = _derived(key, b"tollhouse audit key").hex()[:12]
        self.member = b',"seal":"%b"' % self.id.encode()

    def __repr__(self) -> str:
        return f"<Seal {self.id}>"

    def of(self, data: bytes) -> bytes:
        """The hash of a record, in hex."""
        return self._records(data)

    def of_arguments(self, data: bytes) -> bytes:
        """The hash of a call's arguments, in hex: equal for those of the same bytes."""
        return self._arguments(data)

    def holds(self, body: bytes) -> bool:
        """Whether a record's own hash is that of its bytes."""
        before, mark, rest = body.rpartition(MARK)
        return bool(mark) and compare_digest(rest, self.of(before) + b'"}')


class Chain:
    """The audit records of this process, in its journal. For the event loop's thread.

    anchors: the last known records of other chains, which this one's first record will name. n, hash: of its own last.
    """

    def __init__(self, journal: Journal, anchors: Sequence[Anchor] = (), now: Callable[[], float] = time) -> None:
        self.n = 0
        self.hash = first_of(journal.id)
        self._journal = journal
        self._anchors = tuple(anchors)
        self._now = now
        self._seal: Seal | None = None

    @property
    def id(self) -> str:
        return self._journal.id

    @property
    def full(self) -> bool:
        """Nothing that must be recorded may begin: see `Journal.full`."""
        return self._journal.full

    def append(self, seal: Seal, members: bytes) -> bytes:
        """Write one record: its body. members: of its JSON, each with a comma before it.

        When this returns, the record outlives the process. Raises Failure 503 when it cannot be written.
        """
        if not self.n:
            said = msgspec.json.encode(AuditRecord(operation=BEGIN, anchors=self._anchors))
            self._write(seal, b"," + said[1:-1])
            self._anchors = ()
        return self._write(seal, members)

    def cut(self, seal: Seal, anchors: Sequence[Anchor]) -> None:
        """Say that chains will be deleted up to these records, these included. Raises Failure 503."""
        self.append(seal, b"," + msgspec.json.encode(AuditRecord(operation=CUT, anchors=tuple(anchors)))[1:-1])

    def end(self) -> None:
        """Say that no more will come, if there was any. Raises Failure 503."""
        if self._seal is not None:
            self._write(self._seal, b',"operation":"%b"' % END.encode())
            self._seal = None

    def _write(self, seal: Seal, members: bytes) -> bytes:
        n = self.n + 1
        before = b'{"n":%d,"prev":"%b","at":%d%b%b' % (n, self.hash, int(self._now() * 1e6), seal.member, members)
        own = seal.of(before)
        body = b'%b,"hash":"%b"}' % (before, own)
        seq = self._journal.seq
        try:
            self._journal.write(body, AUDIT)
        finally:
            if self._journal.seq != seq:  # also where it is there, and the disk would not say that it stays
                self.n, self.hash, self._seal = n, own, seal
        return body


def first_of(chain: str) -> bytes:
    """What stands for the hash of a record before the first one."""
    return sha256(b"tollhouse audit chain " + chain.encode()).hexdigest().encode()


def key_in(path: Path) -> bytes:
    """The key in the file, made at its first use; readable by its owner alone. Several processes may make it at once:
    all get the same one. Raises OSError, ValueError for what is no key."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, os.urandom(_KEY_SIZE).hex().encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(fresh, path)  # fails where another has been faster: never two keys
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        key = path.read_bytes()
    if len(key) < _KEY_SIZE:
        raise ValueError(f"{path} has no key in it")
    return key


def _derived(key: bytes, purpose: bytes) -> bytes:
    return bytes.fromhex(_hmac(key)(purpose).decode())


def _hmac(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA-256 of that key, in hex. The two blocks of the key are hashed once and not for each record: half the
    cost of a short one."""
    block = (sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner = sha256(bytes(b ^ 0x36 for b in block))
    outer = sha256(bytes(b ^ 0x5C for b in block))

    def of(data: bytes) -> bytes:
        within, around = inner.copy(), outer.copy()
        within.update(data)
        around.update(within.digest())
        return around.hexdigest().encode()

    return of
