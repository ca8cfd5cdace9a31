"""The auth provider's signing keys: shown, rotated, and dropped when others may know one.

Rule: it is done by the keys that sign in this process, so it counts here when the answer comes; other gateways on the
state hear of a dropped key at once, and of a rotation within half a minute.
"""

from typing import Annotated, Literal

import msgspec

from tollhouse.admin.operation import Answer, Asked, Moment, Operation, missing, moment, refused
from tollhouse.gateway.premises import Premises
from tollhouse.issuer.keys import SigningKeys

__all__ = ["SigningKeysResource"]


class SigningKey(msgspec.Struct):
    """until: when its state ends."""

    kid: str
    alg: str
    state: Literal["next", "active", "retired"]
    until: Moment


class SigningKeyList(msgspec.Struct):
    keys: list[SigningKey]


class Rotated(msgspec.Struct):
    """signs_from: when the next key signs."""

    signs_from: Moment
    keys: list[SigningKey]


class SecretRotated(msgspec.Struct):
    """used_from: when refresh tokens and nonces are made with it; what was made before goes on to be taken."""

    used_from: Moment


class Rotate(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object."""


class Drop(msgspec.Struct, forbid_unknown_fields=True):
    """kid: of the key that others may know. Its tokens are refused from then on."""

    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class SigningKeysResource:
    def __init__(self, premises: Premises) -> None:
        self._keys = premises.signing_keys

    def operations(self) -> list[Operation]:
        path = "/api/signing-keys"
        return [
            Operation("signing-keys.list", "GET", path, "The auth provider's keys", self.all, SigningKeyList),
            Operation(
                "signing-keys.rotate", "POST", f"{path}/rotate", "Let the next key sign", self.rotate, Rotated, Rotate,
                optional=True,
            ),
            Operation(
                "signing-keys.rotate-secret", "POST", f"{path}/rotate-secret",
                "Make another secret for refresh tokens and nonces", self.rotate_secret, SecretRotated, Rotate,
                optional=True,
            ),
            Operation(
                "signing-keys.drop", "POST", f"{path}/drop", "Take a key away, and its tokens", self.drop,
                SigningKeyList, Drop,
            ),
        ]  # fmt: skip

    async def all(self, asked: Asked) -> Answer:
        return Answer(SigningKeyList(_shown(self._there())))

    async def rotate(self, asked: Asked) -> Answer:
        keys = self._there()
        at = moment(await keys.rotate())
        return Answer(Rotated(at, _shown(keys)), f"the next key signs from {at.isoformat(timespec='seconds')} on")

    async def rotate_secret(self, asked: Asked) -> Answer:
        at = moment(await self._there().rotate_secret())
        return Answer(SecretRotated(at), f"another secret is used from {at.isoformat(timespec='seconds')} on")

    async def drop(self, asked: Asked) -> Answer:
        body: Drop = asked.body
        keys = self._there()
        if not await keys.drop(body.kid):
            raise missing("there is no key of this `kid`; GET /api/signing-keys has them")
        return Answer(SigningKeyList(_shown(keys)), repr(body.kid))

    def _there(self) -> SigningKeys:
        keys = self._keys()
        if keys is None:
            raise refused("there is no auth provider here: the configuration has no `issuer`")
        return keys


def _shown(keys: SigningKeys) -> list[SigningKey]:
    described = (
        {"kid": kid, "alg": alg, "state": state, "until": moment(end)} for kid, alg, state, end in keys.described()
    )
    return msgspec.convert(list(described), list[SigningKey])
