"""The credential of a request, as it is shown: which header field, which scheme.

Rule: one credential counts. `Authorization` comes before the fields in which SDKs send API keys; two of them are
malformed (RFC 6750 section 2), and so is a token in the query, where it would end up in logs and histories.
"""

import re
from typing import Final

from tollhouse.core.http import Headers, Request
from tollhouse.policies.authenticate.challenge import malformed

__all__ = ["BASIC", "BEARER", "DPOP", "KEY", "NONE", "OTHER", "no_token_in_query", "presented"]

NONE: Final = 0
BEARER: Final = 1
KEY: Final = 2
DPOP: Final = 3
BASIC: Final = 4
OTHER: Final = 5
"""How a credential is shown: not at all, as a bearer token, in `x-api-key` and its like, with a proof, as a name with a
password, in a way that is not understood. Plain numbers: they are compared for every request."""

_BY_NAME = {b"bearer": BEARER, b"dpop": DPOP, b"basic": BASIC}
_OTHER_KEYS = (b"api-key", b"x-goog-api-key")
_IN_QUERY = re.compile(rb"(?:\A|&)access_token=")


def presented(headers: Headers) -> tuple[int, bytes]:
    """The scheme and what comes after it, without the space around. Raises Failure 400 for two `Authorization`."""
    authorization: bytes | None = None
    key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if authorization is not None:
                raise malformed("there are two `Authorization` fields; send one")
            authorization = value
        elif name == b"x-api-key" or (name in _OTHER_KEYS and key is None):
            key = value
    if authorization is None:
        return (NONE, b"") if key is None else (KEY, key)
    if authorization[:7] == b"Bearer ":
        return BEARER, authorization[7:].strip()
    scheme, _, rest = authorization.partition(b" ")
    return _BY_NAME.get(scheme.lower(), OTHER), rest.strip()


def no_token_in_query(request: Request) -> None:
    """Raises Failure 400 for a token in the query (MCP authorization, Token Requirements)."""
    if b"access_token" in request.query and _IN_QUERY.search(request.query):
        raise malformed("a token in the query is not accepted; send it in the field `Authorization`")
