"""Pushed authorization requests (RFC 9126): what a browser would carry, handed over directly.

Rule: the client proves who it is, as at the token endpoint, and the request must be as good as one that comes by a
browser; the application hears at once what is wrong.
"""

from collections.abc import Iterable

from tollhouse.core.http import Request, Response
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.authorization_request import read, target_of
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.cookies import fresh
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.proof import Proofs
from tollhouse.issuer.records import Pushed
from tollhouse.issuer.throttle import address_of
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["PREFIX", "PushedRequests", "form_of_pairs"]

PREFIX = "urn:ietf:params:oauth:request_uri:"
TTL = 60.0
_LARGEST = 16 << 10
_CREDENTIALS = frozenset(("client_secret", "client_assertion", "client_assertion_type"))


class PushedRequests:
    """`handle` answers POST."""

    __slots__ = ("_auth", "_parts", "_proofs", "_throttle")

    def __init__(self, parts: Parts, auth: ClientAuth, proofs: Proofs) -> None:
        self._parts = parts
        self._auth = auth
        self._proofs = proofs
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    async def handle(self, request: Request) -> Response:
        form = await form_of(request)
        await self._throttle.must_begin(address_of(request))
        client = await self._auth.authenticate(request, form)
        for name in ("request", "request_uri"):
            if name in form:
                raise OAuthError("invalid_request", f"`{name}` cannot be pushed")
        params = [(name, value) for name, values in form.items() for value in values if name not in _CREDENTIALS]
        if "client_id" not in form:
            params.append(("client_id", client.id))
        if sum(len(name) + len(value) for name, value in params) > _LARGEST:
            raise OAuthError("invalid_request", "a pushed request has 16 KiB at most", 413)
        named = form_of_pairs(params)
        target = await target_of(self._parts, named)
        read(self._parts, target, named)
        jkt = ""
        if request.headers.get_all(b"dpop"):  # what RFC 9449 section 10.1 asks for
            jkt = (await self._proofs.of(request, client)).jkt
            if form.get("dpop_jkt") not in ("", jkt):
                raise OAuthError("invalid_dpop_proof", "the proof is of another key than dpop_jkt")
        uri = PREFIX + fresh()
        await self._parts.tables.pushed.put(uri, Pushed(tuple(params), client.id, jkt), TTL)
        return json({"request_uri": uri, "expires_in": int(TTL)}, 201)


def form_of_pairs(params: Iterable[tuple[str, str]], jkt: str = "") -> Form:
    """A pushed request as the form it came as. jkt: of the key that it was proved with."""
    values: dict[str, tuple[str, ...]] = {}
    for name, value in params:
        values[name] = (*values.get(name, ()), value)
    if jkt:
        values.setdefault("dpop_jkt", (jkt,))
    return Form(values)
