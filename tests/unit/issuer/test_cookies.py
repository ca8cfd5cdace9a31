"""The cookies: what is in them, who gets them, and what is not taken for one."""

import pytest

from tollhouse.core.http import Headers, Request
from tollhouse.issuer.cookies import Cookies, fresh

VALUE = "A" * 43


def request(*lines: str) -> Request:
    return Request(b"GET", b"/", Headers([(b"cookie", line.encode("latin-1")) for line in lines]))


@pytest.mark.parametrize(
    "url, browser, attributes",
    [
        ("https://auth.example.com", "__Host-s_browser", "Path=/; HttpOnly; SameSite=Lax; Secure"),
        ("https://auth.example.com/t", "__Host-s_browser_599c83a0", "Path=/t; HttpOnly; SameSite=Lax; Secure"),
        ("http://127.0.0.1:8080", "s_browser", "Path=/; HttpOnly; SameSite=Lax"),
    ],
)
def test_cookies_are_secure_and_for_no_script(url: str, browser: str, attributes: str) -> None:
    cookies = Cookies(url, "s")
    assert cookies.browser == browser
    assert cookies.set("s", VALUE) == (b"set-cookie", f"s={VALUE}; {attributes}".encode())
    assert cookies.clear("s") == (b"set-cookie", f"s=; {attributes}; Max-Age=0".encode())


@pytest.mark.parametrize(
    "lines, value",
    [
        ((f"s={VALUE}",), VALUE),
        ((f"a=1; s={VALUE}; b=2",), VALUE),
        (("a=1", f"s={VALUE}"), VALUE),
        ((f"xs={VALUE}",), ""),
        ((f"S={VALUE}",), ""),
        ((f"s={VALUE}; s={VALUE}",), ""),
        ((f"s={VALUE}", f"s={'B' * 43}"), ""),
        (("s=short",), ""),
        ((f"s={VALUE}A",), ""),
        ((f's="{VALUE}"',), ""),
        (("s=" + "\xff" * 43,), ""),
        ((), ""),
    ],
)
def test_what_is_not_one_value_of_ours_is_none(lines: tuple[str, ...], value: str) -> None:
    assert Cookies("https://auth.example.com", "s").read(request(*lines), "s") == value


def test_a_value_is_256_random_bits() -> None:
    assert len({fresh() for _ in range(100)}) == 100
    assert all(len(fresh()) == 43 for _ in range(10))


def test_the_other_cookie_can_be_planted_by_no_neighbour_below_a_path_either() -> None:
    """RFC 6265bis section 4.1.3.2: with the prefix, browsers want Path=/ and no Domain."""
    here, there = (Cookies(f"https://auth.example.com/{path}", "s") for path in ("a", "b"))
    assert here.browser != there.browser
    for cookies in (here, there):
        _, field = cookies.set(cookies.browser, VALUE)
        assert field.decode() == f"{cookies.browser}={VALUE}; Path=/; HttpOnly; SameSite=Lax; Secure"
        assert cookies.browser.startswith("__Host-")
        assert cookies.clear(cookies.browser)[1].endswith(b"; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=0")


def test_a_session_of_that_prefix_is_for_the_whole_host() -> None:
    cookies = Cookies("https://auth.example.com/a", "__Host-s")
    assert cookies.set("__Host-s", VALUE)[1] == f"__Host-s={VALUE}; Path=/; HttpOnly; SameSite=Lax; Secure".encode()
