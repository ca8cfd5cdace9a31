"""A page that says one thing: an error, or that something is done."""

from tollhouse.issuer.pages.layout import Markup, fill, join

__all__ = ["message"]

_BODY = "<h1>{title}</h1>\n<p>{text}</p>\n"
_CODE = '<p class="muted">Error: <code>{code}</code></p>\n'
_LINK = '<a class="button" href="{url}">{label}</a>\n'


def message(title: str, text: str, *, code: str = "", link: tuple[str, str] | None = None) -> Markup:
    """code: the protocol's, for whoever looks after the application. link: URL and label."""
    parts = [fill(_BODY, title=title, text=text)]
    if link is not None:
        parts.append(fill(_LINK, url=link[0], label=link[1]))
    if code:
        parts.append(fill(_CODE, code=code))
    return join(parts)
