"""What clients say of themselves is taken by type and bound; what is unknown is passed over."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.client_metadata import ClientMetadata


def read(**members: Any) -> ClientMetadata:
    return ClientMetadata.parse(json.dumps(members).encode())


def test_what_is_left_out_is_as_the_rfc_says() -> None:
    metadata = read(redirect_uris=["https://a.example/cb"], unknown={"x": 1}, client_name=None)
    assert metadata.grant_types == ("authorization_code",)
    assert metadata.response_types == ("code",)
    assert metadata.token_endpoint_auth_method is None
    assert metadata.redirect_uris == ("https://a.example/cb",)


@pytest.mark.parametrize(
    "members",
    [
        {"redirect_uris": "https://a/cb"},
        {"redirect_uris": [1]},
        {"redirect_uris": ["javascript:alert(1)"]},
        {"redirect_uris": [f"https://a/{n}" for n in range(33)]},
        {"client_name": "x" * 300},
        {"client_name": "evil\nname"},
        {"client_name": "safe\u202eelif"},
        {"client_name": 5},
        {"jwks": []},
        {"jwks": {"keys": []}, "jwks_uri": "https://a/jwks"},
        {"scope": ["a"]},
        {"grant_types": "authorization_code"},
    ],
)
def test_what_is_wrong_is_said_without_what_was_sent(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        read(**members)
    assert "evil" not in str(error.value)
    assert "alert" not in str(error.value)


@pytest.mark.parametrize("document", [b"", b"[]", b"null", b"{", b'{"a":' * 50 + b"1" + b"}" * 50])
def test_what_is_no_object(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ClientMetadata.parse(document)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["redirect_uris", "client_name", "jwks", "scope", "grant_types", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with suppress(ValueError):
        ClientMetadata.parse(json.dumps(value).encode())
