"""How the browser leaves us after a form: a page takes it to the application, by a refresh or by the reader's hand.

Rule: a redirect would do, but browsers hold each hop that follows a form against our `form-action`, the application's
own later ones too. Browsers refuse to refresh to schemes of applications (`com.example.app:`): for these there is the
button alone. `form_post` is the one page with a script, one fixed line that is allowed by its hash, because
applications expect that form to send itself (OAuth 2.0 Form Post Response Mode, section 2).
"""

from base64 import b64encode
from hashlib import sha256

from tollhouse.issuer.pages.layout import Markup, fill, hidden

__all__ = ["SCRIPT_HASH", "form_post", "onward", "refresh", "stopped"]

_SCRIPT = "document.forms[0].submit()"
SCRIPT_HASH = f"'sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}'"
"""The source expression that allows the script (Content Security Policy 3, section 2.3.1)."""

_REFRESH = '<meta http-equiv="refresh" content="0; url={url}">\n'
_BODY = """<h1>{title}</h1>
<p class="muted">{text}</p>
<a class="button" href="{url}">Continue</a>
"""
_STOPPED = """<h1>That did not work</h1>
<p>What {name} has asked for is refused: {why}.</p>
<p class="note warn">You have not used this application here before, and nobody has checked it. Go on only if you know
<code>{host}</code>.</p>
<a class="button quiet" href="{url}">Continue to {host}</a>
"""
_FORM = """<h1>One moment</h1>
<p class="muted">You are taken back to {name}.</p>
<form method="post" action="{url}">
{fields}<button>Continue</button>
</form>
<script>{script}</script>
"""


def refresh(url: str) -> Markup:
    """What the page's head has so that browsers go on by themselves; nothing where they would not."""
    return fill(_REFRESH, url=url) if url.startswith(("https://", "http://")) else Markup("")


def onward(url: str, name: str) -> Markup:
    """url: with the answer in it. name: of the application."""
    if url.startswith(("https://", "http://")):
        return fill(_BODY, title="One moment", text=f"You are taken back to {name}.", url=url)
    return fill(_BODY, title="All done here", text=f"Go back to {name} to go on.", url=url)


def stopped(url: str, name: str, host: str, why: str) -> Markup:
    """url: with an error in it, at `host`. name: what the application calls itself."""
    return fill(_STOPPED, url=url, name=name, host=host, why=why)


def form_post(url: str, name: str, fields: list[tuple[str, str]]) -> Markup:
    """A form that posts `fields` to `url` by itself."""
    return fill(_FORM, url=url, name=name, fields=hidden(fields), script=Markup(_SCRIPT))
