"""What must hold of `budgets`: the ledger knows what was spent, and what is asked instead is there.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterator

from tollhouse.config.places import Path
from tollhouse.config.spec import Config
from tollhouse.config.suggest import did_you_mean
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written, scopes
from tollhouse.policies.budgets import BudgetSpec

__all__ = ["of_budgets"]


def of_budgets(config: Config, place: Written) -> Iterator[Finding]:
    """Budgets, wherever they stand."""
    names = [model.name for model in config.models] + [alias for model in config.models for alias in model.aliases]
    for path, scope in scopes(config, place):
        own = getattr(scope, "name", "") if path[:1] == ("models",) else ""
        for at, budget in place.numbered((*path, "budgets"), getattr(scope, "budgets", None) or ()):
            yield from _one(config, place, at, budget, names, own)


def _one(config: Config, place: Written, at: Path, budget: BudgetSpec, names: list[str], own: str) -> Iterator[Finding]:
    if config.ledger is None and not place.touched(("ledger",)):
        yield Finding(at, "needs a `ledger`, which knows what was spent; name one, like sqlite:tollhouse.db")
    if budget.unit != "calls" and not config.models and not place.touched(("models",)):
        yield Finding((*at, budget.unit), "has no effect without `models`: only they use tokens and cost", key=True)
    if budget.per in ("tool", "server") and (config.mcp is None and not place.touched(("mcp",))):
        yield Finding((*at, "per"), f"`{budget.per}` has no effect without `mcp`")
    if budget.fallback is None or place.touched(("models",)):
        return
    if budget.fallback not in names or "*" in budget.fallback:
        exact = [name for name in names if "*" not in name]
        message = f"there is no model `{budget.fallback}`{did_you_mean(budget.fallback, exact)}"
        yield Finding((*at, "fallback"), message, near=budget.fallback)
    elif budget.fallback == own:
        yield Finding((*at, "fallback"), "is the model that the budget is of; name another one", near=own)
