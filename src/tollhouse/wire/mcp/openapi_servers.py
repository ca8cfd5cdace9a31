"""Where the operations of an OpenAPI document are served (3.1.0, 4.8.5), as far as the gateway believes it.

Rule: all calls go to one place, which is the operator's word: `base_url`, or a document that came from there. What a
document says of other places is not followed.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from tollhouse.wire.mcp.openapi_document import Document, OpenAPIError
from tollhouse.wire.pointer import below

__all__ = ["Servers", "path_encoded"]

_TEMPLATE = re.compile(r"\{([^{}/]+)\}")


class Servers:
    """base: scheme and authority of every call. path: below which operations are, without a slash at its end.

    base_url: in the place of the document's servers, "" for those. url: where the document came from, "" for a file.
    variables: of the servers' URLs. Raises OpenAPIError.
    """

    __slots__ = ("_document", "_origin", "_url", "_variables", "base", "path")

    def __init__(self, document: Document, *, base_url: str, url: str, variables: Mapping[str, str]) -> None:
        self._document = document
        self._url = url
        self._variables = variables
        servers = document.root.get("servers")
        if base_url:
            self.base, self.path = _split(base_url, "")
            try:
                said = self._server(servers, "/servers")[0] or self.base
            except OpenAPIError:  # it is not asked
                said = self.base
        else:
            said, self.path = self._server(servers, "/servers")
            self.base = said
            if not said:
                raise OpenAPIError("/servers", "the document names no server; write `base_url`")
            if url and _origin(said) != _origin(_split(url, "", query=True)[0]):
                what = f"the document came from another place than {said}; write `base_url` if that is right"
                raise OpenAPIError("/servers/0/url", what)
        self._origin = _origin(said)

    def path_of(self, holder: Mapping[str, Any], at: str) -> str | None:
        """The path that a Path Item or Operation says for itself, None where it says nothing. Raises OpenAPIError where
        it is at another place."""
        servers = holder.get("servers")
        if not servers:
            return None
        base, path = self._server(servers, below(at, "servers"))
        if base and _origin(base) != self._origin:
            raise OpenAPIError(below(at, "servers"), f"it is at another place: {base}")
        return path

    def _server(self, servers: Any, at: str) -> tuple[str, str]:
        """Base and path of the first of `servers`; ("", "") where its base is not known."""
        servers, at = self._document.follow(servers, at)
        if servers is None or servers == []:
            servers = [{"url": "/"}]
        if not isinstance(servers, list) or not isinstance(servers[0], dict):
            raise OpenAPIError(at, "must be a list of objects")
        first, at = servers[0], below(at, 0)
        url = first.get("url")
        if not isinstance(url, str):
            raise OpenAPIError(below(at, "url"), "must be text")
        variables = self._document.members(first.get("variables"), below(at, "variables"))

        def filled(match: re.Match[str]) -> str:
            name = match[1]
            where = below(at, "variables", name)
            variable = self._document.members(variables.get(name), where)
            value = self._variables.get(name, variable.get("default"))
            if not isinstance(value, (str, int, float)):
                raise OpenAPIError(where, "the variable has no default; write it in `variables`")
            allowed = variable.get("enum")
            if isinstance(allowed, list) and value not in allowed and name in self._variables:
                raise OpenAPIError(where, f"{value!r} is none of {', '.join(map(str, allowed[:10]))}")
            return str(value)

        url = _TEMPLATE.sub(filled, url)
        try:
            return _split(url, self._url)
        except OpenAPIError as problem:
            raise OpenAPIError(below(at, "url"), problem.message) from None


def _split(url: str, base: str, *, query: bool = False) -> tuple[str, str]:
    """(scheme and authority, path without a slash at its end). Raises OpenAPIError."""
    try:
        whole = urljoin(base, url) if base else url
        parts = urlsplit(whole)
        _ = parts.port
    except ValueError:
        raise OpenAPIError("", f"{url[:200]!r} is not a URL") from None
    if not parts.scheme and not parts.netloc:
        return "", path_encoded(parts.path).rstrip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise OpenAPIError("", f"{url[:200]!r} is not a URL like https://api.example.com/v1")
    if not query and (parts.query or parts.fragment):
        raise OpenAPIError("", f"{url[:200]!r} must have no query and no fragment")
    return f"{parts.scheme}://{parts.netloc}", path_encoded(parts.path).rstrip("/")


def path_encoded(path: str) -> str:
    """A path of a document, with what must be percent-encoded in a request target."""
    return quote(path, safe="/:@!$&'()*+,;=-._~%")


def _origin(base: str) -> tuple[str, str, int]:
    parts = urlsplit(base)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
