"""An MCP server behind a URL: how it is configured, and where its requests go.

Rule: the part of a head that never changes is written once; what the gateway sets itself cannot be configured.
"""

import ipaddress
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from tollhouse.backends.header_fields import HeaderFields, UpstreamTLSSpec, header_lines
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.net.client import Client, Origin

__all__ = ["HttpPlace", "HttpServerSpec"]

_OURS = frozenset(("accept", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id"))


class HttpServerSpec(McpServerSpec):
    """A server with a URL. headers: sent with every request, its credentials among them."""

    url: str
    headers: HeaderFields = Field(default={})
    tls: UpstreamTLSSpec | None = None
    proxy: str | None = None
    transport: Literal["auto", "http", "sse"] = Field(
        default="auto",
        description="http: Streamable HTTP; sse: HTTP+SSE of 2024-11-05; auto: sse where the URL's path ends in /sse "
        "or the server refuses the other",
    )

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        Origin.of(value)
        return value

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            if name.lower() in _OURS or name.lower().startswith("mcp-param-"):
                raise ValueError(f"the header {name!r} is the gateway's own to set")
        return value

    def trusted(self) -> bool:
        if self.trust_annotations is not None:
            return self.trust_annotations
        host = self.origin()[0].host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host.rstrip(".").rpartition(".")[2] in ("localhost", "local", "internal") or "." not in host
        return address.is_private or address.is_loopback

    def origin(self) -> tuple[Origin, bytes]:
        tls = None if self.tls is None else self.tls.value()
        return Origin.of(self.url, tls=tls, proxy=self.proxy)


class HttpPlace:
    """Where a server is: its pools and the part of every head that never changes. Shared by its sessions.

    streams: another client, so that open streams never take the places of calls. Raises OriginError when the URL's TLS
    files or its proxy cannot be used.
    """

    __slots__ = (
        "authority", "calls", "delete", "fixed", "get", "legacy", "path", "post", "scheme", "spec", "sse_path",
        "streams",
    )  # fmt: skip

    def __init__(self, spec: HttpServerSpec, client: Client, streams: Client) -> None:
        origin, path = spec.origin()
        self.calls = client.pool(origin)
        self.streams = streams.pool(origin, 10_000)
        self.spec = spec
        self.scheme, self.authority, self.path = origin.scheme, origin.authority, path
        self.sse_path = path.partition(b"?")[0].endswith(b"/sse")
        self.legacy = spec.transport == "sse" or (spec.transport == "auto" and self.sse_path)
        fixed = header_lines(spec.headers)
        if "user-agent" not in {name.lower() for name in spec.headers}:
            fixed += b"user-agent: tollhouse\r\n"
        self.fixed = fixed
        both = b"accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
        self.post = self.line(b"POST", path) + both
        self.get = self.line(b"GET", path) + b"accept: text/event-stream\r\n"
        self.delete = self.line(b"DELETE", path)

    def line(self, method: bytes, path: bytes) -> bytes:
        """The beginning of a request's head."""
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (method, path, self.authority, self.fixed)
