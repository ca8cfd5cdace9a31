"""Which Route answers a request. Built once with a Snapshot, then only read.

Rule: the order of routes never depends on how many there are. Exact path before longest prefix, then the most
specific host, then more conditions, then the order of configuration. Path comes before host so that the gateway's
own addresses are the same on every host. A path that one unconditional route owns costs one dict lookup; prefixes
are looked up by whole segments, longest first, and no deeper than the deepest one configured.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response, problem
from tollhouse.core.match import Predicate, host_of, normalise

__all__ = ["Route", "Router"]


class Route(msgspec.Struct, frozen=True):
    """Where a request goes. predicates: alternatives, any one is enough. handler: the whole chain, bound. render: a
    Failure in the dialect of this route. methods: what the route understands; another one is answered 405 and
    not offered to other routes (a Predicate's methods choose between routes instead). where: the place in
    the configuration, for errors."""

    name: str
    predicates: tuple[Predicate, ...]
    handler: Handler[Request, Response]
    render: Callable[[Failure, Request], Response] = problem
    methods: frozenset[bytes] | None = None
    where: str = ""


_Entries = tuple[tuple[Predicate, Route], ...]


class _Node:
    """The routes of one path, by host. Each tuple is in order of precedence."""

    __slots__ = ("below", "everywhere", "hosts")

    def __init__(self) -> None:
        self.hosts: dict[bytes, _Entries] = {}
        self.below: dict[bytes, _Entries] = {}  # ".example.com"
        self.everywhere: _Entries = ()

    def entries(self, host: bytes) -> Iterator[tuple[Predicate, Route]]:
        if self.hosts:
            yield from self.hosts.get(host, ())
        if self.below:
            at = host.find(b".")
            while at >= 0:
                yield from self.below.get(host[at:], ())
                at = host.find(b".", at + 1)
        yield from self.everywhere


class Router:
    """Finds a request's Route. Raises ConfigError, with every problem, where a route could never be reached."""

    __slots__ = ("_depth", "_direct", "_exact", "_prefix")

    def __init__(self, routes: Iterable[Route]) -> None:
        exact: dict[bytes, _Node] = {}
        prefix: dict[bytes, _Node] = {}
        ranked = [(p, r) for r in routes for p in r.predicates]
        ranked.sort(key=lambda entry: -entry[0].weight)  # stable: the rest is the order of configuration
        problems: list[Problem] = []
        reach: dict[Any, dict[bytes | None, Route]] = {}
        for predicate, route in ranked:
            node = (exact if predicate.exact else prefix).setdefault(predicate.path, _Node())
            for host in predicate.hosts or (None,):
                shadow = _shadow(reach, predicate, host, route)
                if shadow is not None:
                    problems.append(_unreachable(predicate, host, route, shadow))
                elif host is None:
                    node.everywhere += ((predicate, route),)
                elif host[:1] == b".":
                    node.below[host] = (*node.below.get(host, ()), (predicate, route))
                else:
                    node.hosts[host] = (*node.hosts.get(host, ()), (predicate, route))
        if problems:
            raise ConfigError(problems)
        self._exact = exact
        self._prefix = prefix
        self._depth = max((path.count(b"/") for path in prefix), default=-1)
        self._direct = {
            path: node.everywhere[0][1]
            for path, node in exact.items()
            if not node.hosts and not node.below and not node.everywhere[0][0].weight
        }

    def handle(self, request: Request) -> Awaitable[Response]:
        """The Handler over all routes: gives the request to its Route's."""
        return self.find(request).handler(request)

    def find(self, request: Request) -> Route:
        """The request's Route; its path gets normal form, its context the route's name and it the route's `render`.

        Raises Failure 404 where nothing matches, 405 where only the method does not, 400 for a path without meaning.
        """
        route = self._direct.get(request.path)
        if route is None:
            route = self._search(request)
        request.context.route = route.name
        request.render = route.render
        methods = route.methods
        if methods is not None and request.method not in methods and request.method != b"OPTIONS":
            raise _not_allowed(methods)
        return route

    def _search(self, request: Request) -> Route:
        path = request.path
        if path == b"*":  # OPTIONS of the server as a whole
            raise Failure(404, Reason.NOT_FOUND, "no route answers for the whole server; ask for a path")
        path = request.path = normalise(path)
        host = host_of(request)
        allowed: set[bytes] = set()
        for node in self._nodes(path):
            for predicate, route in node.entries(host):
                if predicate.fits_method(request):
                    if predicate.fits_fields(request):
                        return route
                elif predicate.methods is not None and predicate.fits_fields(request):
                    allowed |= predicate.methods
        if allowed:
            raise _not_allowed(allowed)
        raise Failure(404, Reason.NOT_FOUND, "no route matches this host and path")

    def _nodes(self, path: bytes) -> Iterator[_Node]:
        """The nodes on the way, exact first, then prefixes from the longest."""
        node = self._exact.get(path)
        if node is not None:
            yield node
        depth = self._depth
        if depth < 0:
            return
        stem = path
        if path.count(b"/") > depth:
            stem = b"/".join(path.split(b"/", depth + 1)[: depth + 1])
        prefix = self._prefix
        while True:
            node = prefix.get(stem)
            if node is not None:
                yield node
            if not stem:
                return
            stem = stem[: stem.rfind(b"/")]


def _not_allowed(methods: Iterable[bytes]) -> Failure:
    allow = b", ".join(sorted({*methods, b"OPTIONS"}))
    return Failure(
        405,
        Reason.INVALID_REQUEST,
        f"this path does not take that method; it takes {allow.decode('latin-1')}",
        headers=((b"allow", allow),),
    )


def _shadow(
    reach: dict[Any, dict[bytes | None, Route]], predicate: Predicate, host: bytes | None, route: Route
) -> Route | None:
    """The route that takes all requests of `predicate` on `host` before it, if there is one.

    Entries come with the most conditions first, so only equal header and query conditions can cover all of them.
    """
    covered = reach.setdefault((predicate.exact, predicate.path, host, predicate.conditions), {})
    methods: tuple[bytes | None, ...] = (None,) if predicate.methods is None else tuple(sorted(predicate.methods))
    shadow = [covered[method] for method in methods if method in covered]
    for method in methods:
        covered.setdefault(method, route)
    return shadow[0] if len(shadow) == len(methods) else None


def _unreachable(predicate: Predicate, host: bytes | None, route: Route, by: Route) -> Problem:
    what = ("exactly " if predicate.exact else "") + (predicate.path.decode("ascii") or "/")
    on = "" if host is None else f" on {'*' if host[:1] == b'.' else ''}{host.decode('ascii')}"
    how = "is named twice in it" if by is route else f"is already taken by route {by.name!r}"
    return Problem(
        f"route {route.name!r} would never be reached: {what}{on} {how}; change its path, host or conditions",
        path=route.where,
    )
