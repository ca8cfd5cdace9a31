"""The pages of the device flow: where the code is typed in, and where it is confirmed (RFC 8628 section 3.3)."""

from collections.abc import Sequence

from tollhouse.issuer.pages.consent import Application, Wish, comes_from, tag, wishes
from tollhouse.issuer.pages.layout import Markup, fill

__all__ = ["ask_code", "confirm"]

_ASK = """<h1>Connect a device</h1>
<p class="muted">Signed in as <strong>{user}</strong>.</p>
<p>Type in the code that your device or program shows.</p>
{notice}<form method="post" action="{action}">
<input type="hidden" name="csrf" value="{csrf}">
<label for="user_code">Code</label>
<input type="text" class="code" id="user_code" name="user_code" value="{code}" autocomplete="off"
 autocapitalize="characters" spellcheck="false" maxlength="32" required autofocus>
<button name="do" value="find">Continue</button>
</form>
"""
_NOTICE = '<p class="note bad" role="alert">{notice}</p>\n'
_CONFIRM = """<h1>{name} wants access</h1>
<p class="muted">Signed in as <strong>{user}</strong>.</p>
<p class="note warn">Allow this only if you started it yourself, and the device in front of you shows this very code.
Who sends you a code and asks you to type it in wants to act in your name.</p>
<dl>
<dt>Code</dt><dd><code>{code}</code></dd>
<dt>Application</dt><dd>{name}{tag}</dd>
{host}</dl>
{asked}<form method="post" action="{action}">
<input type="hidden" name="csrf" value="{csrf}">
<input type="hidden" name="user_code" value="{code}">
<div class="pair">
<button class="quiet" name="do" value="deny">Deny</button>
<button name="do" value="allow">Allow</button>
</div>
</form>
"""


def ask_code(*, action: str, csrf: str, user: str, code: str, notice: str = "") -> Markup:
    """code: what the form has already; it is never sent by itself."""
    told = fill(_NOTICE, notice=notice) if notice else Markup("")
    return fill(_ASK, action=action, csrf=csrf, user=user, code=code, notice=told)


def confirm(*, action: str, csrf: str, user: str, code: str, application: Application, asked: Sequence[Wish]) -> Markup:
    return fill(
        _CONFIRM,
        action=action,
        csrf=csrf,
        user=user,
        code=code,
        name=application.name,
        tag=tag(application),
        host=comes_from(application),
        asked=wishes(asked),
    )
