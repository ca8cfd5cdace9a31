"""An HTTP answer as a tool's result (2025-11-25, Tools): what the model can read, and what a program can.

Rule: what the API refuses (4xx) is told to the model in the API's own words, because it can act on them; that the API
has failed (5xx, 429) is an `ApiFailed` for whoever may try again. What is declared as structured is structured, or
the result says that it is not.
"""

import base64
import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tollhouse.core.depth import decode
from tollhouse.wire.mcp.openapi_request import Requests
from tollhouse.wire.pointer import steps_of

__all__ = ["Answer", "ApiFailed", "HttpTool", "Projection", "error_result"]

_EXCERPT: Final = 8_000  # characters of an error's body
_CHARSET = re.compile(r"charset=\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_TEXTUAL = ("/xml", "+xml", "/yaml", "+yaml", "/x-yaml", "/javascript", "/graphql", "/x-ndjson", "/jsonl", "/csv")
_ALL = "*"


class Answer(msgspec.Struct):
    """What came. content_type: "" for none. location: of a redirect. retry_after: seconds."""

    status: int
    content_type: str
    body: bytes
    location: str = ""
    retry_after: float | None = None


class ApiFailed(Exception):
    """The API did not do its work: 5xx, or 429. The text is fit for the model."""

    def __init__(self, answer: Answer, text: str) -> None:
        super().__init__(text)
        self.answer = answer
        self.text = text


class Projection(msgspec.Struct, frozen=True):
    """The parts of a JSON answer that are the result: of one place, or of several under names. A place is a JSON
    Pointer (RFC 6901), in which `*` is each element of a list: `/items/*/name`. One that is not there is null."""

    whole: str | None = None
    named: tuple[tuple[str, str], ...] = ()

    def of(self, value: Any) -> Any:
        if self.whole is not None:
            return _at(value, steps_of(self.whole))
        return {name: _at(value, steps_of(pointer)) for name, pointer in self.named}


def _at(value: Any, steps: tuple[str, ...]) -> Any:
    for n, step in enumerate(steps):
        if isinstance(value, list):
            if step == _ALL:
                return [_at(one, steps[n + 1 :]) for one in value]
            if not (step.isascii() and step.isdigit() and len(step) < 10) or int(step) >= len(value):
                return None
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return None
    return value


class HttpTool(msgspec.Struct, frozen=True):
    """A tool that is an HTTP request. raw: its JSON. repeatable: calling it twice does no harm. safe: its method
    changes nothing. structured: it has an output schema; wrapped: whose object is ours, around the answer. security:
    schemes whose credentials go with it. projection: what of the answer is the result."""

    name: str
    raw: bytes
    operation: Requests
    repeatable: bool = False
    safe: bool = False
    structured: bool = False
    wrapped: bool = False
    security: tuple[str, ...] = ()
    projection: Projection | None = None

    def result(self, answer: Answer) -> bytes:
        """The CallToolResult. Raises ApiFailed."""
        status = answer.status
        if status >= 500 or status == 429:
            raise ApiFailed(answer, _refused(answer))
        if status >= 400:
            return error_result(_refused(answer))
        if status >= 300 and status != 304:
            # Its query may repeat ours, and a key with it.
            place, query, _ = answer.location.partition("?")
            to = f" It leads to {place[:500] + query!r}." if place else ""
            return error_result(f"The API answered {_named(status)}, and redirects are not followed.{to}")
        return self._told(answer)

    def _told(self, answer: Answer) -> bytes:
        body, kind = answer.body, answer.content_type.partition(";")[0].strip().lower()
        json = kind == "application/json" or kind.endswith(("+json", "/json")) or (not kind and body[:1] in b"{[")
        if json and body.strip():
            try:
                value = decode(body)
                text = body.decode("utf-8")
            except ValueError:
                return error_result(f"The API answered {_named(answer.status)}, with JSON that cannot be read.")
            raw = body
            if self.projection is not None:
                value = self.projection.of(value)
                raw = msgspec.json.encode(value)
                text = raw.decode()
            return self._structured(value, raw, text)
        if self.structured or self.projection is not None:
            what = "an empty body" if not body else f"{kind or 'something'}"
            told = f"The API answered {_named(answer.status)}, but with {what} where it promises JSON."
            return error_result(f"{told}\n\n{_excerpt(answer)}".strip())
        if not body:
            return _result([{"type": "text", "text": f"Done: {_named(answer.status)}."}])
        return _result([_content(body, kind, answer.content_type, self.name)])

    def _structured(self, value: Any, raw: bytes, text: str) -> bytes:
        if self.wrapped:
            raw = b'{"result":%b}' % raw
        elif not isinstance(value, dict):
            if self.structured:
                return error_result(
                    f"The API answered with JSON that is not the object it promises:\n\n{text[:_EXCERPT]}"
                )
            return _result([{"type": "text", "text": text}])
        return _result([{"type": "text", "text": text}], msgspec.Raw(raw))


def error_result(text: str) -> bytes:
    """A CallToolResult that says what went wrong."""
    return msgspec.json.encode({"content": [{"type": "text", "text": text}], "isError": True})


def _result(content: list[dict[str, Any]], structured: msgspec.Raw | None = None) -> bytes:
    fields: dict[str, Any] = {"content": content}
    if structured is not None:
        fields["structuredContent"] = structured
    return msgspec.json.encode(fields)


def _content(body: bytes, kind: str, content_type: str, name: str) -> dict[str, Any]:
    for begin in ("image/", "audio/"):
        if kind.startswith(begin) and not kind.endswith("+xml"):
            return {"type": begin[:-1], "data": base64.b64encode(body).decode(), "mimeType": kind}
    if _is_text(kind):
        return {"type": "text", "text": _text(body, content_type)}
    if not kind:
        try:
            return {"type": "text", "text": body.decode("utf-8")}
        except UnicodeDecodeError:
            kind = "application/octet-stream"
    blob = {"uri": f"answer:{quote(name, safe='')}", "mimeType": kind, "blob": base64.b64encode(body).decode()}
    return {"type": "resource", "resource": blob}


def _is_text(kind: str) -> bool:
    return kind.startswith("text/") or kind.endswith(_TEXTUAL) or kind.endswith(("/json", "+json")) or (
        kind == "application/x-www-form-urlencoded"
    )  # fmt: skip


def _text(body: bytes, content_type: str) -> str:
    charset = _CHARSET.search(content_type)
    try:
        return body.decode(charset[1] if charset is not None else "utf-8", "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


def _refused(answer: Answer) -> str:
    text = f"The API answered {_named(answer.status)}."
    if answer.status in (401, 407):
        text += " That is about the gateway's own credentials for it, not about yours."
    if answer.retry_after is not None:
        text += f" It asks to wait {answer.retry_after:.0f} seconds."
    return f"{text}\n\n{_excerpt(answer)}".strip()


def _excerpt(answer: Answer) -> str:
    kind = answer.content_type.partition(";")[0].strip().lower()
    if not answer.body or not (_is_text(kind) or not kind):
        return ""
    text = _text(answer.body, answer.content_type).strip()
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]} ... ({len(text)} characters)"


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
