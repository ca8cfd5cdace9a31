"""A provider: the APIs it speaks, and how each of them is asked.

Rule: what is the same for every request is rendered once. A provider is asked in the caller's own API where it speaks
that; else in one of the same kind that both can be translated to and from, and the first of those in its own order
counts.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from weakref import WeakSet

import msgspec
from pydantic import SecretStr

from tollhouse.backends.credential import Credential
from tollhouse.backends.health import Health
from tollhouse.backends.quota import Quota
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.net.client import Pool
from tollhouse.wire.llm import CODECS
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.vocabulary import Vocabularies

__all__ = ["Continuation", "Face", "Path", "Provider", "Sign", "Timeouts", "below"]

Raw = msgspec.Raw

Path = Callable[[str, bool], bytes]
"""A request's target, from the model's name there and whether a stream is wanted."""


class Sign(Protocol):
    """Header lines that prove one request. target, body: as they are sent. method: a GET has no content-type."""

    def __call__(self, target: bytes, body: bytes, method: bytes = b"POST") -> bytes: ...


_REQUEST_ID = b"x-request-id: "
_DOTS = frozenset((".", ".."))
_TRACE = frozenset((b"traceparent", b"tracestate"))
_USUAL = (
    (b"accept", b"application/json, text/event-stream"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollhouse"),
)
_JSON_LINE = b"content-type: application/json\r\n"
_LISTS = {"openai": b"/models", "azure": b"/models", "anthropic": b"/v1/models", "gemini": b"/models"}

_messages = msgspec.json.Decoder(list[Raw]).decode
_message = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. total: from the request's arrival to the last byte. first_event: to the first event of a stream.
    idle: between two pieces of an answer. connect: to open a connection. tunnel: a session without a byte either way.
    session: from its beginning to its end."""

    total: float = 300.0
    first_event: float = 60.0
    idle: float = 60.0
    connect: float = 5.0
    tunnel: float = 3600.0
    session: float = 7200.0


class Continuation(msgspec.Struct, frozen=True):
    """How a server is told that the assistant's message at the end of a request is the beginning of its answer. fields:
    of the request. message: of that message, where it stands in `messages`. echoes: the answer may begin with it."""

    fields: dict[str, Raw] = {}
    message: dict[str, Raw] = {}
    echoes: bool = False

    def told(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        """A request's fields that say so."""
        fields = {**fields, **self.fields}
        if self.message:
            messages = _messages(fields["messages"])
            messages[-1] = Raw(_encode({**_message(messages[-1]), **self.message}))
            fields["messages"] = Raw(_encode(messages))
        return fields


class Face:
    """One API at one place. codec: for callers of another API, None where it is only passed through. names_model: the
    model stands in the body; else in the path. adds: changes the body's fields, for a place that wants others.
    asks_usage: it takes `stream_options`. continues: how it goes on from an assistant's message at the end of a
    request; None where it answers with a new one."""

    __slots__ = (
        "_base", "_default", "_forwarded", "_path", "_rest", "_sign", "_start", "_usual", "adds", "asks_usage", "codec",
        "continues", "credential", "dialect", "names_model", "operation", "own", "pool",
    )  # fmt: skip

    def __init__(
        self,
        dialect: Dialect,
        pool: Pool,
        credential: Credential,
        *,
        target: bytes | Path,
        base: bytes | None = None,
        codec: Codec | None = None,
        fields: Mapping[str, SecretStr] | None = None,
        forwarded: Iterable[bytes] = (),
        default: tuple[bytes, bytes] | None = None,
        names_model: bool = True,
        asks_usage: bool = False,
        sign: Sign | None = None,
        adds: Callable[[dict[str, Raw]], dict[str, Raw]] | None = None,
        continues: Continuation | None = None,
    ) -> None:
        """target: of each request, or how it is made. base: the path that a probe's begins with, where it is not what
        stands before the dialect's own in `target`. fields: header fields from configuration, which take the place
        of ours and of the caller's. forwarded: of the caller's fields those that go along, beside the trace's.
        default: one of them for a caller who does not send it."""
        self.dialect = dialect
        self.operation = dialect.operation
        self.pool = pool
        self.credential = credential
        self.codec = codec
        self.names_model = names_model
        self.adds = adds
        self.asks_usage = asks_usage
        self.continues = continues
        self._sign = sign
        set_here = {name.lower().encode("ascii"): value for name, value in (fields or {}).items()}
        self._forwarded = _TRACE.union(forwarded).difference(set_here)
        self._default = b"%b: %b\r\n" % default if default is not None and default[0] not in set_here else b""
        lines = [b"host: %b\r\n" % pool.origin.authority]
        lines += [b"%b: %b\r\n" % (n, v.get_secret_value().strip().encode("latin-1")) for n, v in set_here.items()]
        lines += [b"%b: %b\r\n" % pair for pair in _USUAL if pair[0] not in set_here]
        self._rest = b" HTTP/1.1\r\n" + b"".join(lines)
        self.own = frozenset(line.partition(b":")[0] for line in lines)
        self._path: Path | None = None
        self._start = b""
        self._base = base or b""
        if isinstance(target, bytes):
            self._start = b"POST " + target + self._rest
            if base is None:
                self._base = target.partition(b"?")[0].removesuffix(dialect.path)
        else:
            self._path = target
        self._usual = self._default + _JSON_LINE + _REQUEST_ID

    def head(self, call: ModelCall, model: str, body: bytes) -> bytes:
        """The request head for a body, with the blank line. Raises Failure 400 for a name that is no model's, where it
        stands in the path."""
        start = self._start
        lines = self.credential.lines
        if not start:
            assert self._path is not None
            if "." in model and not _DOTS.isdisjoint(model.split("/")):
                # As a segment of a path it would mean another path.
                raise Failure(400, Reason.INVALID_REQUEST, f"{model!r} is not a model's name", code="invalid_model")
            target = self._path(model, call.stream)
            start = b"POST " + target + self._rest
            if self._sign is not None:
                lines = self._sign(target, body)
        context = call.context
        usual = self._usual
        if call.content_type:
            usual = self._default + b"content-type: %b\r\n" % call.content_type + _REQUEST_ID
        forwarded = self._forwarded
        for pair in call.request.headers:
            if pair[0] in forwarded:
                usual = self._along(call.request.headers) + usual[len(self._default) :]
                break
        return b"%b%b%b%b\r\ncontent-length: %d\r\n\r\n" % (
            start,
            lines,
            usual,
            context.request_id.encode(),
            len(body),
        )

    def native(self, method: bytes, target: bytes, lines: bytes) -> bytes:
        """The head of a request for anything below the base URL. lines: beside those that every request has, whose
        names are `own`."""
        return b"%b %b%b%b%b\r\n" % (method, self._base, target, self._rest, lines)

    def proof(self, target: bytes, body: bytes, lines: bytes) -> bytes:
        """What proves a POST of JSON below the base URL: `lines`, which are the credential's, or a signature."""
        return lines if self._sign is None else self._sign(self._base + target, body)

    def probe(self, path: bytes) -> bytes:
        """The head of a GET below the API's base, to see whether anybody is there; proven as its calls are."""
        target = self._base + path
        lines = self.credential.lines if self._sign is None else self._sign(target, b"", b"GET")
        return b"GET %b%b%b\r\n" % (target, self._rest, lines)

    def _along(self, headers: Headers) -> bytes:
        """The caller's header lines that go along."""
        lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] in self._forwarded]
        default = self._default
        if default and headers.get(default.partition(b":")[0]) is None:
            lines.append(default)
        return b"".join(lines)


def below(base: bytes, dialect: Dialect) -> Path:
    """Where requests of an API go that has the model's name in the path."""
    return lambda model, stream: base + dialect.target(model, stream=stream)


class Provider:
    """Where models are: one for each configured provider, shared by all its models.

    name: as configured. kind: "openai", "anthropic", "local"; `gen_ai_system` in metrics. faces: by the operation of
    their dialects, those to translate to in the order they are preferred. settled: it can be asked; else `ready` is
    awaited first. shown: names of the upstream's header fields, as what callers see them. vocabularies: to count with
    what it did not count, where they are loaded. lists: where its models are listed, below the base of its first face;
    b"" where they are not. known: the health of each target at it, as long as somebody else keeps that. quota: what it
    allows, None where that is not known.
    """

    __slots__ = (
        "_common",
        "clock",
        "faces",
        "kind",
        "known",
        "lists",
        "name",
        "quota",
        "settled",
        "shown",
        "vocabularies",
    )

    def __init__(self, name: str, kind: str, clock: Clock, faces: Iterable[Face] = ()) -> None:
        self.name = name
        self.kind = kind
        self.clock = clock
        self.lists = _LISTS.get(kind, b"")
        self.known: WeakSet[Health] = WeakSet()
        self.shown: dict[bytes, bytes | None] = {}
        self.vocabularies: Vocabularies | None = None
        self.quota: Quota | None = None
        self.faces: dict[str, Face] = {}
        self._common: dict[str, Face] = {}  # by the kind of their codecs
        self.settled = True
        self.take(faces)

    def take(self, faces: Iterable[Face]) -> None:
        """These are its faces."""
        self.faces = {face.operation: face for face in faces}
        common = [(face.codec.kind, face) for face in self.faces.values() if face.codec is not None]
        self._common = dict(reversed(common))  # the first of each kind
        self.settled = True

    @property
    def speaks(self) -> frozenset[str]:
        """The operations it understands without a translation."""
        return frozenset(self.faces)

    def answers(self, operation: str, translatable: bool) -> bool:
        """Whether it can be asked that. translatable: callers of the operation can be translated."""
        return operation in self.faces or (translatable and CODECS[operation].kind in self._common)

    def face(self, call: ModelCall, model: str) -> Face:
        """How to ask `model` what `call` asks. Raises KeyError where it does not answer that."""
        operation: str = call.operation
        return self.faces.get(operation) or self._common[CODECS[operation].kind]

    def unreached(self, told: Health, now: float) -> None:
        """It could not be reached, as `told` knows: the calls of other models need not find that out one by one. With
        several places it may be one of them alone."""
        if len(self.known) > 1 and len({face.pool for face in self.all_faces()}) <= 1:
            for health in self.known:
                if health is not told and health.usable(now):
                    health.failed(now, outright=True)

    def start(self) -> None:
        """Its configuration serves: begin what works ahead of requests."""
        for credential in self._credentials():
            credential.start()

    async def ready(self, deadline: float) -> None:
        """Bring it up. deadline: monotonic. Raises Failure 503 or 504."""

    async def close(self) -> None:
        """Stop what only this provider uses. Calls fail afterwards, if it had anything."""
        for credential in self._credentials():
            await credential.close()
        for pool in {face.pool for face in self.all_faces()}:
            pool.retire()

    def all_faces(self) -> Iterable[Face]:
        """At every place there is."""
        return self.faces.values()

    def _credentials(self) -> set[Credential]:
        return {face.credential for face in self.all_faces()}
