"""Login as a client of an OpenID provider: what is sent, and which ID token is the answer."""

from base64 import b64decode, urlsafe_b64encode
from hashlib import sha256, sha512
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.jose import Token
from tollhouse.wire.oauth import Form
from tollhouse.wire.oidc import BACKCHANNEL_LOGOUT, authorization_url, code_form, id_token_flaw, logout_token_flaw

NOW = 1_800_000_000
CLAIMS = {"iss": "https://idp.example.com", "aud": "us", "sub": "ada", "nonce": "n", "iat": NOW, "exp": NOW + 60}


def flaw(changed: dict[str, Any], *, alg: str = "ES256", typ: str | None = "JWT", access_token: str = "at") -> str:
    claims = {name: value for name, value in {**CLAIMS, **changed}.items() if value is not None}
    return id_token_flaw(
        Token(alg, "k", typ, claims, b"", b""),
        issuer="https://idp.example.com",
        client_id="us",
        nonce="n",
        access_token=access_token,
        now=NOW,
        leeway=30.0,
    )


@pytest.mark.parametrize(
    "endpoint", ["https://idp.example.com/authorize", "https://idp.example.com/authorize?tenant=1"]
)
def test_the_way_there(endpoint: str) -> None:
    url = authorization_url(
        endpoint,
        client_id="us & co",
        redirect_uri="https://gw.example.com/back",
        scopes=("openid", "email"),
        state="s",
        nonce="n",
        verifier="v" * 43,
        more={"prompt": "login"},
    )
    assert url.startswith(endpoint)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert asked.pop("tenant", "1") == "1"
    digest = urlsafe_b64encode(sha256(b"v" * 43).digest()).rstrip(b"=").decode()
    assert asked == {
        "response_type": "code", "client_id": "us & co", "redirect_uri": "https://gw.example.com/back",
        "scope": "openid email", "state": "s", "nonce": "n", "code_challenge": digest,
        "code_challenge_method": "S256", "prompt": "login",
    }  # fmt: skip


@pytest.mark.parametrize("secret, basic", [("", True), ("s: +", True), ("s: +", False)])
def test_a_client_proves_who_it_is_in_one_way(secret: str, basic: bool) -> None:
    sent, body = code_form(
        "c", client_id="us & co", secret=secret, basic=basic, redirect_uri="https://x/back", verifier="v"
    )
    form, headers = Form.parse(body), dict(sent)
    assert [form.get(name) for name in ("grant_type", "code", "redirect_uri", "code_verifier")] == [
        "authorization_code", "c", "https://x/back", "v"
    ]  # fmt: skip
    if secret and basic:
        assert b64decode(headers[b"authorization"].removeprefix(b"Basic ")) == b"us+%26+co:s%3A+%2B"
        assert "client_id" not in form
        assert "client_secret" not in form
    else:
        assert b"authorization" not in headers
        assert (form.get("client_id"), form.get("client_secret")) == ("us & co", secret)


def test_the_id_token_of_this_login_holds() -> None:
    half = urlsafe_b64encode(sha512(b"at").digest()[:32]).rstrip(b"=").decode()
    assert flaw({}) == ""
    assert flaw({}, typ=None) == ""
    assert flaw({"aud": ["us"], "azp": "us"}) == ""
    assert flaw({"aud": ["us", "them"], "azp": "us"}) == ""
    assert flaw({"at_hash": half}, alg="EdDSA") == ""
    assert flaw({"at_hash": half}, alg="RS512") == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example.com"}, {"aud": "them"}, {"aud": ["us", "them"]}, {"azp": "them"},
        {"nonce": "another"}, {"nonce": None}, {"nonce": "\ud800"}, {"nonce": 1}, {"exp": NOW - 31}, {"exp": None},
        {"iat": NOW + 31}, {"iat": None}, {"sub": None}, {"sub": ""}, {"sub": "x" * 256}, {"sub": 1},
        {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}, {"at_hash": None, "azp": 1},
    ],
)  # fmt: skip
def test_any_other_is_refused(changed: dict[str, Any]) -> None:
    assert flaw(changed)


@pytest.mark.parametrize("typ", ["at+jwt", "dpop+jwt", "logout+jwt"])
def test_a_token_for_another_purpose_is_none(typ: str) -> None:
    assert flaw({}, typ=typ)


# ---- logout tokens

LOGOUT = {
    "iss": "https://idp.example.com", "aud": "us", "sub": "ada", "sid": "s", "iat": NOW, "exp": NOW + 60, "jti": "one",
    "events": {BACKCHANNEL_LOGOUT: {}},
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def logout_flaw(claims: dict[str, Any], typ: str | None = "logout+jwt") -> str:
    token = Token("ES256", "k", typ, claims, b"", b"")
    return logout_token_flaw(
        token, issuer="https://idp.example.com", client_id="us", now=NOW, leeway=30.0, longest=120.0
    )


@pytest.mark.parametrize("typ", ["logout+jwt", "application/logout+jwt", "JWT", None])
@pytest.mark.parametrize("without", ["", "sub", "sid"])
def test_a_logout_token(typ: str | None, without: str) -> None:
    assert logout_flaw({name: value for name, value in LOGOUT.items() if name != without}, typ) == ""


@given(st.dictionaries(st.sampled_from([*LOGOUT, "nonce", "nbf"]), JSON, max_size=4))
def test_whatever_it_claims_there_is_an_answer_and_none_that_counts_lacks_anything(changed: dict[str, Any]) -> None:
    claims = {**LOGOUT, **changed}
    if logout_flaw(claims) == "":
        assert "nonce" not in claims
        assert claims["iss"] == LOGOUT["iss"]
        assert "us" in claims["aud"]
        assert isinstance(claims["events"][BACKCHANNEL_LOGOUT], dict)
        assert all(isinstance(claims[name], str) and claims[name] for name in ("sub", "sid", "jti"))
        assert NOW - 30 < claims["exp"] <= NOW + 150
    for name in changed:
        _ = logout_flaw({key: value for key, value in claims.items() if key != name})
