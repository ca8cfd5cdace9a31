"""Who is calling: one file for each kind of credential, and the policy that asks them in order."""

from tollhouse.policies.authenticate.access import ACCESS, ACCESS_ROUTE, is_bounded, may_use
from tollhouse.policies.authenticate.challenge import canonical, metadata_path
from tollhouse.policies.authenticate.keys import KeySpec
from tollhouse.policies.authenticate.oidc import OidcSpec
from tollhouse.policies.authenticate.policy import (
    AUTHENTICATE,
    Authenticate,
    AuthenticateSpec,
    ResourceMetadataSpec,
    resource_metadata,
)
from tollhouse.policies.authenticate.requires import (
    REQUIRES,
    REQUIRES_ENDPOINT,
    REQUIRES_ROUTE,
    ScopeWord,
    scopes_of_layers,
)

__all__ = [
    "ACCESS",
    "ACCESS_ROUTE",
    "AUTHENTICATE",
    "REQUIRES",
    "REQUIRES_ENDPOINT",
    "REQUIRES_ROUTE",
    "Authenticate",
    "AuthenticateSpec",
    "KeySpec",
    "OidcSpec",
    "ResourceMetadataSpec",
    "ScopeWord",
    "canonical",
    "is_bounded",
    "may_use",
    "metadata_path",
    "resource_metadata",
    "scopes_of_layers",
]
