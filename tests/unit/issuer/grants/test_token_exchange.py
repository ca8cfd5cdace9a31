"""A token for the next hop: only for who holds the first one rightly, never more, never longer (attacks 32 to 36)."""

import time
from typing import Any

import pytest
from tests.fixtures.issuer import API, CLIENTS, MCP, SECRET, Node, claims_of, dpop_proof, issuing, new_key, signed

pytestmark = pytest.mark.anyio

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS = "urn:ietf:params:oauth:token-type:access_token"
IDP = new_key("idp-1")
TRUSTED: dict[str, Any] = {
    "issuer": "https://idp.example.com",
    "jwks": {"keys": [IDP.jwk]},
    "grants": ["token_exchange"],
    "agent_claim": "azp",
}
TARGETS = {
    "targets": [
        {"audience": f"{API}", "scopes": {"read": ["read"], "write": ["read", "write"]}, "ttl": "30s"},
        {"audience": f"{MCP}#*", "ttl": "5s"},
        {"audience": "https://plain.example.com", "mode": "impersonation"},
    ]
}
OURS = [
    *CLIENTS[:3],
    {
        "id": "gateway",
        "secret": SECRET,
        "grants": ["token_exchange", "client_credentials"],
        "serves": [API],
        "token_exchange": TARGETS,
    },
    {"id": "thief", "secret": SECRET, "grants": ["token_exchange"], "token_exchange": TARGETS},
]


async def exchange(node: Node, subject: str, client: str = "gateway", **form: Any) -> tuple[int, dict[str, Any]]:
    sent = {"grant_type": EXCHANGE, "subject_token": subject, "subject_token_type": ACCESS, "audience": API, **form}
    response = await node.token(client, **{name: value for name, value in sent.items() if value is not None})
    return response.status_code, response.json()


async def test_the_token_names_the_user_the_agent_and_who_asked() -> None:
    async with issuing(clients=OURS) as node:
        login = await node.login(scopes=("read", "write"))
        status, answer = await exchange(node, login["access_token"])
        assert status == 200, answer
        assert (answer["issued_token_type"], answer["token_type"], answer["scope"]) == (ACCESS, "Bearer", "read write")
        assert "refresh_token" not in answer
        assert answer["expires_in"] == 30
        claims = claims_of(answer["access_token"])
        assert (claims["sub"], claims["aud"], claims["client_id"]) == ("ada", API, "gateway")
        assert claims["act"] == {"iss": node.url, "sub": "app"}
        assert claims["gid"] == claims_of(login["access_token"])["gid"]


async def test_a_tool_is_an_audience_and_no_resource() -> None:
    async with issuing(clients=OURS) as node:
        login = await node.login()
        status, answer = await exchange(node, login["access_token"], audience=f"{MCP}#add")
        assert status == 200, answer
        assert claims_of(answer["access_token"])["aud"] == f"{MCP}#add"
        status, answer = await exchange(node, login["access_token"], audience=None, resource=f"{MCP}#add")
        assert (status, answer["error"]) == (400, "invalid_target")


async def test_a_token_of_somebody_else_cannot_be_exchanged() -> None:
    """Attack 32."""
    async with issuing(clients=OURS) as node:
        login = await node.login()
        status, answer = await exchange(node, login["access_token"], client="thief")
        assert (status, answer["error"]) == (400, "invalid_request")
        assert "access_token" not in answer


async def test_who_a_token_was_made_for_may_exchange_it() -> None:
    async with issuing(clients=OURS) as node:
        own = await node.token("gateway", grant_type="client_credentials", resource=MCP)
        status, answer = await exchange(node, own.json()["access_token"], audience=f"{MCP}#add")
        assert status == 200, answer
        assert "act" not in claims_of(answer["access_token"])  # it acts for itself


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"audience": "https://other.example.com"}, "invalid_target"),
        ({"audience": f"{API}#tool"}, "invalid_target"),
        ({"audience": f"{MCP}"}, "invalid_target"),
        ({"audience": f"{MCP}#a b"}, "invalid_target"),
        ({"audience": [API, f"{MCP}#a"]}, "invalid_target"),
        ({"audience": None}, "invalid_target"),
        ({"audience": "x"}, "invalid_target"),
        ({"scope": "write"}, "invalid_scope"),
        ({"scope": "read admin"}, "invalid_scope"),
        ({"subject_token": "x.y.z"}, "invalid_request"),
        ({"subject_token": "opaque"}, "invalid_request"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
        ({"requested_ttl": "0"}, "invalid_request"),
        ({"requested_ttl": "1e9"}, "invalid_request"),
        ({"actor_token": "x.y.z", "actor_token_type": ACCESS}, "invalid_request"),
        ({"actor_token_type": ACCESS}, "invalid_request"),
    ],
)
async def test_what_is_too_much_or_wrong(form: dict[str, Any], error: str) -> None:
    """Attack 33, and the codes of RFC 8693 section 2.2.2."""
    async with issuing(clients=OURS) as node:
        login = await node.login(scopes=("read",))
        status, answer = await exchange(node, login["access_token"], **form)
        assert (status, answer["error"]) == (400, error)


async def test_a_scope_needs_all_that_it_follows_from() -> None:
    async with issuing(clients=OURS) as node:
        login = await node.login(scopes=("write",))
        status, answer = await exchange(node, login["access_token"])
        assert status == 200
        assert "scope" not in answer


async def test_a_token_does_not_outlive_its_subject() -> None:
    """Attack 34."""
    async with issuing(clients=OURS) as node:
        login = await node.login()
        exp = claims_of(login["access_token"])["exp"]
        node.wait(590)
        _, answer = await exchange(node, login["access_token"])
        assert claims_of(answer["access_token"])["exp"] <= exp
        _, answer = await exchange(node, login["access_token"], requested_ttl="3")
        assert answer["expires_in"] == 3
        _, answer = await exchange(node, login["access_token"], requested_ttl="3000")
        assert answer["expires_in"] <= 10
        node.wait(11)
        status, answer = await exchange(node, login["access_token"])
        assert (status, answer["error"]) == (400, "invalid_request")


def foreign(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "iss": "https://idp.example.com",
        "sub": "eve",
        "aud": API,
        "azp": "her-agent",
        "scope": "read",
        "iat": now,
        "exp": now + 300,
        **changed,
    }
    return {name: value for name, value in claims.items() if value is not None}


def chain(depth: int) -> dict[str, Any]:
    act: dict[str, Any] = {"sub": "agent-0"}
    for n in range(1, depth):
        act = {"sub": f"agent-{n}", "act": act, "extra": "dropped"}
    return act


async def test_a_foreign_token_is_taken_from_who_is_trusted() -> None:
    async with issuing(clients=OURS, trusted=[TRUSTED]) as node:
        status, answer = await exchange(node, signed(IDP, foreign(), "at+jwt"))
        assert status == 200, answer
        claims = claims_of(answer["access_token"])
        assert claims["sub"].startswith("u_")
        assert claims["sub_id"] == {"format": "iss_sub", "iss": "https://idp.example.com", "sub": "eve"}
        assert claims["act"] == {"iss": "https://idp.example.com", "sub": "her-agent"}


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example.com"},
        {"aud": "https://else.example.com"},
        {"aud": [{}, 5, None]},
        {"aud": {"x": API}},
        {"exp": 1},
        {"exp": "9999999999"},
        {"nonce": "n"},
        {"at_hash": "h"},
        {"sub": None},
        {"sub": 5},
        {"sub": "s" * 300},
        {"azp": 5},
        {"cnf": {"jkt": "unknown"}, "aud": "x", "azp": "gateway"},
        {"may_act": {"sub": "gateway"}},
        {"may_act": {"iss": "https://idp.example.com", "sub": "her-agent"}},
        {"act": chain(11)},
        {"act": {"act": {"sub": "x"}}},
        {"act": "x"},
        {"act": chain(6)},
    ],
)
async def test_a_foreign_token_that_is_not_taken(changed: dict[str, Any]) -> None:
    """Attacks 35 (forged and too long chains) and 37 (`may_act` of who is not trusted with it)."""
    async with issuing(clients=OURS, trusted=[TRUSTED]) as node:
        status, answer = await exchange(node, signed(IDP, foreign(**changed), "at+jwt"))
        assert (status, answer["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("typ", "header", "good"),
    [
        (None, "JWT", True),
        (None, "logout+jwt", False),
        (["at+jwt"], "at+jwt", True),
        (["application/AT+JWT"], "at+jwt", True),
        (["at+jwt"], "JWT", False),  # an id_token without nonce and at_hash looks like this
        (["x+jwt"], "x+jwt", True),
    ],
)
async def test_a_foreign_token_of_the_type_that_its_issuer_gives(typ: Any, header: str, good: bool) -> None:
    async with issuing(clients=OURS, trusted=[{**TRUSTED, "typ": typ}]) as node:
        status, answer = await exchange(node, signed(IDP, foreign(), header))
        assert (status, answer.get("error")) == ((200, None) if good else (400, "invalid_request"))


async def test_a_foreign_token_of_another_key() -> None:
    async with issuing(clients=OURS, trusted=[TRUSTED]) as node:
        status, answer = await exchange(node, signed(new_key("idp-1"), foreign()))
        assert (status, answer["error"]) == (400, "invalid_request")


async def test_those_who_acted_before_stand_inside() -> None:
    async with issuing(clients=OURS, trusted=[TRUSTED]) as node:
        _, answer = await exchange(node, signed(IDP, foreign(act=chain(2))))
        assert claims_of(answer["access_token"])["act"] == {
            "iss": "https://idp.example.com",
            "sub": "her-agent",
            "act": {"sub": "agent-1", "act": {"sub": "agent-0"}},
        }


async def test_impersonation_hides_nobody() -> None:
    """Attack 36."""
    plain = "https://plain.example.com"
    async with issuing(clients=OURS, trusted=[TRUSTED]) as node:
        login = await node.login()
        status, answer = await exchange(node, login["access_token"], audience=plain)
        assert status == 200, answer
        assert "act" not in claims_of(answer["access_token"])
        for hidden in ({"act": chain(1)}, {"act": {"iss": "x", "sub": "y"}}):
            status, answer = await exchange(node, signed(IDP, foreign(**hidden)), audience=plain)
            assert (status, answer["error"]) == (400, "invalid_request")
        # A token that was exchanged already names its agent, which a second exchange must not lose.
        _, first = await exchange(node, login["access_token"])
        status, answer = await exchange(node, first["access_token"], audience=plain)
        assert (status, answer["error"]) == (400, "invalid_request")


async def test_may_act_counts_where_its_issuer_is_trusted_with_it() -> None:
    """Attack 37."""
    trusted = {**TRUSTED, "trust_may_act": True}
    async with issuing(clients=OURS, trusted=[trusted]) as node:
        good = foreign(may_act={"iss": "https://idp.example.com", "sub": "her-agent"})
        status, answer = await exchange(node, signed(IDP, good))
        assert status == 200, answer
        for other in ({"iss": "https://idp.example.com", "sub": "another"}, {"iss": "x", "sub": "her-agent"}):
            status, answer = await exchange(node, signed(IDP, foreign(may_act=other)))
            assert (status, answer["error"]) == (400, "invalid_request")
        status, answer = await exchange(node, signed(IDP, foreign(may_act={"sub": "her-agent"})))
        assert (status, answer["error"]) == (400, "invalid_request")


async def test_an_actor_is_the_client_that_asks() -> None:
    async with issuing(clients=OURS) as node:
        login = await node.login()
        own = (await node.token("gateway", grant_type="client_credentials", resource=MCP)).json()["access_token"]
        form = {"actor_token_type": ACCESS}
        status, answer = await exchange(node, login["access_token"], actor_token=own, **form)
        assert status == 200, answer
        assert claims_of(answer["access_token"])["act"] == {"iss": node.url, "sub": "gateway"}
        robot = (await node.token("robot", grant_type="client_credentials", resource=MCP)).json()["access_token"]
        status, answer = await exchange(node, login["access_token"], actor_token=robot, **form)
        assert (status, answer["error"]) == (400, "invalid_request")


async def test_a_bound_token_is_exchanged_by_who_serves_it_or_has_the_key() -> None:
    key, other = new_key(), new_key()
    clients = [{**OURS[0], "grants": ["authorization_code", "token_exchange"], "token_exchange": TARGETS}, *OURS[1:]]
    async with issuing(clients=clients) as node:
        code = await node.code("v" * 43)
        proof = {"dpop": dpop_proof(key, node, "token")}
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": "v" * 43}
        login = (await node.token("app", proof, **form)).json()
        assert login["token_type"] == "DPoP"
        assert (await exchange(node, login["access_token"]))[0] == 200
        status, answer = await exchange(node, login["access_token"], client="app")
        assert (status, answer["error"]) == (400, "invalid_request")
        for signer, expected in ((other, 400), (key, 200)):
            sent = {"grant_type": EXCHANGE, "subject_token": login["access_token"], "subject_token_type": ACCESS}
            shown = {"dpop": dpop_proof(signer, node, "token")}
            assert (await node.token("app", shown, **sent, audience=API)).status_code == expected


async def test_public_clients_and_those_without_the_grant() -> None:
    async with issuing(clients=OURS) as node:
        status, answer = await exchange(node, "x", client="app")
        assert (status, answer["error"]) == (400, "unauthorized_client")


async def test_a_client_without_targets_has_its_own_audiences() -> None:
    clients = [*CLIENTS[:3], {**CLIENTS[3], "audiences": [MCP], "scopes": ["read"]}]
    async with issuing(clients=clients) as node:
        login = await node.login(resources=(MCP,), scopes=("read", "write"))
        status, answer = await exchange(node, login["access_token"], audience=f"{MCP}#add")
        assert (status, answer["scope"], answer["expires_in"]) == (200, "read", 5)
        status, answer = await exchange(node, login["access_token"], audience=API)
        assert (status, answer["error"]) == (400, "invalid_target")


async def test_a_revoked_token_is_not_exchanged() -> None:
    async with issuing(clients=OURS) as node:
        login = await node.login()
        await node.post("revoke", {"token": login["access_token"]}, "app")
        status, answer = await exchange(node, login["access_token"])
        assert (status, answer["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "https://else.example.com", "azp": "gateway"},
        {"aud": "https://else.example.com", "may_act": {"iss": "https://idp.example.com", "sub": "gateway"}},
    ],
)
async def test_names_that_others_give_are_not_ours(changed: dict[str, Any]) -> None:
    """Attack 32: a client of the same name at another issuer."""
    trusted = {**TRUSTED, "trust_may_act": True}
    async with issuing(clients=OURS, trusted=[trusted]) as node:
        status, answer = await exchange(node, signed(IDP, foreign(**changed), "at+jwt"))
        assert (status, answer["error"]) == (400, "invalid_request")


async def test_who_a_token_names_as_actor_acts() -> None:
    trusted = {**TRUSTED, "trust_may_act": True}
    async with issuing(clients=OURS, trusted=[trusted]) as node:
        named = foreign(aud="https://else.example.com", may_act={"iss": node.url, "sub": "gateway"})
        status, answer = await exchange(node, signed(IDP, named, "at+jwt"))
        assert status == 200, answer
        assert claims_of(answer["access_token"])["act"] == {"iss": node.url, "sub": "gateway"}


async def test_how_long_where_no_target_says_it() -> None:
    targets = {"targets": [{"audience": API}]}
    clients = [*OURS[:3], {**OURS[3], "token_exchange": targets}]
    async with issuing(clients=clients, ttl={"exchanged": "7s"}) as node:
        login = await node.login()
        _, answer = await exchange(node, login["access_token"])
        assert answer["expires_in"] == 7
        assert answer["scope"] == "read"  # and nothing about the user


async def test_a_tools_token_is_exchanged_by_the_server_of_the_tool() -> None:
    tools = {
        "id": "tools",
        "secret": SECRET,
        "grants": ["token_exchange"],
        "serves": [MCP],
        "token_exchange": {"targets": [{"audience": API}]},
    }
    async with issuing(clients=[*OURS, tools]) as node:
        login = await node.login()
        _, first = await exchange(node, login["access_token"], audience=f"{MCP}#add")
        status, second = await exchange(node, first["access_token"], client="tools")
        assert status == 200, second
        claims = claims_of(second["access_token"])
        assert (claims["sub"], claims["client_id"]) == ("ada", "tools")
        assert claims["act"]["act"] == {"iss": node.url, "sub": "app"}
        assert claims["act"]["sub"] == "gateway"
