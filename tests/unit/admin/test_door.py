"""Who may use the admin API: with an operator's key, called by its own names, from no page of elsewhere."""

import logging
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.admin.door import Door
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request

KEY = "an-operators-key-of-32-characters"
OTHER = "another-operators-key-of-many-characters"
LISTENER = "127.0.0.1:15000"


def door(listener: str = LISTENER, hosts: tuple[str, ...] = ()) -> Door:
    return Door(
        [(name, sha256(key.encode()).digest()) for name, key in (("eve", KEY), ("bob", OTHER))], listener, hosts
    )


def request(*fields: tuple[str, str], host: str = LISTENER, key: str = KEY) -> Request:
    given = [("host", host), *((("authorization", f"Bearer {key}"),) if key else ()), *fields]
    return Request(b"GET", b"/api/keys", Headers([(n.encode(), v.encode("latin-1")) for n, v in given]))


def status(one: Door, asked: Request) -> int:
    with pytest.raises(Failure) as refused:
        one.admit(asked)
    return refused.value.status


def test_each_operator_is_known_by_the_key() -> None:
    assert door().admit(request()) == "eve"
    assert door().admit(request(key=OTHER)) == "bob"
    assert door().admit(request(("authorization", f"bearer  {KEY}"), key="")) == "eve"


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("authorization", "Bearer ")],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {sha256(KEY.encode()).hexdigest()}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {'x' * 32}"), ("authorization", f"Bearer {KEY}")],
        [("cookie", f"authorization=Bearer {KEY}")],
        [("x-api-key", KEY)],
    ],
)
def test_nothing_else_is_a_key(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(Failure) as refused:
        door().admit(request(*fields, key=""))
    assert refused.value.status == 401
    assert dict(refused.value.headers)[b"www-authenticate"].startswith(b"Bearer ")
    assert KEY not in str(refused.value)


def test_an_api_without_keys_lets_nobody_in() -> None:
    assert status(Door([], LISTENER), request()) == 401
    assert status(Door([], LISTENER), request(("authorization", ""), key="")) == 401


@pytest.mark.parametrize(
    "host", ["127.0.0.1:15000", "localhost:15000", "LOCALHOST", "[::1]:15000", "a.localhost", "127.9.9.9"]
)
def test_names_of_this_machine_may_be_called(host: str) -> None:
    assert door().admit(request(host=host)) == "eve"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com", "localhost.example.com", "127.0.0.1.example.com", "127.0.0.1@example.com", "", "0.0.0.0",
        "10.0.0.5:15000", "xlocalhost", "localhost:15000:1", "ops.example.com",
    ],
)  # fmt: skip
def test_other_names_may_not(host: str) -> None:
    assert status(door(), request(host=host)) == 403
    assert status(door(), request(host=host, key="")) == 403  # before anything is said of keys


def test_other_names_that_the_operator_allows() -> None:
    one = door("0.0.0.0:15000", ("ops.example.com", "*.internal"))
    for host in ("ops.example.com", "OPS.example.com.", "a.b.internal:8443", "localhost"):
        assert one.admit(request(host=host)) == "eve"
    for host in ("internal", "0.0.0.0:15000", "x.ops.example.com", "opsxexample.com", "a.internal.example.com"):
        assert status(one, request(host=host)) == 403
    assert status(door("[::]:15000"), request(host="[::]:15000")) == 403
    assert status(door("[0::0]:15000"), request(host="[0::0]:15000")) == 403
    assert status(door(":15000"), request(host=":15000")) == 403
    assert door("10.0.0.5:15000").admit(request(host="10.0.0.5:15000")) == "eve"
    assert door("[fd00::5]:15000").admit(request(host="[FD00::5]:15000")) == "eve"


@pytest.mark.parametrize("origin", [f"http://{LISTENER}", f"https://{LISTENER}"])
def test_its_own_pages_may_call(origin: str) -> None:
    assert door().admit(request(("origin", origin))) == "eve"


@pytest.mark.parametrize(
    "origin",
    [
        "null", "http://evil.example.com", "http://127.0.0.1:3000", "http://localhost:15000", f"ftp://{LISTENER}",
        f"http://{LISTENER}.example.com", f"http://x@{LISTENER}", "", f"http://{LISTENER}/",
    ],
)  # fmt: skip
def test_other_pages_may_not_also_of_this_machine(origin: str) -> None:
    assert status(door(), request(("origin", origin))) == 403
    assert status(door(), request(("origin", f"http://{LISTENER}"), ("origin", origin))) == 403


@given(st.text(max_size=60))
def test_no_text_is_a_key_but_the_key(text: str) -> None:
    if text.strip(" ") != KEY:
        field = (b"authorization", b"Bearer " + text.encode("utf-8", "replace"))
        asked = Request(b"GET", b"/", Headers([(b"host", LISTENER.encode()), field]))
        assert status(door(), asked) == 401


def test_failures_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    one = Door([], LISTENER, now=lambda: now[0])
    with caplog.at_level(logging.WARNING, "tollhouse.admin"):
        for _ in range(50):
            assert status(one, request()) == 401
        now[0] += 10.0
        assert status(one, request()) == 401
    assert [record.getMessage() for record in caplog.records] == [
        "asked without an operator's key: 1, the last time from 127.0.0.1",
        "asked without an operator's key: 50, the last time from 127.0.0.1",
    ]
