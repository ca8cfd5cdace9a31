"""`runs` in a configuration: what would have no effect is said."""

import pytest
from tests.unit.config.told import problems

MODELS = "providers: {p: {kind: openai, api_key: k}}\nmodels: [{name: m, targets: [{provider: p}]}]\n"
TOOLS = "mcp: {servers: {shop: {command: npx}}}\n"
ROUTES = "routes: [{name: a, path: /, to: ['http://127.0.0.1:1']}]\n"
REDIS = "state: redis://127.0.0.1:6379/0\n"


@pytest.mark.parametrize(
    "text",
    [
        MODELS + TOOLS + "runs: {calls: 1, tools: 1, tokens: 1, usd: 1, wall: 1m, depth: 1, meta: a/b}",
        MODELS + "runs: {calls: 1, trace: true, parallel: 1}",
        TOOLS + "runs: {tools: 1, same: {times: 3}}",
        MODELS + REDIS + "runs: {calls: 1, on_store_failure: allow}",
        MODELS + "runs: {calls: 1, life: 1h}",
    ],
)
def test_what_has_an_effect(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROUTES + "runs: {calls: 1}", "runs: has no effect without `models` or `mcp`"),
        (TOOLS + "runs: {calls: 1}", "runs.calls: has no effect without `models`"),
        (TOOLS + "runs: {usd: 1}", "runs.usd: has no effect without `models`"),
        (MODELS + "runs: {tools: 1}", "runs.tools: has no effect without MCP servers"),
        (MODELS + "runs: {meta: a/b}", "runs.meta: has no effect without MCP servers"),
        (MODELS + "runs: {calls: 1, on_store_failure: allow}", "runs.on_store_failure: has no effect with `state:"),
        (MODELS + "runs: {required: true, life: 1h}", "runs.life: has no effect: nothing of a run is counted"),
    ],
)
def test_what_has_none(text: str, said: str) -> None:
    assert [one[: len(said)] for one in problems(text)] == [said]
