"""What a client can do, as a small number: the profile. Equal profiles may share a server's session.

Rule: a server sees only what this agent declared and the gateway can deliver, so sessions are never shared between
profiles: to a superset the server would ask too much.
"""

import msgspec

from tollhouse.wire import jsonrpc

__all__ = ["ELICIT_FORM", "ELICIT_URL", "ROOTS", "SAMPLING", "allows", "profile_of", "render"]

ROOTS = 1
ROOTS_CHANGED = 2
SAMPLING = 4
SAMPLING_TOOLS = 8
SAMPLING_CONTEXT = 16
ELICIT_FORM = 32
ELICIT_URL = 64

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
    return profile


def render(profile: int) -> bytes:
    """The `ClientCapabilities` object of a profile."""
    fields: dict[str, object] = {}
    if profile & ROOTS:
        fields["roots"] = {"listChanged": True} if profile & ROOTS_CHANGED else {}
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
            if profile & ELICIT_FORM:
                elicitation["form"] = {}
        fields["elicitation"] = elicitation
    return msgspec.json.encode(fields)


def allows(profile: int, method: str, params: msgspec.Raw | bytes = b"") -> bool:
    """Whether a client of this profile may be asked `method` (with `params`) by a server."""
    if method == "elicitation/create":
        try:
            mode = jsonrpc.decode_string(jsonrpc.decode_fields(params).get("mode"))
        except jsonrpc.Malformed:
            return False
        return bool(profile & (ELICIT_URL if mode == "url" else ELICIT_FORM))
    return bool(profile & _NEEDED.get(method, 0))
