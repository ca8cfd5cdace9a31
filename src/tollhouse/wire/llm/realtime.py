"""OpenAI realtime: `GET /realtime?model=...` with an upgrade, then JSON events as WebSocket messages, both ways.

A session asks one model many times: `response.created` begins an answer and `response.done` ends it and tells its
usage, in which `input_tokens` is the whole conversation so far and includes cached tokens. What the caller said may be
transcribed beside that, by another model at its own price, which tells its usage too. An `error` ends nothing. The
model stands in the URL and stays: `session.update` changes all but model and voice. A session with
`intent=transcription` has no model in its URL upstream; what it transcribes with is named in `session.update`.

Azure has the same API at `/openai/v1/realtime`, and with a dated `api-version` at `/openai/realtime`, where the model
is called `deployment`.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.dialect import bytes_of
from tollhouse.wire.llm.openai_chat import OpenAIDialect
from tollhouse.wire.llm.system import System
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, of_text
from tollhouse.wire.llm.usage import ResponsesUsage, counted

__all__ = ["KEY_PROTOCOL", "OWN_PROTOCOLS", "Kind", "Opening", "Realtime", "RealtimeReader", "Told"]

Raw = msgspec.Raw
_ABSENT = Raw()

KEY_PROTOCOL = b"openai-insecure-api-key."
"""Begins the subprotocol by which a page, which can set no header, shows its key."""

OWN_PROTOCOLS = (KEY_PROTOCOL, b"openai-organization.", b"openai-project.")
"""Subprotocols that say who the caller is at OpenAI; the gateway has its own credentials there."""

_OURS = frozenset(("model", "deployment", "api-version", "api-key", "api_key", "key", "access_token"))
"""Of a caller's query, what the gateway says itself."""

_TRANSCRIPTION = "transcription"
_MOST = 64  # responses under way at once
_LONGEST = 256  # characters of a name or an id

_PCM, _G711 = 64_000, 10_667  # base64 characters in a second of sound
_HEARD, _SPOKEN = 10, 20  # tokens of a second of sound
_SOUND = 1024  # a client's message from so many bytes on is taken for sound


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    response_id: str = ""
    delta: str | None = None
    response: Raw = _ABSENT
    session: Raw = _ABSENT
    usage: Raw = _ABSENT
    error: Raw = _ABSENT


class _Response(msgspec.Struct, gc=False):
    id: str = ""
    status: str | None = None
    status_details: Raw = _ABSENT
    usage: Raw = _ABSENT
    max_output_tokens: Raw = _ABSENT


_event = msgspec.json.Decoder(_Event, strict=False).decode
_response = msgspec.json.Decoder(_Response, strict=False).decode
_usage = msgspec.json.Decoder(ResponsesUsage, strict=False).decode
_any = msgspec.json.Decoder(Any).decode
_error = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

_DONE = re.compile(rb'"type"\s*:\s*"response\.done"')
_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,128})"')
_SESSIONS = frozenset(
    ("session.created", "session.updated", "transcription_session.created", "transcription_session.updated")
)
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


class Opening(NamedTuple):
    """What a session's URL asks for. transcribes: it has no answers, only transcriptions."""

    model: str
    transcribes: bool


class Realtime(OpenAIDialect):
    """`GET /v1/realtime`. parameter: what the model is called in the query. fixed: what the query has besides."""

    __slots__ = ("_fixed", "_parameter")

    operation = "realtime"
    path = b"/realtime"
    streams = False

    def __init__(self, parameter: str = "model", fixed: str = "") -> None:
        self._parameter = parameter
        self._fixed = fixed

    def opening(self, query: bytes) -> Opening:
        """Read a request's query. Raises Failure 400 for one that names no model, or joins a call."""
        pairs = _pairs(query)
        names = [value for name, value in pairs if name in ("model", "deployment") and value]
        if any(name == "call_id" for name, _ in pairs):
            message = "calls are not joined here: only sessions of their own are passed on, which name their model"
            raise Failure(400, Reason.INVALID_REQUEST, message, code="unsupported_operation")
        if len(names) != 1:
            message = "name the model once, as in /v1/realtime?model=NAME"
            if _transcribes(pairs):
                message += "; of a transcription it is the model that transcribes"
            raise Failure(400, Reason.INVALID_REQUEST, message, code="model_required")
        return Opening(names[0], _transcribes(pairs))

    def connect(self, model: str, query: bytes) -> bytes:
        """The target below a provider's base URL, with what else the caller's query says."""
        pairs = _pairs(query)
        rest = [(name, value) for name, value in pairs if name not in _OURS]
        if not _transcribes(pairs):
            rest.insert(0, (self._parameter, model))
        said = "&".join(filter(None, (self._fixed, urlencode(rest, quote_via=quote))))
        return b"%b?%b" % (self.path, said.encode("ascii")) if said else self.path

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        return None, ""

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        return 0  # opening a session asks nothing yet

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        """A session says its instructions in its events, which pass as they are."""

    def words(self, failure: Failure, request_id: str) -> bytes:
        """A Failure as an `error` event, JSON."""
        told = _error(_error(self.error(failure, request_id))["error"])
        told["event_id"] = Raw(b"null")
        return _encode({"type": "error", "event_id": f"event_{request_id}", "error": told})


class Kind(Enum):
    """What a server's event means to the gateway."""

    SESSION = auto()  # what the session is has been told, or has changed
    BEGAN = auto()  # a response begins
    SPOKE = auto()  # the first piece of it
    ENDED = auto()  # it is over
    TRANSCRIBED = auto()  # what the caller said is text
    ERROR = auto()


class Told(msgspec.Struct, gc=False):
    """One event. response: the id of the one that it is about. usage: None where it was not told. status: of a response
    that ended ("completed", "cancelled", "failed", "incomplete"). output: the most tokens a response may have. detail:
    what went wrong, for the log."""

    kind: Kind
    response: str = ""
    usage: Usage | None = None
    status: str = ""
    output: int = DEFAULT_OUTPUT
    detail: str = ""


class _Seen(msgspec.Struct, gc=False):
    """What has come of a response: bytes of text, and of sound as base64. asked, heard: what was sent before it."""

    text: int = 0
    sound: int = 0
    asked: int = 0
    heard: int = 0


class RealtimeReader:
    """Reads a server's events. model: that answers, as the server calls it. transcription: that transcribes. Both ""
    until it is known."""

    __slots__ = ("_asked", "_before", "_heard", "_open", "_per_heard", "_per_spoken", "model", "transcription")

    def __init__(self) -> None:
        self.model = ""
        self.transcription = ""
        self._before = 0  # tokens of the conversation up to the last response that told
        self._asked = 0  # bytes of text that the client has sent since,
        self._heard = 0  # and of sound
        self._open: dict[str, _Seen] = {}
        self._per_heard = _PCM // _HEARD
        self._per_spoken = _PCM // _SPOKEN

    def sent(self, size: int) -> None:
        """The client has sent a message of so many bytes."""
        if size < _SOUND:
            self._asked += size
        else:
            self._heard += size

    def read(self, payload: bytes, whole: bool = True) -> Told | None:
        """What a message of the server's means; None where it is of no concern. whole: else it is the beginning of one.
        Raises Failure 502 for more responses at once than there can be."""
        if not whole:
            return self._long(payload)
        try:
            event = _event(payload)
        except UNREADABLE:
            return None  # not for us to judge; it passes
        kind = event.type
        if event.delta is not None:
            return self._piece(kind, event.response_id[:_LONGEST], event.delta)
        if kind == "response.created" or kind == "response.done":
            try:
                response = _response(event.response)
            except UNREADABLE:
                response = _Response()
            id = response.id[:_LONGEST]
            return self._began(id, response) if kind == "response.created" else self._ended(id, response)
        if kind in _SESSIONS:
            self._session(event.session)
            return Told(Kind.SESSION)
        if kind == _TRANSCRIBED:
            return Told(Kind.TRANSCRIBED, usage=counted(_usage, event.usage))
        if kind == "error":
            return Told(Kind.ERROR, detail=_detail(_plain(event.error)))
        return None

    def prompt(self) -> Usage:
        """Input tokens that a response would have now, as estimated."""
        return self._prompt(self._asked, self._heard)

    def unfinished(self, response: str) -> Usage:
        """What a response came to that did not tell, as estimated from what was seen of it."""
        seen = self._open.get(response)
        if seen is None:
            return self.prompt()
        usage = self._prompt(seen.asked, seen.heard)
        usage.audio_output = sound = _tokens(seen.sound, self._per_spoken)
        usage.output = of_text(seen.text) + sound
        return usage

    def forget(self, response: str) -> None:
        """It is over."""
        self._open.pop(response, None)

    # ---- events
    def _began(self, id: str, response: _Response) -> Told:
        if len(self._open) >= _MOST:
            message = f"the provider has begun more than {_MOST} responses at once"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, sent=True)
        self._open[id] = _Seen(asked=self._asked, heard=self._heard)
        told = Told(Kind.BEGAN, id)
        bound = bytes(response.max_output_tokens)
        if bound.isdigit() and len(bound) < 10:
            told.output = int(bound)
        return told

    def _piece(self, kind: str, id: str, delta: str) -> Told | None:
        seen = self._open.get(id)
        if seen is None or not kind.startswith("response."):
            return None
        first = not (seen.text or seen.sound)
        if kind.endswith("audio.delta"):
            seen.sound += len(delta)
        else:
            seen.text += bytes_of(delta)
        return Told(Kind.SPOKE, id) if first else None

    def _ended(self, id: str, response: _Response) -> Told:
        usage = counted(_usage, response.usage)
        seen = self._open.get(id)
        if usage is not None and not usage.total and seen is not None and (seen.text or seen.sound):
            usage = None  # what was said is never free: it is estimated
        if usage is not None:
            self._before = usage.total
            self._asked -= self._asked if seen is None else min(seen.asked, self._asked)
            self._heard -= self._heard if seen is None else min(seen.heard, self._heard)
        told = Told(Kind.ENDED, id, usage, (response.status or "")[:_LONGEST])
        details = _plain(response.status_details)
        if isinstance(details, dict) and details.get("error"):
            told.detail = _detail(details["error"])
        return told

    def _long(self, beginning: bytes) -> Told | None:
        """The beginning of an event that is too long to be kept: whether it ends a response."""
        if _DONE.search(beginning, 0, 1024) is None:
            return None
        found = _ID.search(beginning)
        return Told(Kind.ENDED, found[1].decode("ascii") if found is not None else next(iter(self._open), ""))

    def _session(self, raw: Raw) -> None:
        session = _plain(raw)
        model = _at(session, "model")
        if isinstance(model, str):
            self.model = model[:_LONGEST]
        transcribes = _at(session, "audio", "input", "transcription") or _at(session, "input_audio_transcription")
        model = _at(transcribes, "model")
        if isinstance(model, str):
            self.transcription = model[:_LONGEST]
        heard = _at(session, "audio", "input", "format", "type") or _at(session, "input_audio_format")
        spoken = _at(session, "audio", "output", "format", "type") or _at(session, "output_audio_format")
        self._per_heard = _second(heard) // _HEARD
        self._per_spoken = _second(spoken) // _SPOKEN

    def _prompt(self, asked: int, heard: int) -> Usage:
        sound = _tokens(heard, self._per_heard)
        return Usage(self._before + of_text(asked) + sound, estimated=True, audio_input=sound)


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:  # UnicodeDecodeError among them
        message = "the query is no list of percent-encoded names and values"
        raise Failure(400, Reason.INVALID_REQUEST, message) from None


def _transcribes(pairs: list[tuple[str, str]]) -> bool:
    return ("intent", _TRANSCRIPTION) in pairs


def _tokens(size: int, per_token: int) -> int:
    return -(-size // per_token)


def _second(form: object) -> int:
    """Base64 characters of a second of sound in that format."""
    narrow = isinstance(form, str) and ("pcmu" in form or "pcma" in form or "g711" in form)
    return _G711 if narrow else _PCM


def _plain(raw: Raw) -> Any:
    try:
        return _any(raw) if bytes(raw) else None
    except UNREADABLE:
        return None


def _at(value: Any, *names: str) -> Any:
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _detail(error: Any) -> str:
    """An error object as one line."""
    if not isinstance(error, dict):
        return "error"
    kind = error.get("code") or error.get("type") or "error"
    return f"{kind}: {error.get('message') or ''}"[:500]
