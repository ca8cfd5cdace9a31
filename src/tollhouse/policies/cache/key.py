"""What an answer is kept under: a digest of everything that it depends on.

Rule: what is not known to make no difference is in the digest. So the values of a request's fields count byte for
byte: 1 and 1.0, or two ways to write one letter, are two requests, which costs a hit and can never give a wrong
one. The order of fields at the top level makes no difference, and of fields that come twice only the last counts,
because only that one is sent on. Each part has its length before it, so that no two lists of parts are one text.

In the digest besides: whose it is (`space_of`), what the gateway will do with the request (`Behind`), and the
caller's header fields that go along.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path as FilePath
from struct import pack
from typing import Any, Final, Protocol

from tollhouse.core.call import ModelCall, Principal, ToolCall
from tollhouse.core.expr import Expression, Outcome
from tollhouse.core.spec import Spec
from tollhouse.policies.cache.spec import Reach

__all__ = ["FORWARDED", "Behind", "Path", "key_of_call", "key_of_question", "key_of_tool", "space_of", "space_of_tools"]

_VERSION: Final = b"1"

FORWARDED: Final = frozenset((b"anthropic-version", b"anthropic-beta"))
"""The caller's header fields that providers get."""

_UNTOLD: Final = frozenset(("progressToken", "traceparent", "tracestate", "baggage"))
"""Of a tool call's `_meta` what makes no difference to its result."""

# Of a model, what says only who may ask, and how fast or how often it is tried. All else changes the answer, or may.
_BEFORE: Final = frozenset(
    (
        "name", "aliases", "authorize", "limits", "budgets", "runs", "requires", "retry", "cache", "transform",
        "timeout", "health", "balance", "sticky", "hedge", "resume",
    )
)  # fmt: skip


class _Holds(Protocol):
    def ask(self, call: Any) -> Outcome: ...


class Path:
    """What is behind the cache on the way to one model. fingerprint: of all settings there that may change an answer.
    conditions: that choose between targets by what else a call has: each is asked of each call. total: seconds from a
    request's arrival in which it must be answered."""

    __slots__ = ("conditions", "fingerprint", "total")

    def __init__(self, fingerprint: bytes, conditions: Sequence[_Holds] = (), total: float = inf) -> None:
        self.fingerprint = fingerprint
        self.conditions = tuple(conditions)
        self.total = total

    def told(self, call: ModelCall) -> bytes:
        """Which of the conditions hold."""
        return b"".join([b"1" if one.ask(call) is Outcome.YES else b"0" for one in self.conditions])


class Behind:
    """`policies.base.Ways` of one configuration. models: their Specs. providers, servers: by name. top: the settings
    that are in force for all of them. Each is worked out when it is first asked for."""

    def __init__(
        self,
        models: Iterable[Spec],
        providers: Mapping[str, Spec],
        servers: Mapping[str, Spec] | None = None,
        top: Spec | None = None,
    ) -> None:
        self._models: dict[str, Any] = {}
        specs = tuple(models)
        for spec in specs:
            self._models |= dict.fromkeys(getattr(spec, "aliases", ()), spec)
        self._models |= {getattr(spec, "name", ""): spec for spec in specs}
        self._providers = providers
        self._servers = servers or {}
        self._top = top
        self._apart: Spec | None = None
        self._paths: dict[str, Path] = {}

    def apart(self, guards: Spec) -> "Behind":
        """The same behind guards of one endpoint, which may change what servers answer."""
        made = Behind((), {}, self._servers, self._top)
        made._apart = guards
        return made

    def __call__(self, name: str) -> Path:
        """By the configured name, or an alias."""
        path = self._paths.get(name)
        if path is None:
            path = self._paths[name] = self._made(name)
        return path

    def server(self, name: str) -> bytes:
        """Of an MCP server: also its tools' settings."""
        apart = () if self._apart is None else (_bare(self._apart),)
        return _digested([_settings(self._servers[name]), self._guards(), *apart])

    def _guards(self) -> Any:
        return _bare(getattr(self._top, "guardrails", None))

    def _made(self, name: str) -> Path:
        spec = self._models[name]
        targets = [*spec.targets, *spec.fallback]
        providers = [self._providers[one.provider] for one in targets]
        digest = _digested([_settings(spec), [_bare(one) for one in providers], self._guards()])
        conditions = [getattr(one, "when", None) for one in spec.targets]
        conditions += [place.when for one in providers for place in getattr(one, "places", ())]
        timeout = getattr(spec, "timeout", None)
        total = inf if timeout is None else timeout.total
        return Path(digest, [Expression(text) for text in conditions if text is not None], total)


def _settings(spec: Any) -> list[Any]:
    return [(field, _bare(getattr(spec, field))) for field in sorted(type(spec).model_fields) if field not in _BEFORE]


def _digested(found: list[Any]) -> bytes:
    return hashlib.blake2b(repr(found).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _bare(value: Any) -> Any:
    if isinstance(value, Spec):
        return type(value).__name__, value.fingerprint(), _files(value)
    if isinstance(value, (list, tuple)):
        return [_bare(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _bare(inner) for key, inner in value.items()}
    return repr(value)


def _files(value: Any) -> list[bytes]:
    """Digests of the files that settings name as `file`, like words that guards look for: they change without them."""
    found = []
    if isinstance(value, Spec):
        for name in type(value).model_fields:
            inner = getattr(value, name)
            if name == "file" and isinstance(inner, str):
                found.append(_content(inner))
            else:
                found += _files(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            found += _files(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            found += _files(inner)
    return found


def _content(path: str) -> bytes:
    try:
        return hashlib.blake2b(FilePath(path).read_bytes(), digest_size=16).digest()
    except OSError:
        return b""


def space_of(principal: Principal | None, reach: Reach) -> bytes:
    """Whose answers may answer the principal. Users of one name at two issuers, who have come in two ways (a key, a
    password), or in two organisations, are two; whoever has no user, or no organisation, is alone. Callers who have not
    said who they are are one."""
    if reach == "shared":
        return b"shared"
    if principal is None:
        return b"nobody"
    if reach == "org" and principal.org:
        return _joined((b"org", _bytes(principal.org)))
    if reach == "user" and principal.user:
        # A certificate's issuer is in its id; whoever else has none was named by this gateway's own configuration.
        told = principal.issuer or (principal.id if principal.source == "mtls" else principal.source)
        return _joined((b"user", _bytes(told), _bytes(principal.org), _bytes(principal.user)))
    # With whose it is now: a key's name may be given to another one's key later.
    return _joined((b"id", _bytes(principal.id), _bytes(principal.org), _bytes(principal.user)))


def space_of_tools(principal: Principal | None, reach: Reach) -> bytes:
    """The same for tools: what a server tells a user may be what his token is good for, and who acts with it."""
    space = space_of(principal, reach)
    if principal is None or reach in ("org", "shared") or not (principal.agent or principal.scopes):
        return space
    return _joined((space, _bytes(principal.agent), *map(_bytes, sorted(principal.scopes))))


def key_of_call(call: ModelCall, space: bytes, path: Path, ignore: frozenset[str] = frozenset()) -> bytes:
    """Where the answer to a model's call is kept."""
    parts = _parts_of_call(call, space, path)
    fields = call.fields
    for name in sorted(fields):
        if name not in ignore:
            parts += (_bytes(name), fields[name])
    return _digest(parts)


def key_of_question(
    call: ModelCall, space: bytes, path: Path, ignore: frozenset[str], field: str, context: Sequence[Any]
) -> bytes:
    """What a request is besides its user's last words. field: that has them, and context: what else is in it."""
    parts = _parts_of_call(call, space, path)
    fields = call.fields
    for name in sorted(fields):
        if name not in ignore and name != field:
            parts += (_bytes(name), fields[name])
    parts.append(b"\0question")
    parts += context
    return _digest(parts)


def _parts_of_call(call: ModelCall, space: bytes, path: Path) -> list[Any]:
    context = call.context
    parts = [
        _VERSION,
        path.fingerprint,
        space,
        b"stream" if call.stream else b"whole",
        _bytes(context.dialect),
        _bytes(call.operation),
        _bytes(call.label),
        _bytes(call.model),
    ]
    if path.conditions:
        parts.append(path.told(call))
    for pair in call.request.headers:
        if pair[0] in FORWARDED:
            parts += pair
    parts.append(b"\0fields")
    return parts


def key_of_tool(call: ToolCall, space: bytes, fingerprint: bytes) -> bytes:
    """Where the result of a tool's call is kept. fingerprint: of the server's settings."""
    parts: list[Any] = [
        _VERSION, fingerprint, space, b"tool", _bytes(call.server), _bytes(call.name), call.definition,
        call.extensions,
    ]  # fmt: skip
    for name, fields in (("params", call.params), ("meta", call.meta or {})):
        parts.append(_bytes(name))
        for field in sorted(fields):
            if field not in _UNTOLD:
                parts += (_bytes(field), fields[field])
    return _digest(parts)


def _digest(parts: Sequence[Any]) -> bytes:
    return hashlib.blake2b(_joined(parts), digest_size=20).digest()


def _joined(parts: Sequence[Any]) -> bytes:
    sizes = list(map(len, parts))
    return pack(f"<{len(sizes) + 1}I", len(sizes), *sizes) + b"".join(parts)


def _bytes(text: str) -> bytes:
    return text.encode() if text.isascii() else text.encode("utf-8", "surrogatepass")
