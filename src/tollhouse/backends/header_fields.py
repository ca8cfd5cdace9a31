"""What the gateway shows an upstream: API keys and header fields from configuration, rendered once.

Rule: nothing from configuration gets into a request head unchecked, and a secret is in no repr, message or log.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from tollhouse.core.spec import ClientTLSSpec
from tollhouse.net.client import TLS

__all__ = ["ApiKey", "HeaderFields", "UpstreamTLSSpec", "bearer_line", "header_lines", "key_line"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
_KEY = re.compile(r"[\x21-\x7e]+")
_OURS = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def _key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value().strip()  # a key read from a file ends in a line end
    if not _KEY.fullmatch(key):
        raise ValueError("not an API key: it is empty, or has spaces or characters outside of ASCII")
    return SecretStr(key)


def _fields(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, field in value.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if name.lower() in _OURS:
            raise ValueError(f"the header {name!r} is the gateway's own to set")
        if not _VALUE.fullmatch(field.get_secret_value().strip()):
            raise ValueError(f"the value of the header {name!r} is empty or has characters that a header cannot have")
    if len({name.lower() for name in value}) != len(value):
        raise ValueError("a header is named twice; names do not depend on case")
    return value


ApiKey = Annotated[SecretStr, AfterValidator(_key)]
"""A key as it goes into a header; white space around it is dropped."""

HeaderFields = Annotated[dict[str, SecretStr], AfterValidator(_fields)]
"""Header fields (RFC 9110 section 5) by name; values may be secret."""


class UpstreamTLSSpec(ClientTLSSpec):
    """How an upstream's certificate is verified, and what the gateway shows."""

    server_name: str | None = Field(default=None, description="the name to ask for and verify, instead of the host")

    def value(self) -> TLS:
        return TLS(self.ca, self.verify, self.cert, self.key, self.server_name)


def header_lines(fields: Mapping[str, SecretStr]) -> bytes:
    """`fields` as they stand in a request head."""
    return b"".join(
        b"%b: %b\r\n" % (name.lower().encode("ascii"), field.get_secret_value().strip().encode("latin-1"))
        for name, field in fields.items()
    )


def bearer_line(key: SecretStr) -> bytes:
    """RFC 6750 section 2.1."""
    return b"authorization: Bearer %b\r\n" % key.get_secret_value().encode("ascii")


def key_line(field: bytes, key: SecretStr) -> bytes:
    """A key alone, in a field of its own."""
    return b"%b: %b\r\n" % (field, key.get_secret_value().encode("ascii"))
