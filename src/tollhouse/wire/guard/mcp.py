"""Texts of MCP: what agents ask servers with, what servers answer, list, and tell on the way.

Rule: a result's text is often its `structuredContent` again, as JSON; then both are looked at as JSON, so that the same
becomes of them.

Kinds: "arguments" of tools and prompts; "results" of whatever a server says; "descriptions" and "names" of what it
lists; "text" and "system" of what it asks the agent's own model (sampling). Ids and states that the gateway seals for
the agent have nobody's words, and must come back as they are.
"""

import re
from collections.abc import Mapping

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.forms import (
    OTHER,
    SKIP,
    Address,
    Form,
    Json,
    Look,
    New,
    Other,
    Path,
    Text,
    string,
)
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts

__all__ = ["entry_texts", "message_texts", "request_texts"]

Raw = msgspec.Raw

_any = msgspec.json.Decoder().decode


class _Word(Text):
    """What nobody's words are in as long as it has its usual form."""

    __slots__ = ("_usual",)

    def __init__(self, usual: str, kind: str = "") -> None:
        super().__init__(kind)
        self._usual = re.compile(usual).fullmatch

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        text = string(raw)
        if text is None or not self._usual(text):
            super().look(raw, at, look)


_REF = _Word("ref/[a-z]{1,16}", "names")
_WORD = _Word("[a-zA-Z_]{0,24}", "results")
_SIZE = _Word("[0-9xX]{1,12}|any", "results")
_TIME = _Word("[0-9TZ:.+-]{0,40}", "results")
_MIME = _Word("[a-z]+/[A-Za-z0-9.+-]{1,72}(; ?charset=[A-Za-z0-9-]{1,16})?")
_ICONS = Each(Object({"src": Address(), "mimeType": _MIME, "sizes": Each(_SIZE), "theme": _WORD}))
_TYPE: dict[str, Form | None] = {"type": SKIP, "annotations": Json(), "mimeType": _MIME, "icons": _ICONS}
_RESOURCE = Object({"uri": Text(), "mimeType": _MIME, "text": Text(), "blob": Blob("file"), "annotations": Json()})
_LINK = Object({**_TYPE, "uri": Text(), "name": Text(), "title": Text(), "description": Text(), "size": OTHER})
_PLAIN = {
    "text": Object({**_TYPE, "text": Text()}),
    "image": Object({**_TYPE, "data": Blob("image")}),
    "audio": Object({**_TYPE, "data": Blob("audio")}),
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
    except (*UNREADABLE, UnicodeEncodeError):
        return False


_GAVE: dict[str, Form | None] = {"structuredContent": Json(), "isError": OTHER, "resultType": _WORD}
_INNER = Each(Tagged("type", _PLAIN))
_CONTENT = Tagged(
    "type",
    {
        **_PLAIN,
        "tool_use": Object({**_TYPE, "id": SKIP, "name": Text("names"), "input": Json("arguments")}),
        "tool_result": _Result({**_TYPE, **_GAVE, "toolUseId": SKIP, "content": _INNER}, kind="results"),
    },
)
_CONTENTS = Choice(text=Text(), many=Each(_CONTENT), one=_CONTENT)
_MESSAGES = Each(Object({"role": _WORD, "content": _CONTENTS}))

_DESCRIBED = Other("descriptions")
_ARGUMENT = Object({"name": Text("names"), "required": OTHER}, rest=_DESCRIBED)
_ENTRY = Object(
    {
        "name": Text("names"),
        "uri": Text("names"),
        "uriTemplate": Text("names"),
        "mimeType": _MIME,
        "size": OTHER,
        "icons": _ICONS,
        "execution": Json("descriptions"),
        "title": Text("descriptions"),
        "description": Text("descriptions"),
        "inputSchema": Json("descriptions"),
        "outputSchema": Json("descriptions"),
        "arguments": Each(_ARGUMENT),
    },
    kind="descriptions",
    rest=_DESCRIBED,
)
_ENTRIES = Each(_ENTRY)

_SAMPLING = Object(
    {
        "messages": _MESSAGES,
        "systemPrompt": Text("system"),
        "tools": _ENTRIES,
        "toolChoice": OTHER,
        "modelPreferences": Json(),
        "includeContext": _WORD,
    },
    kind="text",
)
_STATUS: Mapping[str, Form | None] = {
    "taskId": SKIP,
    "status": _WORD,
    "statusMessage": Text("results"),
    "createdAt": _TIME,
    "lastUpdatedAt": _TIME,
    "requestState": SKIP,
}
_TASK = Object(_STATUS, rest=Other("results"))
_ERROR = Object({"code": OTHER, "message": Text("results"), "data": Other("results")})


class _Said(Object):
    """What a server says by itself, or a question of its: `params` are of the form that `method` tells."""

    __slots__ = ()

    def __init__(self, more: Mapping[str, Form | None] | None = None) -> None:
        super().__init__({"method": SKIP, "params": _Params(), **(more or {})})

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        before = look.name
        look.name = (string(fields["method"]) if "method" in fields else None,)
        super().look_fields(fields, at, look)
        look.name = before

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


# What is asked in the middle of a request (2026-07-28, Multi Round-Trip Requests).
_ASKS: dict[str, Form | None] = {"inputRequests": Object({}, rest=_Said()), "requestState": SKIP}
_OF_TOOLS = _Result({**_GAVE, **_ASKS, "content": Each(_CONTENT)}, kind="results", rest=Other("results"))
_OF_TASKS = Object(
    {**_STATUS, **_ASKS, "resultType": _WORD, "result": _OF_TOOLS, "error": _ERROR}, rest=Other("results")
)
_ASKING: Mapping[str, Form] = {
    "notifications/progress": Object({"progressToken": SKIP, "message": Text()}, kind="results"),
    "notifications/message": Object({"level": _WORD, "logger": Text(), "data": Other("results")}, kind="results"),
    "notifications/resources/updated": Object({"uri": Text("results")}),
    "notifications/tasks/status": _TASK,
    "notifications/tasks": _OF_TASKS,
    "notifications/cancelled": Object({"requestId": SKIP, "reason": Text("results")}),
    "sampling/createMessage": _SAMPLING,
    "elicitation/create": Object(
        {
            "mode": _WORD,
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
    "tools/call": _OF_TOOLS,
    "tasks/result": _OF_TOOLS,
    "tasks/get": _OF_TASKS,
    "tasks/update": _OF_TASKS,
    "tasks/cancel": _OF_TASKS,
    "prompts/get": Object(
        {**_ASKS, "resultType": _WORD, "description": Text("descriptions"), "messages": _MESSAGES}, kind="results"
    ),
    "resources/read": Object(
        {**_ASKS, "resultType": _WORD, "contents": Each(_RESOURCE)}, kind="results", rest=Other("results")
    ),
    "completion/complete": Object(
        {"completion": Object({"values": Each(Text()), "total": OTHER, "hasMore": OTHER})}, kind="results"
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


class _Message(_Said):
    """A JSON-RPC message of a server. method: of the request that a result in it answers."""

    __slots__ = ()

    def __init__(self, method: str) -> None:
        result = _RESULTS.get(method, _RESULT)
        super().__init__({"jsonrpc": SKIP, "id": SKIP, "result": result, "error": _ERROR})


_MESSAGES_OF: Mapping[str, Form] = {method: _Message(method) for method in (*_RESULTS, "")}

_NAME: dict[str, Form | None] = {"name": Text("names"), "requestState": SKIP}
_ARGUMENTS: Mapping[str, Object] = {
    "tools/call": Object({**_NAME, "arguments": Json("arguments"), "task": SKIP}),
    "prompts/get": Object({**_NAME, "arguments": Json("arguments")}),
    "resources/read": Object({"uri": Text("arguments"), "requestState": SKIP}),
    "resources/subscribe": Object({"uri": Text("arguments")}),
    "resources/unsubscribe": Object({"uri": Text("arguments")}),
    "completion/complete": Object(
        {
            "ref": Object({"type": _REF, "name": Text("names"), "uri": Text("arguments")}),
            "argument": Object({"name": Text("names"), "value": Text("arguments")}),
            "context": Json("arguments"),
        }
    ),
    "logging/setLevel": Object({"level": SKIP}),
    **dict.fromkeys(("tasks/get", "tasks/result", "tasks/update", "tasks/cancel"), Object({"taskId": SKIP})),
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
