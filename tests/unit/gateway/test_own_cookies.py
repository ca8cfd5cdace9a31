"""Services behind the gateway never see the auth provider's cookies."""

import pytest
from tests.unit.policies.floor import respond

from tollhouse.core.http import Headers, Request
from tollhouse.gateway.own_cookies import without_own_cookies
from tollhouse.issuer.spec import IssuerSpec

pytestmark = pytest.mark.anyio
ROBOT = {"id": "robot", "secret": "s" * 32, "grants": ["client_credentials"]}


@pytest.mark.parametrize(
    ("url", "lines", "left"),
    [
        ("https://a.example", ["s=1; __Host-s_browser=2"], []),
        ("https://a.example", ["a=1; s=2; b=3"], ["a=1; b=3"]),
        ("https://a.example", ["a=1", "s=2", "__Host-s_browser=3;c=4"], ["a=1", "c=4"]),
        ("https://a.example", ["xs=1; s_other=2; S=3; v=s=4"], ["xs=1; s_other=2; S=3; v=s=4"]),
        ("https://a.example/t", ["s_browser=1; __Host-s_browser_599c83a0=2"], ["s_browser=1"]),
        ("http://127.0.0.1:8000", ["s_browser=1; s =2;  s=3"], []),
        ("https://a.example", ["s=1; s=2"], []),
        ("https://a.example", [], []),
    ],
)
async def test_they_are_taken_out_and_others_are_not(url: str, lines: list[str], left: list[str]) -> None:
    handler = without_own_cookies(IssuerSpec.model_validate({"url": url, "cookie": "s", "clients": [ROBOT]}), respond)
    fields = [(b"x-a", b"1"), *((b"cookie", line.encode()) for line in lines), (b"x-b", b"2")]
    request = Request(b"GET", b"/x", Headers(fields))
    assert (await handler(request)).status == 200
    found = request.headers
    assert [value.decode() for value in found.get_all(b"cookie")] == left
    assert [value for name, value in found if name != b"cookie"] == [b"1", b"2"]


def test_without_an_issuer_nothing_stands_before_a_service() -> None:
    assert without_own_cookies(None, respond) is respond
