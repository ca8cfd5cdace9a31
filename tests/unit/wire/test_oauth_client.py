"""OAuth as its client sees it: challenges, metadata, requests, and what answers are believed."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.issuer import challenge_of

from tollhouse.wire.oauth_client import (
    ClientIdentity,
    ResourceMetadata,
    ServerMetadata,
    authorization_request,
    bearer_challenge,
    client_form,
    method_for,
    refusal_of,
    resource_metadata_urls,
    tokens_of,
)

GOOD = {"access_token": "at", "token_type": "Bearer"}


# ---- challenges
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([b'Bearer resource_metadata="https://a.example/m"'], {"resource_metadata": "https://a.example/m"}),
        ([b'Bearer error="invalid_token", scope="b a"'], {"error": "invalid_token", "scope": "b a"}),
        ([b"Bearer"], {}),
        ([b"bearer scope = read"], {"scope": "read"}),
        ([b'Basic realm="x, Bearer scope=no", Bearer scope="q\\"r"'], {"scope": 'q"r'}),
        ([b'Bearer scope="a", Basic realm="y", scope=z'], {"scope": "a"}),
        ([b"Negotiate abc==, Bearer error=invalid_token"], {"error": "invalid_token"}),
        ([b"Negotiate", b'DPoP algs="ES256"', b"Bearer SCOPE=a, scope=b"], {"scope": "a"}),
        ([b"Basic"], {}),
        ([b'Bearer scope="open'], {}),
        ([b'"\xff'], {}),
        ([], {}),
    ],
)  # fmt: skip
def test_the_challenge_bearer_is_found_among_others(fields: list[bytes], said: dict[str, str]) -> None:
    assert bearer_challenge(fields) == said


@given(st.binary(max_size=200))
def test_any_field_is_read_to_its_end(field: bytes) -> None:
    bearer_challenge([field, b"Bearer " + field])


_WORDS = st.text("abcXYZ0-_", min_size=1, max_size=8)
_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(st.dictionaries(_WORDS.map(str.lower), _VALUES, min_size=1, max_size=5), st.booleans())
def test_what_is_quoted_is_read_as_it_was(said: dict[str, str], behind: bool) -> None:
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in said.items()}
    field = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in quoted.items())
    field = ('Basic realm="r", ' if behind else "") + field
    assert bearer_challenge([field.encode()]) == said


# ---- metadata
def test_where_the_metadata_of_a_resource_are() -> None:
    at = "https://a.example:8443/.well-known/oauth-protected-resource"
    assert resource_metadata_urls("https://a.example:8443/v1/mcp/?x=1") == (f"{at}/v1/mcp", at)
    assert resource_metadata_urls("https://a.example:8443/") == (at,)


@pytest.mark.parametrize(
    ("resource", "url", "good"),
    [
        ("https://a.example/mcp", "https://a.example/mcp", True),
        ("https://a.example", "https://a.example/mcp", True),
        ("https://a.example/", "https://a.example/mcp", True),
        ("https://A.example/mcp/", "https://a.example/mcp", True),
        ("https://a.example/mcp", "https://a.example/mcp?key=1", True),
        ("https://a.example/mc", "https://a.example/mcp", False),
        ("https://a.example/mcp/x", "https://a.example/mcp", False),
        ("https://a.example:444/mcp", "https://a.example/mcp", False),
        ("http://a.example/mcp", "https://a.example/mcp", False),
        ("https://a.example.evil/mcp", "https://a.example/mcp", False),
        ("https://a.example@evil/mcp", "https://a.example/mcp", False),
        ("https://a.example/mcp?other=1", "https://a.example/mcp", False),
        ("https://a.example/mcp#f", "https://a.example/mcp", False),
    ],
)
def test_metadata_are_of_the_resource_or_of_what_it_is_in(resource: str, url: str, good: bool) -> None:
    document = json.dumps({"resource": resource, "other": 1, "scopes_supported": None}).encode()
    if good:
        assert ResourceMetadata.parse(document, url).resource == resource
    else:
        with pytest.raises(ValueError, match="resource"):
            ResourceMetadata.parse(document, url)


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "https://", "https://a b", "https://a.example/#x", "https://u@a.example"]
)
def test_endpoints_are_urls(url: str) -> None:
    for name in ("authorization_endpoint", "token_endpoint", "revocation_endpoint", "registration_endpoint"):
        with pytest.raises(ValueError, match=name):
            ServerMetadata.of({"issuer": "https://a.example", name: url})


# ---- requests
def test_an_authorization_request_is_one_query_with_the_challenge() -> None:
    url = authorization_request(
        "https://a.example/go?tenant=1", verifier="v" * 43, client_id="us & them", scope="a b", resource="", state="s"
    )
    sent = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    assert sent == {
        "tenant": "1", "client_id": "us & them", "scope": "a b", "state": "s", "response_type": "code",
        "code_challenge": challenge_of("v" * 43), "code_challenge_method": "S256",
    }  # fmt: skip


def test_nothing_overrides_the_challenge() -> None:
    url = authorization_request("https://a.example", verifier="v", code_challenge="x", code_challenge_method="plain")
    assert dict(parse_qsl(urlsplit(url).query))["code_challenge_method"] == "S256"


@pytest.mark.parametrize(
    ("who", "header", "named", "secret"),
    [
        (ClientIdentity("a b", "s:1", "client_secret_basic"), True, None, None),
        (ClientIdentity("a b", "s:1", "client_secret_post"), False, "a b", "s:1"),
        (ClientIdentity("a b"), False, "a b", None),
    ],
)
def test_a_client_authenticates_in_one_way(who: ClientIdentity, header: bool, named: Any, secret: Any) -> None:
    headers, body = client_form(who, grant_type="refresh_token", resource="")
    form = dict(parse_qsl(body.decode()))
    assert (b"authorization" in dict(headers)) == header
    assert (form.get("client_id"), form.get("client_secret")) == (named, secret)
    assert "resource" not in form
    assert "s:1" not in repr(who)


@pytest.mark.parametrize(
    ("secret", "supported", "method"),
    [
        ("", ("client_secret_basic",), "none"),
        ("s", ("client_secret_post", "client_secret_basic"), "client_secret_basic"),
        ("s", ("client_secret_post",), "client_secret_post"),
        ("s", (), "client_secret_basic"),
    ],
)
def test_the_way_that_a_secret_goes(secret: str, supported: tuple[str, ...], method: str) -> None:
    assert method_for(secret, supported) == method


# ---- answers
def test_tokens_are_read_as_they_are() -> None:
    said = {**GOOD, "expires_in": "60", "refresh_token": "r t", "scope": "b a", "more": 1}
    tokens = tokens_of(json.dumps(said).encode())
    assert (tokens.access, tokens.refresh, tokens.life, tokens.scopes) == ("at", "r t", 60.0, ("a", "b"))
    assert "r t" not in repr(tokens)
    bare = tokens_of(json.dumps({**GOOD, "token_type": "bearer"}).encode())
    assert (bare.refresh, bare.life, bare.scopes) == ("", None, None)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=3))
def test_any_member_is_taken_or_refused(value: Any) -> None:
    for name in ("access_token", "token_type", "expires_in", "refresh_token", "scope"):
        try:
            tokens = tokens_of(json.dumps({**GOOD, name: value}).encode())
        except ValueError:
            continue
        assert tokens.life is None or 0 < tokens.life <= 3650 * 86400
        assert tokens.access.isascii()
        assert tokens.access.isprintable()


def test_errors_are_codes_and_nothing_that_looks_like_a_secret() -> None:
    said = refusal_of(json.dumps({"error": "invalid_grant", "error_description": "no\r\n" + "t0ken" * 9}).encode())
    assert said == ("invalid_grant", "invalid_grant: no ***")
    assert refusal_of(b'{"error": "bad_refresh_token"}').error == "invalid_grant"
    for nothing in (b"", b"[]", b'{"error": 1}', b'{"error": "a b"}', b'{"error": {"code": 1}}', b"\xff"):
        assert refusal_of(nothing) == ("", "")
