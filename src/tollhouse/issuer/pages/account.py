"""The page on which a user connects an account of his at a service, and what of that stands on the page of grants.

Rule: it says where he will be sent before he is, who has asked for it, and in whose name it will be; what nobody here
has checked says so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tollhouse.issuer.pages.consent import Application, comes_from, tag
from tollhouse.issuer.pages.layout import Markup, fill, join

__all__ = ["Connected", "connect", "connected", "leaving"]


class Connected(NamedTuple):
    """An account. server: what the gateway calls the service. host: where it is. since: a date."""

    server: str
    host: str
    scopes: Sequence[str]
    since: str


_INTRO = """<h1>Connect your account at {host}</h1>
<p class="muted">Signed in as <strong>{user}</strong>. <a href="{switch}">Not you?</a></p>
<p>You sign in and agree at <strong>{host}</strong>. From then on your agents, and nobody else's, use {server} with your
account there. Your password is not seen here.</p>
"""
_ABOUT = """<dl>
<dt>Service</dt><dd>{server}, at <code>{host}</code></dd>
<dt>Asked for by</dt><dd>{agent}{tag}</dd>
{comes}</dl>
"""
_SCOPES = "<h2>It asks for</h2>\n<ul>\n{scopes}</ul>\n"
_SCOPE = "<li><code>{scope}</code></li>\n"
_UNSAID = "<p>What exactly it may do, {host} tells you before you agree.</p>\n"
_ALREADY = (
    '<p class="note">You have connected an account since {since}. The one that you connect now takes its place.</p>\n'
)
_WARN = (
    '<p class="note warn">Go on only if you have just asked an agent of yours for something that needs {server}.</p>\n'
)
_FORM = """<form method="post" action="{action}">
<input type="hidden" name="l" value="{link}">
<input type="hidden" name="csrf" value="{csrf}">
<div class="pair">
<button class="quiet" name="do" value="cancel">Not now</button>
<button name="do" value="connect">Connect</button>
</div>
</form>
<p class="muted">You can end this at <a href="{grants}">what you have allowed</a>.</p>
"""
_LEAVING = """<h1>One moment</h1>
<p class="muted">You are taken to {host}.</p>
<a class="button" href="{url}">Continue</a>
"""
_CONNECTED = """<section class="grant">
<h3>{server}</h3>
<p class="muted">Since {since}, at <code>{host}</code></p>
{scopes}<form method="post" action="{action}">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="server" value="{server}">
<button class="quiet" name="do" value="disconnect">Disconnect</button>
</form>
</section>
"""
_LIST = "<ul>\n{scopes}</ul>\n"
_HEAD = (
    "<h2>Connected accounts</h2>\n"
    '<p class="muted">Calls of your agents to these services are made with your account there.</p>\n'
)


def connect(
    *,
    action: str,
    switch: str,
    grants: str,
    link: str,
    csrf: str,
    user: str,
    server: str,
    host: str,
    scopes: Sequence[str],
    agent: Application,
    since: str,
) -> Markup:
    """scopes: that will be asked for, none where only the service knows. agent: that has asked for it. since: a date,
    where there is an account already, else "". switch: where to sign out."""
    parts = [
        fill(_INTRO, host=host, user=user, server=server, switch=switch),
        fill(_ABOUT, server=server, host=host, agent=agent.name, tag=tag(agent), comes=comes_from(agent)),
        fill(_SCOPES, scopes=_items(scopes)) if scopes else fill(_UNSAID, host=host),
    ]
    if since:
        parts.append(fill(_ALREADY, since=since))
    parts.append(fill(_WARN, server=server))
    parts.append(fill(_FORM, action=action, link=link, csrf=csrf, grants=grants))
    return join(parts)


def leaving(url: str, host: str) -> Markup:
    """On the way to a service; `pages.onward.refresh` takes browsers along. url: of http or https."""
    return fill(_LEAVING, url=url, host=host)


def connected(accounts: Sequence[Connected], *, action: str, csrf: str) -> Markup:
    """The accounts that somebody has connected, each with a way to end it; nothing where there are none."""
    if not accounts:
        return Markup("")
    return join(
        (
            Markup(_HEAD),
            *(
                fill(
                    _CONNECTED,
                    server=one.server,
                    host=one.host,
                    since=one.since,
                    scopes=fill(_LIST, scopes=_items(one.scopes)) if one.scopes else Markup(""),
                    action=action,
                    csrf=csrf,
                )
                for one in accounts
            ),
        )
    )


def _items(scopes: Sequence[str]) -> Markup:
    return join(fill(_SCOPE, scope=scope) for scope in scopes)
