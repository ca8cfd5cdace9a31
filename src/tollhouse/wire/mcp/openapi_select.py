"""Which operations of an OpenAPI document are chosen: by tags, operationIds, methods and paths.

Rule: what is chosen must fit everything that is said; what is denied fits anything of it. Words of a selection that
no operation has are remembered, because they are mistakes.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["Picked", "Picker"]


class Picked(msgspec.Struct, frozen=True):
    """Some of a document's operations. Each of the four, where it is said, must fit; a `*` fits any text. operations:
    their operationIds."""

    tags: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Picker:
    """A selection, and which of its words were of use."""

    def __init__(self, picked: Picked) -> None:
        self._tags = set(picked.tags)
        self._methods = {method.lower() for method in picked.methods}
        self._patterns = {
            "operations": [(text, _pattern(text)) for text in picked.operations],
            "paths": [(text, _pattern(text)) for text in picked.paths],
        }
        self._unused = {f"tags: {tag}" for tag in picked.tags}
        self._unused |= {f"{kind}: {text}" for kind, each in self._patterns.items() for text, _ in each}

    def _fits(self, path: str, method: str, operation: dict[str, Any]) -> Iterator[bool]:
        if self._tags:
            tags = operation.get("tags")
            found = (
                self._tags.intersection(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
            )
            self._unused.difference_update(f"tags: {tag}" for tag in found)
            yield bool(found)
        if self._methods:
            yield method in self._methods
        for kind, value in (("operations", operation.get("operationId")), ("paths", path)):
            if self._patterns[kind]:
                hits = [text for text, pattern in self._patterns[kind] if pattern.fullmatch(str(value or ""))]
                self._unused.difference_update(f"{kind}: {text}" for text in hits)
                yield bool(hits)

    def every(self, path: str, method: str, operation: dict[str, Any]) -> bool:
        """Whether the operation fits all that is said."""
        return all(list(self._fits(path, method, operation)))

    def any(self, path: str, method: str, operation: dict[str, Any]) -> bool:
        """Whether it fits anything of it."""
        return any(list(self._fits(path, method, operation)))

    def unused(self) -> list[str]:
        """What fitted no operation that was asked about."""
        return sorted(self._unused)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)
