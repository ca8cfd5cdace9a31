"""The `journal` section: how much may wait for the ledger, what happens then, and when it is on the disk."""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from tollhouse.core.spec import Size, Spec

__all__ = ["JournalSpec"]

_GROUP: Final = re.compile(r"group(?:\((\d{1,5})ms\))?")
_USUAL: Final = 50
_LEAST: Final = 16 << 20


def _fsync(value: Any) -> Any:
    if value is False:  # as YAML of an older kind reads `off`
        return "off"
    found = _GROUP.fullmatch(value) if isinstance(value, str) else None
    if value != "off" and (found is None or (found[1] is not None and int(found[1]) == 0)):
        raise ValueError("write off, group, or group(2ms): how long writes may wait to be synced together")
    return value


class JournalSpec(Spec):
    """The file in which records wait for the ledger."""

    max: Size = Field(
        default=8 << 30,
        ge=_LEAST,
        description="bytes that all journals in the directory may have; above it: `full`",
    )
    full: Literal["block", "drop"] = Field(
        default="block",
        description="what happens at `max`, or with a full disk. block: calls that would be recorded get 503; "
        "drop: the oldest records are lost, and counted",
    )
    fsync: Annotated[
        str,
        BeforeValidator(_fsync, json_schema_input_type=Annotated[str, Field(pattern=r"^(off|group(\(\d{1,5}ms\))?)$")]),
    ] = Field(
        default="off",
        description="off: records outlive the process, and the kernel writes them to the disk when it likes; "
        "group(2ms): a thread syncs what is new so often, so that a loss of power takes no more than that",
    )

    @property
    def sync_every(self) -> float | None:
        """Seconds between syncs; None for none."""
        found = _GROUP.fullmatch(self.fsync)
        return None if found is None else int(found[1] or _USUAL) / 1000
