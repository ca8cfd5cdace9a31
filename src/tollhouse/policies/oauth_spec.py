"""How a server is configured at which users connect accounts of their own: who lets them in there, and who we are.

Rule: what the server's and the issuer's metadata say need not be written (RFC 9728, RFC 8414); what is written is not
looked up.
"""

import re
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from tollhouse.core.spec import File, Spec
from tollhouse.policies.authenticate import ScopeWord

__all__ = ["OauthSetting", "OauthSpec"]

_LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "localhost"))
_OURS: Final = frozenset(
    (
        "response_type", "client_id", "client_secret", "redirect_uri", "scope", "state", "code_challenge",
        "code_challenge_method", "resource", "response_mode", "request", "request_uri", "nonce",
    )
)  # fmt: skip
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!$-;=?-Z_a-z~\[\]]{1,2040}")  # RFC 3986, no fragment
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _place(value: str) -> str:
    where = urlsplit(value)
    if not where.hostname or where.fragment or where.username is not None or _URI.fullmatch(value) is None:
        raise ValueError("not a URL; write it like https://login.example.com/token")
    if where.scheme != "https" and (where.scheme != "http" or where.hostname not in _LOOPBACK):
        raise ValueError("is https, unless it is on this machine: secrets go there")
    return value


Place = Annotated[str, Field(max_length=2048), AfterValidator(_place)]


class OauthSpec(Spec):
    """How users connect accounts at a server: the gateway is the OAuth client there, and each call carries the token of
    its own user's account. Everything may be left out that the server and its issuer publish."""

    issuer: Place | None = Field(
        default=None, description="who lets users in there; default: as the server's protected-resource metadata says"
    )
    authorization_endpoint: Place | None = Field(
        default=None, description="where the user is sent; default: as the issuer's metadata says"
    )
    token_endpoint: Place | None = Field(default=None, description="where tokens come from; default: as there")
    revocation_endpoint: Place | None = Field(default=None, description="where they are given back; default: as there")
    client_id: str | None = Field(
        default=None,
        pattern=r"^[ -~]{1,256}$",
        description="who we are there; absent: the URL of our metadata document where the issuer takes one (CIMD), "
        "else what it registers for us (RFC 7591)",
    )
    client_secret: SecretStr | None = Field(default=None, description="what proves it; absent: we are a public client")
    client_auth: Literal["basic", "post", "none"] | None = Field(
        default=None, description="the secret goes in the Authorization header (default), or the form; none: no secret"
    )
    scopes: tuple[ScopeWord, ...] | None = Field(
        default=None, min_length=1, description="that are asked for; default: as the server says"
    )
    resource: str = Field(
        default="server",
        description="`resource` of the requests (RFC 8707): server: the server's own URI; none: it is not sent, for "
        "providers that refuse it; anything else: that URI",
    )
    parameters: dict[str, Annotated[str, Field(max_length=1024)]] = Field(
        default={}, description="more of the authorization request, like access_type: offline"
    )
    ca: File | None = Field(default=None, description="PEM file of roots to trust for the issuer, not the system's")

    @field_validator("client_secret")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if not text or not text.isascii() or not text.isprintable() or len(text) > 1024:
            raise ValueError("it is empty, too long, or has characters outside of printable ASCII")
        return SecretStr(text)

    @field_validator("resource")
    @classmethod
    def _resource(cls, value: str) -> str:
        if value not in ("server", "none") and (_URI.fullmatch(value) is None):
            raise ValueError("write server, none, or an absolute URI without a fragment")
        return value

    @field_validator("parameters")
    @classmethod
    def _parameters(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in _OURS:
                raise ValueError(f"the parameter {name!r} is the gateway's own to set")
            if _PARAMETER.fullmatch(name) is None:
                raise ValueError("a parameter has a name of letters, digits, `_`, `.` and `-`")
        return value

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.client_id is None:
            for name in ("client_secret", "client_auth"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` has no effect without `client_id`, which it is of")
        if self.client_secret is None and self.client_auth in ("basic", "post"):
            raise ValueError(f"`client_auth: {self.client_auth}` needs a `client_secret`")
        if self.client_secret is not None and self.client_auth == "none":
            raise ValueError("`client_secret` has no effect with `client_auth: none`; leave one of them out")
        for name in ("authorization_endpoint", "token_endpoint", "revocation_endpoint"):
            if getattr(self, name) is not None and self.issuer is None:
                raise ValueError(f"`{name}` needs `issuer`, whose it is")
        return self


def _on(value: Any) -> Any:
    """`on` stands for {}."""
    if isinstance(value, str):
        if value != "on":
            raise ValueError("write on, or its settings as a mapping; without accounts leave it out")
        return {}
    return value


OauthSetting = Annotated[OauthSpec, BeforeValidator(_on, json_schema_input_type=Literal["on"] | OauthSpec)]
"""on, or {issuer, client_id, scopes, ...}."""
