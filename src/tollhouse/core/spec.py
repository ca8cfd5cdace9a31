"""Spec: what a piece of configuration is. Frozen, strict about unknown keys; units are read here and nowhere else."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    model_validator,
)

__all__ = ["ClientTLSSpec", "Duration", "File", "Reading", "Secret", "Size", "Spec", "existing"]


class Spec(BaseModel):
    """Base of every Spec. An unknown key is an error; a Spec never changes once it is made.

    Its repr names the settings that were given, not their values: any of them may be a secret.
    """

    # Only the whole configuration is ever read: a validator for each of its parts besides costs 5 MB and a tenth of a
    # second at every start.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True, defer_build=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name in sorted(self.model_fields_set):
            value = getattr(self, name)
            yield name, value if value is None or isinstance(value, (bool, int, float, Spec)) else ...

    def fingerprint(self) -> str:
        """A digest of every setting, secrets included (`model_dump_json` masks those): for keys of what is kept while
        its settings stay the same."""
        return hashlib.blake2b(repr(_bare(self)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _bare(value: Any) -> Any:
    if isinstance(value, Spec):
        return type(value).__name__, [(name, _bare(getattr(value, name))) for name in type(value).model_fields]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bare(inner) for inner in value]
    return value


class Reading:
    """What a Spec may know of the file it is read from: the validation context of `config.parse`.

    directory: what relative file names are relative to. files: collects the files that the settings name.
    """

    __slots__ = ("directory", "files")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.files: set[str] = set()


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|KB|MB|GB)?")
_VISIBLE = re.compile(r"[!-~]+")
_BYTES = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _duration(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"not a duration: {value!r}; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d")
        return float(match[1]) * _SECONDS[match[2]]
    if not isinstance(value, float) or isinstance(info.context, Reading):  # our own floats are seconds already
        raise ValueError("not a duration; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d")
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"not a size: {value!r}; write bytes or a number and a unit, like 64KiB or 10MiB")
        return int(match[1]) * _BYTES[match[2]]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("not a size; write bytes or a number and a unit, like 64KiB or 10MiB")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if not _VISIBLE.fullmatch(text):
        raise ValueError("it is empty, or has spaces or characters outside of ASCII")
    return SecretStr(text)


def existing(path: Path) -> str:
    """The name of a file that is there. Raises ValueError."""
    try:
        is_there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        is_there = False
    if not is_there:
        raise ValueError(f"there is no file {str(path)!r}")
    return str(path)


def _file(value: str, info: ValidationInfo) -> str:
    if isinstance(info.context, Reading):
        path = Path(info.context.directory, value)
        info.context.files.add(str(path))
        return existing(path)
    return value


Duration = Annotated[
    float,
    BeforeValidator(
        _duration,
        json_schema_input_type=Annotated[
            str, Field(pattern=rf"^\s*{_DURATION.pattern}\s*$", examples=["250ms", "5s", "1m"])
        ],
    ),
]
"""Seconds, written as `250ms 5s 1m 1h 1d`."""

Size = Annotated[
    int,
    BeforeValidator(
        _size,
        json_schema_input_type=Annotated[int, Field(ge=0)]
        | Annotated[str, Field(pattern=rf"^\s*{_SIZE.pattern}\s*$", examples=["64KiB", "10MiB"])],
    ),
]
"""Bytes, written as a number or as `64KiB 10MiB`."""

Secret = Annotated[SecretStr, AfterValidator(_secret)]
"""Visible ASCII; white space around it is dropped."""

File = Annotated[str, Field(min_length=1), AfterValidator(_file)]
"""The name of a file, relative to the configuration file that names it; absolute once read, and watched."""


class ClientTLSSpec(Spec):
    """How a server's certificate is verified, and what the gateway shows it."""

    ca: File | None = Field(default=None, description="PEM file of roots to trust instead of the system's")
    verify: bool = Field(default=True, description="false accepts any certificate: for tests only")
    cert: File | None = Field(default=None, description="PEM file of the gateway's client certificate")
    key: File | None = Field(default=None, description="PEM file of its key")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if self.key is not None and self.cert is None:
            raise ValueError("`key` without `cert` has no effect; name the certificate too")
        return self
