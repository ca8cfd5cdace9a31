"""The budgets that a configuration has, and the accounts of them: whose, and which records of the ledger are theirs.

Rule: what a key of a budget stands for in columns of records is said here once, both ways. A key that is no column
(CEL, a model with a `*`, a caller without a name) is known by what records say they drew on, and listed nowhere.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tollhouse.config.spec import Config
from tollhouse.ledger.base import Ledger, Unit
from tollhouse.policies.budgets import BudgetSpec, allowance_of
from tollhouse.policies.windows import clock_of
from tollhouse.store.base import Draw, Window

__all__ = ["COLUMNS", "MOST", "UNITS", "Budget", "accounts", "budgets_of"]

MOST: Final = 1000
"""Keys of one budget, those with the most requests."""

UNITS: Final[Mapping[str, Unit]] = {
    "usd": "usd", "tokens": "tokens", "input_tokens": "input_tokens", "output_tokens": "output_tokens",
    "calls": "calls",
}  # fmt: skip

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "all": (), "org": ("org",), "team": ("org", "team"), "user": ("user",), "key": ("key",), "agent": ("agent",),
    "model": ("model",), "server": ("server",), "tool": ("server", "tool"), "tag": ("tag",),
}  # fmt: skip
"""By `per` the columns of records that say whose a call was."""

_NOBODY: Final = "\x01"


class Budget(NamedTuple):
    """A budget as it stands in a configuration. where: the scope: `top`, `model smart`. columns: what of a record says
    that it was made there; None where no column does."""

    spec: BudgetSpec
    where: str
    columns: Mapping[str, str] | None

    @property
    def allowance(self) -> str:
        return allowance_of(self.spec, self.where)

    def whose(self, key: str) -> dict[str, str] | None:
        """The columns of the records that count for that key; None where no column says it."""
        columns = None if self.columns is None else _columns(self.spec.per, key)
        return None if columns is None or self.columns is None else {**columns, **self.columns}


def _columns(per: str, key: str) -> dict[str, str] | None:
    if key.startswith("\x01"):  # somebody without such a name
        return None
    match per:
        case "all":
            return {}
        case "org" | "user" | "key" | "agent" | "server" | "tag":
            return {per: key}
        case "model":
            return None if "*" in key else {"model": key}
        case "team":
            org, _, team = key.partition("\x01")
            return {"org": org, "team": team} if team else {"team": ""}
        case "tool":
            server, _, tool = key.partition("/")
            return {"server": server, "tool": tool}
        case _:
            return None


def budgets_of(config: Config) -> Iterator[Budget]:
    """All budgets of a configuration."""

    def of(scope: Any, where: str, columns: Mapping[str, str] | None) -> Iterator[Budget]:
        for spec in getattr(scope, "budgets", None) or ():
            yield Budget(spec, where, columns)

    yield from of(config, "top", {})
    for model in config.models:
        if model.budgets is None:
            continue
        yield from of(model, f"model {model.name}", None if "*" in model.name else {"model": model.name})
    if config.mcp is not None:
        for name, server in config.mcp.servers.items():
            yield from of(server, f"server {name}", {"server": name})
            for tool, own in server.tools.items():
                yield from of(own, f"tool {name}/{tool}", {"server": name, "tool": tool})


def accounts(budget: Budget, now: float, ledger: Ledger) -> list[Draw]:
    """What calls of the window of `now` (unix seconds) have drawn on, by the ledger: up to MOST keys, of one unit and
    without a limit each. Raises LedgerError."""
    columns, spec = COLUMNS.get(budget.spec.per), budget.spec
    if columns is None or budget.columns is None:
        return []
    start, end, earlier = clock_of(spec.window, spec.zone).at(now)
    since = earlier[0] if earlier else start
    rows = ledger.usage(since, end, columns, where=tuple(budget.columns.items()), order="requests", top=MOST)
    keys = dict.fromkeys(_key(spec.per, row.by) for row in rows)
    window = Window(start, end)
    return [Draw(budget.allowance, key, 1, None, window, earlier) for key in keys if budget.whose(key) is not None]


def _key(per: str, by: tuple[str, ...]) -> str:
    """The key of a row's values; one that stands for no columns where it is nobody's."""
    match per:
        case "all":
            return ""
        case "org":
            return by[0]
        case "team":
            return "\x01".join(by) if by[1] else ""
        case "tool":
            return "/".join(by) if all(by) else _NOBODY
        case _:
            return by[0] or _NOBODY
