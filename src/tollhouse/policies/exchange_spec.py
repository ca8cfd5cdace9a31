"""How tokens for upstreams are configured: at the top, on servers and routes, and for single tools.

Rule: what is not set here is as the wider scope has it; who makes the tokens is said together, in one place.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tollhouse.core.spec import Duration, File, Secret, Spec
from tollhouse.policies.authenticate import ScopeWord
from tollhouse.policies.base import on_or_off

__all__ = ["HOW", "ExchangeSetting", "ExchangeSpec", "ToolExchangeSpec"]

HOW: Final = ("mode", "audience", "ttl", "scopes", "reuse")
"""Settings that a narrower scope may set one by one."""

_WHO: Final = (
    "kind", "token_endpoint", "client_id", "client_secret", "client_auth", "client_key", "client_key_id",
    "assertion_audience", "actor_token", "ca",
)  # fmt: skip


class ExchangeSpec(Spec):
    """How tokens for an upstream are made. What is not set is as the wider scope has it."""

    mode: Literal["delegation", "impersonation", "passthrough", "off"] | None = Field(
        default=None,
        description="delegation: the token names the agent beside the user (`act`); impersonation: the user alone; "
        "passthrough: the caller's own, if it was made for the server too; off: none. Default: delegation, and "
        "impersonation with the kinds `keycloak` and `entra_obo`",
    )
    audience: str = Field(
        default="server",
        pattern=r"^[!-~]{1,2048}$",
        description="server: the URI of what is called; tool: that, # and the tool; anything else: that value",
    )
    ttl: Duration = Field(
        default=5.0, ge=1.0, le=3600.0, description="life of a token, which the caller's own may shorten"
    )
    scopes: dict[ScopeWord, tuple[ScopeWord, ...]] = Field(
        default={},
        description="scopes a token may have, and for each which of his own the caller must have: all of them",
    )
    reuse: Literal["half_life", "never"] = Field(
        default="half_life", description="half_life: equal calls share a token in the first half of its life"
    )
    issuer: str | None = Field(
        default=None, min_length=1, description="who makes them: `self` (default), or the URL of another issuer"
    )
    kind: Literal["rfc8693", "keycloak", "entra_obo"] = Field(default="rfc8693", description="how that one is asked")
    token_endpoint: str | None = Field(
        default=None, pattern=r"^https?://[!-~]+$", description="where; default: as the issuer's metadata says"
    )
    client_id: str | None = Field(default=None, pattern=r"^[!-~]{1,256}$", description="who we are there")
    client_secret: Secret | None = Field(default=None, description="what proves it")
    client_auth: Literal["basic", "post", "private_key_jwt"] = Field(
        default="basic",
        description="the secret goes in the Authorization header, or in the form; private_key_jwt: `client_key` signs "
        "who we are, and no secret is shared (RFC 7523)",
    )
    client_key: File | None = Field(
        default=None, description="PEM file of the private key for private_key_jwt: P-256, RSA or Ed25519"
    )
    client_key_id: str | None = Field(
        default=None,
        pattern=r"^[!-~]{1,256}$",
        description="its `kid` there; default: 16 characters of its thumbprint (RFC 7638)",
    )
    assertion_audience: Literal["issuer", "token_endpoint"] = Field(
        default="issuer", description="`aud` of what is signed: the issuer, or (older ones) its token endpoint"
    )
    actor_token: bool = Field(
        default=False,
        description="send a token of our own as `actor_token`, which is got there by client_credentials: for issuers "
        "that name in `act` whose that is",
    )
    ca: File | None = Field(default=None, description="PEM file of roots to trust for the issuer, not the system's")

    @field_validator("issuer")
    @classmethod
    def _who(cls, value: str | None) -> str | None:
        if value is not None and value != "self" and not value.startswith(("https://", "http://")):
            raise ValueError("not an issuer: write `self`, or its URL like https://auth.example.com")
        return value

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.issuer is None or self.issuer == "self":
            for name in _WHO:
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` has no effect without `issuer`, the URL of another issuer")
        else:
            self._is_known()
        useless = {"off": (*HOW[1:], "issuer"), "passthrough": (*HOW[2:], "issuer")}.get(self.mode or "", ())
        for name in useless:
            if name in self.model_fields_set:
                raise ValueError(f"`{name}` has no effect with `mode: {self.mode}`; leave it out")
        return self

    def _is_known(self) -> None:
        """Raises ValueError where another issuer would not know who asks."""
        by_key = self.client_auth == "private_key_jwt"
        needed = "client_key" if by_key else "client_secret"
        if self.client_id is None or getattr(self, needed) is None:
            raise ValueError(f"another issuer wants to know who asks: write `client_id` and `{needed}`")
        useless = ("client_secret",) if by_key else ("client_key", "client_key_id", "assertion_audience")
        for name in useless:
            if name in self.model_fields_set:
                raise ValueError(f"`{name}` has no effect with `client_auth: {self.client_auth}`; leave it out")
        if self.kind == "entra_obo" and by_key:
            raise ValueError("`client_auth: private_key_jwt` is not for `kind: entra_obo`, which wants a certificate")
        if self.actor_token and (self.kind != "rfc8693" or self.mode == "impersonation"):
            raise ValueError("`actor_token` has no effect here: the tokens do not name who acts; leave it out")


class ToolExchangeSpec(Spec):
    """The tokens for one tool."""

    mints: tuple[ScopeWord, ...] | None = Field(
        default=None,
        min_length=1,
        description="scopes of its tokens, each one of `exchange.scopes`; absent: all that the caller may have",
    )
    audience: str | None = Field(default=None, pattern=r"^[!-~]{1,2048}$", description="as `exchange.audience`")
    ttl: Duration | None = Field(default=None, ge=1.0, le=3600.0, description="longer, for a tool that is slow")
    reuse: Literal["half_life", "never"] | None = Field(default=None, description="never: each call has its own")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is set here; leave it out")
        return self


ExchangeSetting = Annotated[
    ExchangeSpec, BeforeValidator(on_or_off, json_schema_input_type=Literal["on", "off"] | ExchangeSpec)
]
"""on, off, or {mode, audience, ttl, ...}."""
