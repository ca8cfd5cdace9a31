"""What a tool is, as far as it is approved: the members that a model is shown or an agent acts on, their hash, and how
one such definition differs from another.

Rule: equal hashes mean that every reader reads the same, so the hash is of canonical JSON (RFC 8785) of the decoded
members, and JSON that readers may decode differently (a member given twice) is a finding of its own.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tollhouse.wire.mcp.letters import visible
from tollhouse.wire.mcp.scan import RULES, Finding, Mention, scan

__all__ = [
    "PINNED",
    "Facts",
    "Unreadable",
    "canonical",
    "definition",
    "diff",
    "differing",
    "digest",
    "examine",
    "shown",
]

PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
"""The members of a tool that are hashed (2025-11-25, Tools). Icons, `execution` and `_meta` are not."""

_DEEP = 200


class Unreadable(ValueError):
    """A tool's JSON that cannot be read, or not in one way only."""


class Facts(msgspec.Struct, frozen=True):
    """What is known of a tool by its bytes alone. digest: hexadecimal SHA-256. findings, mentions: see `scan`."""

    digest: str
    findings: tuple[Finding, ...] = ()
    mentions: tuple[Mention, ...] = ()


def examine(raw: bytes) -> Facts:
    """The facts of a tool as its server lists it. Never raises: what cannot be read is a finding, and its hash is that
    of its bytes."""
    try:
        tool = definition(raw)
        value = digest(tool)
    except Unreadable as error:
        finding = Finding("ambiguous", "", visible(str(error)), RULES["ambiguous"][0])
        return Facts(hashlib.sha256(b"unreadable\0" + raw).hexdigest(), (finding,))
    findings, mentions = scan(tool)
    return Facts(value, findings, mentions)


def definition(raw: bytes) -> dict[str, Any]:
    """The pinned members of a tool. Raises Unreadable."""
    try:
        tool = json.loads(raw.decode("utf-8"), object_pairs_hook=_members, parse_constant=_constant)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {type(error).__name__}") from None
    if not isinstance(tool, dict):
        raise Unreadable("not an object")
    return {name: tool[name] for name in PINNED if name in tool}


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Unreadable(f"the member {twice[:64]!r} is given twice")
    return members


def _constant(name: str) -> Any:
    raise Unreadable(f"{name} is no JSON")


def digest(tool: Mapping[str, Any]) -> str:
    """The hexadecimal SHA-256 of a definition. Raises Unreadable."""
    return hashlib.sha256(canonical(tool)).hexdigest()


# ---- canonical JSON
def canonical(value: Any) -> bytes:
    """The one text of a JSON value (RFC 8785), but that a whole number keeps all its digits. Raises Unreadable for
    what is nested more than 200 levels deep, is no JSON, or has half of a surrogate pair in it."""
    out: list[str] = []
    try:
        _write(value, out, 0)
        return "".join(out).encode("utf-8")
    except UnicodeEncodeError:
        raise Unreadable("a text has half of a surrogate pair in it") from None


def _write(value: Any, out: list[str], depth: int) -> None:
    if isinstance(value, str):
        out.append(_string(value))
    elif value is None or isinstance(value, bool):
        out.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, int):
        out.append(str(value))
    elif isinstance(value, float):
        out.append(_number(value))
    elif depth >= _DEEP:
        raise Unreadable(f"more than {_DEEP} levels deep")
    elif isinstance(value, Mapping):
        mark = "{"
        for name in sorted(value, key=_units):
            out.append(f"{mark}{_string(name)}:")
            _write(value[name], out, depth + 1)
            mark = ","
        out.append("{}" if mark == "{" else "}")
    elif isinstance(value, (list, tuple)):
        mark = "["
        for one in value:
            out.append(mark)
            _write(one, out, depth + 1)
            mark = ","
        out.append("[]" if mark == "[" else "]")
    else:
        raise Unreadable(f"{type(value).__name__} is no JSON")


_string = json.JSONEncoder(ensure_ascii=False).encode


def _units(name: str) -> bytes:
    """Members stand in the order of their UTF-16 code units."""
    return name.encode("utf-16-be", "surrogatepass")


def _number(value: float) -> str:
    """As ECMAScript writes it (ECMA-262, Number::toString); whole ones with all their digits."""
    if value != value or value in (float("inf"), float("-inf")):
        raise Unreadable("a number without a value is no JSON")
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    mantissa, mark, exponent = repr(value).partition("e")
    if not mark:
        return mantissa
    power = int(exponent)
    if -7 < power < 0:
        sign = "-" if mantissa.startswith("-") else ""
        digits = mantissa.lstrip("-").replace(".", "")
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{'+' if power > 0 else ''}{power}"


# ---- differences
def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The members that are not the same."""
    return [
        name
        for name in PINNED
        if (name in old) != (name in new) or (name in old and canonical(old[name]) != canonical(new[name]))
    ]


def diff(old: Mapping[str, Any], new: Mapping[str, Any], *, before: str = "pinned", after: str = "served") -> list[str]:
    """A unified diff for people, without line ends: nothing in it is hidden and nothing acts on a terminal."""
    return [line.rstrip("\n") for line in difflib.unified_diff(shown(old), shown(new), before, after, n=2, lineterm="")]


def shown(tool: Mapping[str, Any]) -> Sequence[str]:
    """A definition line by line."""
    lines: list[str] = []
    for name in PINNED:
        if name not in tool:
            continue
        value = tool[name]
        if isinstance(value, str) and name != "description":
            lines.append(f"{name}: {visible(value)}")
        else:
            text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
            lines.append(f"{name}:")
            lines += [f"  {visible(line)}".rstrip() for line in text.split("\n")]
    return lines
