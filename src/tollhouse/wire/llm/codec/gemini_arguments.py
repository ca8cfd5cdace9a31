"""A Gemini call's arguments that come in pieces: each names the place of a value (RFC 9535, singular paths only) and
gives the value, or more of a text.

Only Vertex AI sends them so, and only to who asks for it. Their place is known and not their end, so they are gathered
and told as one.
"""

import re
from typing import Any

from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.gemini_parts import each
from tollhouse.wire.llm.codec.reading import Fields, written

__all__ = ["Arguments", "partial"]

_STEP = re.compile(r"""\.([^.\[\]'"]+)|\[(\d{1,6})\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")
_ESCAPED = re.compile(r"\\(.)")
_DEEPEST = 64

_Path = tuple[str | int, ...]


class Arguments:
    """The arguments of one call."""

    __slots__ = ("_values", "_whole")

    def __init__(self) -> None:
        self._whole: dict[str, Any] = {}
        self._values: dict[str, Any] = {}  # by path; a text is a list of pieces

    def take(self, call: Fields) -> bool:
        """`args` and `partialArgs` of one more `functionCall`; whether there will be more. Raises Failure 502."""
        given = call.any("args")
        if given is not None:
            if not isinstance(given, dict):
                call.fail("args", "must be an object")
            self._whole.update(given)
        for piece in each(call, "partialArgs") or ():
            self._piece(piece)
        return call.flag("willContinue") or False

    def _piece(self, f: Fields) -> None:
        path = f.need_text("jsonPath")
        text = f.text("stringValue")
        if text is not None:
            pieces = self._values.get(path)
            if isinstance(pieces, list):
                pieces.append(text)
            else:
                self._values[path] = [text]
            return
        number = f.number("numberValue")
        if number is not None:
            self._values[path] = int(number) if number.is_integer() else number
        elif (flag := f.flag("boolValue")) is not None:
            self._values[path] = flag
        elif f.text("nullValue") is not None:
            self._values[path] = None

    def text(self) -> str:
        """JSON text of all of it. Raises Failure 502 for a place that cannot be."""
        for path, value in self._values.items():
            self._put(_steps(path), "".join(value) if isinstance(value, list) else value)
        return bytes(written(self._whole)).decode()

    def _put(self, steps: _Path, value: Any) -> None:
        at: Any = self._whole
        for n, step in enumerate(steps):
            last = n + 1 == len(steps)
            if isinstance(step, str):
                if not isinstance(at, dict):
                    raise unreadable("an argument stands inside of one that is no object")
                missing = step not in at
            else:
                if not isinstance(at, list) or step > len(at):
                    raise unreadable("an argument stands in a list that does not go so far")
                missing = step == len(at)
                if missing:
                    at.append(None)
            if last:
                at[step] = value
            elif missing:
                at[step] = {} if isinstance(steps[n + 1], str) else []
            at = at[step]


def _steps(path: str) -> _Path:
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        found = _STEP.match(path, at)
        if found is None:
            break
        name, index, single, double = found.groups()
        if index is not None:
            steps.append(int(index))
        elif name is not None:
            steps.append(name)
        else:
            steps.append(_ESCAPED.sub(r"\1", single if single is not None else double))
        at = found.end()
    if path[:1] != "$" or at < len(path) or not steps or len(steps) > _DEEPEST:
        raise misread("jsonPath", f"{path[:100]!r} is no place of an argument")
    return tuple(steps)


def partial(call: Fields) -> bool:
    """Whether a `functionCall` is one piece of several."""
    return call.has("partialArgs") or call.has("willContinue") or not call.has("name")
