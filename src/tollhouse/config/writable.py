"""Names of files that the gateway writes: relative to where it was started, as for any program, and not watched."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from tollhouse.core.spec import Reading

__all__ = ["Writable", "settled"]


def settled(name: str, info: ValidationInfo) -> str:
    """`name` as an absolute name when it is read from a configuration file."""
    return str(Path(name).absolute()) if isinstance(info.context, Reading) else name


def _writable(name: str, info: ValidationInfo) -> str:
    return name if name == "-" else settled(name, info)


Writable = Annotated[str, Field(min_length=1), AfterValidator(_writable)]
"""A file to write, or `-` for standard output."""
