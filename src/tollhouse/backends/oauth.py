"""OAuth client credentials (RFC 6749 section 4.4): a token from the operator's own authorization server.

Rule: the secret goes to the token endpoint and nowhere else.
"""

from typing import Literal, Self
from urllib.parse import quote_plus

from pydantic import Field, field_validator, model_validator

from tollhouse.backends.header_fields import UpstreamTLSSpec
from tollhouse.backends.renewal import Lease
from tollhouse.backends.token import Asker, Bearer, Scope, bearer, token_of
from tollhouse.core.clock import Clock
from tollhouse.core.spec import Secret, Spec
from tollhouse.net.client import Client, Origin
from tollhouse.wire.oauth import basic_credentials

__all__ = ["OAuthSpec", "oauth_credential"]


class OAuthSpec(Spec):
    """OAuth 2.0 client credentials: a token from the operator's own authorization server."""

    kind: Literal["oauth"] = "oauth"
    token_url: str = Field(description="the token endpoint")
    client_id: str = Field(pattern=r"^[ -~]+$", description="who we are there")
    client_secret: Secret = Field(description="what proves it")
    client_auth: Literal["basic", "post"] = Field(
        default="basic", description="the secret goes in the Authorization header, or in the form"
    )
    scopes: tuple[Scope, ...] = Field(default=(), max_length=100, description="what the token is asked for")
    audience: str | None = Field(default=None, min_length=1, description="for servers that want it, like Auth0")
    resource: str | None = Field(default=None, min_length=1, description="RFC 8707: the URI the token is for")
    tls: UpstreamTLSSpec | None = Field(default=None, description="for an https token_url")

    @field_validator("token_url")
    @classmethod
    def _url(cls, value: str) -> str:
        Origin.of(value)
        return value

    @model_validator(mode="after")
    def _tls(self) -> Self:
        if self.tls is not None and self.token_url.lower().startswith("http:"):
            raise ValueError("`tls` has no effect on an http token_url; write https")
        return self


def oauth_credential(name: str, spec: OAuthSpec, client: Client, clock: Clock, *, proxy: str | None = None) -> Bearer:
    """name: the provider's. Raises OriginError where a TLS file cannot be used."""
    tls = None if spec.tls is None else spec.tls.value()
    if tls is not None:
        tls.context()  # a mistake shows when it is configured
    asker = Asker(client, proxy=proxy, tls=tls)
    secret = spec.client_secret.get_secret_value()
    fields = {"grant_type": "client_credentials"}
    if spec.scopes:
        fields["scope"] = " ".join(spec.scopes)
    if spec.audience is not None:
        fields["audience"] = spec.audience
    if spec.resource is not None:
        fields["resource"] = spec.resource
    headers: list[tuple[bytes, bytes]] = []
    hidden = [secret]
    if spec.client_auth == "basic":
        basic = basic_credentials(spec.client_id, secret)
        headers.append((b"authorization", basic))
        hidden += [basic.removeprefix(b"Basic ").decode("ascii"), quote_plus(secret)]
    else:
        fields |= {"client_id": spec.client_id, "client_secret": secret}

    async def fetch() -> Lease[str]:
        return token_of(await asker.post(spec.token_url, fields, headers=headers, hidden=hidden), "the token's answer")

    return bearer(fetch, name, clock)
