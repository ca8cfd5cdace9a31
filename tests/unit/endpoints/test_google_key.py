"""A key in the query becomes a header before anybody looks."""

import pytest

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.endpoints.google_key import key_of_query

pytestmark = pytest.mark.anyio

PATH = b"/v1beta/models"


async def shown(query: bytes, *headers: tuple[bytes, bytes]) -> Request:
    async def answered(request: Request) -> Response:
        return Response(200, [])

    request = Request(b"GET", PATH + (b"?" + query if query else b""), Headers(headers))
    await key_of_query(request, answered)
    return request


@pytest.mark.parametrize(
    ("query", "rest", "key"),
    [
        (b"key=secret", b"", b"secret"),
        (b"alt=sse&key=secret", b"alt=sse", b"secret"),
        (b"key=secret&alt=sse&pageSize=5", b"alt=sse&pageSize=5", b"secret"),
        (b"%6bey=s%2Be", b"", b"s+e"),
        (b"k%65y=secret&key=secret", b"", b"secret"),
        (b"key=", b"", b""),
        (b"alt=sse", b"alt=sse", None),
        (b"keys=1&monkey=2&alt=%20", b"keys=1&monkey=2&alt=%20", None),
        (b"", b"", None),
    ],
)
async def test_a_key(query: bytes, rest: bytes, key: bytes | None) -> None:
    request = await shown(query, (b"accept", b"*/*"))
    assert request.query == rest
    assert request.target == (PATH + b"?" + rest if rest else PATH)
    assert request.header(b"x-goog-api-key") == key


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"])
async def test_a_header_counts_more(name: bytes) -> None:
    request = await shown(b"key=secret", (name, b"mine"))
    assert request.headers == [(name, b"mine")]
    assert request.query == b""


async def test_a_cookie_is_no_key() -> None:
    request = await shown(b"key=secret", (b"cookie", b"a=b"))
    assert request.header(b"x-goog-api-key") == b"secret"


async def test_two_keys() -> None:
    with pytest.raises(Failure, match="two keys") as caught:
        await shown(b"key=a&key=b")
    assert caught.value.status == 400
