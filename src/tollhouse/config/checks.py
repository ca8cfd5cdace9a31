"""What must hold between settings of different places, and what would have no effect.

Rule: every check looks at what is right so far and skips what was found to be wrong, so that one mistake is one
problem. A check gives the path of the setting to change.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final

from tollhouse.backends.pool import FallbackSpec, TargetSpec
from tollhouse.config.places import Path, render
from tollhouse.config.spec import Config, ModelSpec, RouteSpec
from tollhouse.config.suggest import did_you_mean
from tollhouse.config.wording import Finding

__all__ = ["check"]

_MANY: Final = 20  # problems of one kind that are told one by one


def check(config: Config, raw: dict[str, Any], left_out: Collection[Path]) -> list[Finding]:
    """The findings about `config`, whose values are those of `raw` without what stands at `left_out`."""
    place = _Places(raw, left_out)
    return [
        found
        for each in (_models, _routes, _listeners, _workers, _retries, _metrics)
        for found in each(config, place)
        if not place.touched(found.path)
    ]


class _Places:
    """What was written, and which of it is not in the Config."""

    def __init__(self, raw: dict[str, Any], left_out: Collection[Path]) -> None:
        self.raw = raw
        self._left_out = left_out

    def gone(self, path: Path) -> bool:
        """Whether the value at `path`, or one that it stands in, was left out."""
        return any(path[: len(out)] == out for out in self._left_out)

    def touched(self, path: Path) -> bool:
        """Whether that is so, or something in the value was left out."""
        return self.gone(path) or any(out[: len(path)] == path for out in self._left_out)

    def numbered(self, name: str, entries: Any) -> Iterator[tuple[int, Any]]:
        """The entries of the top-level list `name`, each with its number in the document."""
        written = self.raw.get(name)
        if isinstance(written, list):
            numbers = range(len(written))
            kept = [n for n in numbers if not self.gone((name, n))] if self._left_out else numbers
            yield from zip(kept, entries, strict=False)

    def has(self, *path: str) -> bool:
        """Whether the setting was written."""
        value: Any = self.raw
        for step in path:
            if not isinstance(value, dict) or step not in value:
                return False
            value = value[step]
        return True


def _models(config: Config, place: _Places) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    written = place.raw.get("providers")
    providers = list(written) if isinstance(written, dict) else []
    known = frozenset(providers)
    for n, model in place.numbered("models", config.models):
        assert isinstance(model, ModelSpec)
        path: Path = ("models", n)
        first = seen.setdefault(model.name, n)
        if first != n:
            yield Finding((*path, "name"), f"models[{first}] has the name `{model.name}` already", near=model.name)
        targets: list[tuple[Path, TargetSpec | FallbackSpec]] = [
            *(((*path, "targets", t), target) for t, target in enumerate(model.targets)),
            *(((*path, "fallback", t), target) for t, target in enumerate(model.fallback)),
        ]
        for at, target in targets:
            if target.provider not in known:
                yield Finding((*at, "provider"), _no_provider(target.provider, providers), near=target.provider)
            if target.model is not None and "*" in target.model and "*" not in model.name:
                message = f"`*` stands for what a `*` in the name matched, and `{model.name}` has none"
                yield Finding((*at, "model"), message, near=model.name)
        if len(model.targets) == 1 and "balance" in model.model_fields_set:
            yield Finding((*path, "balance"), "has no effect with a single target; leave it out", key=True)


def _no_provider(name: str, providers: list[str]) -> str:
    hint = did_you_mean(name, providers)
    if not hint and providers:
        shown = ", ".join(providers[:_MANY]) + (", ..." if len(providers) > _MANY else "")
        hint = f"; there are: {shown}"
    return f"there is no provider `{name}`{hint}" + ("" if providers else "; name it under `providers`")


def _routes(config: Config, place: _Places) -> Iterator[Finding]:
    names: dict[str, int] = {}
    conditions: dict[Any, int] = {}
    for n, route in place.numbered("routes", config.routes):
        assert isinstance(route, RouteSpec)
        path: Path = ("routes", n)
        first = names.setdefault(route.name, n)
        if first != n:
            yield Finding((*path, "name"), f"routes[{first}] has the name `{route.name}` already", near=route.name)
        predicate = route.compile()
        key = (predicate.exact, predicate.path, frozenset(predicate.hosts), predicate.methods, predicate.conditions)
        same = conditions.setdefault(key, n)
        if same != n:
            yield Finding(path, f"is for the same requests as routes[{same}], so it would never be reached")


def _listeners(config: Config, place: _Places) -> Iterator[Finding]:
    if place.touched(("server", "listen")):
        return
    server = config.server
    written = place.raw.get("server")
    several = isinstance(written, dict) and isinstance(written.get("listen"), list)
    is_open = config.authenticate is None and not place.touched(("authenticate",))
    seen: set[str] = set()
    for n, listener in enumerate(server.listen):
        path: Path = ("server", "listen", n) if several else ("server", "listen")
        address = listener.address
        if is_open and not listener.is_loopback:
            message = (
                f"everybody who reaches {address} could call; say who may with `authenticate` "
                "(`mode: optional` lets everybody in), or listen on 127.0.0.1"
            )
            yield Finding(path, message, near=address)
        if address in seen and not address.endswith(":0"):
            yield Finding(path, f"{address} is listened on already", near=address)
        seen.add(address)
    if server.metrics is not None and server.metrics in seen and not server.metrics.endswith(":0"):
        yield Finding(("server", "metrics"), f"{server.metrics} is listened on already", near=server.metrics)


def _workers(config: Config, place: _Places) -> Iterator[Finding]:
    if config.server.workers == 1 or place.touched(("server", "workers")):
        return
    at: Path = ("server", "workers")
    until = "which several workers do not share in this version; set workers to 1, or leave"
    if config.mcp is not None and config.mcp.servers:
        yield Finding(at, f"MCP servers have sessions, {until} `mcp` out")
    limited = [render((*path, "limits")) for path, scope in _scopes(config, place) if getattr(scope, "limits", None)]
    if limited:
        where = ", ".join(f"`{one}`" for one in limited[:3]) + (", ..." if len(limited) > 3 else "")
        yield Finding(at, f"limits are counts, {until} {where} out")


def _scopes(config: Config, place: _Places) -> Iterator[tuple[Path, Any]]:
    """Every place where policies may stand."""
    yield (), config
    for n, model in place.numbered("models", config.models):
        yield ("models", n), model
    for name, server in (config.mcp.servers if config.mcp is not None else {}).items():
        yield ("mcp", "servers", name), server
        for tool, own in server.tools.items():
            yield ("mcp", "servers", name, "tools", tool), own
    for n, route in place.numbered("routes", config.routes):
        yield ("routes", n), route


def _retries(config: Config, place: _Places) -> Iterator[Finding]:
    for path, scope in _scopes(config, place):
        retry = getattr(scope, "retry", None)
        if retry is not None and retry.attempts == 1:
            for name in sorted(retry.model_fields_set - {"attempts"}):
                message = "has no effect with `attempts: 1`, which is no retry; leave it out"
                yield Finding((*path, "retry", name), message, key=True)


def _metrics(config: Config, place: _Places) -> Iterator[Finding]:
    if config.server.metrics is None and place.has("telemetry", "metrics"):
        message = "has no effect, because `server.metrics` is null; name an address there, or leave this out"
        yield Finding(("telemetry", "metrics"), message, key=True)
