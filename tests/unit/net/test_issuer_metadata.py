"""What an issuer says of itself counts when it says it of itself."""

from typing import Any

import pytest
from tests.unit.policies.authenticate.door import idp

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.client import Client
from tollhouse.net.issuer_metadata import Metadata, metadata_urls, read_metadata, same_origin, usable_endpoint

pytestmark = pytest.mark.anyio

OAUTH, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    "issuer, urls",
    [
        ("https://a.example", (f"https://a.example{OAUTH}", f"https://a.example{OPENID}")),
        ("https://a.example/", (f"https://a.example{OAUTH}", f"https://a.example{OPENID}")),
        (
            "https://a.example/t",
            (f"https://a.example{OAUTH}/t", f"https://a.example{OPENID}/t", f"https://a.example/t{OPENID}"),
        ),
    ],
)
def test_where_it_may_be(issuer: str, urls: tuple[str, ...]) -> None:
    assert metadata_urls(issuer) == urls


@pytest.mark.parametrize(
    "document, why",
    [
        ({"issuer": "https://evil.example.com"}, "another issuer"),
        ({}, "another issuer"),
        ([], "not a JSON object"),
        (None, "answered 404"),
    ],
)
async def test_a_document_of_anybody_else_is_none(document: Any, why: str) -> None:
    async with idp() as (it, _):
        it.documents = {"/x": {}} if document is None else {OAUTH: document}
        client = Client(Clock())
        with pytest.raises(ValueError, match=why):
            await read_metadata(client, it.url, metadata_urls(it.url))
        await client.close()


async def test_it_is_read_once_an_hour_or_once_it_was_wrong() -> None:
    async with idp() as (it, _):
        now, client = [0.0], Client(Clock())
        it.documents = {OPENID: {"issuer": it.url, "token_endpoint": f"{it.url}/token"}}
        metadata = Metadata(client, it.url, lambda: now[0])
        for later, asked in ((0.0, 2), (3599.0, 2), (1.0, 4)):
            now[0] += later
            assert await metadata.endpoint("token_endpoint") == f"{it.url}/token"
            assert it.asked == asked
        metadata.forget()
        with pytest.raises(ValueError, match="no usable `jwks_uri`"):
            await metadata.endpoint("jwks_uri")
        assert it.asked == 6
        await client.close()


async def test_one_that_cannot_be_reached() -> None:
    client = Client(Clock())
    with pytest.raises(Failure):
        await read_metadata(client, "http://127.0.0.1:1", metadata_urls("http://127.0.0.1:1"), timeout=1.0)
    await client.close()


def test_an_endpoint_is_no_less_safe_than_its_issuer() -> None:
    issuer = "https://a.example"
    assert usable_endpoint({"x": "https://b.example/x"}, issuer, "x") == "https://b.example/x"
    for url in (None, 5, "", "file:///etc/passwd", "https://a.example/" + "x" * 2048, "http://a.example/x"):
        with pytest.raises(ValueError, match="`x`"):
            usable_endpoint({"x": url}, issuer, "x")
    assert same_origin("https://a.example/x", "https://A.example")
    assert not same_origin("https://a.example", "http://a.example")
