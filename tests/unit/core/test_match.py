"""Paths in one normal form, and what predicates accept."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.core.match import Predicate, PredicateSpec, host_of, normalise


def request(
    path: bytes = b"/", *headers: tuple[bytes, bytes], method: bytes = b"GET", host: bytes = b"example.com"
) -> Request:
    return Request(method, path, Headers([(b"host", host), *headers]))


@pytest.mark.parametrize(
    "path, normal",
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a/b/", b"/a/b/"),
        (b"/.well-known/x", b"/.well-known/x"),
        (b"/...", b"/..."),
        (b"/a/..b", b"/a/..b"),
        (b"/v1beta/models/m:generateContent", b"/v1beta/models/m:generateContent"),
        (b"//", b"/"),
        (b"//a///b//", b"/a/b/"),
        (b"/a/./b/.", b"/a/b/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/../b", b"/b"),
        (b"/a/%2e%2e/b", b"/b"),
        (b"/a/%2E./b", b"/b"),
        (b"/a/.%2e", b"/"),
        (b"/%7Euser/%41", b"/~user/A"),
        (b"/a%2fb", b"/a%2Fb"),
        (b"/a%5cb", b"/a%5Cb"),
        (b"/a%20b", b"/a%20b"),
        (b"/%e4%bd%a0", b"/%E4%BD%A0"),
        (b"/a%252e", b"/a%252e"),
        (b'/a"<>^`{|}[]', b"/a%22%3C%3E%5E%60%7B%7C%7D%5B%5D"),
        (b"/a;x=1/b", b"/a;x=1/b"),
    ],
)
def test_normal_form(path: bytes, normal: bytes) -> None:
    assert normalise(path) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"a",
        b"*",
        b"/%",
        b"/%4",
        b"/%zz",
        b"/%2%65",
        b"/%00",
        b"/a\x00",
        b"/a\\b",
        b"/a b",
        b"/a\tb",
        b"/\x7f",
        b"/\xc3\xa9",
        b"/a#b",
        b"/..",
        b"/a/../..",
        b"/a/%2e%2e/%2e%2e/b",
        b"/a/..%2fb",
        b"/a/%2e%2e%2fb",
        b"/a/b%2f..",
        b"/a/..%5cb",
        b"/a/b%5c%2e%2e%5cc",
        b"/a/.%2fb",
        b"/a/..;/b",
        b"/a/..;x=1",
        b"/a/.;/b",
        b"/a/x%2f..;y",
    ],
)
def test_paths_without_one_meaning_are_refused(path: bytes) -> None:
    with pytest.raises(Failure) as caught:
        normalise(path)
    assert caught.value.status == 400


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"%2e", b"%2F", b"%5c", b";", b"%41", b"~", b"{", b"%25"])))
@example([b"/", b"%2e", b"%2e", b";"])
def test_normal_form_is_stable_and_hides_nothing(parts: list[bytes]) -> None:
    try:
        normal = normalise(b"/" + b"".join(parts))
    except Failure:
        return
    assert normalise(normal) == normal
    # However a server decodes it, once and with any separator, no dot segment appears.
    read_again = normal.replace(b"%2F", b"/").replace(b"%5C", b"/")
    assert not {s.partition(b";")[0] for s in read_again.split(b"/")} & {b".", b".."}


@pytest.mark.parametrize(
    "value, host",
    [
        (b"Example.COM", b"example.com"),
        (b"example.com:8080", b"example.com"),
        (b"example.com.", b"example.com"),
        (b"[::1]:80", b"[::1]"),
        (b"[::1]", b"[::1]"),
        (b"", b""),
    ],
)
def test_host(value: bytes, host: bytes) -> None:
    assert host_of(request(host=value)) == host


def test_no_host() -> None:
    assert host_of(Request(b"GET", b"/", Headers())) == b""


def compiled(**fields: object) -> Predicate:
    return PredicateSpec.model_validate(fields).compile()


@pytest.mark.parametrize("prefix", ["/ai/chat", "/ai/chat/"])
def test_a_prefix_is_whole_segments(prefix: str) -> None:
    predicate = compiled(path=prefix)
    for path in (b"/ai/chat", b"/ai/chat/", b"/ai/chat/x/y"):
        assert predicate.fits(request(path), path)
    for path in (b"/ai/chatty", b"/ai", b"/", b"/AI/chat"):
        assert not predicate.fits(request(path), path)


def test_root_prefix_and_exact() -> None:
    assert compiled().fits(request(b"/x"), b"/x")
    assert compiled(path="/").fits(request(b"/"), b"/")
    exact = compiled(exact="/x")
    assert exact.fits(request(b"/x"), b"/x")
    assert not exact.fits(request(b"/x/"), b"/x/")


def test_hosts() -> None:
    predicate = compiled(host=["api.example.com", "*.Example.org"])
    assert predicate.fits_host(b"api.example.com")
    assert predicate.fits_host(b"a.example.org")
    assert predicate.fits_host(b"a.b.example.org")
    assert not predicate.fits_host(b"example.org")
    assert not predicate.fits_host(b"badexample.org")
    assert not predicate.fits_host(b"x.api.example.com")


def test_methods() -> None:
    predicate = compiled(methods=["GET", "PUT"])
    for method in (b"GET", b"HEAD", b"PUT", b"OPTIONS"):
        assert predicate.fits_method(request(method=method))
    assert not predicate.fits_method(request(method=b"POST"))
    assert predicate.fits_method(request(b"/", (b"access-control-request-method", b"PUT"), method=b"OPTIONS"))
    assert not predicate.fits_method(request(b"/", (b"access-control-request-method", b"POST"), method=b"OPTIONS"))


@pytest.mark.parametrize(
    "comparison, fitting, unfitting",
    [
        ("2", [b"2"], [b"3", b"", None]),
        (2, [b"2"], [b"3"]),
        (True, [b"", b"x"], [None]),
        (False, [None], [b"", b"x"]),
        (["a", "b"], [b"a", b"b"], [b"c", b"a,b", None]),
        ({"prefix": "v2"}, [b"v2", b"v2.1"], [b"v1", b"xv2", None]),
        ({"contains": "beta"}, [b"a beta b"], [b"alpha", None]),
        ({"regex": "v[0-9]+|w"}, [b"v12", b"w"], [b"v", b"xv1", b"v1\n", b"wv1", b"\xff", None]),
        ({"present": False}, [None], [b"x"]),
    ],
)
def test_header_and_query_comparisons(
    comparison: object, fitting: list[bytes | None], unfitting: list[bytes | None]
) -> None:
    header = compiled(match={"headers": {"X-Version": comparison}})
    query = compiled(match={"query": {"v v": comparison}})
    for values, expected in ((fitting, True), (unfitting, False)):
        for value in values:
            headers = () if value is None else ((b"x-version", value),)
            assert header.fits_fields(request(b"/", *headers)) is expected, value
            encoded = b"" if value is None else b"?a=1&v+v=" + b"".join(b"%%%02x" % c for c in value)
            assert query.fits_fields(request(b"/" + encoded)) is expected, value


def test_one_of_several_values_is_enough() -> None:
    predicate = compiled(match={"headers": {"x-a": "2"}, "query": {"q": "2"}})
    twice = request(b"/?q=1&q=2", (b"x-a", b"1"), (b"x-a", b"2"))
    assert predicate.fits_fields(twice)
    assert predicate.weight == 2


def test_a_regular_expression_is_linear() -> None:
    predicate = compiled(match={"headers": {"x-a": {"regex": "(a*)*b"}}})
    assert not predicate.fits_fields(request(b"/", (b"x-a", b"a" * 4000)))
    assert not predicate.fits_fields(request(b"/", (b"x-a", b"a" * 5000 + b"b"))), "longer than is looked at"


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"path": "/a", "exact": "/a"}, "not both"),
        ({"path": "a"}, "begin with a slash"),
        ({"path": "/a/../b"}, "'/b'"),
        ({"path": "/a?b"}, "percent-encoded"),
        ({"host": "example.com:80"}, "without port"),
        ({"host": "a*.example.com"}, "not a host"),
        ({"host": []}, "every host"),
        ({"methods": ["get"]}, "upper-case"),
        ({"methods": []}, "at least 1"),
        ({"match": {"headers": {"a b": True}}}, "not a header name"),
        ({"match": {"headers": {"A": True, "a": True}}}, "named twice"),
        ({"match": {"headers": {"a": []}}}, "at least one value"),
        ({"match": {"query": {"a": {"regex": "("}}}}, "not a regular expression"),
        ({"match": {"query": {"a": {"regex": ")|("}}}}, "not a regular expression"),
        ({"match": {"query": {"a": {"regex": "a", "exact": "b"}}}}, "exactly one"),
        ({"match": {"cookies": {}}}, "cookies"),
    ],
)
def test_bad_specs_say_what_would_be_right(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PredicateSpec.model_validate(fields)
    assert says in str(caught.value)
