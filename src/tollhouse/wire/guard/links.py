"""Links that a text makes a program follow: the way by which a model is made to carry data out.

Rule: a link counts as its host, read as browsers read it, and only hosts that are named are allowed; what cannot be
read is not allowed. A picture is fetched as soon as it is shown, so that pictures are the dangerous ones; a link waits
for a click.
"""

import re
from collections.abc import Iterable

from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.rules import Rule, pattern

__all__ = ["AllowedHosts", "images", "links"]

_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\.?")
_ADDRESS = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,}([^/\\?#\s<>\"')\]]*)")
_UNSEEN = re.compile("[\t\r\n\u00ad\u200b-\u200d\u2060\ufeff]")  # browsers drop them from addresses

_SCHEME = "(?i:https?|ftp|wss?)"
_REST = r"[^\s<>\"')\]]+"
_URL = rf"(?:{_SCHEME}:[/\\]{{0,4}}|[/\\]{{2}}){_REST}"
_LOADING = "img|image|iframe|video|audio|source|embed|object|link|script|input|track|base|form|svg|use|body|table|td"


class AllowedHosts:
    """Hosts that links may lead to: `docs.example.org`, or `*.example.org` for all below it. Raises Refused."""

    __slots__ = ("_below", "_names")

    def __init__(self, hosts: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._below: tuple[str, ...] = ()
        for host in hosts:
            name = host.lower()
            if _HOST.fullmatch(name) is None:
                raise Refused(f"{host!r} is not the name of a host, like `docs.example.org` or `*.example.org`")
            if name.startswith("*."):
                self._below += (name[1:].rstrip("."),)
            else:
                self._names.add(name.rstrip("."))

    def allows(self, address: str) -> bool:
        """Whether an address has a host that is named. One with a user name in front of the host has not: it is there
        to look like another."""
        match = _ADDRESS.match(_UNSEEN.sub("", address))
        if match is None:
            return False
        authority = match[1].lower()
        host, _, port = authority.partition(":")
        # Letters outside of ASCII look like others.
        if not authority.isascii() or "@" in authority or "%" in authority or (port and not port.isdigit()):
            return False
        host = host.rstrip(".")
        return bool(host) and (host in self._names or host.endswith(self._below))

    def fetches(self, text: str) -> bool:
        """Whether any address in the text is not allowed, or none can be read: any of them may be fetched."""
        found = [match[0] for match in _ADDRESS.finditer(_UNSEEN.sub("", text))]
        return not found or not all(map(self.allows, found))

    def leads(self, text: str) -> bool:
        """Whether the address that the text begins with is not allowed: what it carries along is that host's matter."""
        return not self.allows(text)


def images(allowed: AllowedHosts, name: str = "image_link") -> tuple[Rule, ...]:
    """Pictures and other things that are fetched to be shown, in Markdown and HTML, from hosts that are not allowed."""
    own = allowed.fetches
    return (
        pattern(
            name,
            rf"!\[[^\[\]\n]{{0,500}}\]\(\s{{0,4}}<?\s?{_URL}(?:[>\s][^)\n]{{0,300}})?\)?",
            written=own,
        ),
        # The address of a picture may stand elsewhere: `![][1]`, and below it `[1]: https://...`.
        pattern(name, rf"\[[^\[\]\n]{{1,200}}\]:\s{{0,4}}<?{_URL}>?", written=own),
        pattern(
            name,
            rf"(?i)<(?:{_LOADING})\b[^<>]{{0,400}}\b(?:src|srcset|href|data|action|background|poster|xlink:href)\s{{0,3}}="
            rf"\s{{0,3}}[\"']?\s{{0,3}}{_URL}[^<>]{{0,400}}>?",
            written=own,
        ),
        pattern(name, rf"(?i)\burl\(\s{{0,3}}[\"']?{_URL}[\"']?\s{{0,3}}\)?", written=own),
    )


def links(allowed: AllowedHosts, name: str = "link") -> tuple[Rule, ...]:
    """Every address with a host that is not allowed, pictures too."""
    return (*images(allowed, name), pattern(name, rf"\b{_SCHEME}:[/\\]{{1,4}}{_REST}", written=allowed.leads))
