"""What a user has allowed, by a code or for a device, becomes a grant: a family where there may be refresh tokens."""

from tollhouse.issuer.families import Families
from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.records import Code, Device, Family
from tollhouse.issuer.resources import Resources
from tollhouse.issuer.spec import GRANTS
from tollhouse.wire.oauth import OAuthError

__all__ = ["by_user", "one_resource"]


async def by_user(families: Families, asked: Asked, allowed: Code | Device, audience: str, id: str) -> Granted:
    """What a code or device got, which was marked as used by the family `id` already. Raises OAuthError
    `invalid_grant` where that was revoked meanwhile, Failure 503."""
    client = asked.client
    if families.ended_since(allowed):
        raise OAuthError("invalid_grant", "what the user has allowed was revoked meanwhile")
    sid = "" if "offline_access" in allowed.scopes else allowed.sid
    refresh_token = ""
    if GRANTS["refresh_token"] in client.grants:
        family = Family(
            client.id,
            allowed.sub,
            allowed.user,
            allowed.scopes,
            allowed.resources or (audience,),
            1,
            allowed.auth_time,
            acr=allowed.acr,
            amr=allowed.amr,
            sid=sid,
            # Others prove who they are at each refresh (RFC 9449 section 5).
            jkt=asked.proof.jkt if client.public else "",
            upstream=allowed.upstream,
        )
        refresh_token = await families.begin(id, family)
    return Granted(
        sub=allowed.sub,
        audience=audience,
        scopes=allowed.scopes,
        user=allowed.user,
        auth_time=allowed.auth_time,
        acr=allowed.acr,
        amr=allowed.amr,
        sid=sid,
        gid=id,
        nonce=allowed.nonce if isinstance(allowed, Code) else "",
        refresh_token=refresh_token,
        openid="openid" in allowed.scopes,
    )


def one_resource(
    resources: Resources, asked: tuple[str, ...], granted: tuple[str, ...], scopes: tuple[str, ...]
) -> str:
    """The resource that a token is for, of those that were granted (none: the one that goes without saying). Raises
    OAuthError `invalid_target`."""
    if not asked:
        return resources.chosen(granted, scopes)
    named = resources.asked(asked)
    if len(named) != 1:
        raise OAuthError("invalid_target", "a token is for one resource; ask for one at a time")
    if named[0] not in (granted or (resources.chosen((), scopes),)):
        raise OAuthError("invalid_target", "that resource was not asked for when this was granted")
    return named[0]
