"""Texts of MCP: what agents ask servers with, what servers answer, list, and tell on the way.

Rule: a result's text is often its `structuredContent` again, as JSON; then both are looked at as JSON, so that the same
becomes of them.

Kinds: "arguments" of tools and prompts; "results" of whatever a server says; "descriptions" and "names" of what it
lists; "text" and "system" of what it asks the agent's own model (sampling).
"""

from collections.abc import Mapping

import msgspec

from tollhouse.wire.guard.llm.forms import OTHER, SKIP, Form, Json, Look, New, Opaque, Other, Path, Text, string
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts

__all__ = ["entry_texts", "message_texts", "request_texts"]

Raw = msgspec.Raw

_any = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_TYPE: dict[str, Form | None] = {"type": SKIP, "annotations": SKIP, "mimeType": SKIP, "icons": SKIP}
_RESOURCE = Object({"uri": Text(), "mimeType": SKIP, "text": Text(), "blob": Opaque("file"), "annotations": SKIP})
_LINK = Object({**_TYPE, "uri": Text(), "name": Text(), "title": Text(), "description": Text(), "size": SKIP})
_PLAIN = {
    "text": Object({**_TYPE, "text": Text()}),
    "image": Object({**_TYPE, "data": Opaque("image")}),
    "audio": Object({**_TYPE, "data": Opaque("audio")}),
    "resource": Object({**_TYPE, "resource": _RESOURCE}),
    "resource_link": _LINK,
}


class _Result(Object):
    """What a tool gave. A text that says what is structured again is JSON too."""

    __slots__ = ()

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        count = len(look.spots)
        super().look_fields(fields, at, look)
        structured = fields.get("structuredContent")
        if structured is None or "content" not in fields:
            return
        content = (*at, "content")
        for number in range(count, len(look.spots)):
            spot = look.spots[number]
            if spot.at[: len(content)] == content and spot.at[-1] == "text" and _same(spot.text, structured):
                look.spots[number] = spot._replace(json=True)


def _same(text: str, structured: Raw) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return bool(_any(text.encode()) == _any(structured))
    except (*_UNREADABLE, UnicodeEncodeError):
        return False


_GAVE: dict[str, Form | None] = {"structuredContent": Json(), "isError": SKIP, "resultType": SKIP}
_INNER = Each(Tagged("type", _PLAIN))
_CONTENT = Tagged(
    "type",
    {
        **_PLAIN,
        "tool_use": Object({**_TYPE, "id": SKIP, "name": SKIP, "input": Json("arguments")}),
        "tool_result": _Result({**_TYPE, **_GAVE, "toolUseId": SKIP, "content": _INNER}, kind="results"),
    },
)
_CONTENTS = Choice(text=Text(), many=Each(_CONTENT), one=_CONTENT)
_MESSAGES = Each(Object({"role": SKIP, "content": _CONTENTS}))

_DESCRIBED = Other("descriptions")
_ARGUMENT = Object({"name": Text("names"), "required": SKIP}, rest=_DESCRIBED)
_ENTRY = Object(
    {
        "name": Text("names"),
        "uri": Text("names"),
        "uriTemplate": Text("names"),
        "mimeType": SKIP,
        "size": SKIP,
        "icons": SKIP,
        "execution": SKIP,
        "title": Text("descriptions"),
        "description": Text("descriptions"),
        "inputSchema": Json("descriptions"),
        "outputSchema": Json("descriptions"),
        "arguments": Each(_ARGUMENT),
    },
    rest=_DESCRIBED,
)
_ENTRIES = Each(_ENTRY)

_SAMPLING = Object(
    {
        "messages": _MESSAGES,
        "systemPrompt": Text("system"),
        "tools": _ENTRIES,
        "toolChoice": SKIP,
        "modelPreferences": SKIP,
        "includeContext": SKIP,
    },
    kind="text",
)
_ASKING: Mapping[str, Form] = {
    "notifications/progress": Object({"progressToken": SKIP, "message": Text()}, kind="results"),
    "notifications/message": Object({"level": SKIP, "logger": SKIP, "data": Other("results")}, kind="results"),
    "notifications/resources/updated": Object({"uri": SKIP}),
    "notifications/cancelled": Object({"requestId": SKIP, "reason": Text("results")}),
    "sampling/createMessage": _SAMPLING,
    "elicitation/create": Object(
        {
            "mode": SKIP,
            "message": Text(),
            "requestedSchema": Json("descriptions"),
            "url": Text(),
            "elicitationId": SKIP,
        },
        kind="results",
    ),
}
"""What a server says by itself, by its method."""

_RESULTS: Mapping[str, Form] = {
    "tools/call": _Result({**_GAVE, "content": Each(_CONTENT)}, kind="results", rest=Other("results")),
    "prompts/get": Object({"description": Text("descriptions"), "messages": _MESSAGES}, kind="results"),
    "resources/read": Object({"contents": Each(_RESOURCE)}, kind="results", rest=Other("results")),
    "completion/complete": Object(
        {"completion": Object({"values": Each(Text()), "total": SKIP, "hasMore": SKIP})}, kind="results"
    ),
    "tools/list": Object({"tools": _ENTRIES, "nextCursor": SKIP}),
    "prompts/list": Object({"prompts": _ENTRIES, "nextCursor": SKIP}),
    "resources/list": Object({"resources": _ENTRIES, "nextCursor": SKIP}),
    "resources/templates/list": Object({"resourceTemplates": _ENTRIES, "nextCursor": SKIP}),
    "initialize": Object(
        {
            "protocolVersion": SKIP,
            "capabilities": SKIP,
            "instructions": Text("descriptions"),
            "serverInfo": Object({"name": SKIP, "version": SKIP, "icons": SKIP}, rest=_DESCRIBED),
        }
    ),
}
_RESULT = Other("results")
_ERROR = Object({"code": SKIP, "message": Text("results"), "data": Other("results")})


class _Message(Object):
    """A JSON-RPC message of a server. method: of the request that a result in it answers."""

    __slots__ = ()

    def __init__(self, method: str) -> None:
        super().__init__(
            {
                "jsonrpc": SKIP,
                "id": SKIP,
                "method": SKIP,
                "result": _RESULTS.get(method, _RESULT),
                "error": _ERROR,
                "params": _Params(),
            }
        )

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        look.name = (string(fields["method"]) if "method" in fields else None,)
        super().look_fields(fields, at, look)

    def put_fields(self, fields: dict[str, Raw], at: Path, new: New) -> dict[str, Raw]:
        told = super().put_fields(fields, at, new)
        params = (*at, "params")
        if params in new.touched and "method" in fields:
            told["params"] = _form(string(fields["method"])).put(fields["params"], params, new)
        return told


class _Params(Form):
    """What a server says by itself: of which form is told beside it."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        _form(look.name[0] if look.name else None).look(raw, at, look)

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return raw


def _form(method: object) -> Form:
    return _ASKING.get(method, OTHER) if isinstance(method, str) else OTHER


_MESSAGES_OF: Mapping[str, Form] = {method: _Message(method) for method in (*_RESULTS, "")}

_ARGUMENTS: Mapping[str, Object] = {
    "tools/call": Object({"name": SKIP, "arguments": Json("arguments"), "task": SKIP, "requestState": SKIP}),
    "prompts/get": Object({"name": SKIP, "arguments": Json("arguments"), "requestState": SKIP}),
    "resources/read": Object({"uri": Text("arguments"), "requestState": SKIP}),
    "resources/subscribe": Object({"uri": Text("arguments")}),
    "resources/unsubscribe": Object({"uri": Text("arguments")}),
    "completion/complete": Object(
        {"ref": SKIP, "argument": Object({"name": SKIP, "value": Text("arguments")}), "context": Json("arguments")}
    ),
    "logging/setLevel": Object({"level": SKIP}),
}
_OTHER_REQUEST = Object({})


def request_texts(method: str, params: Mapping[str, Raw]) -> FieldTexts:
    """The texts of what an agent asks. params: opened. Raises ValueError for what cannot be read."""
    return FieldTexts(_ARGUMENTS.get(method, _OTHER_REQUEST), params)


def message_texts(method: str, message: bytes) -> Texts:
    """The texts of one JSON-RPC message of a server: the answer to a request of this method, or what it says by itself
    meanwhile. Raises ValueError for what cannot be read."""
    return Texts(_MESSAGES_OF.get(method, _MESSAGES_OF[""]), message)


def entry_texts(entry: bytes) -> Texts:
    """The texts of one tool, prompt, resource or template of a list. Raises ValueError for what cannot be read."""
    return Texts(_ENTRY, entry)
