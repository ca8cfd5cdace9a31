"""Tokens that are bound to a key: RFC 9449 section 4.3 at the resource, replay on another node, and bearer use."""

import json
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

import pytest
from joserfc import jws
from joserfc.jwk import ECKey
from tests.fixtures.valkey import valkey
from tests.unit.policies.authenticate.door import Door, bearer, idp, issuer, token
from tests.unit.policies.floor import parts

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.authenticate import AuthenticateSpec, resource_metadata
from tollhouse.policies.authenticate.proof import Replays
from tollhouse.store.base import unavailable
from tollhouse.store.memory import MemoryState
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec
from tollhouse.wire.dpop import access_token_hash

pytestmark = pytest.mark.anyio

GATEWAY = "https://gw.example.com"
CLIENT = ECKey.generate_key("P-256")
STRANGER = ECKey.generate_key("P-256")
BOUND = token(cnf={"jkt": CLIENT.thumbprint()}, client_id="agent")
PLAIN = token()


def proof(key: Any = CLIENT, header: dict[str, Any] | None = None, sent: bytes = BOUND, **claims: Any) -> bytes:
    fields = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)} | (header or {})
    values = {
        "jti": uuid4().hex, "htm": "POST", "htu": f"{GATEWAY}/mcp", "iat": int(time()), "ath": access_token_hash(sent),
    } | claims  # fmt: skip
    values = {name: value for name, value in values.items() if value is not None}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(fields, json.dumps(values), key, registry=registry).encode()


def shown(made: bytes, sent: bytes = BOUND) -> tuple[tuple[bytes, bytes], ...]:
    return (b"authorization", b"DPoP " + sent), (b"dpop", made)


def door(spec: dict[str, Any] | None = None, **more: Any) -> Door:
    more.setdefault("state", MemoryState(Clock()))
    return Door({"jwt": [issuer()]} | (spec or {}), public_url=GATEWAY, **more)


def challenges(failure: Failure) -> list[str]:
    return [value.decode() for name, value in failure.headers if name == b"www-authenticate"]


async def test_who_has_the_key_is_let_in() -> None:
    it = door()
    ada = await it.enter(*shown(proof()))
    assert (ada.user, ada.proof) == ("ada", CLIENT.thumbprint())
    assert await it.enter(*shown(proof()), target=b"/mcp?x=1") is ada  # the query does not count
    assert (await it.enter(*shown(proof(htu=f"{GATEWAY}/mcp?other#x")))).user == "ada"


@pytest.mark.parametrize(
    "made",
    [
        lambda: proof(htm="GET"),
        lambda: proof(htu=f"{GATEWAY}/mcp/shop"),
        lambda: proof(htu="https://evil.example.com/mcp"),
        lambda: proof(htu="http://gw.example.com/mcp"),
        lambda: proof(ath=None),
        lambda: proof(sent=PLAIN),
        lambda: proof(iat=int(time()) - 90),
        lambda: proof(iat=int(time()) + 90),
        lambda: proof(iat=None),
        lambda: proof(jti=None),
        lambda: proof(STRANGER),
        lambda: proof(STRANGER, {"jwk": CLIENT.as_dict(private=False)}),
        lambda: proof(header={"typ": "JWT"}),
        lambda: proof(header={"jwk": CLIENT.as_dict(private=True)}),
        lambda: b"a.b.c",
        lambda: b"",
        lambda: proof() * 30,
    ],
)
async def test_a_proof_of_something_else_is_none(made: Callable[[], bytes]) -> None:
    failure = await door().refused(*shown(made()))
    assert (failure.status, failure.reason) == (401, Reason.JWT_AUTH)
    assert challenges(failure)[0].startswith('DPoP error="invalid_dpop_proof", error_description="')
    assert BOUND.decode() not in failure.message + failure.detail


async def test_a_proof_counts_once() -> None:
    it, made = door(), proof()
    assert (await it.enter(*shown(made))).user == "ada"
    failure = await it.refused(*shown(made))
    assert failure.message == "the DPoP proof was used before"


async def test_one_field_with_a_proof() -> None:
    it = door()
    one, two = (b"dpop", proof()), (b"dpop", proof())
    scheme = (b"authorization", b"DPoP " + BOUND)
    assert (await it.refused(scheme)).status == 401
    assert (await it.refused(scheme, one, two)).message == "there must be exactly one field `DPoP` with a proof"
    assert (await it.refused((b"authorization", b"DPoP"), one)).status == 401


async def test_a_bound_token_is_no_bearer_token_and_the_other_way_round() -> None:
    it = door({"keys": [{"name": "ci", "key": "sk-0123456789"}]})
    for _ in range(2):
        failure = await it.refused(bearer(BOUND), (b"dpop", proof()))
        assert failure.message.startswith("the token is bound to a key")
        assert (await it.refused((b"x-api-key", BOUND))).status == 401
        assert (await it.refused(*shown(proof(sent=PLAIN), PLAIN))).message.startswith("the token is not bound")
        assert (await it.enter(bearer(PLAIN))).user == "ada"
        assert (await it.enter(*shown(proof()))).user == "ada"
    failure = await it.refused((b"authorization", b"DPoP sk-0123456789"), (b"dpop", proof()))
    assert failure.message.startswith("an API key is shown as a bearer token")


async def test_a_head_that_comes_again_is_asked_again() -> None:
    from tests.unit.policies.floor import request

    from tollhouse.core.http import Known

    it, known, made = door(), Known(), proof()
    for expected in (True, False):
        asked = request(b"POST", b"/mcp", *shown(made))
        asked.known = known
        if expected:
            await it.send(asked)
        else:
            with pytest.raises(Failure):
                await it.send(asked)
    assert known.by is None


async def test_only_bound_tokens_where_that_is_asked() -> None:
    it = door({"dpop": {"required": True}, "keys": [{"name": "ci", "key": "sk-0123456789"}]})
    for _ in range(2):
        failure = await it.refused(bearer(PLAIN))
        assert failure.message == "only tokens that are bound to a key are taken here"
    assert (await it.enter(*shown(proof()))).user == "ada"
    assert (await it.enter(bearer(b"sk-0123456789"))).key == "ci"
    assert challenges(await it.refused())[0] == 'DPoP algs="ES256 EdDSA RS256"'
    spec = AuthenticateSpec.model_validate({"jwt": [issuer()], "dpop": {"required": True, "algorithms": ["ES256"]}})
    handler = resource_metadata(spec, parts(resource=f"{GATEWAY}/mcp"))
    assert handler is not None
    from tests.unit.policies.floor import request

    document = json.loads((await handler(request(b"GET"))).body)
    assert document["dpop_signing_alg_values_supported"] == ["ES256"]
    assert document["dpop_bound_access_tokens_required"] is True


async def test_proofs_with_a_nonce_of_ours() -> None:
    it = door({"dpop": {"nonce": True}})
    failure = await it.refused(*shown(proof()))
    assert challenges(failure)[0].startswith('DPoP error="use_dpop_nonce"')
    nonce = dict(failure.headers)[b"dpop-nonce"].decode()
    assert (await it.enter(*shown(proof(nonce=nonce)))).user == "ada"
    assert (await it.refused(*shown(proof(nonce=nonce[::-1])))).status == 401


async def test_a_proof_that_another_node_has_seen(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        states = [RedisState(StateSpec(url=server.url), Clock()) for _ in range(2)]
        one, two, made = door(state=states[0]), door(state=states[1]), proof()
        assert (await one.enter(*shown(made))).user == "ada"
        assert (await two.refused(*shown(made))).message == "the DPoP proof was used before"
        assert (await two.enter(*shown(proof()))).user == "ada"
        for state in states:
            await state.close()


class Shared(MemoryState):
    """A state that says that others have it too."""

    shared = True

    def __init__(self) -> None:
        super().__init__(Clock())


class Gone:
    """Values of a store that does not answer."""

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        raise unavailable("gone")


async def test_while_the_state_is_gone_proofs_need_nonces() -> None:
    state = Shared()
    state.values = Gone()  # type: ignore[assignment]
    it = door(state=state)
    failure = await it.refused(*shown(proof()))
    assert challenges(failure)[0].startswith('DPoP error="use_dpop_nonce"')
    nonce = dict(failure.headers)[b"dpop-nonce"].decode()
    made = proof(nonce=nonce)
    assert (await it.enter(*shown(made))).user == "ada"
    assert (await it.refused(*shown(made))).message == "the DPoP proof was used before"


async def test_what_was_seen_is_bounded_and_forgotten_in_time() -> None:
    now = [0.0]
    replays = Replays(None, lambda: now[0], most=10)
    for n in range(10):
        assert await replays.is_new(f"p{n}", 60.0)
    assert not await replays.is_new("p3", 60.0)
    with pytest.raises(Failure) as caught:
        await replays.is_new("more", 60.0)
    assert caught.value.status == 503
    now[0] = 61.0
    assert await replays.is_new("p3", 60.0)


async def test_bound_tokens_that_are_asked_about() -> None:
    async with idp() as (it, _):
        it.documents = {"/i": {"active": True, "sub": "ada", "aud": "x", "cnf": {"jkt": CLIENT.thumbprint()}}}
        asked = {"url": f"{it.url}/i", "client_id": "g", "client_secret": "s", "audiences": ["x"]}
        opened = Door({"introspection": asked}, public_url=GATEWAY, state=MemoryState(Clock()))
        assert (await opened.enter(*shown(proof(sent=b"opaque"), b"opaque"))).user == "ada"
        assert (await opened.refused(bearer(b"opaque"))).status == 401
        await opened.close()
