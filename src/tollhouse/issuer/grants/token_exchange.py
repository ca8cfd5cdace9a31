"""A token that was received becomes one for the next hop (RFC 8693).

Rule: in this order. The subject's token is good and is no id_token; who asks may hold it (binding): it is for a
resource that the client serves, or was made for the client, or names it in `may_act`; then who acts, what for, with
which scopes and for how long. A token never says more than the one it came from, and never outlives it. Whatever is
wrong with the subject or the actor is `invalid_request` (section 2.2.2).
"""

import re
from typing import Final

from tollhouse.core.call import Actor, Principal
from tollhouse.core.errors import Failure
from tollhouse.core.identity import Target
from tollhouse.issuer.access_tokens import AccessTokens
from tollhouse.issuer.clients import Client, ExchangeTarget
from tollhouse.issuer.grants.base import ACCESS_TOKEN, JWT, Asked, Granted
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.resources import STANDARD, Resources
from tollhouse.issuer.trusted import TrustedIssuers
from tollhouse.wire.oauth import Form, OAuthError, canonical_resource, scope_of

__all__ = ["TokenExchange"]

_TYPES: Final = (ACCESS_TOKEN, JWT)
_TTL: Final = re.compile(r"[1-9][0-9]{0,5}")
_TOOL: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class TokenExchange:
    """A grant. ttl: seconds, where no target says another."""

    __slots__ = ("_issuer", "_mint", "_resources", "_tokens", "_trusted", "_ttl")

    def __init__(
        self,
        tokens: AccessTokens,
        trusted: TrustedIssuers,
        mint: Mint,
        resources: Resources,
        *,
        ttl: float,
    ) -> None:
        self._tokens = tokens
        self._trusted = trusted
        self._mint = mint
        self._resources = resources
        self._issuer = mint.issuer
        self._ttl = ttl

    async def grant(self, asked: Asked) -> Granted:
        form, client = asked.form, asked.client
        if client.public:
            raise OAuthError("unauthorized_client", "a client that cannot prove who it is cannot exchange tokens")
        if (form.get("requested_token_type") or ACCESS_TOKEN) not in _TYPES:
            raise OAuthError("invalid_request", "only access tokens are issued here")
        subject = await self._subject(form, client)
        is_named = self._must_hold(client, subject, asked)
        actor = await self._actor(form, client)
        if actor is None and is_named:
            actor = Actor(self._issuer, client.id)
        audience, target = self._target(form, client)
        scopes = _scopes(client, subject, target, form)
        ttl = _ttl(form, self._ttl if target.ttl is None else target.ttl)
        wanted = Target(audience, scopes, ttl, target.delegation, audience.partition("#")[2])
        try:
            minted = self._mint.delegated(subject, wanted, client=client.id, actor=actor, cnf=asked.proof.cnf)
        except Failure as failure:
            if failure.status >= 500:
                raise
            raise OAuthError("invalid_request", failure.message) from None
        return Granted(
            sub=subject.subject,
            audience=audience,
            scopes=scopes,
            minted=minted,
            issued_token_type=form.get("requested_token_type") or ACCESS_TOKEN,
        )

    async def _subject(self, form: Form, client: Client) -> Principal:
        token = form.need("subject_token").encode("utf-8", "surrogatepass")
        if form.need("subject_token_type") not in _TYPES:
            raise OAuthError("invalid_request", "the subject_token_type must be access_token or jwt")
        subject = await self._tokens.read(token)
        if subject is None:
            subject = await self._trusted.subject(token, client.id)
        if subject is None:
            raise OAuthError("invalid_request", "the subject_token is not one that can be exchanged here")
        return subject

    async def _actor(self, form: Form, client: Client) -> Actor | None:
        token = form.get("actor_token")
        if not token:
            if "actor_token_type" in form:
                raise OAuthError("invalid_request", "`actor_token_type` comes without `actor_token`")
            return None
        if form.need("actor_token_type") not in _TYPES:
            raise OAuthError("invalid_request", "the actor_token_type must be access_token or jwt")
        actor = await self._tokens.read(token.encode("utf-8", "surrogatepass"))
        if actor is None or actor.client != client.id:
            raise OAuthError("invalid_request", "the actor_token must be one of ours, and of the client that asks")
        if actor.actors:
            raise OAuthError("invalid_request", "the actor_token speaks for somebody who is acted for")
        return Actor(actor.issuer, actor.subject)

    def _must_hold(self, client: Client, subject: Principal, asked: Asked) -> bool:
        """Whether the client has the subject's token rightly: raises OAuthError where not. Nobody is trusted with any
        token there is, and names that other issuers give are not ours. True where the token names the client as who
        may act."""
        claims, ours = subject.claims, subject.issuer == self._issuer
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        audiences = {one for one in named if isinstance(one, str)}
        audiences |= {one.partition("#")[0] for one in audiences}  # URI#tool is the same server's
        serves = client.id in audiences or not audiences.isdisjoint(client.serves)
        may_act = claims.get("may_act")
        is_named = (
            isinstance(may_act, dict)
            and may_act.get("sub") == client.id
            and may_act.get("iss", self._issuer if ours else "") == self._issuer
        )
        if not serves and not (ours and subject.client == client.id) and not is_named:
            raise OAuthError(
                "invalid_request", "the subject_token was not made for this client, nor for what it serves"
            )
        if subject.proof and not serves and subject.proof not in (asked.proof.jkt, asked.proof.x5t):
            # Who serves the audience has checked the proof when the token came; anybody else shows the key itself.
            raise OAuthError("invalid_request", "the subject_token is bound to a key that was not shown")
        return is_named

    def _target(self, form: Form, client: Client) -> tuple[str, ExchangeTarget]:
        named = (*form.all("resource"), *form.all("audience"))
        if len(named) != 1:
            raise OAuthError("invalid_target", "name the target once, by `resource` or `audience`")
        if "#" in named[0] and "resource" in form:
            raise OAuthError("invalid_target", "a resource has no fragment; name a tool by `audience`")
        uri, mark, tool = named[0].partition("#")
        try:
            whole = audience = canonical_resource(uri)
        except ValueError:
            raise OAuthError("invalid_target", "the target is not an absolute URI") from None
        if mark:
            if _TOOL.fullmatch(tool) is None:
                raise OAuthError("invalid_target", "after # stands the name of a tool")
            audience += f"#{tool}"
        for target in client.token_exchange:
            if target.audience == audience or (tool and target.audience == f"{whole}#*"):
                return audience, target
        is_free = not client.token_exchange and self._resources.find(whole) is not None
        if is_free and (client.may_target(audience) or client.may_target(whole)):
            return audience, ExchangeTarget(audience, None, None, True)
        raise OAuthError("invalid_target", "this client gets no tokens for that target")


def _scopes(client: Client, subject: Principal, target: ExchangeTarget, form: Form) -> tuple[str, ...]:
    """Raises OAuthError `invalid_scope`."""
    held = subject.scopes
    if target.scopes is None:
        offered = {scope for scope in held if client.scopes is None or scope in client.scopes} - STANDARD.keys()
    else:
        offered = {scope for scope, needs in target.scopes.items() if needs <= held}
    wanted = scope_of(form.get("scope"))
    if not wanted:
        return tuple(sorted(offered))
    if not offered.issuperset(wanted):
        raise OAuthError("invalid_scope", "a scope does not follow from those of the subject_token")
    return wanted


def _ttl(form: Form, most: float) -> float:
    asked = form.get("requested_ttl")
    if not asked:
        return most
    if _TTL.fullmatch(asked) is None:
        raise OAuthError("invalid_request", "`requested_ttl` must be seconds")
    return min(float(asked), most)
