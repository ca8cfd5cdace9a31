"""Which route answers, in which order, and what never could."""

import random
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.core.match import PredicateSpec, host_of
from tollhouse.gateway.router import Route, Router


async def nothing(request: Request) -> Response:
    return Response(204, [])


def route(name: str, *alternatives: dict[str, object], methods: frozenset[bytes] | None = None) -> Route:
    predicates = tuple(PredicateSpec.model_validate(a).compile() for a in alternatives)
    return Route(name, predicates, nothing, methods=methods, where=f"routes.{name}")


def request(target: str, *, method: str = "GET", host: str = "example.com", **headers: str) -> Request:
    fields = [(b"host", host.encode())] + [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    return Request(method.encode(), target.encode(), Headers(fields))


def found(router: Router, asked: Request) -> str:
    return router.find(asked).name


def test_order_of_precedence() -> None:
    router = Router(
        [
            route("all", {}),
            route("ai", {"path": "/ai/"}),
            route("chat", {"path": "/ai/chat/"}),
            route("exact", {"exact": "/ai/chat/ready"}),
            route("below", {"path": "/ai/chat", "host": "*.example.com"}),
            route("deeper", {"path": "/ai/chat", "host": "*.a.example.com"}),
            route("host", {"path": "/ai/chat", "host": "x.a.example.com"}),
            route("beta", {"path": "/ai/chat", "match": {"headers": {"x-beta": True}}}),
            route("beta2", {"path": "/ai/chat", "match": {"headers": {"x-beta": "2", "x-c": True}}}),
            route("first", {"path": "/ai/chat", "match": {"query": {"q": True}}}),
            route("admin", {"path": "/", "host": "admin.example.com"}),
        ]
    )
    assert found(router, request("/")) == "all"
    assert found(router, request("/ai")) == "ai"
    assert found(router, request("/aix")) == "all"
    assert found(router, request("/ai/chatty")) == "ai"
    assert found(router, request("/ai/chat")) == "chat"
    assert found(router, request("/ai/chat/deep/er")) == "chat"
    assert found(router, request("/ai/chat/ready")) == "exact"
    assert found(router, request("/ai/chat/ready", host="x.a.example.com")) == "exact"
    assert found(router, request("/ai/chat/ready/")) == "chat"
    assert found(router, request("/ai/chat", host="b.example.com")) == "below"
    assert found(router, request("/ai/chat", host="b.a.example.com")) == "deeper"
    assert found(router, request("/ai/chat", host="X.A.Example.com:8080")) == "host"
    assert found(router, request("/ai/chat", x_beta="1")) == "beta"
    assert found(router, request("/ai/chat?q=1", x_beta="1")) == "beta"
    assert found(router, request("/ai/chat?q=1")) == "first"
    assert found(router, request("/ai/chat", x_beta="2", x_c="")) == "beta2"
    assert found(router, request("/x", host="admin.example.com")) == "admin"
    assert found(router, request("/ai/x", host="admin.example.com")) == "ai", "path before host"


def test_what_is_matched_is_what_is_sent() -> None:
    router = Router([route("a", {"path": "/a"}), route("exact", {"exact": "/a/x"})])
    asked = request("/a/b/%2e%2e//./%78")
    assert found(router, asked) == "exact"
    assert asked.path == b"/a/x"
    assert asked.context.route == "exact"
    with pytest.raises(Failure) as caught:
        router.find(request("/a/..%2f"))
    assert caught.value.status == 400


def test_nothing_matches() -> None:
    router = Router([route("a", {"path": "/a"}), route("b", {"path": "/b", "host": "b.example.com"})])
    for target in ("/", "/ab", "/b", "*"):
        with pytest.raises(Failure) as caught:
            router.find(request(target))
        assert caught.value.status == 404
        assert caught.value.reason == "NotFound"


def test_methods_of_the_route_and_of_its_predicates() -> None:
    router = Router(
        [
            route("llm", {"exact": "/v1/x"}, methods=frozenset([b"POST"])),
            route("read", {"path": "/r", "methods": ["GET"]}),
            route("write", {"path": "/r", "methods": ["PUT", "POST"]}),
            route("web", {"path": "/"}, methods=frozenset([b"GET"])),
        ]
    )
    assert found(router, request("/v1/x", method="POST")) == "llm"
    assert found(router, request("/v1/x", method="OPTIONS")) == "llm"
    asked = request("/v1/x")
    with pytest.raises(Failure) as caught:
        router.find(asked)
    assert caught.value.status == 405
    assert caught.value.headers == ((b"allow", b"OPTIONS, POST"),)
    assert asked.context.route == "llm"
    assert found(router, request("/r", method="HEAD")) == "read"
    assert found(router, request("/r", method="PUT")) == "write"
    assert found(router, request("/r", method="OPTIONS", access_control_request_method="POST")) == "write"
    with pytest.raises(Failure) as caught:
        router.find(request("/r", method="DELETE"))
    assert caught.value.status == 405, "the next route matches, and does not take it either"
    alone = Router(
        [route("read", {"path": "/r", "methods": ["GET"]}), route("put", {"path": "/r", "methods": ["PUT"]})]
    )
    with pytest.raises(Failure) as caught:
        alone.find(request("/r", method="DELETE"))
    assert caught.value.status == 405
    assert caught.value.headers == ((b"allow", b"GET, HEAD, OPTIONS, PUT"),)


def test_alternatives() -> None:
    router = Router([route("a", {"exact": "/a"}, {"path": "/b", "host": "b.example.com"})])
    assert found(router, request("/a")) == "a"
    assert found(router, request("/b/c", host="b.example.com")) == "a"


def test_handle_gives_the_request_to_the_route() -> None:
    router = Router([route("a", {"exact": "/a"})])
    awaitable = router.handle(request("/a"))
    with pytest.raises(StopIteration) as done:
        awaitable.__await__().send(None)
    assert done.value.value.status == 204


@pytest.mark.parametrize(
    "one, other",
    [
        ({"path": "/a"}, {"path": "/a/"}),
        ({"exact": "/a"}, {"exact": "/a"}),
        ({"path": "/a", "host": "x.com"}, {"path": "/a", "host": ["y.com", "X.com"]}),
        ({"path": "/a", "methods": ["GET", "PUT"]}, {"path": "/a", "methods": ["PUT"]}),
        (
            {"match": {"headers": {"a": "1", "b": True}}},
            {"match": {"headers": {"B": True, "A": "1"}}},
        ),
        ({"match": {"query": {"a": {"regex": "x"}}}}, {"match": {"query": {"a": {"regex": "x"}}}}),
    ],
)
def test_a_route_that_is_never_reached_is_an_error(one: dict[str, object], other: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Router([route("one", one), route("other", other), route("again", other)])
    assert list(dict.fromkeys(p.path for p in caught.value.problems)) == ["routes.other", "routes.again"]
    assert "'one'" in str(caught.value.problems[0])


def test_what_overlaps_in_part_is_no_error() -> None:
    Router(
        [
            route("a", {"path": "/a"}),
            route("b", {"exact": "/a"}),
            route("c", {"path": "/a", "host": "x.com"}),
            route("d", {"path": "/a", "methods": ["PUT", "GET"]}),
            route("e", {"path": "/a", "methods": ["PUT", "POST"]}),
            route("f", {"path": "/a", "match": {"headers": {"x": "1"}}}),
            route("g", {"path": "/a", "match": {"headers": {"x": "2"}}}),
        ]
    )


def test_an_empty_router() -> None:
    with pytest.raises(Failure):
        Router([]).find(request("/a/b/c"))


_SPECS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["/", "/a", "/a/b", "/b/"]),
        "host": st.sampled_from(["x.com", "*.x.com", "*.y.x.com", ["x.com", "z.com"]]),
        "methods": st.sampled_from([["GET"], ["POST"], ["GET", "POST"]]),
        "match": st.sampled_from([{"headers": {"h": "1"}}, {"headers": {"h": True}, "query": {"q": True}}]),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(_SPECS, max_size=6),
    st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/ab", "/a?q=1", "/b/"]),
    st.sampled_from(["x.com", "a.x.com", "b.y.x.com", "z.com", "w"]),
    st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]),
    st.sampled_from(["1", "2"]),
)
def test_the_index_finds_what_a_walk_over_all_routes_finds(
    specs: list[dict[str, object]], target: str, host: str, method: str, header: str
) -> None:
    routes = [route(str(i), spec) for i, spec in enumerate(specs)]
    try:
        router = Router(routes)
    except ConfigError:
        return
    asked = request(target, method=method, host=host, h=header)

    def rank(entry: tuple[int, Route]) -> tuple[int, int, int, int]:
        at, candidate = entry
        predicate = candidate.predicates[0]
        fitting = [h for h in predicate.hosts if h == host_of(asked) or (h[:1] == b"." and host.endswith(h.decode()))]
        nearest = max((1000 if h[:1] != b"." else len(h) for h in fitting), default=0)
        return (-len(predicate.path), -nearest, -predicate.weight, at)

    fitting = [(i, r) for i, r in enumerate(routes) if r.predicates[0].fits(asked, asked.path)]
    if fitting:
        assert router.find(asked).name == min(fitting, key=rank)[1].name
    else:
        with pytest.raises(Failure) as caught:
            router.find(asked)
        assert caught.value.status in (404, 405)


def _seconds(router: Router, targets: list[str]) -> float:
    """The best of several rounds: noise only adds."""
    asked = [request(t) for t in targets]
    best = 1e9
    for _ in range(7):
        began = thread_time()
        for one in asked:
            router.find(one)
        best = min(best, thread_time() - began)
    return best / len(asked)


def test_five_thousand_routes_cost_what_one_does() -> None:
    chat = route("llm", {"exact": "/v1/chat/completions"})
    many = [
        route(f"r{i}", {"path": f"/svc/{i}/"}) if i % 2 else route(f"r{i}", {"path": "/", "host": f"h{i}.example.com"})
        for i in range(5000)
    ]
    few = Router([chat, route("r", {"path": "/svc/1/"})])
    full = Router([chat, *many])
    assert found(full, request("/svc/4999/x")) == "r4999"
    assert found(full, request("/x", host="h4998.example.com")) == "r4998"
    pick = random.Random(7)
    direct = ["/v1/chat/completions"] * 2000
    assert _seconds(full, direct) < 2 * _seconds(few, direct)
    spread = [f"/svc/{pick.randrange(1, 5000, 2)}/a/b/c" for _ in range(2000)]
    assert _seconds(full, spread) < 3 * _seconds(few, ["/svc/1/a/b/c"] * 2000)


def test_a_path_of_thousands_of_segments_costs_no_more_than_its_length() -> None:
    router = Router([route("a", {"path": "/a/b/c"}), route("all", {})])
    asked = request("/a" * 8000)
    began = thread_time()
    assert found(router, asked) == "all"
    assert thread_time() - began < 0.05
