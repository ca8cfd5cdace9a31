"""What is wrong in the `issuer` section is refused, with what would be right."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.issuer import ADA, API, SECRET

from tollhouse.issuer.spec import IssuerSpec

URL = "https://auth.example.com"
APP = {"id": "app", "secret": SECRET, "redirect_uris": ["https://a.example/cb"]}
ROBOT = {"id": "robot", "secret": SECRET, "grants": ["client_credentials"]}


@pytest.mark.parametrize(
    "url", [URL, f"{URL}:8443", f"{URL}/tenant", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost"]
)
def test_urls_of_issuers(url: str) -> None:
    assert IssuerSpec.model_validate({"url": url}).url == url


@pytest.mark.parametrize(
    "url",
    [f"{URL}/", f"{URL}/?x", f"{URL}#x", "http://auth.example.com", "auth.example.com", "https://u@auth.example.com",
     f"{URL}/a/../b", f"{URL}:443", "https://Auth.example.com",
     f"{URL}//a", "https://", "ftp://auth.example.com", f"{URL}:99999", f"{URL}/ä", ""],
)  # fmt: skip
def test_what_is_no_url_of_an_issuer(url: str) -> None:
    with pytest.raises(ValidationError):
        IssuerSpec.model_validate({"url": url})


@pytest.mark.parametrize(
    ("client", "says"),
    [
        ({**ROBOT, "secret": "short"}, "32 random characters"),
        ({**ROBOT, "secret": "ä" * 40}, "printable ASCII"),
        ({**ROBOT, "secret_hash": "0" * 64}, "either `secret` or `secret_hash`"),
        ({"id": "robot", "grants": ["client_credentials"]}, "cannot prove who it is"),
        ({"id": "robot", "grants": ["token_exchange"]}, "cannot prove who it is"),
        ({**ROBOT, "auth_method": "private_key_jwt"}, "needs `jwks`"),
        ({**ROBOT, "auth_method": "none"}, "no effect with"),
        ({**ROBOT, "jwks": {"keys": []}}, "no public key"),
        ({**ROBOT, "jwks": "https://u:p@a.example/jwks"}, "no user and password"),
        ({**ROBOT, "tls_subject": "CN=a"}, "no effect with"),
        ({**ROBOT, "redirect_uris": ["https://a.example/cb"]}, "without the grant"),
        ({**ROBOT, "require_par": True}, "without the grant"),
        ({**ROBOT, "assertion_audience": "issuer"}, "without private_key_jwt"),
        ({**ROBOT, "token_exchange": {"targets": [{"audience": API}]}}, "add it to `grants`"),
        ({**ROBOT, "scopes": ["a"], "default_scopes": ["b"]}, "not in `scopes`"),
        ({**ROBOT, "audiences": ["api"]}, "absolute URI"),
        ({**ROBOT, "audiences": [f"{API}#a b"]}, "name of a tool"),
        ({"id": "app", "secret": SECRET}, "needs `redirect_uris`"),
        ({**APP, "redirect_uris": ["javascript:x"]}, "scheme"),
        ({**APP, "redirect_uris": ["http://a.example/cb"]}, "must be https"),
        ({**ROBOT, "id": "dyn_x"}, "not in the configuration"),
        ({**ROBOT, "id": "https://a.example/c"}, "not in the configuration"),
        ({**ROBOT, "id": "u_x"}, "users of other issuers"),
        ({**ROBOT, "id": "ada"}, "RFC 9068"),
        ({**ROBOT, "id": "a b"}, "pattern"),
    ],
)
def test_a_client_that_cannot_be(client: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as error:
        IssuerSpec.model_validate({"url": URL, "users": [ADA], "clients": [client]})
    assert says in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"clients": [ROBOT, ROBOT]}, "two of them"),
        ({"users": [ADA, ADA]}, "two of them"),
        ({"users": [{"name": "ada", "password_hash": "secret"}]}, "argon2id"),
        ({"users": [{**ADA, "name": "u_x"}]}, "users of other issuers"),
        ({"resources": [{"uri": API}, {"uri": "HTTPS://API.example.com/"}]}, "two of them"),
        ({"resources": [{"uri": f"{API}#x"}]}, "absolute URI"),
        ({"ttl": {"refresh_idle": "100d"}}, "no effect"),
        ({"ttl": {"session_idle": "2d"}}, "no effect"),
        ({"keys": {"algorithm": "HS256"}}, "ES256"),
        ({"scopes": {"a b": "x"}}, "pattern"),
        ({"cookie": "a;b"}, "pattern"),
        ({"trusted": [{"issuer": "x", "jwks": "https://a.example/jwks", "grants": []}]}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as error:
        IssuerSpec.model_validate({"url": URL, **settings})
    assert says in str(error.value)


def test_a_spec_shows_no_secret() -> None:
    spec = IssuerSpec.model_validate({"url": URL, "users": [ADA], "clients": [ROBOT]})
    assert SECRET not in repr(spec)
    assert "argon2id" not in repr(spec)


def test_audiences_are_canonical() -> None:
    spec = IssuerSpec.model_validate(
        {"url": URL, "clients": [{**ROBOT, "audiences": ["HTTPS://A.example/", f"{API}#*"]}]}
    )
    assert spec.clients[0].audiences == ("https://a.example", f"{API}#*")


@pytest.mark.parametrize(
    ("redirects", "native"),
    [(["http://127.0.0.1/cb"], True), (["com.example.app:/cb"], True), (["https://a.example/cb"], False),
     (["http://localhost/cb", "https://a.example/cb"], False)],
)  # fmt: skip
def test_who_is_native(redirects: list[str], native: bool) -> None:
    spec = IssuerSpec.model_validate({"url": URL, "clients": [{"id": "app", "redirect_uris": redirects}]})
    assert spec.clients[0].is_native is native
