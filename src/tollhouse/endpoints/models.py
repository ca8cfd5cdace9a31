"""The names clients may ask for: finding one, and listing them at `/v1/models` and `/v1beta/models`.

Rule: finding a name costs the same whatever the number of names; a name that may not be asked for is not shown,
neither in a list nor by its id nor as a suggestion. What asks no model is put to `admit`, so that rules and limits see
every request.
"""

from base64 import b64decode, urlsafe_b64encode
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from tollhouse.core.call import Call, ModelCall, Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Headers, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.wire.llm import CHAT, GENERATE, MESSAGES
from tollhouse.wire.llm.dialect import Dialect

__all__ = ["Admit", "Model", "Models", "ModelsEndpoint", "Permitted", "Shown", "refusal_of", "unknown_model"]

Permitted = Callable[[Principal | None, str], bool]
"""Whether this principal may ask for a model by that name."""

Shown = Callable[[Principal | None, Sequence[str]], Awaitable[Sequence[bool]]]
"""The same of many that are permitted so far, in their order, where somebody has to be waited for."""

Admit = Callable[[Call], Awaitable[None]]
"""Asked before what reaches no model: rules and limits of the top. Raises Failure."""

LONGEST = 256
"""Characters of a model's name: no longer one is configured, looked for or remembered."""

_AROUND = 32  # names looked at for suggestions, on either side in the alphabet
_PAGE = 1000
_GOOGLE_PAGE = 50
_GOOGLE_METHODS = ("generateContent", "countTokens", "embedContent", "batchEmbedContents")
"""All that can be asked below a name there; what a model is for, the gateway does not know."""

_GOOGLES = (b"x-goog-api-key", b"x-goog-api-client")
_RESOURCE = "models/"

_encode = msgspec.json.Encoder().encode


class Model(msgspec.Struct, frozen=True):
    """A configured model. name: exact, or with one `*`. handler: its whole call chain. created: unix seconds. aliases:
    further exact names; a call has the model's own."""

    name: str
    handler: Handler[ModelCall, Reply]
    owned_by: str = "tollhouse"
    created: int = 0
    aliases: tuple[str, ...] = ()


class Models:
    """Finds the Model for a name: the exact one, else the wildcard with the longest prefix, then suffix.

    Exact names are one dict lookup. Wildcards are grouped by the length of their prefix: one slice and one lookup for
    each length there is, however many wildcards. shown: asked before names are told, None where nobody is.
    """

    __slots__ = ("_exact", "_names", "_own", "_prefixes", "_sizes", "shown")

    def __init__(self, models: Iterable[Model], *, shown: Shown | None = None) -> None:
        """Raises ValueError for a name with several `*`, and for one that comes twice."""
        self.shown = shown
        self._exact: dict[str, Model] = {}  # aliases among them
        self._own: dict[str, str] = {}
        self._prefixes: dict[str, list[tuple[str, Model]]] = {}
        names: set[str] = set()
        for model in models:
            for alias in model.aliases:
                if alias in names:
                    raise ValueError(f"the model {alias!r} is there twice")
                names.add(alias)
                self._exact[alias] = model
                self._own[alias] = model.name
            prefix, star, suffix = model.name.partition("*")
            if "*" in suffix:
                raise ValueError(f"the model name {model.name!r} has more than one *")
            if model.name in names:
                raise ValueError(f"the model {model.name!r} is there twice")
            names.add(model.name)
            if star:
                self._prefixes.setdefault(prefix, []).append((suffix, model))
            else:
                self._exact[model.name] = model
        for group in self._prefixes.values():
            group.sort(key=lambda pair: -len(pair[0]))
        self._sizes = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)
        self._names = sorted(self._exact)

    def __len__(self) -> int:
        return len(self._exact) + sum(map(len, self._prefixes.values()))

    def find(self, name: str) -> Model | None:
        """The Model that answers for `name`."""
        model = self._exact.get(name)
        if model is None and self._sizes and 0 < len(name) <= LONGEST:
            return self._wild(name)
        return model

    def _wild(self, name: str) -> Model | None:
        size = len(name)
        for length in self._sizes:
            if length > size:
                continue
            group = self._prefixes.get(name[:length])
            if group is not None:
                for suffix, model in group:
                    if length + len(suffix) <= size and name.endswith(suffix):
                        return model
        return None

    def own(self, name: str) -> str:
        """The name of the model that an alias stands for; any other name is its own."""
        return self._own.get(name, name)

    def all(self) -> list[Model]:
        """Exact names and aliases, each as a Model of that name, in alphabetical order, then wildcards as they are
        matched."""
        exact = [self._exact[name] for name in self._names]
        if self._own:
            exact = [msgspec.structs.replace(m, name=n) for n, m in zip(self._names, exact, strict=True)]
        wild = [
            model
            for length in self._sizes
            for prefix in sorted(p for p in self._prefixes if len(p) == length)
            for _, model in self._prefixes[prefix]
        ]
        return exact + wild

    def nearest(self, name: str, permitted: Callable[[str], bool], count: int = 3) -> list[str]:
        """Permitted names that `name` may have been meant for, the best first. Looks at few, however many there are."""
        if len(name) > LONGEST:
            return []
        names = self._names
        if len(names) > 2 * _AROUND:
            at = bisect_left(names, name)
            names = names[max(at - _AROUND, 0) : at + _AROUND]
        close = get_close_matches(name, [n for n in names if len(n) <= LONGEST], n=count + 5, cutoff=0.6)
        return [n for n in close if permitted(self.own(n))][:count]


def apart(request: Request) -> ModelCall:
    """A call of no model: what rules and limits are asked about before an answer of our own."""
    return ModelCall(
        request,
        request.context,
        dialect=None,
        operation="",
        model="",
        label="",
        stream=False,
        fields={},
        body=b"",
        reserve=0,
    )


async def unknown_model(models: Models, name: str, permitted: Permitted, principal: Principal | None) -> Failure:
    """404 for a name that is not there, with those that may have been meant."""
    shown = name if len(name) <= 100 else name[:100] + "..."
    near = models.nearest(name, lambda n: permitted(principal, n))
    if near and models.shown is not None:
        told = await models.shown(principal, [models.own(n) for n in near])
        near = [n for n, may in zip(near, told, strict=True) if may]
    if near:
        hint = "did you mean " + " or ".join(map(repr, near)) + "?"
    else:
        hint = "GET /v1/models lists those that are."
    return Failure(404, Reason.NOT_FOUND, f"the model {shown!r} is not there: {hint}", code="model_not_found")


async def refusal_of(name: str, models: Models, request: Request, permitted: Permitted, admit: Admit | None) -> Failure:
    """What a request for the model `name`, which is none of `models`, is refused with. `admit` is asked first: guessing
    names is not free. Raises Failure."""
    context = request.context
    context.model_asked = name[:LONGEST]
    if admit is not None:
        await admit(apart(request))
    return await unknown_model(models, name, permitted, context.principal)


class ModelsEndpoint:
    """`GET /v1/models` and `GET /v1/models/{id}`, in Anthropic's shape for a caller who sends `anthropic-version`, in
    Google's for one who sends its clients' headers, else in OpenAI's. Wildcards are listed by their pattern, last; a
    name that a wildcard matches can be asked for by id.

    admit: awaited with a call of no model before every answer. path: of the list. google: it is an address of Google's
    API alone."""

    __slots__ = ("_admit", "_google", "_models", "_path", "_permitted", "render")

    def __init__(
        self,
        models: Models,
        permitted: Permitted,
        *,
        admit: Admit | None = None,
        path: bytes = b"/v1/models",
        google: bool = False,
    ) -> None:
        self._google = google
        self.render: Callable[[Failure, Request], Response] = GENERATE.render if google else _render
        self._models = models
        self._permitted = permitted
        self._admit = admit
        self._path = path

    async def handle(self, request: Request) -> Response:
        """Raises Failure 404 for an unknown id, 405 for another method, 400 for a bad query, and what `admit` says."""
        if request.method not in (b"GET", b"HEAD"):
            headers = ((b"allow", b"GET, HEAD"),)
            raise Failure(405, Reason.INVALID_REQUEST, "models are read with GET", headers=headers)
        if self._admit is not None:
            await self._admit(apart(request))
        dialect: Dialect = GENERATE if self._google else _asked(request)
        rest = request.path[len(self._path) :].strip(b"/")
        if rest:
            name = unquote_to_bytes(rest).decode("utf-8", "replace")
            content = await self._one(name, request.context.principal, dialect)
        else:
            models = self._permitted_to(request.context.principal)
            if self._models.shown is not None:
                own = self._models.own
                told = await self._models.shown(request.context.principal, [own(m.name) for m in models])
                models = [m for m, may in zip(models, told, strict=True) if may]
            content = _list(models, request, dialect)
        return Response(200, Headers([(b"content-type", b"application/json")]), _encode(content))

    async def _one(self, name: str, principal: Principal | None, dialect: Dialect) -> dict[str, object]:
        models = self._models
        model = models.find(name)
        own = models.own(name)
        may = model is not None and self._permitted(principal, own)
        if may and models.shown is not None:
            (may,) = await models.shown(principal, (own,))
        if model is None or not may:
            raise await unknown_model(models, name, self._permitted, principal)
        return _shape(model, name, dialect)

    def _permitted_to(self, principal: Principal | None) -> list[Model]:
        own = self._models.own
        return [m for m in self._models.all() if self._permitted(principal, own(m.name))]


def _list(models: list[Model], request: Request, dialect: Dialect) -> dict[str, object]:
    if dialect is CHAT:
        return {"object": "list", "data": [_shape(m, m.name, dialect) for m in models]}
    if dialect is GENERATE:
        page, token = _google_page(models, request)
        return {"models": [_shape(m, m.name, dialect) for m in page], **token}
    page, more = _page(models, request)
    return {
        "data": [_shape(m, m.name, dialect) for m in page],
        "has_more": more,
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }


def _asked(request: Request) -> Dialect:
    """Whose API the caller speaks, at an address that several have."""
    if request.header(b"anthropic-version") is not None:
        return MESSAGES
    return GENERATE if any(name in _GOOGLES for name, _ in request.headers) else CHAT


def _render(failure: Failure, request: Request) -> Response:
    """A Failure in the shape the caller reads."""
    return _asked(request).render(failure, request)


def _shape(model: Model, name: str, dialect: Dialect) -> dict[str, object]:
    if dialect is MESSAGES:
        return {"type": "model", "id": name, "display_name": name, "created_at": _date(model.created)}
    if dialect is GENERATE:
        return {"name": _RESOURCE + name, "displayName": name, "supportedGenerationMethods": _GOOGLE_METHODS}
    return {"id": name, "object": "model", "created": model.created, "owned_by": model.owned_by}


def _date(seconds: int) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _page(models: list[Model], request: Request) -> tuple[list[Model], bool]:
    """Anthropic's cursors: `after_id` or `before_id`, and `limit` (20 unless given, 1000 at most)."""
    query = dict(pair.partition(b"=")[::2] for pair in request.query.split(b"&"))
    limit = query.get(b"limit", b"20")
    if not limit.isdigit() or len(limit) > 4 or not 1 <= int(limit) <= _PAGE:
        raise Failure(400, Reason.INVALID_REQUEST, f"limit must be a number from 1 to {_PAGE}")
    size = int(limit)
    names = [m.name for m in models]
    if b"before_id" in query:
        end = _place(names, query[b"before_id"])
        begin = max(end - size, 0)
        return models[begin:end], begin > 0
    begin = _place(names, query[b"after_id"]) + 1 if b"after_id" in query else 0
    return models[begin : begin + size], begin + size < len(models)


def _google_page(models: list[Model], request: Request) -> tuple[list[Model], dict[str, str]]:
    """Google's cursor: `pageSize` (50 unless given, 1000 at most) and `pageToken`; and what leads to the next page."""
    query = dict(parse_qsl(request.query))
    size = query.get(b"pageSize", query.get(b"page_size", b"")) or b"0"
    if not size.isdigit() or len(size) > 9:
        raise Failure(400, Reason.INVALID_REQUEST, "pageSize must be a number")
    token = query.get(b"pageToken", query.get(b"page_token", b""))
    try:
        after = b64decode(token, b"-_", validate=True).decode()
    except ValueError:
        after = "\0"
    names = [m.name for m in models]
    if after and after not in names:
        raise Failure(400, Reason.INVALID_REQUEST, "pageToken is none that this list gave out: begin again without it")
    begin = names.index(after) + 1 if after else 0
    page = models[begin : begin + (min(int(size), _PAGE) or _GOOGLE_PAGE)]
    if begin + len(page) >= len(models):
        return page, {}
    return page, {"nextPageToken": urlsafe_b64encode(page[-1].name.encode()).decode("ascii")}


def _place(names: list[str], raw: bytes) -> int:
    name = unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")
    try:
        return names.index(name)
    except ValueError:
        raise Failure(400, Reason.INVALID_REQUEST, f"no model has the id {name[:100]!r}") from None
