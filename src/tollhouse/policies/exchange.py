"""Exchange: a call goes out with a token that was made for it, and with nothing of the caller's (RFC 8693).

Rule: innermost of all, so that what is tried again is tried with a token that is good now. There is no way around it:
where no token can be made the call fails, and the caller's own token is never sent instead (`passthrough` is for
servers that it was made for). To a server at which users have accounts go the tokens of those. What was made is
remembered with the Principal it stands for and dies with it; it is used in the first half of its life, and no longer
when the configuration, the issuer's keys or anything that was revoked is another.
"""

from collections.abc import Awaitable, Callable, Mapping
from time import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from tollhouse.core.call import Call, Context, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Accounts, Exchanger, Minted, Target
from tollhouse.core.reply import Reply
from tollhouse.policies.authenticate.challenge import Challenges, insufficient, metadata_url
from tollhouse.policies.authenticate.requires import plain_path
from tollhouse.policies.base import Kind, Layer, Parts, wrong
from tollhouse.policies.exchange_spec import HOW, ExchangeSpec, ToolExchangeSpec
from tollhouse.policies.passthrough import Passthrough

__all__ = ["EXCHANGE", "EXCHANGE_ROUTE", "MOST", "Exchange", "exchange", "remember"]

MOST = 64
"""Tokens that are remembered with one Principal."""

_LONGEST = 256  # characters of a tool's name

_REFUSED = "upstream_credentials"
"""Code of a Failure: the upstream does not take what was shown. One that was not `sent` was not carried out."""

_ACCOUNT_TTL: Final = 0.0  # an account's tokens live as long as their issuer says

_ONLY_USERS: Final = frozenset(("keycloak", "entra_obo"))


class _Wanted(NamedTuple):
    """What the layers say together. who: the Spec that names the issuer, None for our own."""

    mode: str
    audience: str
    ttl: float
    scopes: Mapping[str, tuple[str, ...]]
    reuse: bool
    who: ExchangeSpec | None
    mints: tuple[str, ...] | None


class _Kept:
    """A token that was made. field: the value of `authorization`. until: unix seconds, half of its life. exchanger,
    generation, version, epoch: who made it, and what with."""

    __slots__ = ("epoch", "exchanger", "field", "generation", "jti", "until", "version")

    def __init__(
        self, minted: Minted, now: float, exchanger: Exchanger, generation: object, version: int, epoch: int
    ) -> None:
        self.exchanger = exchanger
        self.field = b"Bearer " + minted.token
        self.jti = minted.jti
        self.until = now + (minted.expires - now) / 2.0
        self.generation = generation
        self.version = version
        self.epoch = epoch


class Exchange:
    """The exchange of one chain. accounts: the exchanger, where it gives tokens of users' own accounts. now: unix
    seconds. passes: callers' own tokens go out."""

    def __init__(
        self,
        wanted: _Wanted,
        exchanger: Exchanger,
        parts: Parts,
        now: Callable[[], float] = time,
        accounts: Accounts | None = None,
    ) -> None:
        assert parts.exchangers is not None
        self._exchanger = exchanger
        self._accounts = accounts
        self._generation = parts.exchangers.generation
        self._revocations = parts.revocations
        self._now = now
        self._reuse = wanted.reuse
        self._ttl = wanted.ttl
        self.passes = wanted.mode == "passthrough"
        self._delegation = wanted.mode == "delegation"
        named = wanted.audience not in ("server", "tool")
        self._by_tool = wanted.audience == "tool"
        self._server = wanted.audience if named else parts.upstream
        self._offered = tuple((scope, frozenset(needs)) for scope, needs in sorted(wanted.scopes.items()))
        self._needs: frozenset[str] = frozenset()
        self._scopes: tuple[str, ...] | None = () if not wanted.scopes else None
        if wanted.mints is not None:
            self._scopes = tuple(sorted(frozenset(wanted.mints)))
            self._needs = frozenset(need for scope in self._scopes for need in wanted.scopes[scope])
        # What all calls of the chain are told to need, so that one step up is enough.
        self._all = self._needs.union(parts.scopes)
        self._whole = None if self._scopes is None else self._target_for(self._server, self._scopes)
        self._public_url = parts.public_url if parts.entrance == "mcp" else ""
        self._count = parts.families.exchanges.child
        self._cached = self._count("cached")
        self._made = self._count("made")

    # ---- as policies
    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure: 401 where the caller must get another token, 403 where his is not enough, 503 where there is
        nobody to make one; and what `next` raises."""
        principal = self._known(call.principal, call.request)
        target = self._target(principal, call.request, call.context, call)
        kept = self._remembered(principal, target)
        if kept is None:
            made = self._ask(principal, target, call.request)
            if isinstance(made, Awaitable):
                return self._awaited(call, next, principal, target, made)
            kept = self._keep(principal, target, made)
            return self._watched(call, next, principal, target, kept, fresh=True)
        return self._watched(call, next, principal, target, kept, fresh=False)

    async def _awaited(
        self, call: Call, next: Handler[Call, Reply], principal: Principal, target: Target, made: Awaitable[Minted]
    ) -> Reply:
        kept = self._keep(principal, target, await self._told(principal, made, call.request))
        return await self._watched(call, next, principal, target, kept, fresh=True)

    async def _watched(
        self,
        call: Call,
        next: Handler[Call, Reply],
        principal: Principal,
        target: Target,
        kept: _Kept,
        *,
        fresh: bool,
    ) -> Reply:
        call.credential, call.context.token_jti = kept.field, kept.jti
        try:
            return await next(call)
        except Failure as failure:
            if failure.scopes and self._accounts is not None:
                raise await self._accounts.lacks(principal, failure.scopes) or failure from None
            # It was not carried out; and what was remembered, or has waited for a server to come up, may be too old.
            # A token of an account is never made for the call, and may have ended at any time.
            fresh = fresh and self._accounts is None
            if failure.code != _REFUSED or failure.sent or (fresh and self._now() < kept.until):
                raise
        self._tell(principal, kept.field)
        kept = await self._afresh(principal, target, call.request)
        call.credential, call.context.token_jti = kept.field, kept.jti
        return await next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain service; what it answers is its answer, but after a 401 nothing is used again."""
        context = request.context
        principal = self._known(context.principal, request)
        target = self._target(principal, request, context, None)
        kept = self._remembered(principal, target)
        if kept is None:
            made = self._ask(principal, target, request)
            if isinstance(made, Awaitable):
                return self._awaited_request(request, next, principal, target, made)
            kept = self._keep(principal, target, made)
        return self._sent(request, next, principal, kept)

    async def _awaited_request(
        self,
        request: Request,
        next: Handler[Request, Response],
        principal: Principal,
        target: Target,
        made: Awaitable[Minted],
    ) -> Response:
        kept = self._keep(principal, target, await self._told(principal, made, request))
        return await self._sent(request, next, principal, kept)

    async def _sent(
        self, request: Request, next: Handler[Request, Response], principal: Principal, kept: _Kept
    ) -> Response:
        context = request.context
        context.credential, context.token_jti = kept.field, kept.jti
        response = await next(request)
        if response.status == 401:
            self._forget(principal)
        return response

    # ---- for what is asked of a server beside calls
    def credential(self, principal: Principal | None, refused: bytes = b"") -> bytes | Awaitable[bytes]:
        """The field `authorization` of what belongs to a session and to no call: its opening, lists, streams. refused:
        what this gave before, if the server has not taken it. Raises Failure."""
        principal = self._known(principal, None)
        if refused:
            self._tell(principal, refused)
            self._forget(principal)
        target = self._whole
        if target is None or self._needs:
            target = self._target_for(self._server, self._held(principal))
        kept = self._remembered(principal, target)
        if kept is None:
            made = self._ask(principal, target, None)
            if isinstance(made, Awaitable):
                return self._awaited_field(principal, target, made)
            kept = self._keep(principal, target, made)
        return kept.field

    async def _awaited_field(self, principal: Principal, target: Target, made: Awaitable[Minted]) -> bytes:
        return self._keep(principal, target, await self._told(principal, made, None)).field

    # ---- what for
    def _target(self, principal: Principal, request: Request, context: Context, call: Call | None) -> Target:
        if self._needs and not self._needs <= principal.scopes:
            context.rule = "exchange"
            raise insufficient(self._all.union(context.requires), self._metadata(request), anonymous=False)
        by_tool = self._by_tool and isinstance(call, ToolCall) and call.method == "tools/call"
        target = self._whole
        if target is not None and not by_tool:
            return target
        scopes = self._scopes if self._scopes is not None else self._held(principal)
        if by_tool and isinstance(call, ToolCall):
            if len(call.name) > _LONGEST:  # cut, it would be another tool's as well
                raise Failure(400, Reason.INVALID_REQUEST, "no tool has so long a name", code="invalid_request")
            return self._target_for(f"{self._server}#{quote(call.name, safe='')}", scopes, call.name)
        return self._target_for(self._server, scopes)

    def _target_for(self, audience: str, scopes: tuple[str, ...], tool: str = "") -> Target:
        return Target(audience, scopes, self._ttl, self._delegation, tool)

    def _held(self, principal: Principal) -> tuple[str, ...]:
        """All scopes that tokens for this principal may have."""
        held = principal.scopes
        return tuple([scope for scope, needs in self._offered if needs <= held])

    # ---- what is remembered
    def _remembered(self, principal: Principal, target: Target) -> _Kept | None:
        revocations = self._revocations
        kept: _Kept | None = principal.minted.get(target) if self._reuse else None
        if (
            kept is not None
            and self._now() < kept.until
            and kept.exchanger is self._exchanger  # of two issuers one may have made a token for the same audience
            and kept.generation is self._generation
            and kept.version == self._exchanger.version
        ):
            if revocations is None or revocations.epoch == kept.epoch:
                self._cached.inc()
                return kept
            epoch = revocations.epoch  # before the question: what comes in between is asked about again
            if not revocations.revoked(principal):
                kept.epoch = epoch
                self._cached.inc()
                return kept
        if revocations is not None and revocations.revoked(principal):
            principal.minted.clear()
            raise self._refused("the token that was sent was revoked", None)
        return None

    def _keep(self, principal: Principal, target: Target, made: Minted) -> _Kept:
        self._made.inc()
        revocations = self._revocations
        epoch = 0 if revocations is None else revocations.epoch
        kept = _Kept(made, self._now(), self._exchanger, self._generation, self._exchanger.version, epoch)
        if self._reuse:
            remember(principal, target, kept)
        return kept

    async def _afresh(self, principal: Principal, target: Target, request: Request) -> _Kept:
        """A new one, in the place of all that were made for this server before."""
        self._forget(principal)
        made = self._ask(principal, target, request)
        if isinstance(made, Awaitable):
            made = await self._told(principal, made, request)
        return self._keep(principal, target, made)

    def _tell(self, principal: Principal, field: bytes) -> None:
        """The server does not take it."""
        if self._accounts is not None:
            self._accounts.refused(principal, field.removeprefix(b"Bearer "))

    def _forget(self, principal: Principal) -> None:
        """Nothing that was made for this server is used again."""
        minted = principal.minted
        for known in [known for known in minted if known.audience.partition("#")[0] == self._server]:
            del minted[known]

    # ---- what goes wrong
    def _known(self, principal: Principal | None, request: Request | None) -> Principal:
        if principal is None or principal.source == "anonymous":
            challenges = Challenges(metadata=self._metadata(request), scopes=self._all)
            raise challenges.refused(Reason.JWT_AUTH, "this call needs a caller who is known")
        return principal

    def _ask(self, principal: Principal, target: Target, request: Request | None) -> Minted | Awaitable[Minted]:
        try:
            return self._exchanger.exchanged(principal, target)
        except Failure as failure:
            raise self._challenged(failure, request) from None

    async def _told(self, principal: Principal, made: Awaitable[Minted], request: Request | None) -> Minted:
        revocations = self._revocations
        epoch = 0 if revocations is None else revocations.epoch
        try:
            minted = await made
        except Failure as failure:
            raise self._challenged(failure, request) from None
        if revocations is not None and revocations.epoch != epoch and revocations.revoked(principal):
            principal.minted.clear()
            raise self._refused("the token that was sent was revoked", request)
        return minted

    def _challenged(self, failure: Failure, request: Request | None) -> Failure:
        """As the caller sees it: with a 401 goes where to get a token."""
        self._count("refused" if failure.status < 500 else "failed").inc()
        if failure.status != 401 or failure.headers:
            return failure.with_traceback(None)
        return self._refused(failure.message, request, failure.detail)

    def _refused(self, message: str, request: Request | None, detail: str = "") -> Failure:
        challenges = Challenges(metadata=self._metadata(request), scopes=self._all)
        return challenges.refused(Reason.JWT_AUTH, message, "invalid_token", detail=detail)

    def _metadata(self, request: Request | None) -> str:
        """Where the metadata of the resource is that the request is for; "" where there is none."""
        if request is None or not self._public_url:
            return ""
        path = plain_path(request)
        return metadata_url(self._public_url + path) if path else ""


def remember(principal: Principal, what: object, kept: object) -> None:
    """Keep it with the Principal, in the place of what was kept there; among too many the oldest goes."""
    minted = principal.minted
    minted.pop(what, None)
    if len(minted) >= MOST:
        del minted[next(iter(minted))]
    minted[what] = kept


def exchange(layers: tuple[Layer, ...], parts: Parts) -> Exchange | None:
    """The exchange of a chain, None where there is nothing to do. Raises ConfigError."""
    accounts = parts.accounts(parts.server) if parts.accounts is not None and parts.server else None
    if accounts is not None:
        # Named as no audience can be that is configured: what is remembered is for this one server.
        wanted = _Wanted("impersonation", f"account {parts.server}", _ACCOUNT_TTL, {}, True, None, None)
        return Exchange(wanted, accounts, parts, accounts=accounts)
    if not layers or not parts.upstream:
        return None
    wanted = _wanted(layers)
    if wanted.mode == "off":
        return None
    layer = layers[-1]
    if parts.exchangers is None:
        raise wrong(layer, "exchange", "there is nobody to make tokens here")
    if wanted.mode == "passthrough":
        return _passing(wanted, layers, parts)
    if wanted.mints is not None:
        for scope in wanted.mints:
            if scope not in wanted.scopes:
                message = f"{scope!r} is not among `exchange.scopes`, which says who may have it"
                raise wrong(layer, "exchange.mints", message)
    if wanted.who is not None:
        _check_remote(layers, wanted)
    exchanger = parts.exchangers.of(wanted.who)
    if exchanger is None:
        raise wrong(
            layer, "exchange", "there is no `issuer` in this configuration; configure one, or name another's URL"
        )
    return Exchange(wanted, exchanger, parts)


def _passing(wanted: _Wanted, layers: tuple[Layer, ...], parts: Parts) -> Exchange:
    """The exchange of a server that gets the callers' own tokens. Said at the top it would be for servers that nobody
    has thought of."""
    layer = layers[-1]
    if isinstance(layer.spec, ToolExchangeSpec):
        raise wrong(
            layer, "exchange", "has no effect where `mode: passthrough` sends the caller's own token; leave it out"
        )
    if layer.level != "server" or layer.spec.mode != "passthrough":
        raise wrong(layers[0], "exchange.mode", "`passthrough` is allowed for one MCP server at a time; write it there")
    if wanted.audience == "tool":
        raise wrong(layer, "exchange.audience", "tokens of callers are for no single tool; write another")
    plain = wanted._replace(scopes={}, mints=None, reuse=False, who=None)
    return Exchange(plain, Passthrough(), parts)


def _check_remote(layers: tuple[Layer, ...], wanted: _Wanted) -> None:
    assert wanted.who is not None
    kind = wanted.who.kind
    if kind in _ONLY_USERS and wanted.mode == "delegation":
        raise wrong(
            layers[-1], "exchange.mode", f"tokens of `{kind}` do not name the agent; write `mode: impersonation`"
        )
    for layer in layers if kind in _ONLY_USERS else ():
        if "ttl" in layer.spec.model_fields_set:
            raise wrong(layer, "exchange.ttl", f"has no effect with `kind: {kind}`; leave it out")
    if kind in _ONLY_USERS and wanted.audience == "tool":
        raise wrong(layers[-1], "exchange.audience", f"`{kind}` has no tokens for single tools")


def _wanted(layers: tuple[Layer, ...]) -> _Wanted:
    said: dict[str, Any] = {name: ExchangeSpec.model_fields[name].default for name in HOW}
    who: ExchangeSpec | None = None
    mints: tuple[str, ...] | None = None
    for layer in layers:
        spec = layer.spec
        for name in HOW:
            if name in spec.model_fields_set and getattr(spec, name, None) is not None:
                said[name] = getattr(spec, name)
        if isinstance(spec, ToolExchangeSpec):
            mints = spec.mints
            continue
        if said["mode"] == "off" and spec.mode is None:
            said["mode"] = None  # the narrower one asks for it
        if spec.issuer is not None:
            who = None if spec.issuer == "self" else spec
    mode = said["mode"] or ("impersonation" if who is not None and who.kind in _ONLY_USERS else "delegation")
    return _Wanted(mode, said["audience"], said["ttl"], said["scopes"], said["reuse"] == "half_life", who, mints)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = exchange(layers, parts)
    return None if made is None else made.handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    if layers[-1].level != "route":  # what the top says is about those that ask for it
        return None
    made = exchange(layers, parts)
    return None if made is None else made.handle_request


EXCHANGE: Kind[Call, Reply] = Kind(
    "exchange",
    frozenset(("top", "server", "tool")),
    adds=True,
    build=_build,
    entrances=frozenset(("mcp",)),
    always=True,  # accounts need no setting of their own
)
EXCHANGE_ROUTE: Kind[Request, Response] = Kind(
    "exchange", frozenset(("top", "route")), adds=True, build=_build_route, entrances=frozenset(("http",))
)
