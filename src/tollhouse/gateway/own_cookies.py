"""The auth provider's cookies stay with it.

Rule: browsers send them with every request to its host, also for a service behind this gateway; whoever had both of
them would be logged in as their user. So no service gets to see one.
"""

from collections.abc import Awaitable

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.issuer.cookies import Cookies
from tollhouse.issuer.spec import IssuerSpec

__all__ = ["without_own_cookies"]


def without_own_cookies(spec: IssuerSpec | None, service: Handler[Request, Response]) -> Handler[Request, Response]:
    """What goes to `service` without them. spec: of the auth provider; None where there is none."""
    if spec is None:
        return service
    cookies = Cookies(spec.url, spec.cookie)
    names = (cookies.session.encode(), cookies.browser.encode())

    def handle(request: Request) -> Awaitable[Response]:
        request.headers.drop_cookies(names)
        return service(request)

    return handle
