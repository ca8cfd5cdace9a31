"""What has no effect of `runs`, beside what else is configured.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterator

from tollhouse.config.spec import Config
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written

__all__ = ["of_runs"]


def of_runs(config: Config, place: Written) -> Iterator[Finding]:
    spec = config.runs
    if spec is None or place.touched(("models",)) or place.touched(("mcp",)):
        return
    tools = bool(config.mcp is not None and config.mcp.servers)
    if not config.models and not tools:
        yield Finding(("runs",), "has no effect without `models` or `mcp`, whose calls a run has", key=True)
        return
    given = spec.model_fields_set
    if not config.models:
        for name in ("calls", "tokens", "usd"):
            if name in given:
                yield Finding(("runs", name), "has no effect without `models`; leave it out", key=True)
    if not tools:
        for name in ("tools", "meta", "parent_meta"):
            if name in given:
                yield Finding(("runs", name), "has no effect without MCP servers; leave it out", key=True)
    if config.state.is_memory and "on_store_failure" in given and not place.touched(("state",)):
        message = "has no effect with `state: memory`, which does not fail; leave it out"
        yield Finding(("runs", "on_store_failure"), message, key=True)
    if not given & {"calls", "tools", "tokens", "usd", "wall", "depth"} and "life" in given:
        yield Finding(("runs", "life"), "has no effect: nothing of a run is counted; leave it out", key=True)
