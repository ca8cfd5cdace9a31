"""The page on which users see what they have allowed, and take it back."""

from collections.abc import Sequence
from typing import NamedTuple

from tollhouse.issuer.pages.consent import Application, Wish, tag, wishes
from tollhouse.issuer.pages.layout import Markup, fill, join

__all__ = ["Allowed", "grants"]


class Allowed(NamedTuple):
    """What one application may do. since: a date."""

    client_id: str
    application: Application
    since: str
    redirects: Sequence[str]
    asked: Sequence[Wish]


_HEAD = """<h1>What you have allowed</h1>
<p class="muted">Signed in as <strong>{user}</strong>. <a href="{logout}">Sign out</a></p>
{notice}"""
_NOTICE = '<p class="note" role="status">{notice}</p>\n'
_EMPTY = "<p>You have allowed no application anything.</p>\n"
_GRANT = """<section class="grant">
<h2>{name}{tag}</h2>
<p class="muted">Since {since}{host}{where}</p>
{asked}<form method="post" action="{action}">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="client_id" value="{client_id}">
<button class="quiet" name="do" value="revoke">Take it back</button>
</form>
</section>
"""


def grants(
    *,
    action: str,
    logout: str,
    csrf: str,
    user: str,
    notice: str,
    allowed: Sequence[Allowed],
    accounts: Markup = Markup(""),  # noqa: B008
) -> Markup:
    """accounts: what `pages.account` says of those that are connected."""
    none = Markup("")
    parts = [fill(_HEAD, user=user, logout=logout, notice=fill(_NOTICE, notice=notice) if notice else none)]
    if not allowed:
        parts.append(Markup(_EMPTY))
    for one in allowed:
        redirects = ", ".join(one.redirects)
        parts.append(
            fill(
                _GRANT,
                action=action,
                csrf=csrf,
                client_id=one.client_id,
                name=one.application.name,
                tag=tag(one.application),
                since=one.since,
                host=f", from {one.application.host}" if one.application.host else "",
                where=f", answers to {redirects}" if redirects else "",
                asked=wishes(one.asked, below=True),
            )
        )
    parts.append(accounts)
    return join(parts)
