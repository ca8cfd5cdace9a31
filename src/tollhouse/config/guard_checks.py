"""Guardrails that would look at nothing.

Rule: models and MCP servers have texts, plain routes have none that are read.
"""

from collections.abc import Iterator

from tollhouse.config.spec import Config
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written

__all__ = ["of_guardrails"]


def of_guardrails(config: Config, place: Written) -> Iterator[Finding]:
    """The findings about what stands at the top."""
    spec = config.guardrails
    if spec is None or any(place.touched((name,)) for name in ("models", "mcp", "providers")):
        return
    models = bool(config.models) or any(getattr(one, "passthrough", False) for one in config.providers.values())
    if not models and config.mcp is None:
        message = "has no effect without models and MCP servers: what plain routes carry is not read"
        yield Finding(("guardrails",), message, key=True)
        return
    there = {
        "request": {"text", "arguments", "results"} | ({"system", "reasoning", "descriptions"} if models else set()),
        "response": {"text", "arguments"}
        | ({"reasoning"} if models else set())
        | ({"results", "descriptions"} if config.mcp is not None else set()),
    }
    for phase, known in there.items():
        for path, rule in place.numbered(("guardrails", phase), getattr(spec, phase)):
            if rule.in_ is not None and known.isdisjoint(rule.in_):
                message = f"has no effect here: a {phase} has {', '.join(sorted(known))}"
                yield Finding((*path, "in"), message)
