"""Finding a model by name, suggestions, and `/v1/models` in both shapes."""

from collections.abc import Callable, Sequence
from time import thread_time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Call, ModelCall, Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.endpoints.models import Model, Models, ModelsEndpoint, unknown_model

pytestmark = pytest.mark.anyio


async def nobody(call: ModelCall) -> Reply:
    raise AssertionError("nobody is asked here")


def models(*names: str) -> Models:
    return Models(Model(name, nobody) for name in names)


def everything(name: str) -> bool:
    return True


def found(it: Models, name: str) -> str | None:
    model = it.find(name)
    return None if model is None else model.name


def test_the_most_specific_name_answers() -> None:
    it = models("*", "openai/*", "openai/gpt-*", "openai/gpt-*-mini", "openai/gpt-4o", "*-fast")
    for name, model in {
        "openai/gpt-4o": "openai/gpt-4o",
        "openai/gpt-5": "openai/gpt-*",
        "openai/gpt-5-mini": "openai/gpt-*-mini",
        "openai/o3": "openai/*",
        "claude-fast": "*-fast",
        "claude": "*",
        "a" * 256: "*",
    }.items():
        assert found(it, name) == model
    assert len(it) == 6


@pytest.mark.parametrize("name", ["", "a" * 257, "openai/" + "a" * 3_000_000])
def test_no_wildcard_stands_for_no_name_nor_for_one_nobody_would_keep(name: str) -> None:
    assert found(models("*", "openai/*"), name) is None


def test_a_wildcard_does_not_overlap_itself() -> None:
    it = models("ab*ba")
    assert found(it, "aba") is None
    assert found(it, "abba") == "ab*ba"


def test_nothing_is_there() -> None:
    assert found(models(), "x") is None
    assert found(models("a", "b*"), "x") is None


@pytest.mark.parametrize("names, says", [(("a**",), "more than one"), (("a", "a"), "twice"), (("a*", "a*"), "twice")])
def test_bad_names(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        models(*names)


short = st.text("ab-", max_size=5)
patterns = st.sets(st.one_of(short, st.tuples(short, short).map("*".join)), max_size=12)


@given(patterns, short)
def test_finding_is_as_defined(names: set[str], asked: str) -> None:
    """Against the definition, tried one by one."""
    best: tuple[int, int] | None = None
    name = asked if asked in names else None
    if name is None and asked:  # no pattern stands for no name
        for pattern in names:
            prefix, star, suffix = pattern.partition("*")
            fits = asked.startswith(prefix) and asked.endswith(suffix) and len(asked) >= len(prefix) + len(suffix)
            if star and fits and (best is None or (len(prefix), len(suffix)) > best):
                best, name = (len(prefix), len(suffix)), pattern
    assert found(models(*names), asked) == name


def test_finding_among_5000_costs_the_same() -> None:
    def cost(it: Models, asked: list[str]) -> float:
        times = []
        for _ in range(5):
            began = thread_time()
            for name in asked:
                it.find(name)
            times.append(thread_time() - began)
        return min(times)

    few = models("m0", "w0/*")
    many = models(*(f"m{n}" for n in range(5000)), *(f"w{n:04}/*" for n in range(5000)))
    assert cost(many, ["m7"] * 2000) < 5 * cost(few, ["m0"] * 2000)
    assert cost(many, ["w0007/x"] * 2000) < 5 * cost(few, ["w0/x"] * 2000)
    began = thread_time()
    many.nearest("m49999", everything)
    assert thread_time() - began < 0.1


def test_near_names() -> None:
    it = models("gpt-4o", "gpt-4o-mini", "gpt-4.1", "claude-sonnet-4-5", "gpt-*")
    assert it.nearest("gpt4o", everything)[0] == "gpt-4o"
    assert it.nearest("claude-sonet-4-5", everything) == ["claude-sonnet-4-5"]
    assert it.nearest("gpt4o", lambda n: n == "gpt-4o-mini") == ["gpt-4o-mini"]
    assert it.nearest("zzz", everything) == []
    assert it.nearest("g" * 100_000, everything) == []


def test_near_names_among_many() -> None:
    it = models(*(f"model-{n:04}" for n in range(5000)))
    near = it.nearest("model-123", everything)
    assert len(near) == 3
    assert all(name.startswith("model-12") for name in near)


async def test_what_an_unknown_model_is_told() -> None:
    failure = await unknown_model(models("smart"), "smrt", lambda p, n: True, None)
    assert (failure.status, failure.code) == (404, "model_not_found")
    assert failure.message == "the model 'smrt' is not there: did you mean 'smart'?"
    failure = await unknown_model(models("smart"), "x" * 1000, lambda p, n: True, None)
    assert "GET /v1/models" in failure.message
    assert len(failure.message) < 250


# ---- the endpoint
IT = Models(
    [
        Model("org/big:7b", nobody, owned_by="ours", created=1760000000),
        Model("secret", nobody),
        Model("smart", nobody),
        Model("openai/*", nobody),
    ]
)


def endpoint(hidden: str = "secret") -> ModelsEndpoint:
    def permitted(principal: Principal | None, name: str) -> bool:
        return name != hidden or (principal is not None and principal.id == "root")

    return ModelsEndpoint(IT, permitted)


async def get(
    target: bytes = b"/v1/models", *, anthropic: bool = False, principal: Principal | None = None
) -> dict[str, Any]:
    headers = Headers([(b"anthropic-version", b"2023-06-01")] if anthropic else [])
    request = Request(b"GET", target, headers)
    request.context.principal = principal
    response = await endpoint().handle(request)
    assert response.status == 200
    assert response.headers == [(b"content-type", b"application/json")]
    content: dict[str, Any] = msgspec.json.decode(response.body)
    return content


async def test_the_list_in_openais_shape() -> None:
    assert await get() == {
        "object": "list",
        "data": [
            {"id": "org/big:7b", "object": "model", "created": 1760000000, "owned_by": "ours"},
            {"id": "smart", "object": "model", "created": 0, "owned_by": "tollhouse"},
            {"id": "openai/*", "object": "model", "created": 0, "owned_by": "tollhouse"},
        ],
    }


async def test_the_list_in_anthropics_shape() -> None:
    listed = await get(anthropic=True)
    assert listed["data"][0] == {
        "type": "model",
        "id": "org/big:7b",
        "display_name": "org/big:7b",
        "created_at": "2025-10-09T08:53:20Z",
    }
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "org/big:7b", "openai/*")


async def test_pages() -> None:
    first = await get(b"/v1/models?limit=2", anthropic=True)
    assert ([m["id"] for m in first["data"]], first["has_more"]) == (["org/big:7b", "smart"], True)
    rest = await get(b"/v1/models?limit=2&after_id=smart", anthropic=True)
    assert ([m["id"] for m in rest["data"]], rest["has_more"]) == (["openai/*"], False)
    before = await get(b"/v1/models?limit=1&before_id=openai%2F%2A", anthropic=True)
    assert ([m["id"] for m in before["data"]], before["has_more"]) == (["smart"], True)
    empty = await get(b"/v1/models?after_id=openai/*", anthropic=True)
    assert (empty["data"], empty["first_id"]) == ([], None)


@pytest.mark.parametrize("query", [b"limit=0", b"limit=1001", b"limit=x", b"limit=00001000", b"after_id=none"])
async def test_bad_pages(query: bytes) -> None:
    with pytest.raises(Failure) as caught:
        await get(b"/v1/models?" + query, anthropic=True)
    assert caught.value.status == 400


@pytest.mark.parametrize("path, name", [(b"org%2Fbig%3A7b", "org/big:7b"), (b"org/big:7b", "org/big:7b")])
async def test_one_by_its_id(path: bytes, name: str) -> None:
    assert (await get(b"/v1/models/" + path))["id"] == name
    assert (await get(b"/v1/models/" + path, anthropic=True))["id"] == name


async def test_one_that_a_wildcard_matches() -> None:
    assert (await get(b"/v1/models/openai/gpt-4o"))["id"] == "openai/gpt-4o"


async def test_what_may_not_be_asked_for_is_not_there() -> None:
    root = Principal("root", source="key")
    assert (await get(b"/v1/models/secret", principal=root))["id"] == "secret"
    assert "secret" in str(await get(principal=root))
    for target in (b"/v1/models/secret", b"/v1/models/secre"):
        with pytest.raises(Failure) as caught:
            await get(target)
        assert caught.value.status == 404
        assert "did you mean" not in caught.value.message


async def test_only_get() -> None:
    with pytest.raises(Failure) as caught:
        await endpoint().handle(Request(b"POST", b"/v1/models", Headers()))
    assert caught.value.status == 405
    assert caught.value.headers == ((b"allow", b"GET, HEAD"),)


@pytest.mark.parametrize(
    "headers, shape", [([], {"error"}), ([(b"anthropic-version", b"x")], {"type", "error", "request_id"})]
)
async def test_failures_in_the_shape_that_was_asked(headers: list[tuple[bytes, bytes]], shape: set[str]) -> None:
    render: Callable[..., Any] = endpoint().render
    request = Request(b"GET", b"/v1/models/x", Headers(headers))
    with pytest.raises(Failure) as caught:
        await endpoint().handle(request)
    assert set(msgspec.json.decode(render(caught.value, request).body)) == shape


@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/models/smart", b"/v1/models/none"])
async def test_rules_and_limits_are_asked_before_every_answer(path: bytes) -> None:
    asked: list[Call] = []

    async def admit(call: Call) -> None:
        asked.append(call)
        if len(asked) > 1:
            raise Failure(429, Reason.RATE_LIMIT, "enough")

    it = ModelsEndpoint(models("smart"), lambda principal, name: True, admit=admit)
    request = Request(b"GET", path, Headers())
    request.context.principal = Principal("p", source="key")
    if path.endswith(b"none"):
        with pytest.raises(Failure, match="is not there"):
            await it.handle(request)
    else:
        assert (await it.handle(request)).status == 200
    [call] = asked
    assert isinstance(call, ModelCall)
    assert (call.model, call.label, call.estimate, call.principal) == ("", "", 0, request.context.principal)
    with pytest.raises(Failure, match="enough"):
        await it.handle(request)


# ---- Google's shape
METHODS = ["generateContent", "countTokens", "embedContent", "batchEmbedContents"]


async def google(target: bytes, *headers: tuple[bytes, bytes], principal: Principal | None = None) -> dict[str, Any]:
    def permitted(principal: Principal | None, name: str) -> bool:
        return name != "secret" or principal is not None

    path = target.partition(b"/models")[0] + b"/models"
    it = ModelsEndpoint(IT, permitted, path=path, google=path != b"/v1/models")
    request = Request(b"GET", target, Headers(headers))
    request.context.principal = principal
    content: dict[str, Any] = msgspec.json.decode((await it.handle(request)).body)
    return content


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/v1beta/models", []), (b"/v1alpha/models", [(b"anthropic-version", b"x")]),
        (b"/v1/models", [(b"x-goog-api-key", b"k")]), (b"/v1/models", [(b"x-goog-api-client", b"genai")]),
    ],
)  # fmt: skip
async def test_the_list_in_googles_shape(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    listed = await google(target, *headers)
    assert [model["name"] for model in listed["models"]] == ["models/org/big:7b", "models/smart", "models/openai/*"]
    assert listed["models"][1] == {
        "name": "models/smart", "displayName": "smart", "supportedGenerationMethods": METHODS,
    }  # fmt: skip
    assert "nextPageToken" not in listed
    own = await google(target, *headers, principal=Principal("p", source="key"))
    assert len(own["models"]) == 4


async def test_one_in_googles_shape() -> None:
    assert (await google(b"/v1beta/models/smart"))["name"] == "models/smart"
    assert (await google(b"/v1beta/models/openai/gpt-4o"))["name"] == "models/openai/gpt-4o"
    for name in (b"secret", b"none"):
        with pytest.raises(Failure, match="is not there") as caught:
            await google(b"/v1beta/models/" + name)
        assert caught.value.status == 404
    it = ModelsEndpoint(IT, lambda principal, name: True, google=True)
    rendered = it.render(caught.value, Request(b"GET", b"/v1beta/models/none", Headers()))
    assert msgspec.json.decode(rendered.body)["error"]["status"] == "NOT_FOUND"


async def test_googles_pages() -> None:
    first = await google(b"/v1beta/models?pageSize=2")
    assert [model["name"] for model in first["models"]] == ["models/org/big:7b", "models/smart"]
    rest = await google(b"/v1beta/models?pageSize=2&pageToken=" + first["nextPageToken"].encode())
    assert [model["name"] for model in rest["models"]] == ["models/openai/*"]
    assert "nextPageToken" not in rest
    assert len((await google(b"/v1beta/models?pageSize=0"))["models"]) == 3
    for query in (b"pageSize=x", b"pageSize=-1", b"pageToken=!!", b"pageToken=bm9uZQ=="):
        with pytest.raises(Failure, match="page") as caught:
            await google(b"/v1beta/models?" + query)
        assert caught.value.status == 400


# ---- aliases
def aliased() -> Models:
    return Models((Model("smart", nobody, aliases=("clever", "brainy")), Model("x/*", nobody), Model("zest", nobody)))


def test_an_alias_finds_its_model() -> None:
    it = aliased()
    for name in ("smart", "clever", "brainy"):
        assert found(it, name) == "smart"
        assert it.own(name) == "smart"
    assert it.own("x/y") == "x/y"
    assert [m.name for m in it.all()] == ["brainy", "clever", "smart", "zest", "x/*"]
    assert it.nearest("clevr", lambda name: name == "smart") == ["clever"]
    assert it.nearest("clevr", lambda name: name == "clever") == []


@pytest.mark.parametrize("aliases", [("zest",), ("smart",), ("a", "a")])
def test_an_alias_is_one_name(aliases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="there twice"):
        Models((Model("smart", nobody, aliases=aliases), Model("zest", nobody)))


async def test_aliases_are_listed_to_who_may_use_the_model() -> None:
    for may, names in ((True, {"smart", "clever", "brainy"}), (False, set())):
        it = ModelsEndpoint(aliased(), lambda _, name, may=may: may and name == "smart")  # type: ignore[misc]
        request = Request(b"GET", b"/v1/models", Headers())
        listed = msgspec.json.decode((await it.handle(request)).body)
        assert {model["id"] for model in listed["data"]} == names
        one = Request(b"GET", b"/v1/models/clever", Headers())
        if may:
            assert msgspec.json.decode((await it.handle(one)).body)["id"] == "clever"
        else:
            with pytest.raises(Failure, match="not there"):
                await it.handle(one)


# ---- names that somebody else has a say in
async def test_what_is_shown_is_asked_for_what_is_permitted() -> None:
    asked: list[tuple[str, list[str]]] = []

    async def shown(principal: Principal | None, names: Sequence[str]) -> list[bool]:
        assert principal is not None
        asked.append((principal.id, list(names)))
        return [name != "zest" and not (name == "smart" and principal.id == "eve") for name in names]

    all_models = (Model("smart", nobody, aliases=("clever",)), Model("secret", nobody), Model("zest", nobody))
    it = ModelsEndpoint(Models(all_models, shown=shown), lambda _, name: name != "secret")

    async def ask(target: bytes, id: str) -> Any:
        request = Request(b"GET", target, Headers())
        request.context.principal = Principal(id, source="key")
        return msgspec.json.decode((await it.handle(request)).body)

    for id, names in (("ada", ["clever", "smart"]), ("eve", [])):
        assert [model["id"] for model in (await ask(b"/v1/models", id))["data"]] == names
        assert asked.pop() == (id, ["smart", "smart", "zest"])  # by the model's own name, and not the secret one
    assert (await ask(b"/v1/models/clever", "ada"))["id"] == "clever"
    for id, name in (("ada", "zest"), ("eve", "clever"), ("eve", "smart"), ("ada", "secret")):
        with pytest.raises(Failure) as refused:
            await ask(b"/v1/models/" + name.encode(), id)
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    for id, hint in (("ada", "'smart'"), ("eve", "GET /v1/models")):
        for misspelt in (b"smrt", b"zst"):
            with pytest.raises(Failure) as refused:
                await ask(b"/v1/models/" + misspelt, id)
            assert (hint if misspelt == b"smrt" else "GET /v1/models") in refused.value.message
