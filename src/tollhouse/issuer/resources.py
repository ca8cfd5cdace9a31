"""Resources: what tokens are for, and which scopes each of them has.

Rule: a token is for exactly one resource, by its canonical URI; what is not ours is nobody's target (RFC 8707).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tollhouse.wire.oauth import OAuthError, canonical_resource

__all__ = ["STANDARD", "Resource", "Resources"]

STANDARD: Mapping[str, str] = {
    "openid": "Know who you are",
    "profile": "See your name",
    "email": "See your email address",
    "groups": "See which groups and organisation you are in",
    "offline_access": "Stay connected while you are away",
}
"""Scopes of OpenID Connect and our own that every issuer has, in words."""


class Resource(NamedTuple):
    """uri: canonical. name: for people. scopes: each with what it allows, in words; none: any of the client's.
    baseline: those of them that who asks for none gets; None: all. main: what a request is for that names none: agents
    of 2025-03-26 know no `resource`."""

    uri: str
    name: str
    scopes: Mapping[str, str]
    baseline: tuple[str, ...] | None = None
    main: bool = False


class Resources:
    """All of an issuer. common: scopes that every resource has, in words."""

    __slots__ = ("_common", "_found", "_main", "issuer")

    def __init__(self, issuer: str, resources: Mapping[str, Resource], common: Mapping[str, str]) -> None:
        self.issuer = issuer
        self._found = dict(resources)
        self._common = {**STANDARD, **common}
        mains = [uri for uri, one in resources.items() if one.main or len(resources) == 1]
        self._main = mains[0] if mains else ""

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._found.values())

    def find(self, uri: str) -> Resource | None:
        """The resource of that canonical URI."""
        return self._found.get(uri)

    def asked(self, uris: Iterable[str]) -> tuple[str, ...]:
        """The canonical URIs of the resources that a request names, each once. Raises OAuthError `invalid_target` for
        one that is not ours."""
        found: dict[str, None] = {}
        for uri in uris:
            try:
                canonical = canonical_resource(uri)
            except ValueError:
                raise OAuthError("invalid_target", "a resource is not an absolute URI without fragment") from None
            if canonical not in self._found and canonical != self.issuer:
                raise OAuthError("invalid_target", "this issuer has no tokens for that resource")
            found[canonical] = None
        return tuple(found)

    def unsaid(self, scopes: Iterable[str]) -> tuple[str, ...]:
        """What a request is for that names no resource: none, which is the issuer itself, where `openid` is among the
        scopes; else the main one, or the only one there is. Raises OAuthError `invalid_target`."""
        chosen = self.chosen((), scopes)
        return () if chosen == self.issuer else (chosen,)

    def chosen(self, uris: tuple[str, ...], scopes: Iterable[str]) -> str:
        """The one that a token is for: the first that was asked for; else the issuer itself where `openid` is among
        the scopes, else the main one, or the only one there is. Raises OAuthError `invalid_target`."""
        if uris:
            return uris[0]
        if "openid" in scopes:
            return self.issuer
        if self._main:
            return self._main
        raise OAuthError("invalid_target", "say which resource the token is for, with `resource`")

    def words(self, scope: str, uris: Iterable[str] = ()) -> str:
        """What a scope allows, as a person understands it; the scope itself where nobody has said."""
        for uri in uris:
            resource = self._found.get(uri)
            if resource is not None and resource.scopes.get(scope):
                return resource.scopes[scope]
        return self._common.get(scope, "") or scope

    def name(self, uri: str) -> str:
        """What people call it."""
        resource = self._found.get(uri)
        return resource.name or uri if resource is not None else uri

    def has(self, scope: str, uris: Iterable[str]) -> bool:
        """Whether a scope makes sense for one of these resources (none: for any of ours)."""
        if scope in self._common:
            return True
        named = self._named(uris) or list(self)
        return any(scope in resource.scopes for resource in named)

    def own_scopes(self, uris: Iterable[str]) -> tuple[str, ...]:
        """Those that who asks for none gets at these resources (none: at all of ours), sorted."""
        named = self._named(uris) or list(self)
        chosen = [resource.scopes if resource.baseline is None else resource.baseline for resource in named]
        return tuple(sorted({scope for scopes in chosen for scope in scopes}))

    def restricts(self, uris: Iterable[str]) -> bool:
        """Whether every one of these resources says which scopes it has, so that others mean nothing there."""
        named = self._named(uris)
        return bool(named) and all(resource.scopes for resource in named)

    @property
    def scopes(self) -> tuple[str, ...]:
        """All there are, sorted."""
        return tuple(sorted({*self._common, *(scope for one in self._found.values() for scope in one.scopes)}))

    def _named(self, uris: Iterable[str]) -> list[Resource]:
        return [self._found[uri] for uri in uris if uri in self._found]
