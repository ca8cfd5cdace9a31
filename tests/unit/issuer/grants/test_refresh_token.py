"""Refresh tokens rotate; an old one ends the grant, a forged one ends nothing (attacks 16 and 17)."""

import asyncio
import secrets

import pytest
from tests.fixtures.issuer import ADA, API, MCP, Node, claims_of, issuing

from tollhouse.core.clock import Clock
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio


async def refresh(node: Node, token: str, client: str = "app", **form: str) -> tuple[int, dict[str, str]]:
    response = await node.token(client, grant_type="refresh_token", refresh_token=token, **form)
    return response.status_code, response.json()


async def test_each_use_gives_the_next_one() -> None:
    async with issuing() as node:
        first = await node.login()
        status, second = await refresh(node, first["refresh_token"])
        assert status == 200, second
        assert second["refresh_token"] != first["refresh_token"]
        one, two = claims_of(first["access_token"]), claims_of(second["access_token"])
        for name in ("sub", "aud", "gid", "sid", "scope", "auth_time", "client_id"):
            assert one[name] == two[name]
        assert one["jti"] != two["jti"]
        assert "nonce" not in claims_of(second["id_token"])
        status, _ = await refresh(node, second["refresh_token"])
        assert status == 200


async def test_an_old_token_ends_the_grant() -> None:
    """Attack 16."""
    async with issuing(ttl={"refresh_grace": "0s"}) as node:
        first = await node.login()
        _, second = await refresh(node, first["refresh_token"])
        status, answer = await refresh(node, first["refresh_token"])
        assert (status, answer["error"]) == (400, "invalid_grant")
        assert (await refresh(node, second["refresh_token"]))[0] == 400
        assert not await node.is_active(second["access_token"])


async def test_a_lost_answer_is_given_again_for_some_seconds() -> None:
    async with issuing() as node:
        first = await node.login()
        answers = await asyncio.gather(*(refresh(node, first["refresh_token"]) for _ in range(4)))
        assert [status for status, _ in answers] == [200] * 4
        following = {answer["refresh_token"] for _, answer in answers}
        assert len(following) == 1
        node.wait(11)
        assert (await refresh(node, first["refresh_token"]))[0] == 400
        assert (await refresh(node, following.pop()))[0] == 400


async def test_a_forged_token_ends_nothing() -> None:
    """Attack 17."""
    async with issuing() as node:
        good = (await node.login())["refresh_token"]
        family, n, mac = good.split(".")
        forged = [
            f"{family}.{n}.{secrets.token_urlsafe(32)}",
            f"{family}.0.{mac}",
            f"{family}.2.{mac}",
            f"thr_{secrets.token_urlsafe(16)}.{n}.{mac}",
            f"{family}.01.{mac}",
            f"{family}.{10**12}.{mac}",
            good + "x",
            good.upper(),
            "thr_",
            "x" * 4000,
            "ä",
        ]
        for token in forged:
            status, answer = await refresh(node, token)
            assert (status, answer["error"]) == (400, "invalid_grant")
        assert (await refresh(node, good))[0] == 200


async def test_another_client_cannot_use_it_nor_end_it() -> None:
    async with issuing() as node:
        good = (await node.login())["refresh_token"]
        response = await node.token(grant_type="refresh_token", refresh_token=good, client_id="native")
        assert response.json()["error"] == "invalid_grant"
        assert (await refresh(node, good))[0] == 200


async def test_less_may_be_asked_for_and_never_more() -> None:
    async with issuing() as node:
        token = (await node.login(scopes=("openid", "read", "write"), resources=(API, MCP)))["refresh_token"]
        status, answer = await refresh(node, token, scope="read admin")
        assert (status, answer["error"]) == (400, "invalid_scope")
        status, answer = await refresh(node, token, resource="https://other.example.com")
        assert (status, answer["error"]) == (400, "invalid_target")
        status, answer = await refresh(node, token, scope="read", resource=MCP)
        assert (status, answer["scope"]) == (200, "read")
        assert claims_of(answer["access_token"])["aud"] == MCP
        assert "id_token" not in answer
        status, answer = await refresh(node, answer["refresh_token"])
        assert answer["scope"] == "openid read write"


async def test_who_does_not_refresh_has_lost_it() -> None:
    async with issuing(ttl={"refresh_idle": "1h", "refresh": "3h"}) as node:
        token = (await node.login())["refresh_token"]
        for _ in range(3):
            node.wait(3000)
            status, answer = await refresh(node, token)
            assert status == 200
            token = answer["refresh_token"]
        node.wait(3000)
        assert (await refresh(node, token))[0] == 400


async def test_a_revoked_user_client_or_session_ends_it() -> None:
    for kind, name in (("sub", "ada"), ("client", "app"), ("sid", "session-1")):
        async with issuing() as node:
            token = (await node.login())["refresh_token"]
            until = node.parts.now() + 1000
            await node.parts.revocations.revoke(kind, name, until)  # type: ignore[arg-type]
            assert (await refresh(node, token))[0] == 400


async def test_a_user_is_who_that_is_now() -> None:
    state = MemoryState(Clock())
    url = "https://auth.example.com"
    async with issuing(state=state, url=url, users=[{**ADA, "groups": ["dev"]}]) as node:
        token = (await node.login())["refresh_token"]
    async with issuing(state=state, url=url, users=[{**ADA, "groups": ["ops"]}]) as node:
        status, answer = await refresh(node, token)
        assert status == 200, answer
        assert claims_of(answer["access_token"])["groups"] == ["ops"]
        token = answer["refresh_token"]
    async with issuing(state=state, url=url, users=[{**ADA, "name": "bob"}]) as node:
        status, answer = await refresh(node, token)
        assert (status, answer["error"]) == (400, "invalid_grant")
    async with issuing(state=state, url=url) as node:
        assert (await refresh(node, token))[0] == 400
    await state.close()


async def test_a_provider_that_is_taken_out_takes_its_users_along() -> None:
    """Also where others stay: their users are others."""
    one, two = ({"issuer": f"https://{name}.example.com", "client_id": "us"} for name in ("one", "two"))
    state, url = MemoryState(Clock()), "https://auth.example.com"
    federated = {"sub": "u_" + "x" * 32, "upstream": one["issuer"]}
    linked = {"sub": "ada", "upstream": one["issuer"]}
    async with issuing(state=state, url=url, upstream=[{**one, "link_by_email": True}, two]) as node:
        tokens = [(await node.login(**who))["refresh_token"] for who in (federated, federated, linked, linked)]
        for n, token in enumerate(tokens):
            status, answer = await refresh(node, token)
            assert status == 200, answer
            tokens[n] = answer["refresh_token"]
    async with issuing(state=state, url=url, upstream=[one, two]) as node:  # not linked any more
        assert (await refresh(node, tokens[0]))[0] == 200
        assert (await refresh(node, tokens[2]))[0] == 400
    async with issuing(state=state, url=url, upstream=[two]) as node:
        assert (await refresh(node, tokens[1]))[0] == 400
        assert (await refresh(node, tokens[3]))[0] == 400
    await state.close()


async def test_a_family_knows_whose_its_user_is() -> None:
    async with issuing(upstream=[{"issuer": "https://one.example.com", "client_id": "us"}]) as node:
        token = (await node.login(sub="u_" + "x" * 32, upstream="https://one.example.com"))["refresh_token"]
        found = await node.parts.families.find(token)
    assert found is not None
    assert found[1].upstream == "https://one.example.com"
