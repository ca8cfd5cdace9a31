"""A client asks for itself (RFC 6749 section 4.4).

Rule: no record is read or written for a client of the configuration: this goes on when the store is gone.
"""

from tollhouse.issuer.clients import Client
from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.resources import Resources
from tollhouse.issuer.scopes import scopes_for
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["ClientCredentials", "target_for"]


class ClientCredentials:
    """A grant."""

    __slots__ = ("_resources",)

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    async def grant(self, asked: Asked) -> Granted:
        client = asked.client
        if client.public:
            raise OAuthError("unauthorized_client", "this client cannot prove who it is, so there is nobody to ask for")
        audience = target_for(client, self._resources, asked.form)
        scopes = scopes_for(client, self._resources, asked.form.get("scope"), (audience,), user=False)
        return Granted(sub=client.id, audience=audience, scopes=scopes)


def target_for(client: Client, resources: Resources, form: Form) -> str:
    """The resource that a client asks a token for, where no user has granted any. Raises OAuthError
    `invalid_target`."""
    named = resources.asked((*form.all("resource"), *form.all("audience")))
    if len(named) > 1:
        raise OAuthError("invalid_target", "a token is for one resource; ask for one at a time")
    if named:
        audience = named[0]
    elif client.audiences is not None and len(client.audiences) == 1:
        audience = next(iter(client.audiences))
    else:
        audience = resources.chosen((), ())
    client.must_target(audience)
    return audience
