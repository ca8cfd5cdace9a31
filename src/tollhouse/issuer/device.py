"""The page where users let a device in that shows them a code (RFC 8628 section 3.3).

Rule: a code that came with the link is only filled in; it takes two deliberate steps, and the second one says who asks
for what. Guesses are throttled by user and by address (section 5.1).
"""

from msgspec import structs

from tollhouse.core.errors import Reason
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.browser import Browser, application, name_of
from tollhouse.issuer.consent import wishes_of
from tollhouse.issuer.consents import DEVICE, Consents, by_resource
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.grants.device_code import shown, typed
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.pages.device import ask_code, confirm
from tollhouse.issuer.pages.message import message
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Device, Interaction, Session
from tollhouse.issuer.throttle import address_of
from tollhouse.store.base import unavailable
from tollhouse.store.table import Held
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["VERIFY", "DevicePage"]

VERIFY = "verify"
"""Where the page is: short, because people type it in (RFC 8628 section 3.3.1)."""

_ASK = "device"
_TRIES = 8


class DevicePage:
    """`handle` answers GET (the form) and POST (a code, and the decision about it)."""

    __slots__ = ("_browser", "_consents", "_parts", "_throttle")

    def __init__(self, parts: Parts, browser: Browser, consents: Consents) -> None:
        self._parts = parts
        self._browser = browser
        self._consents = consents
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    async def handle(self, request: Request) -> Response:
        is_post = request.method == b"POST"
        form = await form_of(request) if is_post else Form.parse(request.query)
        browser = self._browser
        code = typed(form.get("user_code"))
        login = await browser.sessions.current(request)
        if login is None:
            if is_post:
                code = ""  # nobody has asked for it
            await self._throttle.must_begin(address_of(request))
            return await browser.begin_login(
                request, Interaction("", "", (), (), "", then="device", device=code), after_form=is_post
            )
        if not is_post:
            return self._ask(login, shown(code))
        do = form.get("do")
        if do == "find":
            check(request, browser.origin, form, _ASK, login.id)
            return await self._find(request, login, code, form.get("user_code"))
        if do not in ("allow", "deny"):
            raise OAuthError("invalid_request", "this form is not complete")
        check(request, browser.origin, form, _ASK, login.id, code)
        return await self._decide(request, login, code, allow=do == "allow")

    def _ask(self, login: Held[Session], code: str, notice: str = "", status: int = 200) -> Response:
        browser = self._browser
        body = ask_code(
            action=browser.path(VERIFY),
            csrf=token(_ASK, login.id),
            user=name_of(login.value),
            code=code,
            notice=notice,
        )
        return browser.page("Connect a device", body, status)

    async def _find(self, request: Request, login: Held[Session], code: str, written: str) -> Response:
        attempt = await self._throttle.code(login.value.sub, address_of(request))
        if attempt.wait:
            return self._slowed(login, int(attempt.wait))
        held = await self._pending(code)
        if held is None:
            return self._ask(login, written[:32], "No device waits for this code. It may have expired.", 404)
        attempt.succeeded()
        parts, browser, device = self._parts, self._browser, held.value
        client = await parts.clients.find(device.client_id)
        if client is None:
            raise OAuthError("invalid_request", "the application is not known here any more")
        body = confirm(
            action=browser.path(VERIFY),
            csrf=token(_ASK, login.id, code),
            user=name_of(login.value),
            code=shown(code),
            application=application(client),
            asked=wishes_of(parts.resources, by_resource(parts.resources, device.resources, device.scopes)),
        )
        return browser.page(f"{application(client).name} wants access", body)

    def _slowed(self, login: Held[Session], seconds: int) -> Response:
        response = self._ask(login, "", f"There were too many attempts. Wait {seconds} seconds.", 429)
        response.reason = Reason.RATE_LIMIT
        response.headers.append((b"retry-after", b"%d" % seconds))
        return response

    async def _decide(self, request: Request, login: Held[Session], code: str, *, allow: bool) -> Response:
        # A guess, too: what binds the form to this page is made of a cookie that its own user knows.
        attempt = await self._throttle.code(login.value.sub, address_of(request))
        if attempt.wait:
            return self._slowed(login, int(attempt.wait))
        device = await self._decided(login.value, code, allow=allow)
        if device is None:
            return self._ask(login, "", "This was decided already, or the code has expired.", 409)
        attempt.succeeded()
        request.context.event = Event(
            "issuer.consent" if allow else "issuer.consent_refused",
            client=device.client_id,
            subject=login.value.sub,
            scopes=device.scopes,
            audience=" ".join(device.resources),
            session=login.value.sid,
        )
        if not allow:
            body = message("Denied", "The device gets no access. You can close this page.")
            return self._browser.page("Denied", body)
        asked = by_resource(self._parts.resources, device.resources, device.scopes)
        await self._consents.allow(login.value.sub, device.client_id, DEVICE, asked)
        body = message("All done here", "The device goes on by itself in a moment. You can close this page.")
        return self._browser.page("All done here", body)

    async def _decided(self, session: Session, code: str, *, allow: bool) -> Device | None:
        """The record with the decision in it; None where there is nothing to decide. The device asks meanwhile, which
        is written there, too."""
        for _ in range(_TRIES):
            held = await self._pending(code)
            if held is None:
                return None
            if allow:
                decided = structs.replace(
                    held.value,
                    status="allowed",
                    sub=session.sub,
                    user=session.user,
                    auth_time=session.auth_time,
                    acr=session.acr,
                    amr=session.amr,
                    sid=session.sid,
                    upstream=session.upstream,
                    issued=self._parts.now(),
                )
            else:
                decided = structs.replace(held.value, status="denied")
            left = held.value.expires - self._parts.now()
            if left > 0 and await self._parts.tables.devices.swap(held, decided, left):
                return decided
        raise unavailable(f"a device's record was written {_TRIES} times while it was to be decided")

    async def _pending(self, code: str) -> Held[Device] | None:
        held = await self._parts.tables.devices.get(code) if code else None
        if held is None or held.value.status != "pending" or held.value.expires <= self._parts.now():
            return None
        return held
