"""The `ledger` section: where usage and audit are kept.

Rule: a place alone may stand for {url: ...}. Whatever the database, some of a ledger is in files of this machine: the
journals, the audit's key, the admin API's token. They stand beside `file`, which for SQLite is the database itself.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, model_validator

from tollhouse.config.writable import settled
from tollhouse.core.spec import Duration, Spec
from tollhouse.ledger.postgres_place import FORM, Place, Security, place_of
from tollhouse.store.spec import StateTLSSpec

__all__ = ["LedgerSetting", "LedgerSpec", "LedgerTLSSpec"]

_SQLITE: Final = "sqlite:"
_BESIDE: Final = "tollhouse"


class LedgerTLSSpec(StateTLSSpec):
    """How the certificate of the database's server is verified, and what the gateway shows."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.cert is not None and self.key is None:
            raise ValueError("`cert` and `key` go together; name both")
        if self.ca is not None and not self.verify:
            raise ValueError("`ca` has no effect with `verify: false`; leave one of them out")
        return self


def _url(value: SecretStr, info: ValidationInfo) -> SecretStr:
    url = value.get_secret_value().strip()
    kind, colon, name = url.partition(":")
    if kind in ("postgres", "postgresql"):
        place_of(url)
        if find_spec("psycopg") is None:
            raise ValueError("needs the extra `postgres`: pip install 'tollhouse[postgres]'")
        return SecretStr(url)
    absolute = name.startswith("///")
    if kind != "sqlite" or not colon or name in ("", ":memory:") or (name.startswith("//") and not absolute):
        raise ValueError(f"not a ledger; write `sqlite:` and the name of a file, like sqlite:tollhouse.db, or {FORM}")
    return SecretStr(_SQLITE + settled(name[2:] if absolute else name, info))


def _tls(value: Any) -> Any:
    if value is not False and not isinstance(value, (dict, LedgerTLSSpec)):
        raise ValueError("write {ca: FILE}, or false for a line that is not encrypted")
    return value


class LedgerSpec(Spec):
    """A database that keeps what was used, and who did what."""

    model_config = ConfigDict(serialize_by_alias=True)

    url: Annotated[SecretStr, AfterValidator(_url)] = Field(
        description=f"sqlite:FILE, relative to where the gateway is started; or {FORM} (the extra `postgres`). Several "
        "hosts, with commas between them, are servers of one database: the one that can be written to is used",
    )
    schema_name: str = Field(
        default="tollhouse",
        alias="schema",
        max_length=63,
        pattern=r"^[a-z_][a-z0-9_]*$",
        description="of PostgreSQL, in which the tables are; made where it is not there",
    )
    timeout: Duration = Field(
        default=10.0, ge=1.0, le=600.0, description="for a connection to PostgreSQL, and for one statement"
    )
    tls: Annotated[LedgerTLSSpec | Literal[False], BeforeValidator(_tls)] | None = Field(
        default=None,
        description="of PostgreSQL; absent: verified by the system's roots, and on this machine not needed; false: the "
        "line is not encrypted",
    )
    files: Annotated[str, Field(min_length=1), AfterValidator(settled)] = Field(
        default=_BESIDE,
        description="for PostgreSQL: a name, relative to where the gateway is started, beside which its files are: "
        "NAME.journal, NAME.audit-key and others. Of each gateway its own",
    )

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.is_postgres:
            for name in ("schema_name", "timeout", "tls", "files"):
                if name in self.model_fields_set:
                    shown = "schema" if name == "schema_name" else name
                    raise ValueError(f"`{shown}` has no effect with sqlite:; leave it out")
        return self

    @property
    def is_postgres(self) -> bool:
        return not self.url.get_secret_value().startswith(_SQLITE)

    @property
    def file(self) -> Path:
        """SQLite's file; for PostgreSQL the name beside which the ledger's files are."""
        return Path(self.files if self.is_postgres else self.url.get_secret_value().removeprefix(_SQLITE))

    @property
    def place(self) -> Place:
        """Where PostgreSQL is."""
        found = place_of(self.url.get_secret_value())
        return found._replace(schema=self.schema_name, timeout=self.timeout, security=_security(self.tls))


def _security(tls: LedgerTLSSpec | Literal[False] | None) -> Security:
    if tls is None:
        return Security()
    if not tls:
        return Security("disable")
    return Security("verify-full" if tls.verify else "require", tls.ca, tls.cert, tls.key)


def _ledger(value: Any) -> Any:
    """A place alone may stand for {url: ...}."""
    if not isinstance(value, (str, dict, LedgerSpec)):
        raise ValueError("not a place for the ledger; write sqlite:tollhouse.db, a URL of PostgreSQL, or {url: ...}")
    return {"url": value} if isinstance(value, str) else value


LedgerSetting = Annotated[LedgerSpec, BeforeValidator(_ledger, json_schema_input_type=str | LedgerSpec)]
