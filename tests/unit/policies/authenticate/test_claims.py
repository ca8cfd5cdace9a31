"""Whatever stands in claims, what comes of them is a Principal whose names can be written anywhere, or a flaw."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Principal
from tollhouse.policies.authenticate.claims import ClaimsSpec, Unfit, principal_of, scopes_of
from tollhouse.policies.authenticate.idp import audiences_of, issuers_of, names_of
from tollhouse.wire.jose import Flaw

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "sub", "org", "org_id", "tid", "client_id", "azp", "appid", "cid", "act", "cnf", "email", "groups", "roles",
    "scope", "scp", "jti", "sid", "gid", "iss", "username", "realm_access", "preferred_username",
)  # fmt: skip
ACT: Any = st.recursive(
    st.fixed_dictionaries({"sub": st.text(max_size=5)}, optional={"iss": st.text(max_size=5)}),
    lambda inner: st.fixed_dictionaries({"sub": st.text(max_size=5), "act": inner}),
    max_leaves=14,
)
CLAIMS: Any = st.fixed_dictionaries(
    {},
    optional={name: JSON | st.text(max_size=300) for name in NAMES} | {"act": JSON | ACT, "sub": st.text(max_size=300)},
)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@given(CLAIMS, st.sampled_from(["generic", "entra", "okta", "auth0", "keycloak"]))
def test_any_claims(claims: dict[str, Any], kind: Any) -> None:
    names = names_of(kind, ClaimsSpec())
    found = principal_of(
        {**claims, "exp": 5, "iat": 1}, names, issuer="https://i", source="jwt", token=b"t", leeway=30.0
    )
    if not isinstance(found, Principal):
        assert isinstance(found, Flaw | Unfit)
        return
    for text in (found.id, found.user, found.org, found.agent, found.email, found.subject, found.client):
        assert isinstance(text, str)
        assert CONTROL.search(text) is None
        assert len(text) <= 300
    assert found.subject
    for text in (*found.groups, *found.scopes):
        assert isinstance(text, str)
        assert CONTROL.search(text) is None
    assert all(scope and " " not in scope for scope in found.scopes if isinstance(claims.get("scope"), str))
    assert len(found.actors) <= 10
    assert all(actor.sub for actor in found.actors)
    assert found.expires == 35.0
    assert (found.proof == "") is (claims.get("cnf") is None)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a b  c", {"a", "b", "c"}),
        ("", set()),
        (["a", 5, "b c", ""], {"a", "b c"}),
        (None, set()),
        (7, set()),
        ({"a": 1}, set()),
        ("x " * 5000, {"x"}),
    ],
)
def test_scopes(value: Any, expected: set[str]) -> None:
    assert scopes_of(value) == expected


def test_other_providers_have_one_name_and_one_spelling() -> None:
    assert issuers_of("okta", "https://login.microsoftonline.com/x/v2.0") == (
        "https://login.microsoftonline.com/x/v2.0",
    )
    assert issuers_of("entra", "https://login.microsoftonline.com/common/v2.0") == (
        "https://login.microsoftonline.com/common/v2.0",
    )
    guid = "99999999-8888-7777-6666-555555555555"
    assert audiences_of("generic", (guid,)) == {guid}
    assert audiences_of("entra", (guid, "https://x")) == {guid, f"api://{guid}", "https://x"}
