"""Active checks of models' targets: what is asked, with which proof, and what counts as well. Real sockets."""

import time
from calendar import timegm
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import World, answer, world
from tests.unit.backends.providers.scripted import (
    CHATTED,
    CONVERSED,
    GENERATED,
    MESSAGE,
    fields_of,
    said,
    script,
)
from tests.unit.backends.providers.test_bedrock import ACCESS, SECRET, bedrock, is_signed
from tests.unit.backends.tokens import Asked, endpoint, token
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.pool_spec import ModelCheckSpec, PoolSpec
from tollhouse.backends.probe import can_tell, is_well
from tollhouse.backends.provider import Timeouts
from tollhouse.backends.sigv4 import AWSCredentials, Signer

pytestmark = pytest.mark.anyio

LIST: dict[str, Any] = {}
CALL = {"model_call": "chat"}


def checked(**fields: Any) -> ModelCheckSpec:
    return ModelCheckSpec.model_validate({"timeout": "5s", **fields})


async def look(it: World, check: dict[str, Any], name: str = "smart", model: str | None = "m-1") -> bool:
    (provider,) = it.providers.values()
    backend = LLMBackend(provider, model, Timeouts())
    spec = checked(**check)
    assert can_tell(backend, spec, name)
    return await is_well(backend, spec, name)


@pytest.mark.parametrize(
    ("kind", "path", "more", "target"),
    [
        ("openai", "/v1", {"api_key": "k"}, "/v1/models"),
        ("anthropic", "/base", {"api_key": "k"}, "/base/v1/models"),
        ("azure", "", {"api_key": "k"}, "/openai/v1/models"),
        ("azure", "", {"api_key": "k", "api_version": "2024-10-21"}, "/openai/models?api-version=2024-10-21"),
        ("gemini", "/v1beta", {"api_key": "k"}, "/v1beta/models"),
    ],
)
async def test_the_list_of_models(kind: str, path: str, more: dict[str, Any], target: str) -> None:
    play, asked = script(said({"data": []}), said({}, 503), said({}, 404))
    async with upstream(play) as up, world() as it:
        it.provider("p", kind=kind, base_url=up.url(path), **more)
        assert [await look(it, LIST) for _ in range(3)] == [True, False, False]
    assert (asked[0].method, asked[0].target) == ("GET", target)
    assert "k" in {asked[0].headers.get(name) for name in ("api-key", "x-api-key", "x-goog-api-key")} or (
        asked[0].headers["authorization"] == "Bearer k"
    )


def is_signed_get(asked: Asked, keys: AWSCredentials) -> bool:
    moment = timegm(time.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    host = asked.headers["host"].encode()
    lines = Signer("eu-central-1", "bedrock").lines(
        keys, moment, method=b"GET", path=asked.target.encode(), headers=((b"host", host),), body=b""
    )
    return b"authorization: %b\r\n" % asked.headers["authorization"].encode() in lines


async def test_what_can_only_be_signed_is_signed() -> None:
    play, asked = script(said({}), said(CONVERSED))
    async with upstream(play) as up, world() as it:
        it.provider("aws", **bedrock(up.url("/base")))
        assert await look(it, {"path": "/guardrails"})
        assert await look(it, CALL, model="amazon.nova-lite-v1:0")
    assert (asked[0].method, asked[0].target) == ("GET", "/base/guardrails")
    assert is_signed_get(asked[0], AWSCredentials(ACCESS, SECRET))
    assert asked[1].target == "/base/model/amazon.nova-lite-v1%3A0/converse"
    assert is_signed(asked[1], AWSCredentials(ACCESS, SECRET))


@pytest.mark.parametrize(
    ("kind", "model", "answered", "target", "fields"),
    [
        ("openai", "gpt", CHATTED, "/chat/completions",
         {"model": "gpt", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 16}),
        ("anthropic", "claude", MESSAGE, "/v1/messages",
         {"model": "claude", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 16}),
        ("gemini", "gemini-2.5-flash", GENERATED, "/models/gemini-2.5-flash:generateContent",
         {"contents": [{"role": "user", "parts": [{"text": "ping"}]}], "generationConfig": {"maxOutputTokens": 16}}),
        ("vertex", "gemini-2.5-pro", GENERATED,
         "/v1/projects/p-1/locations/global/publishers/google/models/gemini-2.5-pro:generateContent", None),
        ("vertex", "claude-sonnet-4-5", MESSAGE,
         "/v1/projects/p-1/locations/global/publishers/anthropic/models/claude-sonnet-4-5:rawPredict", None),
    ],
)  # fmt: skip
async def test_a_call(kind: str, model: str, answered: Any, target: str, fields: Any) -> None:
    play, asked = script(said(answered), said({"error": {"message": "no such model"}}, 404), said({}, 500))
    async with upstream(play) as up, world() as it:
        more = {"project": "p-1"} if kind == "vertex" else {}
        it.provider("p", kind=kind, base_url=up.url("").rstrip("/"), api_key="k", **more)
        assert [await look(it, CALL, model=model) for _ in range(3)] == [True, False, False]
    assert (asked[0].method, asked[0].target) == ("POST", target)
    assert asked[0].headers["x-request-id"] == "health-check"
    if fields is not None:
        assert fields_of(asked[0]) == fields


async def test_a_call_for_embeddings() -> None:
    play, asked = script(said({"data": [], "usage": {"prompt_tokens": 1}}))
    async with upstream(play) as up, world() as it:
        it.openai(up.url("/v1"))
        assert await look(it, {"model_call": "embeddings"}, model=None, name="text-embedding-3-small")
    assert asked[0].target == "/v1/embeddings"
    assert fields_of(asked[0]) == {"model": "text-embedding-3-small", "input": "ping"}


async def test_a_key_that_is_refused_gives_way() -> None:
    play, asked = script(said({}, 401), said({"data": []}), said({"data": []}))
    async with upstream(play) as up, world() as it:
        it.openai(up.url("/v1"), api_keys=["k-1", "k-2"])
        assert await look(it, LIST)
        assert await look(it, LIST)
    assert [each.headers["authorization"] for each in asked] == ["Bearer k-1", "Bearer k-2", "Bearer k-2"]


async def test_an_identity_is_fetched_for_it() -> None:
    play, asked = script(said({"data": []}))
    answers = {"/tenant-1/oauth2/v2.0/token": token("entra-1")}
    async with upstream(play) as up, endpoint(answers) as idp, world() as it:
        auth = {"tenant": "tenant-1", "client_id": "app-1", "client_secret": "hush", "authority": idp.url}
        it.provider("az", kind="azure", base_url=up.url("/"), auth=auth)
        assert await look(it, LIST)
    assert asked[0].headers["authorization"] == "Bearer entra-1"


@pytest.mark.parametrize("check", [LIST, CALL])
async def test_who_does_not_answer_in_time_is_not_well(check: dict[str, Any]) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with upstream(play) as up, world() as it:
        it.openai(up.url())
        assert not await look(it, {**check, "timeout": "50ms"})


@pytest.mark.parametrize("check", [LIST, CALL])
async def test_without_credentials_nobody_is_well(check: dict[str, Any]) -> None:
    async with endpoint({}) as idp, world() as it:
        auth = {"token_url": idp.url + "/token", "client_id": "a", "client_secret": "b"}
        it.openai("http://127.0.0.1:1/v1", auth=auth)
        assert not await look(it, check)


@pytest.mark.parametrize(
    ("fields", "check", "name", "model", "can"),
    [
        ({"kind": "openai", "base_url": "http://127.0.0.1:1"}, LIST, "a*", None, True),
        ({"kind": "openai", "base_url": "http://127.0.0.1:1"}, CALL, "a*", None, False),
        ({"kind": "openai", "base_url": "http://127.0.0.1:1"}, CALL, "a*", "m", True),
        ({"kind": "openai", "base_url": "http://127.0.0.1:1"}, CALL, "a", None, True),
        ({"kind": "vertex", "project": "p", "api_key": "k"}, LIST, "a", "m", False),
        ({"kind": "vertex", "project": "p", "api_key": "k"}, CALL, "a", "m", True),
        ({"kind": "anthropic", "api_key": "k"}, {"model_call": "embeddings"}, "a", "m", False),
        ({"kind": "local"}, CALL, "a", "m", False),
    ],
)
async def test_what_there_is_to_check(
    fields: dict[str, Any], check: dict[str, Any], name: str, model: str | None, can: bool
) -> None:
    async with world() as it:
        assert can_tell(LLMBackend(it.provider("p", **fields), model, Timeouts()), checked(**check), name) is can


async def test_calls_of_checks_are_nobodys() -> None:
    """They touch neither health nor latencies on their own: the checker alone decides."""
    play, asked = script(answer(b"{}", 500))
    async with upstream(play) as up, world() as it:
        it.openai(up.url())
        pool = it.pool(health={"failures": 1, "check": CALL})
        member = pool.members[0]
        assert not await is_well(member.backend, checked(**CALL), pool.name)
        assert (member.health.until, member.health.down) == (0.0, False)
    assert len(asked) == 1


def test_calls_cost_money_so_they_are_seldom() -> None:
    assert (ModelCheckSpec().interval, ModelCheckSpec().timeout) == (10.0, 2.0)
    spec = ModelCheckSpec.model_validate(CALL)
    assert (spec.interval, spec.timeout) == (60.0, 10.0)
    assert ModelCheckSpec.model_validate({**CALL, "interval": "5s"}).interval == 5.0


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"path": "/a", "model_call": "chat"}, "`path` has no effect with `model_call`"),
        ({"model_call": True}, "Input should be 'chat' or 'embeddings'"),
        ({"path": "a"}, "should match pattern"),
    ],
)
def test_wrong_checks(check: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PoolSpec.model_validate({"targets": [{"provider": "p"}], "health": {"check": check}})
