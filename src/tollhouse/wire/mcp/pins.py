"""The pins file: which tools of which servers were approved, and as what. Bytes in, Pins out, and back.

Rule: the file is for reviews. It holds the definitions and not only their hashes, in one order, one member a line, with
everything visible that an editor would not show; and a definition whose hash is not the one beside it was changed by
hand or by a merge, which nobody approved.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tollhouse.wire.mcp.integrity import PINNED, Unreadable, digest
from tollhouse.wire.mcp.letters import is_seen
from tollhouse.wire.mcp.scan import RULES

__all__ = ["MOST", "BadPins", "Pin", "Pins", "merged", "parse", "render", "without"]

MOST = 10_000
"""Pins of one server: as many as tools of one server are listed."""

_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSEEN = re.compile("[^\x20-\x7e\n]")


class BadPins(ValueError):
    """A pins file that cannot be used; says where it is wrong."""


class Pin(msgspec.Struct, frozen=True):
    """One approved tool. sha256: hexadecimal, of its definition. tool: the definition. accepts: rules of the scan whose
    findings were approved with it."""

    sha256: str
    tool: dict[str, Any]
    accepts: tuple[str, ...] = ()


Pins = Mapping[str, Mapping[str, Pin]]
"""By server and by the server's own name of the tool."""


def parse(data: bytes) -> dict[str, dict[str, Pin]]:
    """The pins in a file; none in an empty one. Raises BadPins."""
    if not data.strip():
        return {}
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_members)
    except json.JSONDecodeError as error:
        raise BadPins(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise BadPins("not UTF-8") from None
    except RecursionError:
        raise BadPins("nested too deeply") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise BadPins(f"not a pins file of version {_VERSION}")
    pins: dict[str, dict[str, Pin]] = {}
    for server, tools in _object(document.get("servers", {}), "servers").items():
        pins[server] = {name: _pin(name, pin, f"{server}/{name}") for name, pin in _object(tools, server).items()}
    return pins


def _pin(name: str, value: Any, where: str) -> Pin:
    fields = _object(value, where)
    sha256, tool = fields.get("sha256"), _object(fields.get("tool"), f"{where}: tool")
    accepts = fields.get("accepts", [])
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise BadPins(f"{where}: sha256 must be 64 hexadecimal digits")
    if not isinstance(accepts, list) or not all(rule in RULES for rule in accepts):
        raise BadPins(f"{where}: accepts must be a list of the scan's rules")
    if tool.get("name") != name or not tool.keys() <= set(PINNED):
        raise BadPins(f"{where}: tool must be the definition of {name!r}, of no members but {', '.join(PINNED)}")
    try:
        is_it = digest(tool) == sha256
    except Unreadable as error:
        raise BadPins(f"{where}: {error}") from None
    if not is_it:
        raise BadPins(
            f"{where}: the definition is not the one that sha256 stands for; approve it with `tollhouse tools`"
        )
    return Pin(sha256, tool, tuple(accepts))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadPins(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return members


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadPins(f"{where} must be an object")
    return value


def render(pins: Pins) -> bytes:
    """The file: the same pins give the same bytes."""
    servers = {
        server: {
            name: {
                "sha256": pin.sha256,
                **({"accepts": sorted(pin.accepts)} if pin.accepts else {}),
                "tool": {member: pin.tool[member] for member in PINNED if member in pin.tool},
            }
            for name, pin in sorted(tools.items())
        }
        for server, tools in sorted(pins.items())
        if tools
    }
    text = json.dumps({"version": _VERSION, "servers": servers}, indent=2, ensure_ascii=False)
    return _UNSEEN.sub(_escaped, text).encode("utf-8") + b"\n"


def _escaped(match: re.Match[str]) -> str:
    """What can be seen stays; what cannot is written so that it can."""
    char = match[0]
    if is_seen(char):
        return char
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def merged(pins: Pins, more: Pins, *, anew: bool) -> dict[str, dict[str, Pin]]:
    """Both. anew: of one tool the pin in `more` counts, else the one that is there already."""
    made = {server: dict(tools) for server, tools in pins.items()}
    for server, tools in more.items():
        own = made.setdefault(server, {})
        for name, pin in tools.items():
            if anew or (name not in own and len(own) < MOST):
                own[name] = pin
    return made


def without(pins: Pins, gone: Iterable[tuple[str, str]]) -> dict[str, dict[str, Pin]]:
    """The pins but those of (server, tool)."""
    dropped: Sequence[tuple[str, str]] = tuple(gone)
    return {
        server: {name: pin for name, pin in tools.items() if (server, name) not in dropped}
        for server, tools in pins.items()
    }
