"""What an answer is kept under: two requests have one key only where they are one request."""

from pathlib import Path as FilePath
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.cache.house import asked
from tests.unit.policies.floor import tool

from tollhouse.backends.providers import anthropic
from tollhouse.backends.providers.openai import OpenAISpec
from tollhouse.config.spec import ModelSpec, StdioServer
from tollhouse.core.call import Principal
from tollhouse.policies.cache.key import FORWARDED, Behind, Path, _joined, key_of_call, key_of_tool, space_of

PATH = Path(b"f")
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.text(max_size=4).filter(lambda n: n.lower() not in ("model", "stream")), VALUE, max_size=4)


def key(fields: dict[str, Any]) -> bytes:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    call = asked()
    call.fields = raw
    return key_of_call(call, b"s", PATH)


@given(FIELDS, FIELDS)
def test_one_key_means_one_request(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = {n: msgspec.json.encode(v) for n, v in one.items()} == {n: msgspec.json.encode(v) for n, v in other.items()}
    assert (key(one) == key(other)) is same


@given(FIELDS, st.randoms())
def test_order_makes_no_difference(fields: dict[str, Any], random: Any) -> None:
    names = list(fields)
    random.shuffle(names)
    assert key(fields) == key({name: fields[name] for name in names})


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_no_two_lists_of_parts_are_one_text(one: list[bytes], other: list[bytes]) -> None:
    assert (_joined(one) == _joined(other)) is (one == other)


NAMES = st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3))


@given(NAMES, NAMES)
def test_no_two_people_are_one(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    (a, b, c), (d, e, f) = first, second
    one = Principal(f"i{a}|{b}|{c}", source="jwt", user=a, org=b, issuer=c)
    other = Principal(f"i{d}|{e}|{f}", source="jwt", user=d, org=e, issuer=f)
    if a and d:
        assert (space_of(one, "user") == space_of(other, "user")) is ((a, b, c) == (d, e, f))
    if b and e:
        assert (space_of(one, "org") == space_of(other, "org")) is (b == e)
    assert space_of(one, "shared") == space_of(other, "shared")
    if a and b:
        assert len({space_of(one, reach) for reach in ("user", "key", "org", "shared")}) == 4
    renamed = Principal(one.id, source="key", user=d, org=e)
    assert (space_of(one, "key") == space_of(renamed, "key")) is ((a, b) == (d, e))
    assert space_of(None, "user") not in (space_of(one, "user"), space_of(other, "key"))


@pytest.mark.parametrize("source", ["key", "basic", "ext", "mtls:CN=one", "mtls:CN=other"])
def test_one_name_that_comes_in_two_ways_is_two_users(source: str) -> None:
    def came(by: str, id: str) -> bytes:
        return space_of(Principal(f"{by}|{id}", source=by.partition(":")[0], user="ada", org="acme"), "user")

    others = {"key", "basic", "ext", "mtls:CN=one", "mtls:CN=other"} - {source}
    assert came(source, "ada") not in {came(other, "ada") for other in others}
    assert came("key", "first") == came("key", "second")  # at whichever of his keys


def test_what_providers_get_of_the_caller_s_header_fields_is_in_it() -> None:
    assert set(anthropic.FORWARDED) == FORWARDED


def model(**changes: Any) -> ModelSpec:
    values = {"name": "smart", "targets": [{"provider": "a", "model": "m"}]} | changes
    return ModelSpec.model_validate(values)


def provider(**changes: Any) -> OpenAISpec:
    return OpenAISpec.model_validate({"kind": "openai", "api_key": "x"} | changes)


def fingerprint(spec: ModelSpec, **providers: Any) -> bytes:
    return Behind([spec], {"a": provider(), "b": provider()} | providers)("smart").fingerprint


@pytest.mark.parametrize(
    "spec, providers",
    [
        (model(targets=[{"provider": "a", "model": "other"}]), {}),
        (model(targets=[{"provider": "b", "model": "m"}]), {}),
        (model(targets=[{"provider": "a", "model": "m"}, {"provider": "b", "model": "m"}]), {}),
        (model(fallback=[{"provider": "b"}]), {}),
        (model(lossy="drop"), {}),
        (model(), {"a": provider(base_url="http://127.0.0.1:9/v1")}),
        (model(), {"a": provider(api_key="y")}),
    ],
)
def test_a_model_that_is_asked_elsewhere_is_another(spec: ModelSpec, providers: Any) -> None:
    assert fingerprint(spec, **providers) != fingerprint(model())


@pytest.mark.parametrize(
    "spec, providers",
    [
        (model(), {"b": provider(api_key="y")}),  # which is not asked
        (model(limits=[{"per": "user", "requests": 1, "window": "1s"}]), {}),
        (model(retry={"attempts": 3}), {}),
        (model(aliases=["x"]), {}),
        (model(cache={"exact": {"ttl": "1m"}}), {}),
        (model(), {}),
    ],
)
def test_who_may_ask_and_how_often_is_no_part_of_it(spec: ModelSpec, providers: Any) -> None:
    assert fingerprint(spec, **providers) == fingerprint(model())


def test_how_long_a_call_may_take_is_known_and_an_alias_leads_there() -> None:
    behind = Behind([model(timeout={"total": "7s"}, aliases=["other"])], {"a": provider()})
    assert behind("smart").total == behind("other").total == 7.0
    assert behind("smart").fingerprint == behind("other").fingerprint == fingerprint(model())


def test_words_in_a_file_of_a_guard_are_part_of_it(tmp_path: FilePath) -> None:
    words = tmp_path / "words.txt"
    found = set()
    for text in ("one", "two", "one"):
        words.write_text(text)
        found.add(fingerprint(model(guardrails={"response": [{"keywords": {"file": str(words)}}]})))
    assert len(found) == 2


def test_conditions_of_targets_are_asked() -> None:
    when = [{"provider": "a", "model": "m", "when": 'principal.org == "x"'}, {"provider": "b", "model": "n"}]
    path = Behind([model(targets=when)], {"a": provider(), "b": provider()})("smart")
    there = Principal("a", source="jwt", user="u", org="x")
    elsewhere = Principal("b", source="jwt", user="u", org="y")
    assert path.told(asked(principal=there)) != path.told(asked(principal=elsewhere))


def test_a_server_that_is_another() -> None:
    def of(**changes: Any) -> bytes:
        return Behind([], {}, {"files": StdioServer.model_validate({"command": "x"} | changes)}).server("files")

    assert of() == of() == of(limits=[{"per": "user", "requests": 1, "window": "1s"}])
    assert of() != of(command="y")
    assert of() != of(args=["-v"])


def test_a_tool_s_call() -> None:
    def of(
        name: str = "search", definition: bytes = b"{}", meta: Any = None, server: str = "shop", **arguments: Any
    ) -> bytes:
        call = tool(name, server=server, **arguments)
        call.definition = msgspec.Raw(definition)
        call.meta = meta
        return key_of_tool(call, b"s", b"f")

    assert of(q=1) == of(q=1)
    assert of(q=1, meta={"progressToken": msgspec.Raw(b"1")}) == of(q=1, meta={"progressToken": msgspec.Raw(b"2")})
    others = [of(q=2), of(), of("other", q=1), of(q=1, definition=b'{"a":1}'), of(q=1, server="other"),
              of(q=1, meta={"tenant": msgspec.Raw(b'"x"')})]  # fmt: skip
    assert len({of(q=1), *others}) == len(others) + 1
