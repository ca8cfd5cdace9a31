"""Input in the middle of a request: what servers of the old era ask by requests of their own, those of the new one by
a result that the request is repeated for (2026-07-28, Multi Round-Trip Requests).

Rule: a server is answered only what it asked, and asks only what the agent declared. What an agent brings back
(`requestState`, `inputResponses`) is an attacker's to write: the state is sealed and bound, answers are found by the
key of their question.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, revisions

__all__ = [
    "LONGEST_STATE",
    "METHODS",
    "RESULT_TYPE",
    "InputRequest",
    "NeedInput",
    "RequestState",
    "answers_of",
    "as_input_request",
    "as_server_request",
    "binding",
    "given_up",
    "is_url",
    "need_input",
    "question",
    "render",
    "rendered",
    "requires",
    "url_elicitations",
]

METHODS = frozenset(("tools/call", "prompts/get", "resources/read"))
"""What may be answered with `input_required`."""

RESULT_TYPE = "input_required"
LONGEST_STATE = 64 << 10  # bytes of a `requestState` that goes into ours
_MOST = 64  # input requests of one round
_LONGEST_KEY = 256
_OLD = ("task", "elicitationId")  # members of a question that only the old era has
_ASKED = frozenset(("elicitation/create", "roots/list", "sampling/createMessage"))


class InputRequest(msgspec.Struct, gc=False):
    """One question: a method of the old era's server requests, and its params, raw."""

    method: str
    params: msgspec.Raw = jsonrpc.NONE


class NeedInput(msgspec.Struct):
    """An `InputRequiredResult`. state: None when there was none."""

    requests: dict[str, InputRequest] = msgspec.field(name="inputRequests", default_factory=dict)
    state: str | None = msgspec.field(name="requestState", default=None)


class RequestState(msgspec.Struct, array_like=True):
    """What a `requestState` of ours says, sealed.

    server: whose the call is. owner: the worker that holds it, "" when nobody does. call, round, nonce: which call,
    and which of its rounds may go on with it. expires: unix seconds. principal: a tag of whom it was given to.
    bound: what was asked (`binding`). questions: key to digest, of those that are open. inner: the server's own state
    byte for byte, None for none. answers: earlier ones by the digest of their question, where the call may be repeated.
    place: where the server's side of the call is found by a worker that takes it over, b"" where it cannot be. asked:
    the server's requests by key, for that worker. instead: who has asked in the server's place, "" for itself.
    """

    endpoint: str
    server: str
    owner: str
    call: str
    round: int
    nonce: str
    expires: int
    principal: bytes
    bound: bytes
    questions: dict[str, bytes] = msgspec.field(default_factory=dict)
    inner: str | None = None
    answers: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    place: bytes = b""
    asked: dict[str, bytes] = msgspec.field(default_factory=dict)
    instead: str = ""


class _Kind(msgspec.Struct, gc=False):
    type: str = msgspec.field(name="resultType", default="complete")


_kind = msgspec.json.Decoder(_Kind)
_need = msgspec.json.Decoder(NeedInput)
_responses = msgspec.json.Decoder(dict[str, msgspec.Raw])
_sorted = msgspec.json.Encoder(order="sorted")


def need_input(method: str, raw: msgspec.Raw | bytes) -> NeedInput | None:
    """What a server's result asks for; None when it is a result of another kind. Raises Malformed (INTERNAL_ERROR) for
    one that must not be: to another method, of nothing, of what cannot be asked."""
    try:
        if _kind.decode(raw).type != RESULT_TYPE:
            return None
        need = _need.decode(raw)
    except msgspec.DecodeError:
        raise _wrong("it cannot be read") from None
    if method not in METHODS:
        raise _wrong(f"it answers {method!r}")
    if not need.requests and need.state is None:
        raise _wrong("it has neither inputRequests nor requestState")
    if len(need.requests) > _MOST or any(len(key) > _LONGEST_KEY for key in need.requests):
        raise _wrong(f"it has more than {_MOST} requests, or keys of more than {_LONGEST_KEY} characters")
    if need.state is not None and len(need.state) > LONGEST_STATE:
        raise _wrong(f"its requestState has more than {LONGEST_STATE} characters")
    for request in need.requests.values():
        if request.method not in _ASKED:
            raise _wrong(f"it asks {request.method[:100]!r}")
    return need


def _wrong(why: str) -> jsonrpc.Malformed:
    return jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, f"the server's input_required result is not valid: {why}")


def requires(profile: int, requests: Mapping[str, InputRequest]) -> dict[str, Any]:
    """The ClientCapabilities that the questions need and the profile has not; {} when all may be asked."""
    lacking: dict[str, Any] = {}
    for request in requests.values():
        if capabilities.allows(profile, request.method, request.params):
            continue
        for name, value in capabilities.needed(request.method, request.params).items():
            lacking.setdefault(name, {}).update(value)
    return lacking


def as_input_request(message: jsonrpc.Message) -> InputRequest:
    """A request of an old server as a question of the new era: without what only the old one has. Raises Malformed."""
    return InputRequest(message.method, _portable(message.params))


def as_server_request(request: InputRequest, revision: str, elicitation: str) -> msgspec.Raw | bytes:
    """The params of the request that an old agent is asked with. elicitation: the `elicitationId` of a URL. Raises
    Malformed when its revision has no such question: the message names the mode, and not the URL."""
    if request.method != "elicitation/create":
        return request.params
    fields = jsonrpc.decode_fields(request.params)
    url = is_url(request)
    modes = revisions.has_modes(revision)
    if url and not modes:
        what = f"the server asks with an elicitation of mode 'url', which revision {revision} does not have"
        raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, what)
    if url:
        fields["elicitationId"] = msgspec.Raw(msgspec.json.encode(elicitation))
    elif not modes and "mode" in fields:
        del fields["mode"]
    else:
        return request.params
    return jsonrpc.encode_fields(fields)


def is_url(request: InputRequest) -> bool:
    """Whether it sends the user to a URL, to answer out of band."""
    if request.method != "elicitation/create":
        return False
    return jsonrpc.decode_string(jsonrpc.decode_fields(request.params).get("mode")) == "url"


class _UrlRequired(msgspec.Struct):
    elicitations: list[msgspec.Raw] = []


def url_elicitations(error: msgspec.Raw | bytes) -> list[tuple[str, InputRequest]]:
    """What an URLElicitationRequiredError (2025-11-25, -32042) wants opened: the elicitation's id, and the question of
    the new era. [] for other errors, and for one that cannot be read."""
    problem = jsonrpc.error_fields(error)
    if problem.code != revisions.URL_ELICITATION_REQUIRED or not len(problem.data):
        return []
    try:
        found = msgspec.json.decode(problem.data, type=_UrlRequired).elicitations[:_MOST]
        wanted = []
        for raw in found:
            fields = jsonrpc.decode_fields(raw)
            id = jsonrpc.decode_string(fields.get("elicitationId"))
            request = InputRequest("elicitation/create", _portable(raw))
            if id is None or not is_url(request):
                return []
            wanted.append((id, request))
    except (msgspec.DecodeError, jsonrpc.Malformed):
        return []
    return wanted


def _portable(params: msgspec.Raw) -> msgspec.Raw:
    """The params of a question without what only the old era has, and without what is each side's own."""
    fields = jsonrpc.decode_fields(params)
    meta = fields.pop("_meta", None)
    found = [name for name in _OLD if name in fields]
    if meta is None and not found:
        return params
    for name in found:
        del fields[name]
    kept = revisions.passing_meta(jsonrpc.decode_fields(meta)) if meta is not None else None
    if kept:
        fields["_meta"] = msgspec.Raw(jsonrpc.encode_fields(kept))
    return msgspec.Raw(jsonrpc.encode_fields(fields))


def render(requests: Mapping[str, InputRequest], state: str) -> bytes:
    """The `InputRequiredResult` of these questions."""
    fields: dict[str, Any] = {"resultType": RESULT_TYPE}
    if requests:
        fields["inputRequests"] = rendered(requests)
    fields["requestState"] = state
    return jsonrpc.encode_fields(fields)


def rendered(requests: Mapping[str, InputRequest]) -> dict[str, Any]:
    """`InputRequests`, to be encoded."""
    return {
        key: {"method": one.method, "params": one.params if len(one.params) else {}} for key, one in requests.items()
    }


def answers_of(raw: msgspec.Raw | bytes | None) -> dict[str, msgspec.Raw]:
    """`inputResponses` by key, {} when they are absent. Raises Malformed (INVALID_PARAMS) when one is no object."""
    if raw is None or not len(raw):
        return {}
    try:
        found = _responses.decode(raw)
    except msgspec.DecodeError:
        found = None
    if found is None or any(bytes(value)[:1] != b"{" for value in found.values()):
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, "inputResponses must be an object of results by their key")
    return found


def binding(method: str, server: str, name: str, arguments: msgspec.Raw | bytes) -> bytes:
    """A digest of what is asked, by which a state belongs to it. Spacing and order of members make no difference."""
    digest = hashlib.blake2b(_canonical(arguments), digest_size=16)
    digest.update(msgspec.json.encode((method, server, name)))
    return digest.digest()


def question(request: InputRequest) -> bytes:
    """A digest of a question: an answer to an equal one may be used again."""
    digest = hashlib.blake2b(_canonical(_portable(request.params)), digest_size=12)
    digest.update(request.method.encode())
    return digest.digest()


def _canonical(raw: msgspec.Raw | bytes) -> bytes:
    if not len(raw):
        return b""
    try:
        return _sorted.encode(msgspec.json.decode(raw))
    except (msgspec.DecodeError, RecursionError, ValueError):
        return bytes(raw)


def given_up(id: bytes, method: str) -> bytes:
    """The answer to a server's request that nobody will answer. id: the server's, raw."""
    if method == "elicitation/create":
        return jsonrpc.result(id, b'{"action":"cancel"}')
    if method == "sampling/createMessage":
        return jsonrpc.error(id, -1, "the user did not approve the sampling")
    return jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, "the client did not answer")
