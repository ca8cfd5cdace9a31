"""Forms, clients' proofs, redirects, scopes, resources and challenges, as the RFCs write them."""

from base64 import b64encode
from contextlib import suppress
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.issuer import new_key, signed

from tollhouse.wire.oauth import (
    ASSERTION_TYPE,
    MAX_FORM,
    Form,
    OAuthError,
    canonical_resource,
    challenge,
    presented,
    redirect_fits,
    redirect_flaw,
    scope_of,
)

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


def form(**values: str) -> Form:
    return Form.parse(urlencode(values).encode())


# ---- forms
@given(st.dictionaries(TEXT, TEXT, max_size=10))
def test_what_is_sent_is_what_is_read(values: dict[str, str]) -> None:
    read = Form.parse(urlencode(values).encode())
    assert {name: read.get(name) for name in values} == values
    assert dict(read.items()).keys() == values.keys()


@pytest.mark.parametrize("name", ["client_id", "scope", "redirect_uri", "x"])
def test_a_parameter_that_comes_twice_is_refused(name: str) -> None:
    with pytest.raises(OAuthError) as error:
        Form.parse(f"{name}=a&{name}=a".encode())
    assert error.value.error == "invalid_request"


def test_resources_and_audiences_may_be_several() -> None:
    read = Form.parse(b"resource=a&resource=b&audience=c&audience=d")
    assert read.all("resource") == ("a", "b")
    assert read.all("audience") == ("c", "d")
    with pytest.raises(OAuthError):
        read.need("resource")


def test_a_parameter_without_value_is_none() -> None:
    read = Form.parse(b"scope=&state&code=x")
    assert "scope" not in read
    assert "state" not in read
    assert read.need("code") == "x"


@pytest.mark.parametrize(
    "encoded",
    [b"a=" + b"b" * MAX_FORM, b"a=%00", b"a=%0d%0aX:1", b"a=\xff", b"a=%ff", b"&".join(b"a%d=1" % n for n in range(65)),
     b"n" * 200 + b"=1"],
)  # fmt: skip
def test_a_form_that_is_none_is_refused(encoded: bytes) -> None:
    with pytest.raises(OAuthError) as error:
        Form.parse(encoded)
    assert error.value.error == "invalid_request"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(encoded: bytes) -> None:
    with suppress(OAuthError):
        Form.parse(encoded)


# ---- who asks
def basic(name: str, secret: str) -> bytes:
    return b"Basic " + b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode())


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30),
)
def test_basic_is_decoded_as_a_form(name: str, secret: str) -> None:
    shown = presented([basic(name, secret)], form())
    assert (shown.method, shown.client_id, shown.secret) == ("client_secret_basic", name, secret)
    assert repr(shown) == "<Presented client_secret_basic>"


def test_a_secret_in_the_form_and_none_at_all() -> None:
    assert presented([], form(client_id="a", client_secret="b"))[:3] == ("client_secret_post", "a", "b")
    assert presented([], form(client_id="a"))[:2] == ("none", "a")


def test_an_assertion_names_its_client() -> None:
    token = signed(new_key(), {"iss": "a", "sub": "a", "aud": "x"})
    shown = presented([], form(client_assertion=token, client_assertion_type=ASSERTION_TYPE))
    assert shown.method == "private_key_jwt"
    assert shown.client_id == "a"


@pytest.mark.parametrize(
    ("fields", "values", "error"),
    [
        ([basic("a", "b")], {"client_secret": "b"}, "invalid_request"),
        ([basic("a", "b")], {"client_id": "other"}, "invalid_request"),
        ([basic("a", "b"), basic("a", "b")], {}, "invalid_request"),
        ([basic("a", "b")], {"client_assertion": "x", "client_assertion_type": ASSERTION_TYPE}, "invalid_request"),
        ([], {"client_id": "a", "client_secret": "b", "client_assertion": "x"}, "invalid_request"),
        ([], {"client_id": "a", "client_assertion_type": ASSERTION_TYPE}, "invalid_request"),
        ([], {"client_assertion": "x.y.z", "client_assertion_type": "urn:other"}, "invalid_request"),
        ([], {}, "invalid_client"),
        ([], {"client_id": "ä"}, "invalid_client"),
        ([b"Basic !!!"], {}, "invalid_client"),
        ([b"Basic " + b64encode(b"nocolon")], {}, "invalid_client"),
        ([b"Basic " + b64encode(b"a:%ff")], {}, "invalid_client"),
        ([b"Bearer x"], {}, "invalid_client"),
        ([], {"client_assertion": "no token", "client_assertion_type": ASSERTION_TYPE}, "invalid_client"),
    ],
)
def test_who_says_it_wrongly_is_refused(fields: list[bytes], values: dict[str, str], error: str) -> None:
    with pytest.raises(OAuthError) as refused:
        presented(fields, form(**values))
    assert refused.value.error == error
    if error == "invalid_client":
        assert refused.value.status == 401
        assert refused.value.headers[0][0] == b"www-authenticate"


def test_an_assertion_whose_issuer_is_not_its_subject() -> None:
    token = signed(new_key(), {"iss": "b", "sub": "a", "aud": "x"})
    with pytest.raises(OAuthError) as refused:
        presented([], form(client_assertion=token, client_assertion_type=ASSERTION_TYPE))
    assert refused.value.error == "invalid_client"


# ---- scopes
def test_scopes_are_sorted_and_each_once() -> None:
    assert scope_of("b a  b") == ("a", "b")
    assert scope_of("") == ()


@pytest.mark.parametrize("value", ['a"b', "a\\b", "ä", " ".join(f"s{n}" for n in range(101)), "s" * 300])
def test_a_scope_that_is_none(value: str) -> None:
    with pytest.raises(OAuthError) as refused:
        scope_of(value)
    assert refused.value.error == "invalid_scope"


# ---- resources
@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("https://a.example/mcp", "https://a.example/mcp"),
        ("HTTPS://A.Example:443/mcp", "https://a.example/mcp"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example/mcp/", "https://a.example/mcp/"),
        ("http://A:80", "http://a"),
        ("http://[::1]:8080/x?y=Z", "http://[::1]:8080/x?y=Z"),
        ("https://a.example/Case", "https://a.example/Case"),
        ("URN:Example:one", "urn:Example:one"),
    ],
)
def test_a_resource_has_one_form(uri: str, canonical: str) -> None:
    assert canonical_resource(uri) == canonical
    assert canonical_resource(canonical) == canonical


@pytest.mark.parametrize(
    "uri",
    ["/mcp", "mcp", "https://", "https://a/#x", "https://u:p@a/", "https://a:99999/", "https://a b/", "https://ä/", "",
     "https://a/\n", "https://[::1"],
)  # fmt: skip
def test_what_is_no_resource(uri: str) -> None:
    with pytest.raises(ValueError, match="not an absolute URI"):
        canonical_resource(uri)


@given(st.text(max_size=60))
def test_the_canonical_form_is_stable(text: str) -> None:
    for uri in (text, f"https://{text}", f"https://a.example/{text}"):
        try:
            canonical = canonical_resource(uri)
        except ValueError:
            continue
        assert canonical_resource(canonical) == canonical


# ---- redirects: attacks 5, 6 and 8
REGISTERED = ("https://app.example.com/cb", "http://127.0.0.1/cb", "http://localhost:1234/cb", "com.example.app:/cb")


@pytest.mark.parametrize("uri", REGISTERED)
def test_a_redirect_fits_itself(uri: str) -> None:
    assert redirect_fits(REGISTERED, uri, native=False)
    assert redirect_flaw(uri) == ""


@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example.com/cb/",
        "https://app.example.com/cb/../cb",
        "https://app.example.com/cb?x=1",
        "https://app.example.com/cb#x",
        "https://app.example.com/CB",
        "https://app.example.com/%63b",
        "https://app.example.com:443/cb",
        "https://app.example.com:8443/cb",
        "https://APP.example.com/cb",
        "https://app.example.com.evil.example/cb",
        "https://evil.example/app.example.com/cb",
        "https://app.example.com@evil.example/cb",
        "https://evil.example\\@app.example.com/cb",
        "https://app.example.comevil/cb",
        "http://app.example.com/cb",
        "//app.example.com/cb",
        "https://app.example.com/cb\n",
        " https://app.example.com/cb",
        "javascript:alert(1)",
        "com.example.app:/cb/x",
        "",
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_a_redirect_that_is_almost_one(uri: str, native: bool) -> None:
    assert not redirect_fits(REGISTERED, uri, native=native)


@pytest.mark.parametrize(
    ("uri", "fits"),
    [
        ("http://127.0.0.1:5555/cb", True),
        ("http://127.0.0.1:65535/cb", True),
        ("http://localhost/cb", True),
        ("http://127.0.0.1:5555/other", False),
        ("http://127.0.0.1:5555/cb?x", False),
        ("http://127.0.0.1:5555/cb#x", False),
        ("http://127.0.0.1:99999/cb", False),
        ("http://127.0.0.1:0/cb", False),
        ("http://127.0.0.1:05555/cb", False),
        ("http://127.0.0.2:5555/cb", False),
        ("http://[::1]:5555/cb", False),
        ("http://127.0.0.1.evil.example:5555/cb", False),
        ("http://127.0.0.1:5555@evil.example/cb", False),
        ("https://127.0.0.1:5555/cb", False),
        ("http://LOCALHOST:5555/cb", False),
    ],
)
def test_only_the_port_of_a_loopback_redirect_is_free(uri: str, fits: bool) -> None:
    assert redirect_fits(REGISTERED, uri, native=True) is fits
    assert not redirect_fits(REGISTERED, uri, native=False)


@pytest.mark.parametrize(
    "uri",
    ["javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "blob:x",
     "about:blank", "http://app.example.com/cb", "https://a/cb#f", "https://u@a/cb", "https://a\\b/cb", "/cb", "cb",
     "https:///cb", "https://a/../cb", "https://a/ b", "https://a:99999/cb", "http://127.0.0.1:123456/cb"],
)  # fmt: skip
def test_a_redirect_that_nobody_may_register(uri: str) -> None:
    assert redirect_flaw(uri)


@given(st.text(max_size=80))
def test_any_text_fits_only_what_is_registered(text: str) -> None:
    assert not redirect_fits(("https://app.example.com/cb",), text, native=True) or text == "https://app.example.com/cb"
    redirect_flaw(text)


# ---- challenges
def test_a_challenge_has_only_what_is_said() -> None:
    assert challenge("Bearer") == b"Bearer"
    assert challenge("Bearer", error="invalid_token", scope="") == b'Bearer error="invalid_token"'


@given(st.text(max_size=40))
def test_a_challenge_stays_one_field(text: str) -> None:
    value: Any = challenge("Bearer", error_description=text)
    assert b"\r" not in value
    assert b"\n" not in value
    assert value.count(b'"') in (0, 2)
