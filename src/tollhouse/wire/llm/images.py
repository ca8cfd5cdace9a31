"""OpenAI images: `POST /images/generations` with a JSON object, `/images/edits` and `/images/variations` with a form.

An answer has pictures as base64 or URLs, whole or as a stream of `image_generation.*` events; older models tell no
usage. What an answer's tokens are some models do not tell: they are of pictures then.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.core.call import Usage
from tollhouse.wire.llm.forms import FormDialect
from tollhouse.wire.llm.media import MediaDialect, MediaReader

__all__ = ["ImageEdits", "ImageVariations", "Images"]

Raw = msgspec.Raw

_PICTURES = 10  # the most that can be asked for


class _Reader(MediaReader):
    __slots__ = ()

    def read(self, block: bytes) -> bytes:
        passed = super().read(block)
        _drawn(self.usage)
        return passed


class _Pictures(MediaDialect):
    __slots__ = ()

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        usage, model = super().answer(body)
        _drawn(usage)
        return usage, model

    def reader(self, *, strip: bool) -> MediaReader:
        return _Reader()


class Images(_Pictures):
    """`POST /v1/images/generations`."""

    __slots__ = ()

    operation = "images"
    path = b"/images/generations"

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        return super().output_bound(fields) * _pictures(fields)


class ImageEdits(_Pictures, FormDialect):
    """`POST /v1/images/edits`."""

    __slots__ = ()

    operation = "image_edits"
    path = b"/images/edits"

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        return super().output_bound(fields) * _pictures(fields)


class ImageVariations(ImageEdits):
    """`POST /v1/images/variations`."""

    __slots__ = ()

    operation = "image_variations"
    path = b"/images/variations"
    streams = False


def _drawn(usage: Usage | None) -> None:
    if usage is not None and not usage.image_output:
        usage.image_output = usage.output


def _pictures(fields: Mapping[str, Raw]) -> int:
    asked = bytes(fields.get("n") or b"1").strip(b'"')
    return min(max(int(asked), 1), _PICTURES) if asked.isdigit() and len(asked) < 4 else 1
