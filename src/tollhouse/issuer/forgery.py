"""Whether a form was sent by a page of ours, in the browser that got it (RFC 9700 section 4.7).

Rule: two proofs, and both count. The form has an HMAC whose key only the browser's own cookies give; and browsers say
themselves where a request comes from, which must be here.
"""

import hmac
from hashlib import sha256

from tollhouse.core.http import Request
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["check", "same_origin", "token"]

_OURS = frozenset((b"same-origin", b"none"))


def token(action: str, *secrets: str) -> str:
    """For a form that does `action`. secrets: of the browser, and what else the form is bound to; the first is a cookie
    and not empty."""
    key = sha256("\n".join(secrets).encode("utf-8", "surrogatepass")).digest()
    return hmac.new(key, action.encode(), sha256).hexdigest()


def same_origin(request: Request, origin: str) -> bool:
    """Whether nothing says that a request comes from a page that is not of `origin` (as https://auth.example.com)."""
    sites = request.headers.get_all(b"sec-fetch-site")
    if any(site not in _OURS for site in sites):
        return False
    return all(said == origin.encode("ascii") for said in request.headers.get_all(b"origin"))


def check(request: Request, origin: str, form: Form, action: str, *secrets: str) -> None:
    """Raises OAuthError `access_denied` 403 for a form that is not ours, or not this browser's."""
    sent = form.get("csrf").encode("utf-8", "surrogatepass")
    fits = bool(secrets) and bool(secrets[0]) and hmac.compare_digest(sent, token(action, *secrets).encode())
    if not fits or not same_origin(request, origin):
        raise OAuthError(
            "access_denied", "this form was not sent by our own page in this browser; go back and try again", 403
        )
