"""Our own access tokens, read as any resource server would read them (attacks 18 to 25, at our own endpoints)."""

import base64
import json
from typing import Any

import pytest
from tests.fixtures.issuer import claims_of, issuing, new_key, signed

pytestmark = pytest.mark.anyio


async def test_whom_a_token_speaks_for() -> None:
    async with issuing() as node:
        login = await node.login()
        principal = await node.issuer.tokens.read(login["access_token"].encode())
        assert principal is not None
        claims = claims_of(login["access_token"])
        assert (principal.issuer, principal.subject, principal.client) == (node.url, "ada", "app")
        assert (principal.scopes, principal.family, principal.sid) == ({"openid", "read"}, claims["gid"], "session-1")
        assert (principal.groups, principal.org, principal.jti) == (("dev",), "acme", claims["jti"])
        assert login["access_token"] not in repr(principal)


async def test_what_is_none_of_ours() -> None:
    async with issuing() as node:
        login = await node.login()
        token = login["access_token"]
        claims = claims_of(token)
        head, body, signature = token.split(".")

        def other_head(**changed: Any) -> str:
            header = json.loads(base64.urlsafe_b64decode(head + "=="))
            made = base64.urlsafe_b64encode(json.dumps({**header, **changed}).encode()).decode().rstrip("=")
            return f"{made}.{body}.{signature}"

        key = new_key(json.loads(base64.urlsafe_b64decode(head + "=="))["kid"])
        bad = [
            login["id_token"],
            login["refresh_token"],
            signed(key, claims, "at+jwt"),
            other_head(alg="none"),
            f"{head}.{body}.",
            other_head(alg="HS256"),
            other_head(kid="../../x"),
            other_head(jwk=key.jwk),
            other_head(jku="http://127.0.0.1:1/jwks"),
            other_head(typ="JWT"),
            token[:-3] + "AAA",
            token + ".",
            "x" * 20000,
            "",
            "..",
        ]
        for one in bad:
            assert await node.issuer.tokens.read(one.encode()) is None, one[:60]


@pytest.mark.parametrize(
    "changed",
    [{"sub": ""}, {"sub": 5}, {"client_id": None}, {"scope": ["a"]}, {"cnf": "x"}, {"act": {"x": 1}}, {"exp": 1},
     {"exp": "soon"}, {"iss": "https://other.example.com"}],
)  # fmt: skip
async def test_claims_that_cannot_be(changed: dict[str, Any]) -> None:
    """Even were it signed with our own key."""
    async with issuing() as node:
        claims = claims_of((await node.login())["access_token"])
        for said, is_good in ((claims, True), ({**claims, **changed}, False)):
            token = signed(node.parts.keys.signer(), said, "at+jwt")
            assert (await node.issuer.tokens.read(token.encode()) is not None) is is_good
