"""What goes on when the state cannot be reached, and what is told to come back."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fixtures.issuer import ADA, API, CLIENTS, MCP, SECRET, Node, dpop_proof, issuing, new_key, signed
from tests.fixtures.valkey import Valkey

from tollhouse.core.clock import Clock
from tollhouse.net.timer import Timer
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec
from tollhouse.wire.oauth import ASSERTION_TYPE

pytestmark = pytest.mark.anyio
KEY = new_key()
SIGNING = {"id": "signing", "jwks": {"keys": [KEY.jwk]}, "grants": ["client_credentials"]}


@pytest.fixture
async def broken(tmp_path: Path) -> AsyncIterator[tuple[Node, str, str, str]]:
    """A node whose state is gone; a code, a refresh token and an access token from before."""
    server = Valkey(tmp_path)
    server.start()
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    spec = {"url": server.url, "encryption_key": "a secret that has thirty-two bytes or more", "timeout": "250ms"}
    state = RedisState(StateSpec.model_validate(spec), clock)
    try:
        async with issuing(
            state=state, users=[ADA], clients=[*CLIENTS, SIGNING], registration={"dynamic": "on"}
        ) as node:
            code = await node.code("v" * 43)
            answer = await node.login()
            server.kill()
            yield node, code, answer["refresh_token"], answer["access_token"]
    finally:
        server.kill()
        await state.close()
        timer.stop()


async def test_what_needs_no_record_goes_on(broken: tuple[Node, str, str, str]) -> None:
    node, _, _, access = broken
    robot = await node.token("robot", grant_type="client_credentials", resource=MCP)
    assert robot.status_code == 200
    assert await node.is_active(access)
    exchanged = await node.token(
        "gateway",
        grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
        subject_token=robot.json()["access_token"],
        subject_token_type="urn:ietf:params:oauth:token-type:access_token",
        audience=MCP,
    )
    assert exchanged.status_code == 200
    assert (await node.http.get(f"{node.url}/oauth/jwks")).status_code == 200


async def test_what_needs_one_is_told_to_come_back(broken: tuple[Node, str, str, str]) -> None:
    node, code, refresh, access = broken
    answers = [
        await node.redeem(code, "v" * 43),
        await node.token("app", grant_type="refresh_token", refresh_token=refresh),
        await node.post("device", {"scope": "read", "resource": API}, "app"),
        await node.post("revoke", {"token": access}, "app"),
        await node.http.post(f"{node.url}/oauth/register", json={"redirect_uris": ["https://a.example/cb"]}),
        await node.token(grant_type="client_credentials", client_id="dyn_unknown", client_secret=SECRET),
    ]
    now = int(node.parts.now())
    claims = {"iss": "signing", "sub": "signing", "aud": node.url, "exp": now + 60, "jti": secrets.token_hex(8)}
    form = {"client_assertion": signed(KEY, claims), "client_assertion_type": ASSERTION_TYPE, "resource": MCP}
    answers.append(await node.token(grant_type="client_credentials", **form))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert "redis" not in answer.text.lower()


async def test_a_proof_that_may_have_been_used_does_not_count(broken: tuple[Node, str, str, str]) -> None:
    node, *_ = broken
    header = {"dpop": dpop_proof(KEY, node, "token")}
    answer = await node.token("robot", headers=header, grant_type="client_credentials", resource=MCP)
    assert answer.status_code == 503
