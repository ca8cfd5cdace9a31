"""Budgets in a configuration: what they need, and what would have no effect."""

import pytest
from tests.unit.config.told import problems

BASE = """
ledger: sqlite:t.db
providers: {one: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key: k-of-provider}}
models:
  - {name: dear, aliases: [costly], targets: [{provider: one}]}
  - {name: cheap, targets: [{provider: one}]}
  - {name: "w/*", targets: [{provider: one}]}
"""


def budgets(*lines: str) -> str:
    return BASE + "budgets:\n" + "".join(f"  - {line}\n" for line in lines)


def test_what_is_right() -> None:
    assert problems(budgets("{per: user, usd: 1, window: 1d, on_exceed: fallback, fallback: cheap}")) == []
    assert problems(budgets("{per: user, usd: 1, window: 1d, on_exceed: fallback, fallback: costly}")) == []


@pytest.mark.parametrize(
    "line, path, said",
    [
        ("{per: user, usd: 1, window: 1d, on_exceed: fallback, fallback: chaep}", "[0].fallback", "you mean `cheap`?"),
        ("{per: user, usd: 1, window: 1d, on_exceed: fallback, fallback: w/*}", "[0].fallback", "no model `w/*`"),
        ("{per: tool, calls: 1, window: 1d}", "[0].per", "`tool` has no effect without `mcp`"),
        ("{per: user, calls: 1, window: 1d, on_store_failure: allow}", "[0].on_store_failure", "memory"),
        ("{per: user, calls: 1, window: 5h}", "[0].window", "not a window: '5h'"),
        ("{per: user, calls: 1}", "[0].window", "required"),
    ],
)  # fmt: skip
def test_what_is_wrong(line: str, path: str, said: str) -> None:
    (problem,) = problems(budgets(line))
    assert problem.startswith(f"budgets{path}")
    assert said in problem


def test_a_model_is_no_fallback_of_itself() -> None:
    own = "budgets: [{per: user, usd: 1, window: 1d, on_exceed: fallback, fallback: cheap}]"
    (problem,) = problems(BASE.replace("{name: cheap,", f"{{name: cheap, {own},"))
    assert "is the model that the budget is of" in problem


def test_they_need_a_ledger_models_and_one_worker_or_a_state() -> None:
    line = "budgets: [{per: user, usd: 1, window: 1d}]\n"
    assert any("needs a `ledger`" in one for one in problems(BASE.replace("ledger: sqlite:t.db\n", "") + line))
    route = "routes: [{name: r, path: /r/, to: ['http://127.0.0.1:9']}]\n"
    assert any("has no effect without `models`" in one for one in problems(f"ledger: sqlite:t.db\n{route}{line}"))
    assert any("budgets are counts" in one for one in problems(f"{BASE}{line}server: {{workers: 2}}\n"))


def test_the_former_name_of_a_setting_is_told() -> None:
    (problem,) = problems(BASE + "limits: [{per: user, requests: 1, window: 1m, on_error: allow}]\n")
    assert "`on_error` is called `on_store_failure`" in problem
