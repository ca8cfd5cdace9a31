"""What pydantic found wrong, as paths into the document and plain words.

Rule: a message says what the value should be and what kind of thing it is, never the value: it may be a secret. Of the
branches of a union only the one that was meant is reported.
"""

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from tollhouse.config.places import Path
from tollhouse.config.suggest import did_you_mean, nearest
from tollhouse.core.spec import Spec
from tollhouse.policies import Scope

__all__ = ["LATER", "Finding", "explain", "kind_of"]

LATER: Final[dict[str, str]] = {
    "traces": "traces",
}
"""Settings that have a name and a meaning, but no implementation in this version."""

_OFF: Final = frozenset(("admin", "access_log", "ledger"))
"""Settings that are switched off by writing null, although they are off anyway."""

_EXPECTED: Final[dict[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}

_BOUNDS: Final[dict[str, tuple[str, str]]] = {
    "greater_than": ("gt", "should be more than {}"),
    "greater_than_equal": ("ge", "should be at least {}"),
    "less_than": ("lt", "should be less than {}"),
    "less_than_equal": ("le", "should be at most {}"),
    "multiple_of": ("multiple_of", "should be a multiple of {}"),
    "string_pattern_mismatch": ("pattern", "should look like the regular expression {}"),
}

_UNITS: Final[dict[str, str]] = {
    "string_too_short": "character",
    "string_too_long": "character",
    "too_short": "entry",
    "too_long": "entry",
}

_PLURALS: Final[dict[str, str]] = {"character": "characters", "entry": "entries"}


class Finding:
    """One thing that is wrong at `path`. key: it is the key there, not its value. near: the value it is about.

    prune: what to leave out so that the rest can be looked at. missing: it is that nothing is there. needless: nothing
    else can be wrong because of what is left out. echo: another finding says it already.
    """

    __slots__ = ("echo", "key", "message", "missing", "near", "needless", "path", "prune")

    def __init__(
        self, path: Path, message: str, *, key: bool = False, near: Any = None, prune: Path | None = None,
        missing: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self.message = message
        self.key = key
        self.near = near
        self.prune = path if prune is None else prune
        self.missing = missing
        self.needless = False
        self.echo = False


def kind_of(value: Any) -> str:
    """What kind of thing a value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


class _Located:
    """An error with its place in the document. labels: the unions' branches it passed, and at which depth.

    origins: for each list that lost entries, where those that are left stood.
    """

    __slots__ = ("error", "labels", "path", "raw")

    def __init__(self, error: ErrorDetails, raw: Any, origins: Mapping[Path, list[int]]) -> None:
        self.error = error
        self.labels: list[tuple[int, str]] = []
        path: list[str | int] = []
        loc = error["loc"]
        for n, step in enumerate(loc):
            if isinstance(raw, dict) and step in raw:
                path.append(step)
                raw = raw[step]
            elif isinstance(raw, list) and isinstance(step, int) and 0 <= step < len(raw):
                kept = origins.get(tuple(path))
                path.append(step if kept is None else kept[step])
                raw = raw[step]
            elif n == len(loc) - 1 and (error["type"] == "missing" or step == "[key]"):  # about a key, not its value
                break
            elif not self.labels or self.labels[-1][0] != len(path):  # what follows a branch's label is within it
                self.labels.append((len(path), str(step)))
        self.path: Path = tuple(path)
        self.raw = raw


def explain(
    root: type[Spec], document: Any, errors: Iterable[ErrorDetails], raw: Any, origins: Mapping[Path, list[int]]
) -> list[Finding]:
    """The findings behind pydantic's `errors` about `raw`, read as a `root`.

    raw: what is left of `document`; origins: for each list of it that lost entries, where those left stood. Paths of
    findings are paths into `document`.
    """
    located = [_Located(error, raw, origins) for error in errors]
    findings: list[Finding] = []
    for group in _branches(located):
        if len(group) == 1:
            findings.append(_finding(root, document, group[0]))
        else:
            findings.append(_choice(group))
    _mark_echoes(findings)
    return findings


def _branches(located: list[_Located]) -> Iterable[list[_Located]]:
    """Single errors, and groups of errors that are alternatives to one another: one value, several branches, each of
    another type than the value."""
    at: dict[Path, dict[str, list[_Located]]] = {}
    for one in located:
        for depth, label in one.labels:
            at.setdefault(one.path[:depth], {}).setdefault(label, []).append(one)
    dropped: set[int] = set()
    together: dict[int, list[_Located]] = {}
    for path, branches in sorted(at.items(), key=lambda entry: len(entry[0])):
        if len(branches) < 2:
            continue
        meant = [b for b in branches.values() if any(not _is_type_error(e, path) for e in b)]
        if meant:
            best = max(meant, key=lambda b: (max(len(e.path) for e in b), -len(b)))
            dropped.update(id(e) for b in branches.values() if b is not best for e in b)
        else:
            everyone = [e for b in branches.values() for e in b]
            together[id(everyone[0])] = everyone
            dropped.update(id(e) for e in everyone[1:])
    for one in located:
        if id(one) not in dropped:
            yield together.get(id(one), [one])


def _is_type_error(one: _Located, path: Path) -> bool:
    return one.path == path and one.error["type"] in _EXPECTED


def _choice(group: list[_Located]) -> Finding:
    expected = list(dict.fromkeys(_EXPECTED[one.error["type"]] for one in group))
    words = expected[0] if len(expected) == 1 else f"{', '.join(expected[:-1])} or {expected[-1]}"
    return Finding(group[0].path, f"should be {words}, not {kind_of(group[0].raw)}", near=group[0].raw)


def _finding(root: type[Spec], document: Any, one: _Located) -> Finding:
    error, path, raw = one.error, one.path, one.raw
    kind, context = error["type"], error.get("ctx", {})
    if error["loc"] and error["loc"][-1] == "[key]":
        return _bad_key(path, error)
    if kind == "extra_forbidden":
        return _unknown_key(root, document, path)
    if kind == "missing":
        name = str(error["loc"][-1])
        return Finding((*path, name), "required, but not there", prune=path, missing=True)
    if kind in _EXPECTED:
        return Finding(path, _wrong_type(_EXPECTED[kind], raw), near=raw)
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        hint = did_you_mean(raw, choices) if isinstance(raw, str) else ""
        return Finding(path, f"should be {_one_of(choices)}, not {_shown(raw)}{hint}", near=raw)
    if kind == "union_tag_invalid":
        return _wrong_kind(path, raw, context)
    if kind == "union_tag_not_found":
        name = str(context.get("discriminator", "")).strip("'")
        return Finding((*path, name), "required, but not there", prune=path, missing=True)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return Finding(path, words.format(context.get(name)), near=raw)
    if kind in _UNITS:
        secret = isinstance(raw, str) and context.get("field_type") == "Value"  # a SecretStr has a length, no type
        found = Finding(path, _wrong_length(context, "character" if secret else _UNITS[kind]), near=raw)
        if kind == "too_short" and not secret:  # pydantic does not count entries that are wrong themselves
            found.echo = not isinstance(raw, (list, dict)) or len(raw) >= context["min_length"]
        return found
    if kind == "finite_number":
        return Finding(path, "should be a finite number", near=raw)
    message = str(context["error"]) if kind in ("value_error", "assertion_error") else _plain(error["msg"])
    return Finding(path, message, near=raw)


def _bad_key(path: Path, error: ErrorDetails) -> Finding:
    """A key that may not be one. What is under it is left out with it."""
    if error["type"] == "string_pattern_mismatch":
        message = f"`{path[-1]}` cannot be a name here; use letters, digits, - and _"
    elif error["type"] in _UNITS:
        message = "the name " + _wrong_length(error["ctx"], "character")
    else:
        message = str(error.get("ctx", {}).get("error", _plain(error["msg"])))
    return Finding(path, message, key=True, near=path[-1])


def _wrong_type(expected: str, raw: Any) -> str:
    if raw is None:
        return f"is empty; it should be {expected}"
    quotes = expected == "text" and isinstance(raw, (bool, int, float))
    return f"should be {expected}, not {kind_of(raw)}" + ("; put it in quotes" if quotes else "")


def _wrong_length(bounds: Mapping[str, Any], unit: str) -> str:
    least, most = bounds.get("min_length"), bounds.get("max_length")
    if least == 1:
        return "should not be empty"
    word, count = ("at most", most) if least is None else ("at least", least)
    return f"should have {word} {count} {unit if count == 1 else _PLURALS[unit]}"


def _wrong_kind(path: Path, raw: Any, context: Mapping[str, Any]) -> Finding:
    name = str(context.get("discriminator", "")).strip("'")
    choices = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    given = raw.get(name) if isinstance(raw, dict) else None
    hint = did_you_mean(given, choices) if isinstance(given, str) else ""
    at = (*path, name) if isinstance(raw, dict) and name in raw else path
    return Finding(at, f"should be {_one_of(choices)}, not {_shown(given)}{hint}", near=given, prune=path)


def _unknown_key(root: type[Spec], document: Any, path: Path) -> Finding:
    name = str(path[-1])
    hint = ""
    if name in LATER:
        what = LATER[name]
        message = f"{what} {'are' if what.endswith('s') else 'is'} not available in this version; leave `{name}` out"
    elif elsewhere := _elsewhere(root, document, path):
        message = elsewhere
    elif name in Scope.model_fields:
        message = f"`{name}` cannot be set here; at the top it is set for everything"
    else:
        hint = did_you_mean(name, known_keys(root, document, path[:-1]))
        message = f"unknown key `{name}`{hint}"
    found = Finding(path, message, key=True)
    found.needless = not hint  # nobody misses a key that nobody knows, unless it is a known one misspelt
    return found


def _elsewhere(root: type[Spec], document: Any, path: Path) -> str:
    """Of a key that another kind of the same thing has: which key decided against that kind. Else nothing, also where
    the kind is written out."""
    name, (specs, value) = str(path[-1]), _alternatives(root, document, path[:-1])
    theirs = [spec for spec in specs if name in _names(spec)]
    ours = [spec for spec in specs if name not in _names(spec)]
    if not theirs or not ours or any(_is_tagged(spec, value) for spec in specs):
        return ""
    needs = ", ".join(f"`{key}`" for key in _required(theirs[0]))
    has = ", ".join(f"`{key}`" for key in _required(ours[0]) if key in value)
    if name in _required(theirs[0]):
        return f"`{name}` cannot stand beside {has}; give one of the two"
    return f"`{name}` goes with {needs}, and here is {has}; leave it out"


def _mark_echoes(findings: list[Finding]) -> None:
    """A missing key that was only misspelt is said once, as the misspelling."""
    unknown: dict[Path, list[str]] = {}
    for found in findings:
        if found.key and found.path:
            unknown.setdefault(found.path[:-1], []).append(str(found.path[-1]))
    for found in findings:
        if found.missing:
            written = unknown.get(found.path[:-1], ())
            found.echo |= any(nearest(name, [str(found.path[-1])]) is not None for name in written)


def _one_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _shown(raw: Any) -> str:
    """A choice that was not there may be said: the caller redacts it if it is a secret."""
    return f"`{raw}`" if isinstance(raw, str) and 0 < len(raw) <= 40 else kind_of(raw)


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    return message[:1].lower() + message[1:]


def pointless(root: type[Spec], document: Any, empty: Iterable[Path]) -> list[Finding]:
    """The settings at the paths `empty` that say nothing by being empty: they would be as if they were left out, and
    what was meant to stand there (rules, limits) would be lost without a word."""
    findings = []
    for path in empty:
        name = path[-1] if path else 0
        for spec in _specs(root, document, path[:-1]):
            setting = spec.model_fields.get(str(name))
            if setting is not None and setting.default is None and name not in _OFF and not setting.is_required():
                findings.append(Finding(path, f"`{name}` is empty; say what it should be, or leave it out", key=True))
                break
    return findings


# ---- the Specs behind a path


def known_keys(root: type[Spec], document: Any, path: Path) -> list[str]:
    """The keys that may stand in the mapping at `path`; of several possible Specs, of the one that fits best."""
    specs = _specs(root, document, path)
    return sorted({name for spec in specs for name in _names(spec)})


def _specs(root: type[Spec], document: Any, path: Path) -> list[type[Spec]]:
    """The Specs that the mapping at `path` may be, those that fit best."""
    specs, value = _alternatives(root, document, path)
    given = set(value) if isinstance(value, dict) else set()
    ranks = [(_is_tagged(spec, value), len(given & _names(spec))) for spec in specs]
    return [spec for spec, rank in zip(specs, ranks, strict=True) if rank == max(ranks)]


def _alternatives(root: type[Spec], document: Any, path: Path) -> tuple[list[type[Spec]], Any]:
    """Every Spec that the mapping at `path` may be, and the mapping."""
    value: Any = document
    kinds: list[Any] = [root]
    for step in path:
        kinds = [inner for kind in kinds for inner in _step(kind, step)]
        value = _inner(value, step)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Spec)], value


def _inner(value: Any, step: Any) -> Any:
    return value[step] if isinstance(value, (dict, list)) else None


def _names(spec: type[Spec]) -> set[str]:
    return {field.alias or name for name, field in spec.model_fields.items()}


def _required(spec: type[Spec]) -> list[str]:
    return [field.alias or name for name, field in spec.model_fields.items() if field.is_required()]


def _is_tagged(spec: type[Spec], value: Any) -> bool:
    """Whether a Literal field of `spec` says what the value says: it is the branch that was meant."""
    if not isinstance(value, dict):
        return False
    for name, field in spec.model_fields.items():
        if get_origin(field.annotation) is Literal and value.get(name) in get_args(field.annotation):
            return True
    return False


def _step(kind: Any, step: str | int) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, Spec):
        for name, field in kind.model_fields.items():
            if step == (field.alias or name):
                return _flat(field.annotation)
        return []
    arguments = get_args(kind)
    if isinstance(step, int):
        return [inner for argument in arguments for inner in _flat(argument)]
    return _flat(arguments[1]) if len(arguments) == 2 else []


def _flat(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without Annotated, Optional and Union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flat(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [inner for argument in get_args(annotation) for inner in _flat(argument)]
    return [annotation]
