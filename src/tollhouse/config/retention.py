"""The `retention` section: for how long the ledger keeps what."""

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from tollhouse.core.spec import Duration, Spec

__all__ = ["RetentionSpec"]

_YEARS: Final = re.compile(r"(\d{1,3})y")
_DAY: Final = 86400.0


def _age(value: Any) -> Any:
    """Also years, of 365 days."""
    found = _YEARS.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if found is None else f"{int(found[1]) * 365}d"


_JSON: Final = Annotated[str, Field(pattern=r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d|y)\s*$", examples=["90d", "2y"])]

Age = Annotated[Duration, BeforeValidator(_age, json_schema_input_type=_JSON), Field(ge=_DAY)]


class RetentionSpec(Spec):
    """What is older is deleted, in small steps. A span like 90d or 2y, a day at least; absent: it is kept for ever."""

    usage: Age | None = Field(default=None, description="each call's record, from when the call was let in")
    rollup: Age | None = Field(default=None, description="the sums by hour, which `tollhouse usage` answers from")
    audit: Age | None = Field(default=None, description="the audit's records; the rest can still be verified")
