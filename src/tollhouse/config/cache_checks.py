"""What must hold of `cache`: it has something to keep, what it asks for vectors is there, and nobody is given what
another one's account has fetched.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterator
from typing import Any

from tollhouse.config.places import Path
from tollhouse.config.spec import Config
from tollhouse.config.suggest import did_you_mean
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written

__all__ = ["of_cache"]

_SHARED = ("org", "shared")


def of_cache(config: Config, place: Written) -> Iterator[Finding]:
    """Caches, wherever they stand."""
    if config.cache is not None and not config.models and not place.touched(("models",)):
        message = "has no effect without `models`; for the tools of MCP servers it stands at a server or a tool"
        yield Finding(("cache",), message, key=True)
    wider = _is_on(config.cache)
    if config.cache is not None and not wider:
        yield Finding(("cache",), "has no effect: nothing is kept unless that is wanted; leave it out", key=True)
    yield from _vectors(config, place, ("cache",), config.cache)
    yield from _nodes(config, place, ("cache",), config.cache)
    for path, model in place.numbered(("models",), config.models):
        yield from _off((*path, "cache"), model.cache, wider=wider)
        yield from _vectors(config, place, (*path, "cache"), model.cache)
        yield from _nodes(config, place, (*path, "cache"), model.cache)
    for name, server in (config.mcp.servers if config.mcp is not None else {}).items():
        at: Path = ("mcp", "servers", name)
        yield from _off((*at, "cache"), server.cache, wider=False)
        yield from _accounts(config, (*at, "cache"), server, server.cache)
        yield from _nodes(config, place, (*at, "cache"), server.cache)
        for tool, own in server.tools.items():
            yield from _off((*at, "tools", tool, "cache"), own.cache, wider=_is_on(server.cache))
            yield from _accounts(config, (*at, "tools", tool, "cache"), server, own.cache)
            yield from _nodes(config, place, (*at, "tools", tool, "cache"), own.cache)


def _is_on(cache: Any) -> bool:
    return cache is not None and cache.mode != "off"


def _off(at: Path, cache: Any, *, wider: bool) -> Iterator[Finding]:
    if cache is not None and cache.mode == "off" and not wider:
        yield Finding(at, "has no effect: nothing wider has a `cache` that is on; leave it out", key=True)


def _vectors(config: Config, place: Written, at: Path, cache: Any) -> Iterator[Finding]:
    semantic = None if cache is None else cache.semantic
    if semantic is None or semantic.model == "local" or place.touched(("models",)):
        return
    names = [name for model in config.models for name in (model.name, *model.aliases) if "*" not in name]
    if semantic.model not in names:
        message = f"there is no model `{semantic.model}`{did_you_mean(semantic.model, names)}; or write `local`"
        yield Finding((*at, "semantic", "model"), message, near=semantic.model)


def _nodes(config: Config, place: Written, at: Path, cache: Any) -> Iterator[Finding]:
    exact = None if cache is None else cache.exact
    if exact is None or not config.state.is_memory or place.touched(("state",)):
        return
    for name in sorted(exact.single_flight.model_fields_set & {"nodes", "streams"}):
        message = "has no effect: nodes know of each other's requests by a `state` that they share"
        yield Finding((*at, "exact", "single_flight", name), message, key=True)


def _accounts(config: Config, at: Path, server: Any, cache: Any) -> Iterator[Finding]:
    exact = None if cache is None else cache.exact
    if exact is None or exact.scope not in _SHARED:
        return
    own = getattr(server, "exchange", None)
    made = own if own is not None else config.exchange
    if getattr(server, "oauth", None) is not None or (made is not None and getattr(made, "mode", "") != "off"):
        message = (
            f"`{exact.scope}` would give users what the server has said to another one's account: its calls go out "
            "with tokens of each user's own; write user or key"
        )
        yield Finding((*at, "exact", "scope"), message, near=exact.scope)
    elif "identity" in type(server).model_fields:
        told = server.identity if server.identity is not None else config.identity
        if told is not None and told.mode != "off":
            message = (
                f"`{exact.scope}` would give users what the server has said to another one: `identity` tells it who "
                "calls; write user or key, or `identity: off` there"
            )
            yield Finding((*at, "exact", "scope"), message, near=exact.scope)
