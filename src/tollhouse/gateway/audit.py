"""Audit, joined: when it is on, what its records are sealed with, and `tollhouse audit`.

Rule: it is on by itself where it is decided who may do what, tokens are issued, or operators act on what runs, and
there is a ledger to keep it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.gateway.ledger import audit_of, caught_up
from tollhouse.ledger.audit import Anchor, AuditRecord, Chain, Seal, key_in
from tollhouse.ledger.audit_reader import AuditReader
from tollhouse.ledger.audit_verify import Verdict, verify
from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.policies.audit import AuditSpec
from tollhouse.wire.mcp.letters import visible

__all__ = ["as_json", "chain_of", "records", "said", "seal_of", "setting", "verified"]

_ANCHORS = 64


def setting(config: Config) -> AuditSpec | None:
    """What is recorded under `config`; None where nothing is."""
    spec = config.audit
    if config.ledger is None:
        return None
    if spec is None:
        wanted = config.issuer is not None or config.server.admin is not None or _decides(config)
        return AuditSpec() if wanted else None
    return spec if spec.mode == "on" else None


def seal_of(config: Config, spec: AuditSpec) -> Seal:
    """What records are sealed with. Makes the key where there is none yet. Raises ConfigError."""
    if spec.key is not None:
        return Seal(spec.key.get_secret_value().encode())
    return _sealed_by(_key_file(config))


def chain_of(config: Config, journal: Journal) -> Chain:
    """The chain of this process, which knows the last records of others. Blocks."""
    anchors: Sequence[Anchor] = ()
    try:
        with _reading(config) as reader:
            anchors = reader.heads(_ANCHORS)
    except LedgerError:
        pass  # none yet, tables of before there was an audit, or it cannot be reached: the next chain names them
    return Chain(journal, anchors)


def verified(config: Config, heads: Path | None = None) -> Verdict:
    """What is found of the records in the ledger. heads: a file with the last record of each chain as it was when they
    were verified before; if they are all right it is written anew. Raises ConfigError, LedgerError, OSError, ValueError
    for what is no such file."""
    known: list[Anchor] = []
    if heads is not None and heads.exists():
        try:
            known = msgspec.json.decode(heads.read_bytes(), type=list[Anchor])
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"{heads} is not what an earlier `tollhouse audit verify --heads` has written: {error}"
            ) from None
    _catch_up(config)
    with _reading(config) as reader:
        verdict = verify(reader, _seals(config), known)
    if heads is not None and not verdict.breaks:
        fresh = heads.with_name(heads.name + ".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(verdict.heads), indent=1) + b"\n")
        fresh.replace(heads)
    return verdict


def records(config: Config, since: int, limit: int, where: Sequence[tuple[str, str]]) -> list[AuditRecord]:
    """The newest records, the oldest of them first. Raises ConfigError, LedgerError."""
    _catch_up(config)
    with _reading(config) as reader:
        return reader.newest(since, limit=limit, where=where)


def as_json(record: AuditRecord) -> str:
    return msgspec.json.encode(record).decode()


def said(record: AuditRecord) -> str:
    """A record in one line, for people. Nothing of a caller's words can be taken for another line."""
    at = datetime.fromtimestamp(record.at / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    who = record.user or record.subject or record.principal or "nobody"
    by = " < ".join(actor.sub for actor in record.actors) or record.agent or record.client
    what = "/".join(part for part in (record.server, record.target) if part)
    words = [f"{at}Z", record.decision or "-", record.outcome or "-", who, *((f"by {by}",) if by else ())]
    words += [record.operation, *((what,) if what else ())]
    words += [f"({record.rule})"] if record.rule else []
    return "  ".join(visible(word) for word in words)


def _decides(config: Config) -> bool:
    """Whether rules say anywhere who may do what."""
    scopes: list[object] = [config, *config.models, *config.routes]
    if config.mcp is not None:
        for server in config.mcp.servers.values():
            scopes += [server, *server.tools.values()]
        scopes += config.mcp.endpoints
    return any(getattr(scope, "authorize", None) is not None for scope in scopes)


def _seals(config: Config) -> list[Seal]:
    """Of every key that there may be records of."""
    spec = config.audit or AuditSpec()
    given = [key for key in (spec.key, *spec.former_keys) if key is not None]
    seals = [Seal(key.get_secret_value().encode()) for key in given]
    path = _key_file(config)
    return [*seals, _sealed_by(path)] if path.exists() else seals


def _sealed_by(path: Path) -> Seal:
    """With the key in that file, which is made where there is none. Raises ConfigError."""
    try:
        return Seal(key_in(path))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            [Problem(f"the key of the audit in {str(path)!r} cannot be used: {why}", path="audit")]
        ) from None


def _ledger(config: Config) -> Path:
    if config.ledger_file is None:
        message = "audit records live in the ledger: name one, like sqlite:tollhouse.db"
        raise ConfigError([Problem(message, path="ledger")])
    return config.ledger_file


def _key_file(config: Config) -> Path:
    path = _ledger(config)
    return path.with_name(path.name + ".audit-key")


def _catch_up(config: Config) -> None:
    """See that what a dead process left is in the ledger. Raises LedgerError; ConfigError."""
    _ledger(config)
    with caught_up(config):
        pass


@contextmanager
def _reading(config: Config) -> Iterator[AuditReader]:
    reader = audit_of(config)
    try:
        yield reader
    finally:
        reader.close()
