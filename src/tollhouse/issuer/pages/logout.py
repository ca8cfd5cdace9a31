"""The page that asks whether to sign out."""

from tollhouse.issuer.pages.layout import Markup, fill, hidden

__all__ = ["confirm_logout"]

_BODY = """<h1>Sign out</h1>
<p>You are signed in as <strong>{user}</strong>. Applications that act in your name only while you are signed in stop
doing so.</p>
<form method="post" action="{action}">
<input type="hidden" name="csrf" value="{csrf}">
{fields}<button name="do" value="logout">Sign out</button>
</form>
"""


def confirm_logout(*, action: str, csrf: str, user: str, fields: list[tuple[str, str]]) -> Markup:
    """fields: of the request, that go on with the answer."""
    return fill(_BODY, action=action, csrf=csrf, user=user, fields=hidden(fields))
