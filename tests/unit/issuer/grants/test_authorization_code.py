"""Codes become tokens once, for the client, the redirect and the verifier they were made for (attacks 1 to 3)."""

import asyncio
import secrets
from collections.abc import Iterator

import pytest
from tests.fixtures.issuer import API, MCP, claims_of, issuing
from tests.fixtures.valkey import valkey

from tollhouse.core.clock import Clock
from tollhouse.net.timer import Timer
from tollhouse.store.redis import RedisState
from tollhouse.store.revocation import Kind, grant_id
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio
VERIFIER = secrets.token_urlsafe(32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one.url


async def test_a_code_gives_tokens_that_say_who_and_what_for() -> None:
    async with issuing() as node:
        response = await node.redeem(await node.code(VERIFIER), VERIFIER, redirect_uri="https://app.example.com/cb")
        answer = response.json()
        assert response.status_code == 200, answer
        assert response.headers["cache-control"] == "no-store"
        assert answer["token_type"] == "Bearer"
        assert answer["expires_in"] == 600
        assert answer["scope"] == "openid read"
        claims = claims_of(answer["access_token"])
        assert (claims["iss"], claims["sub"], claims["aud"]) == (node.url, "ada", API)
        assert (claims["client_id"], claims["scope"], claims["sid"]) == ("app", "openid read", "session-1")
        assert (claims["org"], claims["groups"]) == ("acme", ["dev"])
        identity = claims_of(answer["id_token"])
        assert (identity["aud"], identity["nonce"], identity["sub"]) == ("app", "n-1", "ada")
        assert answer["refresh_token"].startswith(f"thr_{claims['gid']}.1.")


async def test_a_code_that_is_used_again_ends_what_it_gave() -> None:
    """Attack 1."""
    async with issuing() as node:
        code = await node.code(VERIFIER)
        answer = (await node.redeem(code, VERIFIER)).json()
        assert await node.is_active(answer["access_token"])
        again = await node.redeem(code, VERIFIER)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        assert not await node.is_active(answer["access_token"])
        refreshed = await node.token("app", grant_type="refresh_token", refresh_token=answer["refresh_token"])
        assert refreshed.json()["error"] == "invalid_grant"


async def test_coming_again_and_again_writes_nothing_more() -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER)
        await node.redeem(code, VERIFIER)
        await node.redeem(code, VERIFIER)
        epoch = node.parts.revocations.epoch
        for _ in range(3):
            assert (await node.redeem(code, VERIFIER)).json()["error"] == "invalid_grant"
        assert node.parts.revocations.epoch == epoch


async def test_of_many_who_race_one_wins(server: str) -> None:
    """Attack 2: on two nodes that share a state."""
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    spec = StateSpec.model_validate({"url": server, "encryption_key": "a secret that has thirty-two bytes or more"})
    one, two = RedisState(spec, clock), RedisState(spec, clock)
    url = "https://auth.example.com"
    async with issuing(state=one, url=url) as first, issuing(state=two, url=url) as second:
        code = await first.code(VERIFIER)
        nodes = [first, second] * 4
        answers = await asyncio.gather(*(node.redeem(code, VERIFIER) for node in nodes))
        assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
        won = next(answer for answer in answers if answer.status_code == 200).json()
        # Somebody else had the code, too: whoever won keeps nothing of it.
        used = await second.token("app", grant_type="refresh_token", refresh_token=won["refresh_token"])
        assert used.json()["error"] == "invalid_grant"
    await one.close()
    await two.close()
    timer.stop()


async def test_a_code_that_was_slipped_in_is_taken_away() -> None:
    """Attack 3: the right client, with a verifier of another request."""
    async with issuing() as node:
        code = await node.code(VERIFIER)
        foreign = await node.redeem(code, secrets.token_urlsafe(32))
        assert foreign.json()["error"] == "invalid_grant"
        assert (await node.redeem(code, VERIFIER)).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "changed",
    [
        {"redirect_uri": "https://app.example.com/cb/"},
        {"code_verifier": ""},
        {"code_verifier": "short"},
        {"code_verifier": VERIFIER + "="},
    ],
)
async def test_what_does_not_fit_is_refused_and_the_code_is_gone(changed: dict[str, str]) -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER)
        form = {"code": code, "code_verifier": VERIFIER, **changed}
        refused = await node.token("app", grant_type="authorization_code", **form)
        assert refused.json()["error"] == "invalid_grant"
        assert (await node.redeem(code, VERIFIER)).status_code == 400


async def test_another_client_cannot_use_a_code_nor_end_it() -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER)
        stolen = await node.token(
            grant_type="authorization_code", code=code, code_verifier=VERIFIER, client_id="native"
        )
        assert stolen.json()["error"] == "invalid_grant"
        assert (await node.redeem(code, VERIFIER)).status_code == 200


async def test_a_public_client_proves_itself_by_the_verifier_alone() -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER, client_id="native", redirect_uri="http://127.0.0.1:7777/cb")
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER, "client_id": "native"}
        assert (await node.token(**form, redirect_uri="http://127.0.0.1:7777/cb")).status_code == 200


async def test_a_token_is_for_one_of_the_resources_that_were_asked_for() -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER, resources=(API, MCP))
        refused = await node.redeem(code, VERIFIER, resource="https://other.example.com")
        assert refused.json()["error"] == "invalid_target"
        answer = (await node.redeem(code, VERIFIER, resource=MCP)).json()
        assert claims_of(answer["access_token"])["aud"] == MCP


async def test_a_resource_that_was_not_asked_for_is_refused() -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER, resources=(API,))
        assert (await node.redeem(code, VERIFIER, resource=MCP)).json()["error"] == "invalid_target"


async def test_without_any_resource_the_token_is_for_the_issuer() -> None:
    async with issuing() as node:
        answer = await node.login(resources=(), scopes=("openid", "email"))
        claims = claims_of(answer["access_token"])
        assert claims["aud"] == node.url
        shown = {"authorization": f"Bearer {answer['access_token']}"}
        told = (await node.http.get(f"{node.url}/oauth/userinfo", headers=shown)).json()
        assert told == {"sub": "ada", "email": "ada@example.com", "email_verified": True}


async def test_a_grant_that_outlives_the_session_does_not_name_it() -> None:
    async with issuing() as node:
        answer = await node.login(scopes=("offline_access", "read"))
        assert "sid" not in claims_of(answer["access_token"])
        await node.parts.families.end_session("session-1")
        kept = await node.token("app", grant_type="refresh_token", refresh_token=answer["refresh_token"])
        assert kept.status_code == 200


async def test_a_code_is_good_for_a_minute() -> None:
    async with issuing() as node:
        assert (await node.redeem("never-was-one", VERIFIER)).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(("kind", "name"), [("sub", "ada"), ("client", "app"), ("sid", "session-1"), ("grant", "")])
async def test_a_code_of_before_a_revocation_gives_nothing(kind: Kind, name: str) -> None:
    async with issuing() as node:
        code = await node.code(VERIFIER)
        node.wait(1)
        now = node.parts.now()
        await node.parts.revocations.revoke(kind, name or grant_id("app", "ada"), now + 3600)
        assert (await node.redeem(code, VERIFIER)).json()["error"] == "invalid_grant"
        node.wait(1)
        after = await node.code(VERIFIER, sid="session-2")
        assert (await node.redeem(after, VERIFIER)).status_code == 200
