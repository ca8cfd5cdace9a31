"""What users of other issuers are called here."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

__all__ = ["FEDERATED", "federated", "is_federated"]

FEDERATED: Final = "u_"
"""What such a `sub` begins with; no name in a configuration does."""


def federated(issuer: str, sub: str) -> str:
    """The `sub` of somebody whom another issuer vouches for: the same at each login and in each grant, of nobody else,
    and unlike any name in a configuration."""
    digest = sha256(f"{len(issuer)}:{issuer}{sub}".encode("utf-8", "surrogatepass")).digest()
    return FEDERATED + urlsafe_b64encode(digest[:24]).decode()


def is_federated(sub: str) -> bool:
    """Whether it is one of those."""
    return sub.startswith(FEDERATED)
