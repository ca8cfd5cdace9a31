"""Where state is kept: what a URL says, what is refused, and that its password is in nothing."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tollhouse.store.spec import Place, StateSpec, place_of

KEY = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", Place((("h", 6379),), 0, "", "", False, False)),
        ("redis://h:7/", Place((("h", 7),), 0, "", "", False, False)),
        ("redis://:pw@10.0.0.1:7/2", Place((("10.0.0.1", 7),), 2, "", "pw", False, False)),
        ("redis://pw@h", Place((("h", 6379),), 0, "", "pw", False, False)),
        ("rediss://me:p%40%2F%3A:w@[::1]:7", Place((("::1", 7),), 0, "me", "p@/::w", True, False)),
        ("redis+cluster://a,b:7", Place((("a", 6379), ("b", 7)), 0, "", "", False, True)),
        ("rediss+cluster://u:p@a/0", Place((("a", 6379),), 0, "u", "p", True, True)),
    ],
)
def test_urls(url: str, place: Place) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("redis://me:hunter2@h:7/3", "redis://h:7/3"),
        ("rediss://hunter2@[::1]", "rediss://[::1]:6379"),
        ("rediss+cluster://:hunter2@a,b", "rediss+cluster://a:6379,b:6379"),
    ],
)
def test_what_is_said_of_it_has_no_password(place: str, shown: str) -> None:
    assert str(place_of(place)) == shown
    assert "hunter2" not in f"{place_of(place)!r}"
    assert "hunter2" not in repr(StateSpec(url=place)) + str(StateSpec(url=place))


@pytest.mark.parametrize(
    "url",
    [
        "", "redis", "redis:/h", "redis://", "http://h", "redis://h:0", "redis://h:70000", "redis://h:x", "redis://h/x",
        "redis://h?db=1", "redis://h#1", "redis://a b", "redis://h,", "redis+cluster://h/1", "redis://a,b", "redis://[::1",
        "redis://u:p@ss@h", "unix:///run/x",
    ],
)  # fmt: skip
def test_what_is_none(url: str) -> None:
    with pytest.raises(ValidationError) as error:
        StateSpec(url=url)
    assert "p@ss" not in str(error.value)


@given(user=st.text(max_size=10), password=st.text(min_size=1, max_size=10))
def test_any_login_can_be_written(user: str, password: str) -> None:
    from urllib.parse import quote

    place = place_of(f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h")
    assert (place.user, place.password) == (user, password)


def test_memory_is_the_default_and_may_have_keys() -> None:
    assert StateSpec().is_memory
    spec = StateSpec(url=" memory\n", encryption_key=f" {KEY}\n")
    assert spec.is_memory
    assert spec.keys == (KEY.encode(),)
    assert StateSpec(url="redis://h", encryption_key=[KEY, KEY[::-1]]).keys == (KEY.encode(), KEY[::-1].encode())


def test_memory_may_be_kept_in_a_file() -> None:
    spec = StateSpec(url="file:/var/lib/a b.state", encryption_key=KEY)
    assert spec.is_memory
    assert spec.file == Path("/var/lib/a b.state")
    assert StateSpec(url="file:here.state").file == Path("here.state")
    assert StateSpec().file is None
    for nothing in ("file:", "file: ", "file:/"):
        with pytest.raises(ValidationError, match="no file is named"):
            StateSpec(url=nothing)
    with pytest.raises(ValidationError, match="`prefix` has no effect"):
        StateSpec(url="file:here.state", prefix="x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefix": "x"}, "`prefix` has no effect with `memory`"),
        ({"timeout": 1.0}, "`timeout` has no effect"),
        ({"connections": 2}, "`connections` has no effect"),
        ({"tls": {}}, "`tls` has no effect with `memory`"),
        ({"url": "redis://h", "tls": {}}, "write rediss://"),
        ({"url": "rediss://h", "tls": {"key": "a"}}, "`key` without `cert`"),
        ({"url": "redis://h", "encryption_key": "short"}, "openssl rand -base64 32"),
        ({"url": "redis://h", "prefix": "{x}"}, "pattern"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StateSpec(**settings)
