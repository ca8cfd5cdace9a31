"""The caller's key in the query (`?key=`), as requests to Google's REST API may have it.

Rule: it is a credential, and nothing else sees it: before anything looks at the request, a key in the query becomes the
header that Google's own clients send. The query that is logged, asked about in rules or passed on has none.
"""

from collections.abc import Awaitable
from urllib.parse import unquote_to_bytes

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import CREDENTIALS, Headers, Request, Response

__all__ = ["key_of_query"]

_KEY = b"key"
_HEADER = b"x-goog-api-key"


def key_of_query(request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
    """A policy for before authentication. Where there is a credential in a header as well, that one counts. Raises
    Failure 400 for two keys."""
    if _KEY not in request.query and b"%" not in request.query:
        return next(request)
    rest, keys = [], set()
    for pair in request.query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if unquote_to_bytes(name.replace(b"+", b" ")) == _KEY:
            keys.add(unquote_to_bytes(value))
        else:
            rest.append(pair)
    if keys:
        request.query = b"&".join(rest)
        request.target = b"%b?%b" % (request.path, request.query) if request.query else request.path
        if len(keys) > 1:
            raise Failure(400, Reason.INVALID_REQUEST, "the query has two keys: send one, in the header x-goog-api-key")
        if not any(name in CREDENTIALS and name != b"cookie" for name, _ in request.headers):
            headers = Headers(request.headers)
            headers.append((_HEADER, keys.pop()))
            request.headers = headers
    return next(request)
