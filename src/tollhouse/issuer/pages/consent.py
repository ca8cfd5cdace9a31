"""The consent page: which application, known by what, may do what, where, in whose name.

Rule: what the application says of itself (its name) stands beside what it cannot choose (its host, where the answer
goes), and a name that nobody has checked says so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tollhouse.issuer.pages.layout import Markup, fill, join

__all__ = ["Application", "Wish", "comes_from", "consent", "tag", "wishes"]


class Application(NamedTuple):
    """A client as people see it. host: where it comes from, "" where only the configuration knows it. verified:
    whether somebody here vouches for the name."""

    name: str
    host: str
    verified: bool


class Wish(NamedTuple):
    """What is asked at one resource. name: "" for what is asked about the user. what: each scope in words."""

    name: str
    uri: str
    what: Sequence[str]


_INTRO = """<h1>{name} wants access</h1>
<p class="muted">Signed in as <strong>{user}</strong>. <a href="{switch}">Not you?</a></p>
"""
_UNVERIFIED = ' <span class="tag">unverified</span>'
_ABOUT = """<dl>
<dt>Application</dt><dd>{name}{tag}</dd>
{host}{where}</dl>
"""
_HOST = "<dt>Comes from</dt><dd><code>{host}</code></dd>\n"
_WHERE = "<dt>Answers go to</dt><dd><code>{redirect}</code></dd>\n"
_LOCAL = (
    '<p class="note warn">The answer goes to a program on this computer. Any program here could pretend to be {name}: '
    "go on only if you have just started it yourself.</p>\n"
)
_NAMELESS = (
    '<p class="note warn">This application gave its own name, and nobody has checked it. Judge it by where it comes '
    "from.</p>\n"
)
_DIFFERENCE = "<p>You have allowed it some things before. New is:</p>\n"
_RESOURCE = "<h2>{name}</h2>\n{uri}<ul>\n{what}</ul>\n"
_BELOW = "<h3>{name}</h3>\n{uri}<ul>\n{what}</ul>\n"
_URI = '<p class="muted"><code>{uri}</code></p>\n'
_ITEM = "<li>{words}</li>\n"
_NOTHING = "<li>Access, with no permission named</li>\n"
_FORM = """<form method="post" action="{action}">
<input type="hidden" name="i" value="{interaction}">
<input type="hidden" name="csrf" value="{csrf}">
<div class="pair">
<button class="quiet" name="do" value="deny">Deny</button>
<button name="do" value="allow">Allow</button>
</div>
</form>
<p class="muted">You can take this back at <a href="{grants}">what you have allowed</a>.</p>
"""


def tag(application: Application) -> Markup:
    """What stands after the name that nobody vouches for."""
    return Markup("" if application.verified else _UNVERIFIED)


def comes_from(application: Application) -> Markup:
    """Its host, where there is one to show."""
    return fill(_HOST, host=application.host) if application.host else Markup("")


def wishes(asked: Sequence[Wish], *, below: bool = False) -> Markup:
    """What is asked, resource by resource. below: under a heading of its own."""
    return join(
        fill(
            _BELOW if below else _RESOURCE,
            name=wish.name or "About you",
            uri=fill(_URI, uri=wish.uri) if wish.uri and wish.uri != wish.name else Markup(""),
            what=join(fill(_ITEM, words=words) for words in wish.what) if wish.what else Markup(_NOTHING),
        )
        for wish in asked
    )


def consent(
    *,
    action: str,
    switch: str,
    grants: str,
    interaction: str,
    csrf: str,
    user: str,
    application: Application,
    redirect: str,
    is_local: bool,
    asked: Sequence[Wish],
    is_difference: bool,
) -> Markup:
    """redirect: host (or scheme) the answer goes to. is_local: that is this very machine. is_difference: some of it was
    allowed before and is not shown. switch: where to sign in as somebody else."""
    name = application.name
    none = Markup("")
    parts = [
        fill(_INTRO, name=name, user=user, switch=switch),
        fill(
            _ABOUT,
            name=name,
            tag=tag(application),
            host=comes_from(application) if application.host != redirect else none,
            where=fill(_WHERE, redirect=redirect) if redirect else none,
        ),
    ]
    if is_local:
        parts.append(fill(_LOCAL, name=name))
    elif not application.verified:
        parts.append(Markup(_NAMELESS))
    if is_difference:
        parts.append(Markup(_DIFFERENCE))
    parts.append(wishes(asked))
    parts.append(fill(_FORM, action=action, interaction=interaction, csrf=csrf, grants=grants))
    return join(parts)
