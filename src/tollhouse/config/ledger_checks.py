"""What must hold of `journal`, `retention` and `subscriptions`: nobody loses by one what another stands on.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, Final

from tollhouse.config.spec import Config
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written
from tollhouse.core.spec import Spec
from tollhouse.policies.windows import RollingSpec

__all__ = ["of_ledger"]

_DAY: Final = 86400.0
_LONGEST: Final[Mapping[str, float]] = {
    "hour": 3600.0, "day": 25 * 3600.0, "week": 7 * _DAY + 3600.0, "month": 31 * _DAY + 3600.0,
    "quarter": 92 * _DAY + 3600.0, "year": 366 * _DAY,
}  # fmt: skip
"""Windows of a calendar, with an hour for the clocks that are set back."""


def of_ledger(config: Config, place: Written) -> Iterator[Finding]:
    """What is written of the ledger's files and records."""
    if config.ledger is None:
        if not place.touched(("ledger",)):
            for name in ("journal", "retention", "subscriptions"):
                if name in config.model_fields_set:
                    yield Finding((name,), "has no effect without a `ledger`, whose records it is about", key=True)
        return
    yield from _journal(config, place)
    yield from _retention(config, place)
    named: set[str] = set()
    for number, one in enumerate(config.subscriptions):
        if one.name in named:
            yield Finding(("subscriptions", number, "name"), f"there is one before it that is called `{one.name}`")
        named.add(one.name)


def _journal(config: Config, place: Written) -> Iterator[Finding]:
    if config.journal.full != "drop":
        return
    audit = config.audit
    on = config.issuer is not None or config.server.admin is not None or _is_somewhere(config, "authorize")
    if (on if audit is None else audit.mode == "on" and audit.on_failure == "block") and not place.touched(("audit",)):
        message = "the audit's records would be lost as well; write `block`, or `audit: {on_failure: allow}`"
        yield Finding(("journal", "full"), message)
    elif _is_somewhere(config, "budgets"):
        message = "budgets would forget what was spent with the records that are lost; write `block`"
        yield Finding(("journal", "full"), message)


def _retention(config: Config, place: Written) -> Iterator[Finding]:
    spec = config.retention
    if spec.usage is None:
        return
    if spec.rollup is not None and spec.rollup < spec.usage:
        message = "must be as long as `usage` at least: the sums would be gone before the records"
        yield Finding(("retention", "rollup"), message)
    longest = max((_seconds(budget.window) for found in _written(config, "budgets") for budget in found), default=0.0)
    if spec.usage < longest:
        message = (
            f"must be {ceil(longest / _DAY)}d at least: a budget's window is as long, and is summed up from records"
        )
        yield Finding(("retention", "usage"), message)


def _seconds(window: Any) -> float:
    """At most, and with the slot of a rolling one that counts whole."""
    return window.rolling * 25 / 24 if isinstance(window, RollingSpec) else _LONGEST[window]


def _is_somewhere(config: Config, name: str) -> bool:
    return any(True for _ in _written(config, name))


def _written(value: Any, name: str) -> Iterator[Any]:
    """What the key of that name says, wherever it stands and says anything."""
    if isinstance(value, Spec):
        for field in type(value).model_fields:
            inner = getattr(value, field)
            if field != name:
                yield from _written(inner, name)
            elif inner:
                yield inner
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _written(inner, name)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _written(inner, name)
