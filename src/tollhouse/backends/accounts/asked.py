"""What is asked of an issuer about one account: tokens for a code, new tokens for old ones, and that they end (RFC 6749
sections 4.1.3 and 6, RFC 7009).

Rule: a code or token goes to the endpoint that it was made for and nowhere else: redirects are not followed. What an
error means is told apart by what it says about the account: it is over, or nobody knows now.
"""

import re
from typing import Final

from tollhouse.backends.accounts.discovery import Places
from tollhouse.backends.accounts.records import AccountRecord, Pending
from tollhouse.backends.retry_after import retry_after
from tollhouse.core.errors import Failure
from tollhouse.net.client import Fetched
from tollhouse.wire.oauth_client import ClientIdentity, Refusal, Tokens, client_form, refusal_of, tokens_of

__all__ = ["Asked", "NotNow", "Over"]

_LARGEST: Final = 1 << 16
_OVER: Final = frozenset(
    ("invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_target",
     "invalid_scope", "access_denied", "interaction_required", "consent_required", "login_required")
)  # fmt: skip
_VISIBLE: Final = re.compile(r"[ -~]+")


class NotNow(Exception):
    """The issuer did not answer as it should; the account may be good. wait: seconds that it asks for. is_open: it may
    have done what was asked all the same."""

    def __init__(self, why: str, wait: float | None = None, *, is_open: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        self.is_open = is_open


class Over(Exception):
    """The issuer takes what was sent no more. error: its code."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.error = refusal.error


class Asked:
    """Of one server's issuers."""

    def __init__(self, places: Places) -> None:
        self._places = places

    async def redeem(self, pending: Pending, who: ClientIdentity, code: str, redirect: str) -> Tokens:
        """The tokens for a code. Raises Over, NotNow."""
        headers, body = client_form(
            who,
            grant_type="authorization_code",
            code=code,
            redirect_uri=redirect,
            code_verifier=pending.verifier,
            resource=pending.resource,
        )
        return await self._tokens(pending.token_endpoint, headers, body)

    async def refresh(self, record: AccountRecord, who: ClientIdentity) -> Tokens:
        """New ones for an account. Raises Over, NotNow."""
        headers, body = client_form(
            who, grant_type="refresh_token", refresh_token=record.refresh, resource=record.resource
        )
        return await self._tokens(record.token_endpoint, headers, body)

    async def revoke(self, record: AccountRecord, who: ClientIdentity) -> str:
        """Have its tokens end, as far as the issuer does that: what went wrong, "" where nothing did."""
        if not record.revocation_endpoint:
            return ""
        tokens = [(record.refresh, "refresh_token")] if record.refresh else []
        tokens.append((record.access, "access_token"))
        wrong = ""
        for token, hint in tokens:
            headers, body = client_form(who, token=token, token_type_hint=hint)
            try:
                fetched = await self._post(record.revocation_endpoint, headers, body)
            except NotNow as why:
                return str(why)
            if fetched.status not in (200, 204):
                refusal = refusal_of(fetched.body)
                if refusal.error not in ("unsupported_token_type", "invalid_token"):  # it knows no such token
                    wrong = f"it answered {fetched.status} {refusal.text}".rstrip()
        return wrong

    async def _tokens(self, url: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Tokens:
        fetched = await self._post(url, headers, body)
        refusal = refusal_of(fetched.body)
        if refusal.error:  # some say so with a 200
            if fetched.status in (200, 400, 401, 403) and refusal.error in _OVER:
                raise Over(refusal)
            raise NotNow(f"it answered {fetched.status}: {refusal.text}", retry_after(fetched.headers))
        if fetched.status != 200:
            raise NotNow(f"it answered {fetched.status}", retry_after(fetched.headers))
        try:
            return tokens_of(fetched.body)
        except ValueError as error:
            raise NotNow(f"its answer cannot be used: {error}", is_open=True) from None

    async def _post(self, url: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Fetched:
        try:
            return await self._places.fetch(url, method="POST", headers=headers, body=body, limit=_LARGEST)
        except Failure as failure:
            why = f"{failure.message} {failure.detail}".strip()
            raise NotNow(" ".join(_VISIBLE.findall(why)), failure.retry_after, is_open=failure.sent) from None
