"""Active checks of a model's targets: a look at the provider's list of models, or a small call.

Rule: a check is proven as calls are, by the same credential: a key that is refused gives way to the next one here too,
and what can only be signed is signed. It raises nothing, and tells nobody's usage: what a call of ours costs is in no
record, since nobody asked for it.
"""

from time import monotonic

from tollhouse.backends.credential import MOST_KEYS
from tollhouse.backends.health import answered
from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.pool_spec import ModelCheckSpec
from tollhouse.backends.provider import Provider
from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.wire.llm import CHAT, CODECS, EMBEDDINGS
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.model import Chat, Message, Text

__all__ = ["can_tell", "is_well"]

_ID = "health-check"
_QUESTION = "ping"
_MAX_OUTPUT = 16  # tokens; the least that every API takes
_OPERATIONS = {"chat": CHAT, "embeddings": EMBEDDINGS}


def can_tell(backend: LLMBackend, check: ModelCheckSpec, name: str) -> bool:
    """Whether there is something to check. name: of the model that clients ask for."""
    provider = backend.provider
    if next(iter(provider.all_faces()), None) is None:
        return False  # it is no API over HTTP
    if check.model_call is None:
        return bool(check.path or provider.lists)
    operation = _OPERATIONS[check.model_call].operation
    return provider.answers(operation, operation in CODECS) and ("*" not in name or backend.is_fixed)


async def is_well(backend: LLMBackend, check: ModelCheckSpec, name: str) -> bool:
    """Whether the target answers within `check.timeout`. name: as above."""
    deadline = monotonic() + check.timeout
    provider = backend.provider
    try:
        if not provider.settled:
            await provider.ready(deadline)
        if check.model_call is not None:
            return await _answers(backend, _OPERATIONS[check.model_call], name, deadline)
        return await _is_there(provider, (check.path or "").encode("ascii") or provider.lists, deadline)
    except Failure:
        return False


async def _is_there(provider: Provider, path: bytes, deadline: float) -> bool:
    """Whether a GET is answered with 2xx or 3xx. Raises Failure."""
    face = next(iter(provider.all_faces()))
    credential = face.credential
    for _ in range(MOST_KEYS):
        if not credential.settled:
            await credential.ready(deadline)
        lines = credential.lines
        status = await answered(face.pool, face.probe(path), max(deadline - monotonic(), 0.001))
        if status not in (401, 403) or not credential.refused(lines, status, None):
            return 200 <= status < 400
        await credential.ready(deadline)
    return False


async def _answers(backend: LLMBackend, dialect: Dialect, name: str, deadline: float) -> bool:
    """Whether the model answers. Raises Failure."""
    asked = _call(dialect, name, deadline)
    if dialect is CHAT:
        # In the provider's own words: there a field has the name that its models take.
        model = backend.model(asked)
        face = backend.provider.face(asked, model)
        assert face.codec is not None
        chat = Chat(dialect.operation, name, [Message("user", [Text(_QUESTION)])], max_output=_MAX_OUTPUT)
        asked = _call(face.dialect, name, deadline)
        asked.fields = face.codec.encode(chat, Lost(), model=model, max_output=_MAX_OUTPUT)
    else:
        asked.fields = dict(dialect.decode(b'{"model":"","input":"%b"}' % _QUESTION.encode()).fields)
    asked.body = asked.dialect.encode(asked.fields, b"")
    reply = await backend.handle(asked)
    return reply.status == 200


def _call(dialect: Dialect, name: str, deadline: float) -> ModelCall:
    request = Request(b"POST", dialect.path, Headers())
    context = request.context
    context.request_id = _ID
    context.began = monotonic()
    context.deadline = deadline
    return ModelCall(
        request,
        context,
        dialect=dialect,
        operation=dialect.operation,
        model=name,
        label=name,
        stream=False,
        fields={},
        body=b"",
    )
