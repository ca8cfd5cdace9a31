"""YAML as its readers here have in common: libyaml's events, and what a plain scalar is.

Rule: a plain scalar is what the core schema of YAML 1.2 says (10.3.2): `yes`, `on`, `010` and `12:30` are text, text,
ten and text. What looks like a number and cannot be kept as one is for each reader to decide.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import yaml

__all__ = ["NotKept", "events", "plain"]

_MAX_DIGITS = 18  # of a whole number: they fit 64 bits
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_CONSTANTS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip

_Loader: Any = getattr(yaml, "CSafeLoader", None) or yaml.SafeLoader


class NotKept(ValueError):
    """A number that is too long, or not finite; the text says which."""


def events(text: str) -> Callable[[], Any]:
    """The next YAML event of `text`, one by one. Raises yaml.YAMLError."""
    get: Callable[[], Any] = _Loader(text).get_event
    return get


def plain(text: str) -> bool | int | float | str | None:
    """The value of a plain scalar. Raises NotKept."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "-+.0123456789":  # nearly all are words
        return text
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > _MAX_DIGITS:
            raise NotKept("too long for a number")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number - number == 0:
            return number
    elif not _NOT_FINITE.fullmatch(text):
        return text
    raise NotKept("not a finite number")
