"""An issuer that the operator trusts vouches for somebody (RFC 7523 section 2.1), above all a company's identity
provider for an employee: identity assertion authorization grants (ID-JAG), by which no user is asked anything.

Rule: the assertion is for us, for the client that shows it and for one of our resources, and good for once. Every way
in which it does not fit is `invalid_grant`. There is no refresh token: who stops vouching ends it.
"""

from typing import Any

from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.grants.client_credentials import target_for
from tollhouse.issuer.records import UserInfo
from tollhouse.issuer.resources import Resources
from tollhouse.issuer.scopes import scopes_for
from tollhouse.issuer.subject import federated
from tollhouse.issuer.trusted import TrustedIssuers
from tollhouse.wire.oauth import OAuthError, canonical_resource, scope_of

__all__ = ["JwtBearer"]


class JwtBearer:
    """A grant."""

    __slots__ = ("_resources", "_trusted")

    def __init__(self, trusted: TrustedIssuers, resources: Resources) -> None:
        self._trusted = trusted
        self._resources = resources

    async def grant(self, asked: Asked) -> Granted:
        form, client = asked.form, asked.client
        if client.public:
            raise OAuthError("unauthorized_client", "a client that cannot prove who it is cannot use assertions")
        assertion = form.need("assertion").encode("utf-8", "surrogatepass")
        found = await self._trusted.assertion(assertion, client.id)
        if found is None:
            raise _bad()
        what, claims = found
        sub = claims.get("sub")
        if not isinstance(sub, str) or not 0 < len(sub) <= 256:
            raise _bad()
        if what == "id_jag":
            if claims.get("client_id") != client.id:
                raise _bad()
            audience = self._resource(claims, asked)
            said = claims.get("scope")
            if not isinstance(said, str | None):
                raise _bad()
            allowed = None if said is None else scope_of(said)
            client.must_target(audience)
        else:
            audience = target_for(client, self._resources, form)
            allowed = None
        scopes = self._scopes(asked, audience, allowed)
        return Granted(sub=federated(claims["iss"], sub), audience=audience, scopes=scopes, user=_user(claims))

    def _resource(self, claims: dict[str, Any], asked: Asked) -> str:
        """The one that the identity provider has allowed. Raises OAuthError."""
        named = claims.get("resource")
        if isinstance(named, list) and len(named) == 1:
            named = named[0]
        if not isinstance(named, str):
            raise _bad()
        try:
            resource = canonical_resource(named)
        except ValueError:
            raise _bad() from None
        if self._resources.find(resource) is None:
            raise _bad()
        if any(uri != resource for uri in self._resources.asked(asked.form.all("resource"))):
            raise OAuthError("invalid_target", "the assertion is for another resource")
        return resource

    def _scopes(self, asked: Asked, audience: str, allowed: tuple[str, ...] | None) -> tuple[str, ...]:
        wanted = scope_of(asked.form.get("scope"))
        if allowed is None:
            return scopes_for(asked.client, self._resources, asked.form.get("scope"), (audience,), user=False)
        if not set(wanted) <= set(allowed):
            raise OAuthError("invalid_scope", "a scope was not allowed by the assertion")
        if not allowed:
            return ()
        return scopes_for(asked.client, self._resources, " ".join(wanted or allowed), (audience,), user=False)


def _user(claims: dict[str, Any]) -> UserInfo:
    groups = claims.get("groups")
    email, name = claims.get("email"), claims.get("name")
    return UserInfo(
        name=name if isinstance(name, str) else "",
        email=email if isinstance(email, str) else "",
        email_verified=claims.get("email_verified") is True,
        groups=tuple(group for group in groups if isinstance(group, str)) if isinstance(groups, list) else (),
    )


def _bad() -> OAuthError:
    return OAuthError("invalid_grant", "the assertion is not valid, was used, or is not for this client and issuer")
