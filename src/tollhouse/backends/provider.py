"""A provider: the APIs it speaks, and how each of them is asked.

Rule: what is the same for every request is rendered once. A provider is asked in the caller's own API where it speaks
that; else in one that both can be translated to and from, and the first of those in its own order counts.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec
from pydantic import SecretStr

from tollhouse.backends.credential import Credential
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.net.client import Pool
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.vocabulary import Vocabularies

__all__ = ["Face", "Provider", "Timeouts"]

Raw = msgspec.Raw

Path = Callable[[str, bool], bytes]
"""A request's target, from the model's name there and whether a stream is wanted."""

Sign = Callable[[bytes, bytes], bytes]
"""Header lines that prove one request: from its target and its body."""

_REQUEST_ID = b"x-request-id: "
_DOTS = frozenset((".", ".."))
_TRACE = frozenset((b"traceparent", b"tracestate"))
_USUAL = (
    (b"accept", b"application/json, text/event-stream"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"tollhouse"),
)
_JSON_LINE = b"content-type: application/json\r\n"


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. total: from the request's arrival to the last byte. first_event: to the first event of a stream.
    idle: between two pieces of an answer. connect: to open a connection."""

    total: float = 300.0
    first_event: float = 60.0
    idle: float = 60.0
    connect: float = 5.0


class Face:
    """One API at one place. codec: for callers of another API, None where it is only passed through. names_model: the
    model stands in the body; else in the path. adds: changes the body's fields, for a place that wants others.
    asks_usage: it takes `stream_options`. continues: fields with which it goes on from an assistant's message at the
    end of a request; None where it answers with a new one."""

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
        continues: dict[str, Raw] | None = None,
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

    def probe(self, path: bytes) -> bytes:
        """The head of a GET below the API's base, to see whether anybody is there."""
        return b"GET %b%b%b%b\r\n" % (self._base, path, self._rest, self.credential.lines)

    def _along(self, headers: Headers) -> bytes:
        """The caller's header lines that go along."""
        lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] in self._forwarded]
        default = self._default
        if default and headers.get(default.partition(b":")[0]) is None:
            lines.append(default)
        return b"".join(lines)


class Provider:
    """Where models are: one for each configured provider, shared by all its models.

    name: as configured. kind: "openai", "anthropic", "local"; `gen_ai_system` in metrics. faces: by the operation of
    their dialects, those to translate to in the order they are preferred. settled: it can be asked; else `ready` is
    awaited first. shown: names of the upstream's header fields, as what callers see them. vocabularies: to count with
    what it did not count, where they are loaded.
    """

    __slots__ = ("_common", "clock", "faces", "kind", "name", "settled", "shown", "vocabularies")

    def __init__(self, name: str, kind: str, clock: Clock, faces: Iterable[Face] = ()) -> None:
        self.name = name
        self.kind = kind
        self.clock = clock
        self.shown: dict[bytes, bytes | None] = {}
        self.vocabularies: Vocabularies | None = None
        self.faces: dict[str, Face] = {}
        self._common: Face | None = None
        self.settled = True
        self.take(faces)

    def take(self, faces: Iterable[Face]) -> None:
        """These are its faces."""
        self.faces = {face.operation: face for face in faces}
        self._common = next((face for face in self.faces.values() if face.codec is not None), None)
        self.settled = True

    @property
    def speaks(self) -> frozenset[str]:
        """The operations it understands without a translation."""
        return frozenset(self.faces)

    def answers(self, operation: str, translatable: bool) -> bool:
        """Whether it can be asked that. translatable: callers of the operation can be translated."""
        return operation in self.faces or (translatable and self._common is not None)

    def face(self, call: ModelCall, model: str) -> Face:
        """How to ask `model` what `call` asks. Raises KeyError where it does not answer that."""
        face = self.faces.get(call.operation) or self._common
        if face is None:
            raise KeyError(call.operation)
        return face

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
