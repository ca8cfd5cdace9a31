"""backends.mcp_http: how a server behind a URL is configured."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.mcp_gateway import gateway
from tests.fixtures.mcp_raw import Old, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.net.client import OriginError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("wrong", [{"tls": {"ca": "garbage.pem"}}, {"proxy": "socks5://127.0.0.1:1"}])
async def test_a_server_that_cannot_be_reached_as_it_is_written(wrong: Any, tmp_path: Path) -> None:
    if "tls" in wrong:
        (tmp_path / "garbage.pem").write_text("garbage")
        wrong = {"tls": {"ca": str(tmp_path / "garbage.pem")}}
    spec = HttpServerSpec.model_validate({"url": "https://127.0.0.1:1/mcp", **wrong})
    async with gateway({}) as running:
        with pytest.raises(OriginError):
            running.servers.get("u", spec)
        assert running.servers.all == []


async def test_configured_headers() -> None:
    async with upstream(Old()) as server:
        spec = HttpServerSpec(url=server.url, headers={"Authorization": "Bearer secret", "User-Agent": "me"})
        async with gateway({"u": spec}) as running:
            await running.stateless().call("echo")
        for asked in server.asked:
            assert (asked.headers["authorization"], asked.headers["user-agent"]) == ("Bearer secret", "me")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "ftp://x"},
        {"url": "not a url"},
        {"url": "http://user:pw@x/"},
        {"url": "http://x", "headers": {"Host": "y"}},
        {"url": "http://x", "headers": {"Mcp-Session-Id": "y"}},
        {"url": "http://x", "headers": {"a b": "y"}},
        {"url": "http://x", "headers": {"a": "y\r\nb: c"}},
        {"url": "http://x", "headers": {"a": ""}},
        {"url": "http://x", "headers": {"Mcp-Param-Region": "y"}},
        {"url": "http://x", "headers": {"Authorization": "y", "authorization": "z"}},
        {"url": "http://x", "command": "y"},
        {"url": "http://x", "tls": {"verifyy": False}},
    ],
)
def test_specs(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        HttpServerSpec.model_validate(wrong)
    assert HttpServerSpec.model_validate(
        {"url": "https://x/mcp", "tls": {"verify": False}, "headers": json.loads("{}")}
    )


def test_header_values_are_secret() -> None:
    spec = HttpServerSpec.model_validate({"url": "http://x", "headers": {"Authorization": "Bearer hush"}})
    assert "hush" not in f"{spec!r}{spec.headers}{spec.model_dump_json()}"


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("http://127.0.0.1:1/", True), ("http://[::1]/", True), ("http://10.1.2.3/", True), ("http://localhost/", True),
        ("http://tools:8000/mcp", True), ("http://a.internal/", True), ("https://8.8.8.8/", False),
        ("https://example.com/mcp", False),
    ],
)  # fmt: skip
def test_whose_annotations_are_believed_unasked(url: str, trusted: bool) -> None:
    assert HttpServerSpec(url=url).trusted() is trusted
    assert HttpServerSpec(url=url, trust_annotations=not trusted).trusted() is not trusted
