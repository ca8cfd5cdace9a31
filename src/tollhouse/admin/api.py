"""The admin API: JSON over HTTP for operators, on a listener of its own.

Rule: nobody is answered who has not shown a key, not even with a 404; every write is logged with who has made it and
what became of it; a body has the type that its operation says, or is refused with its place.
"""

import logging
import re
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from hashlib import sha256
from urllib.parse import parse_qsl

import msgspec

from tollhouse.admin.accounts import AccountsResource
from tollhouse.admin.approvals import Approvals
from tollhouse.admin.budgets import BudgetsResource
from tollhouse.admin.cache import CacheResource
from tollhouse.admin.door import Door
from tollhouse.admin.keys import Keys
from tollhouse.admin.openapi import document
from tollhouse.admin.operation import Answer, Asked, Operation, invalid, missing
from tollhouse.admin.revocations import RevocationsResource
from tollhouse.admin.signing_keys import SigningKeysResource
from tollhouse.admin.token import token_file, token_in
from tollhouse.admin.usage import Usage
from tollhouse.config.server import AdminSpec
from tollhouse.core.call import Principal
from tollhouse.core.depth import decode
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.gateway.premises import Premises
from tollhouse.policies.audit import Audit, Deed
from tollhouse.wire.mcp.letters import visible

__all__ = ["Api", "api"]

log = logging.getLogger("tollhouse.admin")

_DOCUMENT = b"/openapi.json"
_DEEPEST = 16
_MOST = 1000
_FIELDS = 40
_LARGEST = 64 << 10
_HEADERS = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


def api(premises: Premises) -> Handler[Request, Response]:
    """The handler of the admin listener. Raises ConfigError where its token cannot be kept."""
    resources = (
        Keys(premises),
        Approvals(premises),
        CacheResource(premises),
        BudgetsResource(premises),
        AccountsResource(premises),
        RevocationsResource(premises),
        SigningKeysResource(premises),
        Usage(premises),
    )
    operations = [operation for resource in resources for operation in resource.operations()]
    return Api(_Doors(premises).now, operations, premises.audit).handle


class _Doors:
    """The door of the configuration that serves: an operator who is taken out of the file has no key any more."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises
        self._spec = premises.spec
        self._door = self._made(premises.spec)

    def now(self) -> Door:
        """Raises Failure 503 where a token should be kept, and cannot."""
        spec = self._premises.config().server.admin
        if spec is not None and spec is not self._spec:
            try:
                self._door = self._made(spec)
            except ConfigError as error:
                raise Failure(
                    503, Reason.INTERNAL, "operators cannot be known at the moment; the log says why", detail=str(error)
                ) from None
            self._spec = spec
        return self._door

    def _made(self, spec: AdminSpec) -> Door:
        keys = [(one.name, one.digest) for one in spec.keys]
        if not keys:
            file = token_file(self._premises.config())
            keys = [("admin", sha256(token_in(file).encode()).digest())]
            log.info("the admin API's token is in %s", file)
        return Door(keys, self._premises.name, spec.hosts)


class Api:
    """Joins operations. door: lets operators in. audit: records what they do, where that is on."""

    def __init__(
        self, door: Callable[[], Door], operations: Sequence[Operation], audit: Callable[[], Audit | None]
    ) -> None:
        self._door = door
        self._audit = audit
        self._document = document(operations)
        self._paths: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        for path in dict.fromkeys(operation.path for operation in operations):
            before, id, after = path.partition("{id}")
            pattern = re.escape(before) + (r"([A-Za-z0-9_-]{1,64})" if id else "()") + re.escape(after)
            self._paths.append((re.compile(pattern), {one.method: one for one in operations if one.path == path}))

    async def handle(self, request: Request) -> Response:
        """Raises Failure."""
        try:
            return await self._handle(request)
        except Failure as failure:
            if failure.detail:
                log.error("%s: %s", failure.message, failure.detail)
            raise

    async def _handle(self, request: Request) -> Response:
        operator = self._door().admit(request)
        method = "GET" if request.method == b"HEAD" else request.method.decode("latin-1")
        if request.path == _DOCUMENT and method == "GET":
            return Response(200, list(_HEADERS), self._document)
        operation, id = self._find(request, method)
        if operation.method == "GET":
            answer = await self._answer(operation, request, Asked(operator, id))
        else:
            answer = await self._done(operation, request, Asked(operator, id))
        return Response(operation.status, list(_HEADERS), msgspec.json.encode(answer.value))

    async def _done(self, operation: Operation, request: Request, asked: Asked) -> Answer:
        """What was written, with its line in the log and its record."""
        operator = asked.operator
        request.context.principal = Principal(f"operator:{operator}", source="operator", user=operator, key=operator)
        deed = Deed(f"admin.{operation.name}", asked.id)
        audit = self._audit()
        who = (operation.name, operator, request.peer, asked.id or "-")
        try:
            if audit is not None:
                audit.deed(request, deed)
            answer = await self._answer(operation, request, asked)
        except Failure as failure:
            log.warning("%s by %s from %s: %s: refused with %d: %s", *who, failure.status, visible(failure.message))
            raise
        except CancelledError:
            log.warning("%s by %s from %s: %s: has left before the answer; it may have been done", *who)
            raise
        except BaseException:  # a bug, which is told in full where it is answered
            log.error("%s by %s from %s: %s: has failed; it may have been done", *who)
            raise
        deed.target = answer.said
        log.info("%s by %s from %s: %s", operation.name, operator, request.peer, answer.said)
        return answer

    def _find(self, request: Request, method: str) -> tuple[Operation, str]:
        path = request.path.decode("latin-1")
        for pattern, methods in self._paths:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if method not in methods:
                allow = ", ".join(methods)
                raise Failure(
                    405,
                    Reason.INVALID_REQUEST,
                    f"only {allow} is understood here",
                    headers=((b"allow", allow.encode()),),
                )
            return methods[method], found[1]
        raise missing("nothing is here; GET /openapi.json says what there is")

    async def _answer(self, operation: Operation, request: Request, asked: Asked) -> Answer:
        limit, cursor, query = _page(operation, request.query)
        body = _checked(operation, request, await request.read(_LARGEST))
        return await operation.answer(asked._replace(body=body, limit=limit, cursor=cursor, query=query))


def _page(operation: Operation, query: bytes) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """limit, cursor, and what else the operation knows. Raises Failure 400."""
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=_FIELDS
        )
    except ValueError:
        raise invalid("the query is not one of names and values") from None
    again = {name.removesuffix("[]") for name, _ in operation.query if name.endswith("[]")}
    own = {name.removesuffix("[]") for name, _ in operation.query}
    once = [name for name, _ in pairs if name not in again]
    given = dict(pairs)
    known = [*(("limit", "cursor") if operation.listed else ()), *sorted(own)]
    if len(set(once)) < len(once) or any(name not in known for name in given):
        raise invalid(f"of the query only {' and '.join(known)} are known, once" if known else "no query is known here")
    limit = given.get("limit", "100")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= _MOST):
        raise invalid(f"`limit` is a number from 1 to {_MOST}")
    return int(limit), given.get("cursor", ""), tuple((name, value) for name, value in pairs if name in own)


def _checked(operation: Operation, request: Request, raw: bytes) -> object:
    """The body, of the type that the operation takes. Raises Failure 400 and 415."""
    if not raw and (operation.takes is None or operation.optional):
        return None
    if operation.takes is None or not raw:
        raise invalid("this takes no body" if raw else "a body is missing; GET /openapi.json says of what type")
    kind = (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Failure(415, Reason.INVALID_REQUEST, "write a body of the type application/json")
    try:
        return msgspec.convert(decode(raw, _DEEPEST), operation.takes)
    except (ValueError, msgspec.ValidationError) as error:
        raise invalid(f"the body cannot be used: {error}") from None
