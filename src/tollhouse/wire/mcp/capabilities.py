"""What a client can do, as a small number: the profile. Equal profiles may share a server's session.

Rule: a server sees only what this agent declared and the gateway can deliver, so sessions are never shared between
profiles: to a superset the server would ask too much.
"""

from typing import Any

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import tasks

__all__ = [
    "ASKABLE",
    "ELICIT_FORM",
    "ELICIT_URL",
    "ROOTS",
    "ROOTS_CHANGED",
    "SAMPLING",
    "TASKS",
    "UI",
    "UI_EXTENSION",
    "Profiles",
    "allows",
    "needed",
    "profile_of",
    "render",
]

ROOTS = 1
ROOTS_CHANGED = 2
SAMPLING = 4
SAMPLING_TOOLS = 8
SAMPLING_CONTEXT = 16
ELICIT_FORM = 32
ELICIT_URL = 64
TASKS = 128
"""Of stateless agents: results may be tasks. Nothing that a server of the old era could be told."""

UI = 256
"""Shows what servers draw (the extension io.modelcontextprotocol/ui)."""

ASKABLE = 127
"""What a server can ask, of a profile."""

UI_EXTENSION = "io.modelcontextprotocol/ui"
_HTML = "text/html;profile=mcp-app"
_CARRIED = frozenset((tasks.EXTENSION, UI_EXTENSION))  # those that are in the profile
_NEEDED = {"roots/list": ROOTS, "sampling/createMessage": SAMPLING}


class _Roots(msgspec.Struct):
    listChanged: bool = False


class _Sampling(msgspec.Struct):
    tools: dict[str, msgspec.Raw] | None = None
    context: dict[str, msgspec.Raw] | None = None


class _Elicitation(msgspec.Struct):
    form: dict[str, msgspec.Raw] | None = None
    url: dict[str, msgspec.Raw] | None = None


class _Capabilities(msgspec.Struct):
    roots: _Roots | None = None
    sampling: _Sampling | None = None
    elicitation: _Elicitation | None = None
    extensions: dict[str, msgspec.Raw] | None = None


_decoder = msgspec.json.Decoder(_Capabilities)


def profile_of(raw: msgspec.Raw | bytes) -> int:
    """The profile of a `ClientCapabilities` object. Raises Malformed (INVALID_PARAMS)."""
    if not len(raw):
        return 0
    try:
        declared = _decoder.decode(raw)
    except msgspec.DecodeError:
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, "the client capabilities cannot be read") from None
    profile = 0
    if declared.roots is not None:
        profile |= ROOTS | (ROOTS_CHANGED if declared.roots.listChanged else 0)
    if declared.sampling is not None:
        profile |= SAMPLING
        profile |= SAMPLING_TOOLS if declared.sampling.tools is not None else 0
        profile |= SAMPLING_CONTEXT if declared.sampling.context is not None else 0
    if declared.elicitation is not None:
        url = declared.elicitation.url is not None
        form = declared.elicitation.form is not None or not url  # an empty object means forms (2025-11-25)
        profile |= (ELICIT_URL if url else 0) | (ELICIT_FORM if form else 0)
    if declared.extensions is not None and _HTML.encode() in bytes(declared.extensions.get(UI_EXTENSION, b"")):
        profile |= UI
    return profile


class Profiles:
    """Profiles of capabilities that came before, remembered: agents send few different ones."""

    __slots__ = ("_known", "_others")

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._others: dict[bytes, bytes] = {}

    def extensions(self, raw: msgspec.Raw | bytes) -> bytes:
        """What a stateless request's `ClientCapabilities`, which `of` has read, declares beside the profile: raw JSON
        of an object, or nothing."""
        declared = bytes(raw)
        if b'"extensions"' not in declared:
            return b""
        others = self._others.get(declared)
        if others is None:
            found = _decoder.decode(declared).extensions or {}
            kept = {name: value for name, value in found.items() if name not in _CARRIED}
            others = jsonrpc.encode_fields(dict(kept)) if kept else b""
            if len(self._others) < 256 and len(declared) <= 1024:
                self._others[declared] = others
        return others

    def of(self, raw: msgspec.Raw | bytes) -> int:
        """The profile of a stateless request's `ClientCapabilities`. Raises Malformed (INVALID_PARAMS)."""
        if len(raw) <= 2:
            return 0
        declared = bytes(raw)
        profile = self._known.get(declared)
        if profile is None:
            profile = profile_of(declared) & ~ROOTS_CHANGED  # nobody could tell of the change
            extensions = _decoder.decode(declared).extensions
            if extensions is not None and tasks.EXTENSION in extensions:
                profile |= TASKS
            if len(self._known) < 256 and len(declared) <= 1024:
                self._known[declared] = profile
        return profile


def render(profile: int, *, new: bool = False, extensions: msgspec.Raw | bytes = b"") -> bytes:
    """The `ClientCapabilities` object of a profile. new: as a request of the new era says it. extensions: others than
    the profile's, raw JSON of an object."""
    fields: dict[str, object] = {}
    if profile & ROOTS:
        fields["roots"] = {"listChanged": True} if profile & ROOTS_CHANGED and not new else {}
    if profile & SAMPLING:
        sampling: dict[str, object] = {}
        if profile & SAMPLING_TOOLS:
            sampling["tools"] = {}
        if profile & SAMPLING_CONTEXT:
            sampling["context"] = {}
        fields["sampling"] = sampling
    if profile & (ELICIT_FORM | ELICIT_URL):
        elicitation: dict[str, object] = {}
        if profile & ELICIT_URL:
            elicitation["url"] = {}
        if profile & ELICIT_FORM and (new or elicitation):
            elicitation["form"] = {}
        fields["elicitation"] = elicitation
    declared: dict[str, object] = dict(jsonrpc.decode_fields(extensions))
    if profile & TASKS and new:
        declared[tasks.EXTENSION] = {}
    if profile & UI:
        declared[UI_EXTENSION] = {"mimeTypes": [_HTML]}
    if declared:
        fields["extensions"] = declared
    return msgspec.json.encode(fields)


class _Asked(msgspec.Struct, gc=False):
    mode: msgspec.Raw = jsonrpc.NONE
    tools: msgspec.Raw = jsonrpc.NONE
    toolChoice: msgspec.Raw = jsonrpc.NONE


_asked = msgspec.json.Decoder(_Asked)


def _bits(method: str, params: msgspec.Raw | bytes) -> int:
    """What a client must have declared to be asked this; 0 when no declaration allows it."""
    try:
        asked = _asked.decode(params) if len(params) else _Asked()
    except msgspec.DecodeError:
        return 0
    if method == "elicitation/create":
        return ELICIT_URL if bytes(asked.mode) == b'"url"' else ELICIT_FORM
    bits = _NEEDED.get(method, 0)
    if bits == SAMPLING and (len(asked.tools) or len(asked.toolChoice)):
        bits |= SAMPLING_TOOLS
    return bits


def allows(profile: int, method: str, params: msgspec.Raw | bytes = b"") -> bool:
    """Whether a client of this profile may be asked `method` (with `params`) by a server."""
    bits = _bits(method, params)
    return bits != 0 and profile & bits == bits


def needed(method: str, params: msgspec.Raw | bytes = b"") -> dict[str, dict[str, Any]]:
    """The `ClientCapabilities` that being asked this takes; {} when no declaration allows it."""
    bits = _bits(method, params)
    if bits & (ELICIT_URL | ELICIT_FORM):
        return {"elicitation": {"url" if bits & ELICIT_URL else "form": {}}}
    if bits & SAMPLING:
        return {"sampling": {"tools": {}} if bits & SAMPLING_TOOLS else {}}
    return {"roots": {}} if bits & ROOTS else {}
