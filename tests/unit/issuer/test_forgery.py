"""Forms: only those that a page of ours sends, in the browser that has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.http import Headers, Request
from tollhouse.issuer.forgery import check, same_origin, token
from tollhouse.wire.oauth import Form, OAuthError

HERE = "https://auth.example.com"


def request(**headers: str) -> Request:
    return Request(b"POST", b"/", Headers([(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]))


@pytest.mark.parametrize(
    "headers, ours",
    [
        ({}, True),
        ({"origin": HERE, "sec_fetch_site": "same-origin"}, True),
        ({"origin": HERE}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "same-site", "origin": HERE}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://auth.example.com"}, False),
        ({"origin": "https://auth.example.com.evil.example"}, False),
    ],
)
def test_browsers_say_where_a_form_comes_from(headers: dict[str, str], ours: bool) -> None:
    assert same_origin(request(**headers), HERE) == ours


def test_two_origins_are_one_too_many() -> None:
    sent = Headers([(b"origin", HERE.encode()), (b"origin", b"https://evil.example")])
    assert not same_origin(Request(b"POST", b"/", sent), HERE)


@given(st.text(), st.text(min_size=1), st.text(), st.text(), st.text(min_size=1), st.text())
def test_a_token_is_for_one_action_and_one_browser(a: str, s: str, t: str, b: str, u: str, v: str) -> None:
    if (a, s, t) != (b, u, v) and "\n" not in s + t + u + v:
        assert token(a, s, t) != token(b, u, v)


def test_without_a_cookie_no_form_counts() -> None:
    form = Form({"csrf": (token("login", ""),)})
    with pytest.raises(OAuthError) as refused:
        check(request(), HERE, form, "login", "")
    assert (refused.value.error, refused.value.status) == ("access_denied", 403)
    check(request(), HERE, Form({"csrf": (token("login", "x", "y"),)}), "login", "x", "y")
    for secrets in (("x",), ("y", "x"), ("x", "z"), ()):
        with pytest.raises(OAuthError):
            check(request(), HERE, Form({"csrf": (token("login", "x", "y"),)}), "login", *secrets)
