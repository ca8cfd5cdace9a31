"""The token endpoint (RFC 6749 section 3.2).

Rule: in this order: the form; who asks, by one method; whether it may use the grant; the key that its tokens shall be
bound to; the grant itself; and only then is anything signed. A grant knows nothing of signing, and this file nothing
of grants. A proof of a key is remembered before anything is granted for it, so who shows proofs on and on, may do so
without proving who it is, and gets nothing for them, waits.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.claims import claims_for
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.clients import Client
from tollhouse.issuer.grants.base import Asked, Grant, Granted, Proof
from tollhouse.issuer.mint import Mint, Minted
from tollhouse.issuer.proof import Proofs
from tollhouse.issuer.spec import TtlSpec
from tollhouse.issuer.throttle import Throttle, address_of
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["TokenEndpoint"]

_IN_VAIN: Final = 300  # proofs of an address in a minute; many clients may share it


async def _nobody(_: Client) -> None:
    pass


class TokenEndpoint:
    """grants: by `grant_type`. counted: told of each answer: the grant (the last word of its `grant_type`, "" before it
    is known), and "ok" or the error. used: told of each client that has got something."""

    __slots__ = ("_auth", "_counted", "_grants", "_in_vain", "_mint", "_now", "_proofs", "_ttl", "_used")

    def __init__(
        self,
        auth: ClientAuth,
        proofs: Proofs,
        grants: Mapping[str, Grant],
        mint: Mint,
        ttl: TtlSpec,
        now: Callable[[], float],
        counted: Callable[[str, str], None] = lambda _grant, _result: None,
        used: Callable[[Client], Awaitable[None]] = _nobody,
    ) -> None:
        self._auth = auth
        self._proofs = proofs
        self._grants = grants
        self._mint = mint
        self._ttl = ttl
        self._now = now
        self._counted = counted
        self._used = used
        self._in_vain = Throttle(now, _IN_VAIN)

    async def handle(self, request: Request) -> Response:
        """Answers POST. Raises OAuthError, Failure 503."""
        counted_as = ""
        try:
            form = await form_of(request)
            asked_for = form.need("grant_type")
            client = await self._auth.authenticate(request, form)
            grant = self._grants.get(asked_for)
            if grant is None:
                raise OAuthError("unsupported_grant_type", "this issuer has no such grant")
            counted_as = asked_for.rpartition(":")[2]
            client.must(asked_for)
            granted, proof = await self._granted(grant, request, form, client)
            response = self._answer(request, client, granted, proof.cnf, "DPoP" if proof.jkt else "Bearer")
        except OAuthError as error:
            self._counted(counted_as, error.error)
            raise
        self._counted(counted_as, "ok")
        return response

    async def _granted(self, grant: Grant, request: Request, form: Form, client: Client) -> tuple[Granted, Proof]:
        """Raises OAuthError, Failure 503."""
        address = (address_of(request),) if client.public and request.headers.get(b"dpop") is not None else ()
        wait = self._in_vain.wait(address)
        if wait > 0.0:
            raise OAuthError(
                "temporarily_unavailable",
                "too many proofs came with grants that are not good; try again later",
                429,
                ((b"retry-after", b"%d" % (int(wait) + 1)),),
            )
        proof = await self._proofs.of(request, client)
        try:
            granted = await grant(Asked(request, form, client, proof))
        except OAuthError as error:
            if error.error != "authorization_pending":  # which has a pace of its own, and was granted something
                self._in_vain.failed(address)
            raise
        await self._used(client)
        return granted, proof

    def _answer(
        self, request: Request, client: Client, granted: Granted, cnf: Mapping[str, str] | None, token_type: str
    ) -> Response:
        minted = granted.minted
        if minted is None:
            minted = self._mint.access(
                sub=granted.sub,
                aud=granted.audience,
                client_id=client.id,
                scopes=granted.scopes,
                ttl=client.access_ttl or self._ttl.access,
                user=granted.user,
                auth_time=granted.auth_time,
                acr=granted.acr,
                amr=granted.amr,
                sid=granted.sid,
                gid=granted.gid,
                cnf=cnf,
                claims=self._for_userinfo(granted),
            )
        request.context.event = Event(
            "issuer.token",
            client=client.id,
            subject=granted.sub,
            scopes=granted.scopes,
            audience=granted.audience,
            jti=minted.jti,
            session=granted.sid,
        )
        answer: dict[str, Any] = {
            "access_token": minted.token.decode("ascii"),
            "token_type": token_type,
            "expires_in": max(1, minted.expires - int(self._now())),
        }
        if granted.issued_token_type:
            answer["issued_token_type"] = granted.issued_token_type
        if granted.scopes:
            answer["scope"] = " ".join(granted.scopes)
        if granted.refresh_token:
            answer["refresh_token"] = granted.refresh_token
        if granted.openid:
            answer["id_token"] = self._id_token(client, granted, minted)
        return json(answer)

    def _for_userinfo(self, granted: Granted) -> dict[str, Any] | None:
        """What a token for ourselves says more: userinfo answers from it, and no other resource gets to see it."""
        if granted.user is None or granted.audience != self._mint.issuer:
            return None
        return claims_for(granted.scopes, granted.user)

    def _id_token(self, client: Client, granted: Granted, minted: Minted) -> str:
        made = self._mint.id_token(
            sub=granted.sub,
            client_id=client.id,
            ttl=self._ttl.id_token,
            nonce=granted.nonce,
            auth_time=granted.auth_time,
            acr=granted.acr,
            amr=granted.amr,
            sid=granted.sid,
            access_token=minted.token,
            claims=claims_for(granted.scopes, granted.user) if granted.user is not None else None,
        )
        return made.token.decode("ascii")
