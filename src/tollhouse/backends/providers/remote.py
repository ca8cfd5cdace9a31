"""What the Specs of remote providers have in common: where the API is, and how it is reached."""

from collections.abc import Callable
from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from tollhouse.backends.credential import Credential, KeyedSpec
from tollhouse.backends.header_fields import HeaderFields, UpstreamTLSSpec
from tollhouse.backends.oauth import OAuthSpec, oauth_credential
from tollhouse.backends.quota import QuotaSpec
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client, Origin

__all__ = ["OpenSpec", "RemoteSpec", "TokenSpec", "remote_credential"]


class RemoteSpec(KeyedSpec):
    """What every API over HTTP has. Its provider's own Spec has `kind` and `base_url`."""

    key_fields: ClassVar[tuple[str, ...]] = ("authorization",)
    """Header fields that are the credential, in lower case."""

    headers: HeaderFields = Field(default={}, description="further header fields of every request")
    tls: UpstreamTLSSpec | None = Field(default=None, description="for an https base_url")
    proxy: str | None = Field(default=None, description="an HTTP proxy that is asked to CONNECT: http://host:port")
    connections: int = Field(
        default=512,
        ge=1,
        description="open at most, and so calls at once, in each worker; further calls wait up to 10s",
    )
    quota: QuotaSpec | None = Field(
        default=None, description="requests and tokens that the provider allows, kept to before it has to refuse"
    )

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _url(cls, value: str) -> str:
        _, path = Origin.of(value)
        if b"?" in path:
            raise ValueError("a base_url has no query; set `headers`, or name the path alone")
        return value.rstrip("/")

    def keyed(self, *names: str) -> bool:
        """Whether there is a key. names: header fields, in lower case, that would be one."""
        return bool(self.keys) or any(n.lower() in names for n in self.headers)

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        tokens = getattr(self, "auth", None) is not None  # each kind of provider has its own kind of it, or none
        if tokens and self.keys:
            raise ValueError("`auth` and `api_key` are both credentials; set one of them")
        if tokens or self.keys:
            for name in self.headers:
                if name.lower() in self.key_fields:
                    what = "auth" if tokens else "api_key"
                    raise ValueError(f"`{what}` and the header {name!r} are both the credential; set one of them")
        return self

    @field_validator("headers")
    @classmethod
    def _one_id(cls, value: HeaderFields) -> HeaderFields:
        if any(name.lower() == "x-request-id" for name in value):
            raise ValueError("x-request-id is the gateway's own to set: each request has another")
        return value

    def origin(self, url: str) -> tuple[Origin, bytes]:
        """Where it is, and the path that requests begin with."""
        origin, path = Origin.of(url, tls=None if self.tls is None else self.tls.value(), proxy=self.proxy)
        return origin, path.rstrip(b"/")


class OpenSpec(RemoteSpec):
    """One whose other paths may be asked, too."""

    passthrough: bool = Field(
        default=False, description="pass /providers/NAME/... on to what is below base_url, unread, by any method"
    )


class TokenSpec(OpenSpec):
    """One that may want an access token in place of a key."""

    auth: OAuthSpec | None = Field(default=None, description="an access token by client credentials (RFC 6749)")

    @property
    def strict_url(self) -> str:
        """The address that answers nobody without a credential; "" where there is none."""
        return ""

    @model_validator(mode="after")
    def _some_credential(self) -> Self:
        url: str = getattr(self, "base_url", "")  # each kind of provider has its own
        if url and url == self.strict_url and self.auth is None and not self.keyed(*self.key_fields):
            raise ValueError(f"api_key is missing: {urlsplit(url).netloc} answers nobody without one")
        return self


def remote_credential(
    name: str, spec: TokenSpec, line: Callable[[SecretStr], bytes], client: Client, clock: Clock
) -> Credential:
    """What the Spec says. line: how a key is shown."""
    if spec.auth is not None:
        return oauth_credential(name, spec.auth, client, clock, proxy=spec.proxy)
    return spec.credential(name, line)
