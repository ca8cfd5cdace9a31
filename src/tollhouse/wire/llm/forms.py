"""APIs that are asked with a form (`multipart/form-data`), because a file goes along: its text parts are the fields.

Rule: of the form only the parts that were changed get other bytes; files are never copied out of it. A part that comes
once and is text of moderate size is a field, as a JSON string; any other is not seen, and passes.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import multipart
from tollhouse.wire.llm.dialect import Asked
from tollhouse.wire.llm.media import MediaDialect
from tollhouse.wire.llm.tokens import PICTURE, of_text
from tollhouse.wire.members import Names

__all__ = ["FormDialect"]

Raw = msgspec.Raw

_MAX_FIELD = 65_536
_TRUE = frozenset((b'"true"', b'"True"', b'"1"'))
_ACTED_ON = Names(
    "model", "stream",
    usual=("file", "image", "image[]", "mask", "prompt", "n", "size", "language", "response_format", "temperature"),
)  # fmt: skip

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class FormDialect(MediaDialect):
    """One API with a form. A JSON object is taken as well, for servers that do."""

    __slots__ = ()

    acted_on = _ACTED_ON

    def decode(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> Asked:
        if body[:2] != b"--":
            if body.lstrip()[:1] == b"{":
                return super().decode(body, model=model, stream=stream)
            raise _invalid("the request body must be multipart/form-data")
        form = _form(body)
        fields = _fields(body, form)
        names = {part.name: None for part in form.parts}
        if (name := self.acted_on.misspelt(names)) is not None:
            raise _invalid(f"{name!r} differs only by case from a field: write it as that", code="ambiguous_field")
        for name in ("model", "stream"):
            if name in names and name not in fields:
                raise _invalid(f'"{name}" must be one part of the form, and a text', code="ambiguous_field")
        if stream is None:
            stream = self.streams and (flag := fields.get("stream")) is not None and bytes(flag) in _TRUE
        if model is None:
            raw = fields.get("model")
            if raw is None:
                raise _invalid('"model" is missing: name the model to ask', code="model_required")
            model = _decode(raw)
        return Asked(model, fields, stream, form.content_type)

    def encode(self, fields: Mapping[str, Raw], body: bytes) -> bytes:
        if body[:2] != b"--":
            return super().encode(fields, body)
        form = _form(body)
        had = _fields(body, form)
        changed = {name: _text(fields.get(name)) for name, raw in had.items() if fields.get(name) != raw}
        more = [(name, text) for name, raw in fields.items() if name not in had and (text := _text(raw)) is not None]
        try:
            return multipart.rewritten(body, form, changed, more)
        except ValueError as error:
            raise _invalid(f"the form cannot be changed: {error}") from None

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        if body[:2] != b"--":
            return super().estimate(body, fields)
        sizes = [PICTURE if part.file else of_text(part.end - part.begin) for part in _form(body).parts]
        return sum(sizes) + self.output_bound(fields)


def _form(body: bytes) -> multipart.Form:
    try:
        return multipart.read(body)
    except ValueError as error:
        raise _invalid(f"the request body is not multipart/form-data: {error}", code="invalid_form") from None


def _fields(body: bytes, form: multipart.Form) -> dict[str, Raw]:
    fields: dict[str, Raw] = {}
    several = set()
    for part in form.parts:
        if part.name in several:
            fields.pop(part.name, None)
            continue
        several.add(part.name)
        if part.file or part.end - part.begin > _MAX_FIELD:
            continue
        try:
            fields[part.name] = Raw(_encode(body[part.begin : part.end].decode()))
        except UnicodeDecodeError:
            continue
    return fields


def _text(raw: Raw | None) -> bytes | None:
    """A field as a part's content; None for none."""
    if raw is None or bytes(raw) == b"null":
        return None
    value = bytes(raw)
    return str(_decode(value)).encode("utf-8", "surrogatepass") if value[:1] == b'"' else value


def _invalid(message: str, *, code: str = "invalid_form") -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, message, code=code)
