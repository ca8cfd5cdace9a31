"""What is configured about the accounts at one server, and where issuers and people find us.

Rule: it holds what the operator wrote and nothing that was found out. What an account was made for is compared with
it, letter by letter.
"""

from dataclasses import dataclass, field
from typing import Literal

from tollhouse.net.client import TLS

__all__ = ["AccountSettings", "OurAddresses"]


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """server: its name in the configuration. url: where its calls go. issuer and endpoints: "" where metadata say.
    client_id: "" where there is none yet. client_auth: "" for what fits the issuer. scopes: None where the server or
    its metadata say which. resource: "server" for the server's own URI, "none" for no parameter `resource`, else that
    URI (RFC 8707). parameters: more of the authorization request. ca: PEM file of roots for the issuer, "" for the
    system's. tls, proxy: on the way to the server; the proxy is on the way to the issuer too. is_mcp: the server speaks
    MCP, else it is an HTTP API."""

    server: str
    url: str
    issuer: str = ""
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    revocation_endpoint: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    client_auth: Literal["", "basic", "post", "none"] = ""
    scopes: tuple[str, ...] | None = None
    resource: str = "server"
    parameters: tuple[tuple[str, str], ...] = ()
    ca: str = ""
    tls: TLS | None = None
    proxy: str = field(default="", repr=False)  # it may have a password
    is_mcp: bool = True


@dataclass(frozen=True, slots=True)
class OurAddresses:
    """URLs of ours. start: the page that a link opens; the link's token goes into its query, as `l`. callback: where
    this server's issuer sends browsers back to, and no other's. document: our client id metadata document, which
    issuers can read if it is https. name: what issuers' pages call us."""

    start: str
    callback: str
    document: str = ""
    name: str = "Tollhouse"
