"""A refresh token becomes an access token and the next refresh token (RFC 6749 section 6).

Rule: less may be asked for than was granted, never more; the family keeps its grant. Its user is who that is now: one
whom the configuration no longer has gets nothing, one in other groups gets those.
"""

from collections.abc import Callable

from tollhouse.issuer.families import Families
from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.grants.by_user import one_resource
from tollhouse.issuer.records import Family, UserInfo
from tollhouse.issuer.resources import Resources
from tollhouse.wire.oauth import OAuthError, scope_of

__all__ = ["RefreshToken"]


class RefreshToken:
    """A grant. known: what is known of a family's user now, None of who is nobody's any more."""

    __slots__ = ("_families", "_known", "_resources")

    def __init__(self, families: Families, resources: Resources, known: Callable[[Family], UserInfo | None]) -> None:
        self._families = families
        self._resources = resources
        self._known = known

    async def grant(self, asked: Asked) -> Granted:
        form, client = asked.form, asked.client
        wanted = scope_of(form.get("scope"))

        def check(family: Family) -> None:
            """Before the token is used: who asks for too much can ask again."""
            if not set(wanted) <= set(family.scopes):
                raise OAuthError("invalid_scope", "a scope was not granted")
            audience = one_resource(self._resources, form.all("resource"), family.resources, family.scopes)
            client.must_target(audience)

        used = await self._families.refresh(form.need("refresh_token"), client.id, asked.proof.jkt, check)
        family = used.family
        user = self._known(family)
        if user is None:
            await self._families.revoke(used.id)
            raise OAuthError("invalid_grant", "the user of this grant is gone")
        scopes = tuple(scope for scope in wanted or family.scopes if client.scopes is None or scope in client.scopes)
        return Granted(
            sub=family.sub,
            audience=one_resource(self._resources, form.all("resource"), family.resources, family.scopes),
            scopes=scopes,
            user=user,
            auth_time=family.auth_time,
            acr=family.acr,
            amr=family.amr,
            sid=family.sid,
            gid=used.id,
            refresh_token=used.token,
            openid="openid" in scopes,
        )
