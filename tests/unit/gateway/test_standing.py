"""Whom another configuration lets in, of those whom the one before did."""

from typing import Any

import pytest

from tollhouse.config.spec import Config
from tollhouse.core.call import Principal
from tollhouse.gateway.standing import still_let_in

CI = {"name": "ci", "key": "ci-secret-0123"}
BOB = {"name": "bob", "key": "bob-secret-0123"}
IDP = {"issuer": "https://idp.example.com", "audiences": ["x"], "jwks": "https://idp.example.com/jwks"}
OTHER = {"issuer": "https://other.example.com", "audiences": ["x"], "jwks": "https://other.example.com/jwks"}

key = Principal("key:ci", source="key", key="ci")
issued = Principal("key:made", source="key", key="made")
token = Principal("jwt:https://idp.example.com|ada", source="jwt", issuer="https://idp.example.com")
nobody = Principal("anonymous", source="anonymous")
password = Principal("basic:ada", source="basic")


def config(**authenticate: Any) -> Config:
    return Config.model_validate({"authenticate": authenticate} if authenticate else {})


@pytest.mark.parametrize(
    ("before", "now", "who", "good"),
    [
        ({"keys": [CI]}, {"keys": [CI, BOB]}, key, True),
        ({"keys": [CI, BOB]}, {"keys": [BOB]}, key, False),
        ({"keys": [CI]}, {"keys": [{**CI, "key": "another-secret"}]}, key, False),
        ({"keys": [CI]}, {"keys": [{**CI, "org": "other"}]}, key, False),
        ({"keys": [CI]}, {}, key, False),
        ({"keys": [CI], "issued": True}, {"keys": [CI]}, issued, False),
        ({"keys": [CI], "issued": True}, {"keys": [BOB], "issued": True}, issued, True),
        ({"jwt": [IDP, OTHER]}, {"jwt": [IDP]}, token, True),
        ({"jwt": [IDP, OTHER]}, {"jwt": [OTHER]}, token, False),
        ({"jwt": [IDP]}, {"jwt": [{**IDP, "audiences": ["y"]}]}, token, False),
        ({}, {"keys": [CI]}, nobody, False),
        ({}, {"keys": [CI], "mode": "optional"}, nobody, True),
        ({"keys": [CI], "mode": "optional"}, {"keys": [CI]}, nobody, False),
        ({"keys": [CI], "mode": "optional"}, {}, nobody, True),
        ({"keys": [CI]}, {"keys": [BOB]}, password, True),
        ({"keys": [CI]}, {}, password, False),
    ],
)
def test_who_keeps_what_he_holds(before: Any, now: Any, who: Principal, good: bool) -> None:
    decides = still_let_in(config(**before), config(**now))
    assert decides is not None
    assert decides(who) is good


def test_what_is_written_the_same_is_nothing_to_look_at() -> None:
    assert still_let_in(config(keys=[CI]), config(keys=[CI])) is None
    assert still_let_in(config(), config()) is None


OWN = "https://gateway.example.com"
our = Principal(f"jwt:{OWN}|ada", source="jwt", issuer=OWN)


@pytest.mark.parametrize(
    ("url", "authenticate", "who", "good"),
    [
        (None, {"keys": [CI]}, our, False),
        ("https://other.example.com", {"keys": [CI]}, our, False),
        (None, {"keys": [CI]}, key, True),
        (None, {"jwt": [IDP]}, our, False),
        (OWN, {"keys": [CI, BOB]}, our, True),
        (OWN, {"keys": [BOB]}, key, False),
        (None, {}, our, False),
        (OWN, {}, our, False),
    ],
)
def test_tokens_of_our_own_issuer(url: str | None, authenticate: Any, who: Principal, good: bool) -> None:
    def with_issuer(url: str | None, told: Any) -> Config:
        own = {"issuer": {"url": url, "clients": [{"id": "c", "secret": "s" * 32, "grants": ["client_credentials"]}]}}
        return Config.model_validate(({"authenticate": told} if told else {}) | (own if url else {}))

    decides = still_let_in(with_issuer(OWN, {"keys": [CI]}), with_issuer(url, authenticate))
    assert decides is not None
    assert decides(who) is good


def test_tokens_of_an_issuer_whose_name_has_two_forms() -> None:
    tenant = "11111111-2222-3333-4444-555555555555"
    entra = {"issuer": f"https://login.microsoftonline.com/{tenant}/v2.0", "kind": "entra", "discovery": True}
    older = Principal("jwt:x", source="jwt", issuer=f"https://sts.windows.net/{tenant}/")
    for now, good in (([], False), ([{**entra, "leeway": "5s"}], False), ([entra], True)):
        authenticate = {"keys": [CI if now == [entra] else BOB], "jwt": now, "mode": "optional"}
        decides = still_let_in(config(keys=[BOB], jwt=[entra]), config(**authenticate))
        assert decides is not None
        assert decides(older) is good
