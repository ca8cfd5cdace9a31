"""What all pages have in common: how text becomes HTML, the frame around it, and the fields that keep browsers in line.

Rule: text gets into a page through `fill` alone, which escapes it; what is HTML already has the type Markup, and only
`fill` makes that. Values stand in quoted attributes or between tags, never in a script, a style or a tag's name.

No page has a script or a foreign picture, none may be framed, none is stored. `form-action` is what a page's own forms
need and no more: browsers apply it to each redirect that follows a form, so no form of ours is answered by a redirect
to somebody else (`pages.onward`).
"""

import re
from collections.abc import Iterable
from html import escape

from tollhouse.core.http import Response

__all__ = ["STYLE", "Markup", "answer", "fill", "hidden", "join", "page"]

# Controls, and letters that nobody sees but that turn the others round: a host's name must read as it is.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)

STYLE = "/oauth/style.css"
"""Where the style sheet is, after the issuer's path."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def fill(template: str, **values: str) -> Markup:
    """`template` with each `{name}` replaced by the value of that name, escaped unless it is Markup."""
    return Markup(template.format_map({name: _escaped(value) for name, value in values.items()}))


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))


def hidden(fields: Iterable[tuple[str, str]]) -> Markup:
    """What a form sends without showing it."""
    return join(fill(_HIDDEN, name=name, value=value) for name, value in fields)


def _escaped(value: str) -> str:
    return value if isinstance(value, Markup) else escape(_UNSEEN.sub("", value), quote=True)


_HIDDEN = '<input type="hidden" name="{name}" value="{value}">\n'

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
{head}<title>{title}</title>
<link rel="stylesheet" href="{style}">
</head>
<body>
<main>
{body}</main>
<footer>{host}</footer>
</body>
</html>
"""


def page(title: str, body: Markup, *, base: str, host: str, head: Markup = Markup("")) -> Markup:  # noqa: B008
    """A whole document. base: the issuer's path. host: the issuer's, so that people see whose page it is."""
    return fill(_PAGE, title=title, body=body, style=base + STYLE, host=host, head=head)


def answer(
    status: int,
    document: Markup,
    *,
    form_action: str = "'self'",
    script: str = "",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> Response:
    """The Response with a page. form_action: where its forms may lead. script: the hash of the one script it has."""
    policy = (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {form_action}"
    )
    if script:
        policy += f"; script-src {script}"
    return Response(
        status,
        [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"content-security-policy", policy.encode("ascii")),
            (b"x-frame-options", b"DENY"),
            (b"x-content-type-options", b"nosniff"),
            # Not `no-referrer`: with that, browsers say `Origin: null` with our own forms, too.
            (b"referrer-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
            (b"cross-origin-resource-policy", b"same-origin"),
            *headers,
        ],
        document.encode("utf-8"),
    )
