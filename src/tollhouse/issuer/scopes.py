"""Scopes: what a client gets of what it asks for.

Rule: never more than the client may have and the resource knows; what is too much is refused, not left out, so that
nobody believes to have what was not given.
"""

from tollhouse.issuer.clients import Client
from tollhouse.issuer.resources import STANDARD, Resources
from tollhouse.wire.oauth import OAuthError, scope_of

__all__ = ["scopes_for"]


def scopes_for(
    client: Client, resources: Resources, asked: str, uris: tuple[str, ...], *, user: bool = True
) -> tuple[str, ...]:
    """The scopes of a grant, sorted. asked: the parameter `scope`. uris: the resources it is for, none for any of ours.
    user: a person stands behind it, so that scopes about people mean something. Raises OAuthError `invalid_scope`."""
    wanted = scope_of(asked)
    if not wanted:
        return _default(client, resources, uris, user)
    for scope in wanted:
        if not user and scope in STANDARD:
            raise OAuthError("invalid_scope", "a scope is about a user, and there is none in this grant")
        if not _may(client, resources, scope, uris):
            raise OAuthError("invalid_scope", "a scope is not one that this client may have for that resource")
    return wanted


def _may(client: Client, resources: Resources, scope: str, uris: tuple[str, ...]) -> bool:
    if client.scopes is not None and scope not in client.scopes:
        return False
    # A client of the configuration may have what is written there, unless the resource says which scopes it has.
    is_known = client.scopes is not None and client.source == "config" and not resources.restricts(uris)
    return is_known or resources.has(scope, uris)


def _default(client: Client, resources: Resources, uris: tuple[str, ...], user: bool) -> tuple[str, ...]:
    """What it gets that asks for nothing: what it is configured to, else all that is about the resource."""
    if client.default_scopes is not None:
        chosen = client.default_scopes
    elif client.scopes is not None:
        chosen = tuple(scope for scope in client.scopes if scope not in STANDARD)
    else:
        chosen = resources.own_scopes(uris)
    return tuple(
        sorted(scope for scope in chosen if _may(client, resources, scope, uris) and (user or scope not in STANDARD))
    )
