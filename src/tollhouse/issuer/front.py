"""The front: every address of the auth provider where people, or their browsers, are.

Rule: this is where those parts are joined; what they do is in a file of its own each.
"""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.issuer.access_tokens import AccessTokens
from tollhouse.issuer.accounts import AccountPages, Services
from tollhouse.issuer.authorize import Authorize
from tollhouse.issuer.browser import Browser
from tollhouse.issuer.callback import Callback
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.consent import Consent
from tollhouse.issuer.consents import Consents
from tollhouse.issuer.device import VERIFY, DevicePage
from tollhouse.issuer.grants_page import GrantsPage
from tollhouse.issuer.login import Login, user_info
from tollhouse.issuer.logout import Logout
from tollhouse.issuer.par import PushedRequests
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.proof import Proofs
from tollhouse.issuer.records import Allowance
from tollhouse.issuer.served import Served
from tollhouse.issuer.spec import UserSpec
from tollhouse.issuer.upstream import Upstream
from tollhouse.issuer.userinfo import Userinfo
from tollhouse.net.passwords import Passwords
from tollhouse.store.table import Table

__all__ = ["Front"]

_GET = frozenset((b"GET",))
_POST = frozenset((b"POST",))
_BOTH = _GET | _POST
_STYLE = (
    (b"content-type", b"text/css; charset=utf-8"),
    (b"cache-control", b"public, max-age=86400"),
    (b"x-content-type-options", b"nosniff"),
)


class Front:
    """services: at which users connect accounts. Raises ValueError for users or upstreams that cannot be used. `close`
    it in the end."""

    def __init__(
        self,
        parts: Parts,
        auth: ClientAuth,
        tokens: AccessTokens,
        proofs: Proofs,
        services: Services | None = None,
    ) -> None:
        spec, ttl = parts.spec, parts.spec.ttl
        self._parts = parts
        self.browser = Browser(parts)
        users: Mapping[str, UserSpec] = MappingProxyType({user.name: user for user in spec.users})
        hashes = [user.password_hash.get_secret_value() for user in spec.users]
        self._passwords = Passwords(hashes) if hashes else None
        self._upstreams = [
            Upstream(
                upstream,
                url=parts.url,
                base=parts.base,
                fetcher=parts.fetcher,
                now=parts.now,
                users=users,
                info=user_info,
                keys_read=parts.counts.keys_read,
            )
            for upstream in spec.upstream
        ]
        names = [upstream.name for upstream in self._upstreams]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two upstreams are called {name!r}; give them different `name`s")
        index = Table(parts.state.values, "iss:cx:", Allowance, hashed=True)
        consents = Consents(parts.tables.consents, index, ttl.consent, parts.now)
        consent = Consent(parts, self.browser, consents)
        self._authorize = Authorize(parts, self.browser, consent)
        self._pushed = PushedRequests(parts, auth, proofs)
        self._consent = consent
        self._login = Login(parts, self.browser, self._passwords, self._upstreams)
        self._logout = Logout(parts, self.browser)
        self._grants = GrantsPage(parts, self.browser, consents, services)
        self._accounts = AccountPages(parts, self.browser, services) if services is not None else None
        self._device = DevicePage(parts, self.browser, consents)
        self._userinfo = Userinfo(parts.url, tokens, proofs)
        self._style = files("tollhouse.issuer.pages").joinpath("style.css").read_bytes()

    @property
    def can_log_in(self) -> bool:
        """Whether there is anybody who could."""
        return self._passwords is not None or bool(self._upstreams)

    def served(self) -> list[Served]:
        """All addresses. Where nobody can log in there are none but userinfo."""
        parts = self._parts

        def page(name: str, methods: frozenset[bytes], handler: Handler[Request, Response]) -> Served:
            return Served(parts.path(name), methods, handler, page=True)

        userinfo = Served(parts.path("userinfo"), _BOTH, self._userinfo.handle, open=True)
        if not self.can_log_in:
            return [userinfo]
        found = [
            userinfo,
            Served(parts.path("par"), _POST, self._pushed.handle),
            Served(parts.path("style.css"), _GET, self._css),
            page("authorize", _BOTH, self._authorize.handle),
            page("login", _BOTH, self._login.handle),
            page("consent", _BOTH, self._consent.handle),
            page("grants", _BOTH, self._grants.handle),
            page("logout", _BOTH, self._logout.handle),
            page(VERIFY, _BOTH, self._device.handle),
        ]
        for upstream in self._upstreams:
            callback = Callback(self.browser, upstream)
            found.append(page(upstream.start_name, _GET, callback.start))
            found.append(page(upstream.callback_name, _GET, callback.handle))
        if self._accounts is not None:
            found += self._accounts.served()
        return found

    async def close(self) -> None:
        if self._passwords is not None:
            await self._passwords.close()
        for upstream in self._upstreams:
            await upstream.close()

    async def _css(self, request: Request) -> Response:
        return Response(200, list(_STYLE), self._style)
