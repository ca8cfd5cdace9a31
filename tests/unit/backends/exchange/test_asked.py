"""What an issuer elsewhere answers, and what of it is believed."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest

from tollhouse.backends.exchange.asked import ACCESS_TOKEN, ExchangedToken, Unusable, is_ours, read_answer, refusal
from tollhouse.backends.exchange.entra_obo import EntraObo
from tollhouse.backends.exchange.keycloak import Keycloak
from tollhouse.backends.exchange.rfc8693 import Rfc8693
from tollhouse.core.call import Principal
from tollhouse.core.identity import Target

NOW = 1_800_000_000.0
SHOP = "https://shop.example.com/mcp"
TARGET = Target(SHOP, ("read",), 5.0, True)
ALONE = Target(SHOP, ("read",), 5.0, False)
GOOD = {"access_token": "opaque", "issued_token_type": ACCESS_TOKEN, "token_type": "bearer", "expires_in": 60}
ACT = {"sub": "agent-1"}


def token(**claims: Any) -> str:
    return f"e30.{urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.e30"


def ada(**more: Any) -> Principal:
    values = {"subject": "ada", "client": "agent-1", "expires": NOW + 600, **more}
    return Principal("jwt:ada", source="jwt", **values)  # type: ignore[arg-type]


def read(target: Target = TARGET, asking: Any = None, who: Principal | None = None, **said: Any) -> ExchangedToken:
    body = {name: value for name, value in {**GOOD, **said}.items() if value is not None}
    return read_answer(asking or Rfc8693(), who or ada(), target, json.dumps(body).encode(), NOW)


def life(**more: Any) -> float:
    return read(**more).expires - NOW


def test_the_shortest_life_counts() -> None:
    assert life() == 5.0  # what is used again, of what the target says
    assert life(expires_in=3) == 3.0
    assert life(expires_in=None) == 5.0
    assert life(who=ada(expires=NOW + 2)) == 2.0
    assert life(access_token=token(aud=SHOP, act=ACT, exp=NOW + 4)) == 4.0
    assert life(access_token=token(aud=SHOP, act=ACT, exp=10**400)) == 5.0
    for unsaid in (True, "soon", None, [NOW]):
        assert life(access_token=token(aud=SHOP, act=ACT, exp=unsaid)) == 5.0
    theirs = {"target": Target("shop", (), 5.0, False), "asking": Keycloak()}
    assert life(**theirs) == 60.0
    assert life(**theirs, expires_in=None) == 60.0
    assert life(**theirs, expires_in="120") == 120.0
    assert life(**theirs, expires_in=5000) == 600.0  # the caller's own


@pytest.mark.parametrize("ends", [NOW, NOW - 1, 0, -1, -(10**400)])
def test_one_that_is_over_is_none(ends: float) -> None:
    with pytest.raises(Unusable, match="expired"):
        read(access_token=token(aud=SHOP, act=ACT, exp=ends))


@pytest.mark.parametrize(
    ("jti", "told"),
    [("j-1", "j-1"), ("", ""), (7, ""), (None, ""), ("x" * 257, ""), ("a\r\nb", ""), ("jé", ""), (["j"], "")],
)
def test_an_id_is_a_short_word(jti: Any, told: str) -> None:
    assert read(access_token=token(aud=SHOP, act=ACT, jti=jti)).jti == told


@pytest.mark.parametrize("aud", [SHOP, [SHOP], [SHOP, SHOP]])
def test_for_whom_it_is(aud: Any) -> None:
    assert read(access_token=token(aud=aud, act=ACT)).token.startswith(b"e30.")


@pytest.mark.parametrize(
    "aud",
    [None, "", f"{SHOP}/", f"{SHOP}#pay", SHOP.upper(), [], [[SHOP]], [SHOP, "x"], {SHOP: 1}, 7, [SHOP, None], {}],
)
def test_for_somebody_else_it_is_not_used(aud: Any) -> None:
    with pytest.raises(Unusable, match="audience"):
        read(access_token=token(aud=aud, act=ACT))


def test_who_acts_is_named_or_is_not() -> None:
    for act in (None, "agent-1", [ACT], True):
        with pytest.raises(Unusable, match="who acts"):
            read(access_token=token(aud=SHOP, act=act))
    with pytest.raises(Unusable, match="who acts"):
        read(access_token=token(aud=SHOP), who=ada(client="", agent="agent-1"))
    assert read(access_token=token(aud=SHOP), who=ada(client=""))  # nobody acts
    assert read(access_token=token(aud=SHOP), who=ada(client="ada"))  # the user does
    assert read(ALONE, access_token=token(aud=SHOP))
    for act in (ACT, None):
        with pytest.raises(Unusable, match="asked not to"):
            read(ALONE, access_token=token(aud=SHOP, act=act))


def test_what_has_no_claims_to_be_read_is_taken_as_it_is() -> None:
    for unread in ("a.b", "a.!.c", f"a.{urlsafe_b64encode(b'[1]').decode()}.c", "a.b.c.d"):
        assert read(access_token=unread).token == unread.encode()


def test_entra_says_less() -> None:
    target = Target("api://shop", ("Read",), 5.0, False)
    said = {"target": target, "asking": EntraObo("gateway"), "issued_token_type": None}
    assert life(**said) == 60.0
    assert life(**said, scope="api://shop/Read Read") == 60.0
    with pytest.raises(Unusable, match="scopes"):
        read(**said, scope="Read Write")
    with pytest.raises(Unusable, match="issued_token_type"):
        read(**{**said, "issued_token_type": "urn:ietf:params:oauth:token-type:id_token"})


@pytest.mark.parametrize(
    ("claims", "told"), [('{"a":1}', '{"a":1}'), ("é", "é"), ("x" * 4097, ""), (None, ""), ({"a": 1}, "")]
)
def test_what_a_user_is_to_be_asked_is_passed_on_whole_or_not_at_all(claims: Any, told: str) -> None:
    body = json.dumps({"error": "interaction_required", "claims": claims}).encode()
    failure = refusal(body, 400)
    assert failure is not None
    [(_, challenge)] = failure.headers
    head, _, rest = challenge.decode().partition(', claims="')
    assert head == 'Bearer error="insufficient_claims"'
    assert urlsafe_b64decode(rest.rstrip('"')).decode() == told


def test_of_an_error_nothing_that_looks_like_a_secret_is_told() -> None:
    secret = "s3cr3t-" + "x" * 20
    for said in (f"no: {secret}", f"line\r\nother {secret}", ["x"], 7, None):
        failure = refusal(json.dumps({"error": "invalid_grant", "error_description": said}).encode(), 400)
        assert failure is not None
        assert secret not in failure.detail + failure.message
        assert failure.detail.isprintable()
        assert len(failure.detail) < 300


@pytest.mark.parametrize(
    ("body", "ours"),
    [
        (b'{"error":"invalid_client"}', True),
        (b'{"error":"unauthorized_client"}', True),
        (b'{"error":"unsupported_grant_type"}', True),
        (b'{"error":"invalid_grant"}', False),
        (b'{"error":["invalid_client"]}', False),
        (b"{}", False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_whose_fault_it_is(body: bytes, ours: bool) -> None:
    assert is_ours(body) is ours
