"""The login page: name and password of local users, and links to upstream providers."""

from collections.abc import Sequence
from typing import NamedTuple

from tollhouse.issuer.pages.layout import Markup, fill, join

__all__ = ["Elsewhere", "login"]


class Elsewhere(NamedTuple):
    """An upstream provider to log in at. url: of ours, that leads there."""

    label: str
    url: str


_TITLE = '<h1>Sign in</h1>\n<p class="muted">{why}</p>\n'

_NOTICE = '<p class="note bad" role="alert" id="problem">{notice}</p>\n'

_KEEP = """<form method="post" action="{action}">
<input type="hidden" name="i" value="{interaction}">
<input type="hidden" name="csrf" value="{csrf}">
<button name="do" value="keep">Continue as {user}</button>
</form>
<p class="or">or as somebody else</p>
"""

_FORM = """<form method="post" action="{action}">
<input type="hidden" name="i" value="{interaction}">
<input type="hidden" name="csrf" value="{csrf}">
<label for="username">User name</label>
<input type="text" id="username" name="username" value="{username}" autocomplete="username" autocapitalize="none"
 spellcheck="false" maxlength="128" required{focus_name}{described}>
<label for="password">Password</label>
<input type="password" id="password" name="password" autocomplete="current-password" maxlength="1024"
 required{focus_password}{described}>
<button name="do" value="login">Sign in</button>
</form>
"""

_OR = '<p class="or">or</p>\n'

_LINK = '<a class="button quiet" href="{url}">Continue with {label}</a>\n'


def login(
    *,
    action: str,
    interaction: str,
    csrf: str,
    client: str,
    username: str,
    notice: str,
    has_passwords: bool,
    elsewhere: Sequence[Elsewhere],
    current: str = "",
) -> Markup:
    """client: name of the application that waits, "" where none does. notice: what went wrong. current: who is signed
    in, where they may go on as that."""
    parts = [fill(_TITLE, why=f"to continue to {client}" if client else "to continue")]
    if notice:
        parts.append(fill(_NOTICE, notice=notice))
    if current:
        parts.append(fill(_KEEP, action=action, interaction=interaction, csrf=csrf, user=current))
    if has_passwords:
        focus = Markup(" autofocus")
        none = Markup("")
        parts.append(
            fill(
                _FORM,
                action=action,
                interaction=interaction,
                csrf=csrf,
                username=username,
                focus_name=none if username else focus,
                focus_password=focus if username else none,
                described=Markup(' aria-describedby="problem" aria-invalid="true"') if notice else none,
            )
        )
    if elsewhere:
        if has_passwords:
            parts.append(Markup(_OR))
        parts.extend(fill(_LINK, url=place.url, label=place.label) for place in elsewhere)
    return join(parts)
