"""Devices without a browser: a code for the person, another for the device, which asks again and again (RFC 8628).

Rule: the device's code names its record by the user's code and proves itself by 256 random bits, of which the record
has only a digest. Who asks too often is told to slow down, for good.
"""

import os
import secrets
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Final

import msgspec

from tollhouse.core.http import Request, Response
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.families import Families, new_family_id
from tollhouse.issuer.grants.base import Asked, Granted
from tollhouse.issuer.grants.by_user import by_user, one_resource
from tollhouse.issuer.records import Device
from tollhouse.issuer.resources import Resources
from tollhouse.issuer.scopes import scopes_for
from tollhouse.issuer.spec import GRANTS
from tollhouse.issuer.throttle import address_of
from tollhouse.store.base import Charge, Counter, Rate, unavailable
from tollhouse.store.table import Table
from tollhouse.wire.oauth import OAuthError

__all__ = ["DeviceAuthorization", "DeviceCode", "shown", "typed"]

LIFE: Final = 600.0
_INTERVAL: Final = 5
_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words (RFC 8628 section 6.1)
_LENGTH: Final = 8
_SLOWEST: Final = 120
_RATE: Final = Rate("iss:device:begin", 60, 60.0)


def typed(code: str) -> str:
    """A user code as it is kept, of what somebody typed; "" for what can be none."""
    code = "".join(letter for letter in code.upper() if letter not in "- ")
    return code if len(code) == _LENGTH and all(letter in _LETTERS for letter in code) else ""


def shown(code: str) -> str:
    """A user code as people see it: BCDF-GHJK; "" for none."""
    return f"{code[:4]}-{code[4:]}" if code else ""


class DeviceAuthorization:
    """Where a device begins. verification: the URL of the page. now: unix seconds."""

    __slots__ = ("_auth", "_counter", "_devices", "_now", "_resources", "_verification")

    def __init__(
        self,
        devices: Table[Device],
        auth: ClientAuth,
        resources: Resources,
        now: Callable[[], float],
        verification: str,
        counter: Counter,
    ) -> None:
        self._devices = devices
        self._auth = auth
        self._resources = resources
        self._now = now
        self._verification = verification
        self._counter = counter

    async def handle(self, request: Request) -> Response:
        form = await form_of(request)
        client = await self._auth.authenticate(request, form)
        client.must(GRANTS["device_code"])
        uris = self._resources.asked(form.all("resource")) or self._resources.unsaid(form.get("scope").split())
        for uri in uris:
            client.must_target(uri)
        scopes = scopes_for(client, self._resources, form.get("scope"), uris)
        await self._admit(request)
        for _ in range(8):
            code = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
            secret = secrets.token_urlsafe(32)
            record = Device(
                code,
                client.id,
                scopes,
                uris,
                interval=_INTERVAL,
                expires=self._now() + LIFE,
                secret=sha256(secret.encode()).hexdigest(),
            )
            if await self._devices.add(code, record, LIFE):
                break
        else:
            raise unavailable("user codes are taken, one after the other")
        return json(
            {
                "device_code": f"{code}.{secret}",
                "user_code": shown(code),
                "verification_uri": self._verification,
                "verification_uri_complete": f"{self._verification}?user_code={shown(code)}",
                "expires_in": int(LIFE),
                "interval": _INTERVAL,
            }
        )

    async def _admit(self, request: Request) -> None:
        """Raises OAuthError 429: a client that anybody can be must not fill the state with what nobody answers."""
        verdict = await self._counter.admit(os.urandom(12).hex(), [Charge(_RATE, address_of(request), 1)])
        if verdict.refused >= 0:
            wait = (b"retry-after", b"%d" % (int(verdict.wait) + 1))
            raise OAuthError("temporarily_unavailable", "too many devices begin; try again later", 429, (wait,))


class DeviceCode:
    """A grant."""

    __slots__ = ("_devices", "_families", "_now", "_resources")

    def __init__(
        self, devices: Table[Device], families: Families, resources: Resources, now: Callable[[], float]
    ) -> None:
        self._devices = devices
        self._families = families
        self._resources = resources
        self._now = now

    async def grant(self, asked: Asked) -> Granted:
        client = asked.client
        code, _, secret = asked.form.need("device_code").partition(".")
        held = await self._devices.get(code) if typed(code) == code else None
        digest = sha256(secret.encode()).hexdigest()
        if held is None or held.value.client_id != client.id or not compare_digest(held.value.secret, digest):
            raise OAuthError("invalid_grant", "the device code is not valid, or was used")
        device, now = held.value, self._now()
        left = device.expires - now
        if left <= 0.0:
            raise OAuthError("expired_token", "the device code has expired; begin again")
        if device.redeemed:
            await self._families.revoke(device.redeemed)
            await self._devices.remove(code)
            raise OAuthError("invalid_grant", "the device code is not valid, or was used")
        if device.status == "denied":
            raise OAuthError("access_denied", "the user has refused")
        if device.status == "pending":
            # One second of grace: the answer took its time, too.
            is_early = device.polled > 0.0 and now - device.polled < device.interval - 1.0
            interval = min(device.interval + 5, _SLOWEST) if is_early else device.interval
            await self._devices.swap(held, msgspec.structs.replace(device, polled=now, interval=interval), left)
            if is_early:
                raise OAuthError("slow_down", "wait five seconds longer between two requests")
            raise OAuthError("authorization_pending", "the user has not decided yet")
        audience = one_resource(self._resources, asked.form.all("resource"), device.resources, device.scopes)
        client.must_target(audience)
        id = new_family_id()
        if not await self._devices.swap(held, msgspec.structs.replace(device, status="redeemed", redeemed=id), left):
            raise OAuthError("invalid_grant", "the device code is not valid, or was used")
        return await by_user(self._families, asked, device, audience, id)
