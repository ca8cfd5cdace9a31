"""The budgets and caps of runs that a configuration has, and their accounts: whose, and which records are theirs.

Rule: what a key of a budget stands for in columns of records is said here once, both ways. A key that is no column
(CEL, a tool, a model with a `*`, a caller without a name, a run) is known by what records say they drew on, and listed
by that: what was spent before there was such a budget, nobody has said.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, Final, NamedTuple

from tollhouse.config.spec import Config
from tollhouse.ledger.base import Ledger, Unit
from tollhouse.policies.budgets import BudgetSpec, allowance_of
from tollhouse.policies.run_caps import allowances_of_runs
from tollhouse.policies.windows import clock_of
from tollhouse.store.base import Draw, Window, life

__all__ = ["COLUMNS", "MOST", "UNITS", "Budget", "RunCap", "accounted", "accounts", "budgets_of"]

MOST: Final = 1000
"""Keys of one budget: those with the most requests, where a column says them."""

UNITS: Final[Mapping[str, Unit]] = {
    "usd": "usd", "tokens": "tokens", "input_tokens": "input_tokens", "output_tokens": "output_tokens",
    "calls": "calls",
}  # fmt: skip

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "all": (), "org": ("org",), "team": ("org", "team"), "user": ("user",), "key": ("key",), "agent": ("agent",),
    "model": ("model",), "server": ("server",), "tag": ("tag",),
}  # fmt: skip
"""By `per` the columns of records that say whose a call was. The name of a tool is none: until the tool has answered
once it is a caller's own word, and records have `other`."""

_NOBODY: Final = "\x01"
_LAST: Final = "\U0010ffff"


class Budget(NamedTuple):
    """A budget as it stands in a configuration. where: the scope: `top`, `model smart`. columns: what of a record says
    that it was made there; None where no column does."""

    spec: BudgetSpec
    where: str
    columns: Mapping[str, str] | None

    @property
    def allowance(self) -> str:
        return allowance_of(self.spec, self.where)

    @property
    def unit(self) -> str:
        return self.spec.unit

    def whose(self, key: str) -> dict[str, str] | None:
        """The columns of the records that count for that key; None where no column says it."""
        columns = None if self.columns is None else _columns(self.spec.per, key)
        return None if columns is None or self.columns is None else {**columns, **self.columns}


class RunCap(NamedTuple):
    """What all runs may use up of something. seconds: how long a run counts."""

    allowance: str
    unit: str
    seconds: int


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
        for endpoint in config.mcp.endpoints:
            yield from of(endpoint, f"endpoint {endpoint.path}", None)


def accounted(config: Config) -> Iterator[Budget | RunCap]:
    """All that is kept an account of: budgets, and caps of runs."""
    yield from budgets_of(config)
    runs = config.runs
    if runs is not None:
        for allowance in allowances_of_runs(runs):
            unit = allowance.partition(":")[0]
            if getattr(runs, unit) is not None:
                yield RunCap(allowance, unit, ceil(runs.life))


def accounts(budget: Budget | RunCap, now: float, ledger: Ledger) -> list[Draw]:
    """What calls of the window of `now` (unix seconds) have drawn on, by the ledger: about MOST keys, of one unit and
    without a limit each. Of runs those that have asked something in this hour or the last. Raises LedgerError."""
    if isinstance(budget, RunCap):
        rows = ledger.usage(int(now) - 3600, int(now) + 1, ("run",), order="requests", top=MOST)
        window, earlier = life(now, budget.seconds)
        return [Draw(budget.allowance, row.by[0], 1, None, window, earlier) for row in rows if row.by[0]]
    columns, spec = COLUMNS.get(budget.spec.per), budget.spec
    start, end, earlier = clock_of(spec.window, spec.zone).at(now)
    since = earlier[0] if earlier else start
    keys: dict[str, None] = {}
    if columns is not None and budget.columns is not None:
        rows = ledger.usage(since, end, columns, where=tuple(budget.columns.items()), order="requests", top=MOST)
        keys = dict.fromkeys(key for row in rows if budget.whose(key := _key(spec.per, row.by)) is not None)
    keys.update(dict.fromkeys(_drawn(budget, since, ledger)))
    window = Window(start, end)
    return [Draw(budget.allowance, key, 1, None, window, earlier) for key in keys]


def _drawn(budget: Budget, since: int, ledger: Ledger) -> Iterator[str]:
    """Keys that are no columns, by the fields that records drew on: up to MOST of those with one that begins at `since`
    or later. Found one after the other, so that other windows and keys cost nothing."""
    name = f"{budget.allowance}|"
    named = budget.columns is not None and budget.spec.per in COLUMNS and budget.spec.per != "model"
    at, before = (name + _NOBODY, name + "\x02") if named else (name, name + _LAST)
    found = 0
    while found < MOST and (field := ledger.next_field(at, before)):
        key = field[len(name) : field.rindex("|")]
        at = f"{name}{key}|:"  # behind all of its windows, which are digits
        if budget.whose(key) is None and ledger.next_field(f"{name}{key}|{since}", at):
            found += 1
            yield key


def _key(per: str, by: tuple[str, ...]) -> str:
    """The key of a row's values; one that stands for no columns where it is nobody's."""
    match per:
        case "all":
            return ""
        case "org":
            return by[0]
        case "team":
            return "\x01".join(by) if by[1] else ""
        case _:
            return by[0] or _NOBODY
