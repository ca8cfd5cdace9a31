"""OpenAI and who speaks its API: where requests go, what proves them, and what they say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import call, taken, world
from tests.unit.backends.providers.scripted import (
    CHAT_STREAM,
    CHATTED,
    HELLO,
    RESPONDED,
    ask,
    fields_of,
    said,
    script,
    stream_text,
    streamed,
    text,
)
from tests.unit.backends.tokens import Asked, Time, endpoint, token, until
from tests.unit.net.upstreams import upstream

from tollhouse.backends.provider import Provider
from tollhouse.backends.providers.openai import OpenAISpec, openai_provider
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import EMBEDDINGS, MESSAGES, MODERATIONS, RERANK, RESPONSES
from tollhouse.wire.llm.dialect import Dialect

pytestmark = pytest.mark.anyio

REFUSED = {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}
SCORED = {"results": [{"index": 0, "relevance_score": 0.5}]}


@pytest.mark.parametrize(
    ("dialect", "fields", "answer", "path"),
    [
        (EMBEDDINGS, {"input": "a"}, {"data": [], "usage": {"prompt_tokens": 1}}, "/v1/embeddings"),
        (MODERATIONS, {"input": "a"}, {"id": "m", "results": []}, "/v1/moderations"),
        (RERANK, {"query": "a", "documents": ["b"]}, SCORED, "/v1/rerank"),
        (RESPONSES, {"input": "a"}, RESPONDED, "/v1/responses"),
    ],
)
async def test_every_api_has_its_path(dialect: Dialect, fields: dict[str, Any], answer: Any, path: str) -> None:
    play, asked = script(said(answer))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), api_key="k", responses=True)
        reply = await ask(made, asked=call(fields, dialect=dialect))
        assert reply.status == 200
    assert asked[0].target == path
    assert fields_of(asked[0]) == {"model": "m-1", **fields}


async def test_a_chat() -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1/"), api_key="sk-1", organization="org", project="proj", headers={"X-Team": "a"})
        assert await text(made, "gpt") == "Hi."
    assert (asked[0].method, asked[0].target) == ("POST", "/v1/chat/completions")
    headers = asked[0].headers
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["host"] == f"127.0.0.1:{up.port}"
    assert (headers["openai-organization"], headers["openai-project"], headers["x-team"]) == ("org", "proj", "a")
    assert headers["content-type"] == "application/json"


async def test_header_fields_of_the_configuration_take_the_place_of_ours() -> None:
    seen: list[bytes] = []
    async with world() as it:
        spec = {"User-Agent": "ours/1", "accept": "*/*", "OpenAI-Project": "p2", "traceparent": "00-fixed"}
        made = it.openai("http://127.0.0.1:1/v1", project="p1", headers=spec)
        asked = call({"messages": HELLO}, headers=[(b"traceparent", b"00-caller"), (b"tracestate", b"s")])
        seen.append(made.faces["chat"].head(asked, "m", b"{}"))
    lines = seen[0].lower().split(b"\r\n")
    for line in (b"user-agent: ours/1", b"accept: */*", b"openai-project: p2", b"traceparent: 00-fixed"):
        assert [each for each in lines if each.startswith(line.partition(b":")[0] + b":")] == [line]
    assert b"tracestate: s" in lines
    assert seen[0].endswith(b"\r\n\r\n")


async def test_nothing_of_the_caller_goes_along_but_its_trace() -> None:
    play, asked = script(said(CHATTED))
    sent = [(b"authorization", b"Bearer theirs"), (b"cookie", b"a=b"), (b"anthropic-beta", b"x"), (b"tracestate", b"t")]
    async with upstream(play) as up, world() as it:
        await ask(it.openai(up.url("/v1")), asked=call({"messages": HELLO}, headers=sent))
    assert not asked[0].headers.keys() & {"authorization", "cookie", "anthropic-beta"}
    assert asked[0].headers["tracestate"] == "t"


async def test_a_key_that_is_refused_gives_way_to_the_next() -> None:
    play, asked = script(said(REFUSED, 401), said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), api_keys=["k-1", "k-2"])
        assert [await text(made), await text(made)] == ["Hi.", "Hi."]
    assert [each.headers["authorization"] for each in asked] == ["Bearer k-1", "Bearer k-2", "Bearer k-2"]


async def test_a_limited_key_gives_way_also_for_a_stream() -> None:
    limited = said({"error": {"message": "slow down"}}, 429, b"content-type: application/json\r\nretry-after: 60\r\n")
    play, asked = script(limited, streamed(*CHAT_STREAM))
    async with upstream(play) as up, world() as it:
        assert await stream_text(it.openai(up.url("/v1"), api_keys=["k-1", "k-2"])) == "Hi."
    assert [each.headers["authorization"] for each in asked] == ["Bearer k-1", "Bearer k-2"]


async def test_all_keys_refused() -> None:
    play, asked = script(said(REFUSED, 401))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), api_keys=["k-1", "k-2", "k-3"])
        with pytest.raises(Failure) as caught:
            await ask(made)
        assert (caught.value.status, caught.value.code) == (502, "upstream_credentials")
        assert "k-1" not in str(caught.value.detail)
    assert len(asked) == 3


async def test_one_key_is_not_asked_with_again() -> None:
    play, asked = script(said(REFUSED, 401))
    async with upstream(play) as up, world() as it:
        with pytest.raises(Failure):
            await ask(it.openai(up.url("/v1"), api_key="k"))
    assert len(asked) == 1


# ---- tokens


def tokens(*lives: float) -> Any:
    """A token endpoint: tok-1, tok-2 ..., each with its seconds."""
    count = 0

    def answer(_: Asked) -> bytes:
        nonlocal count
        count += 1
        return token(f"tok-{count}", lives[min(count, len(lives)) - 1])

    return answer


def oauth(url: str) -> dict[str, Any]:
    return {"kind": "oauth", "token_url": url + "/token", "client_id": "gw", "client_secret": "hush"}


async def test_an_access_token() -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, endpoint({"/token": tokens(3600)}) as idp, world() as it:
        made = it.openai(up.url("/v1"), auth=oauth(idp.url))
        assert [await text(made), await text(made)] == ["Hi.", "Hi."]
        assert len(idp.asked) == 1
    assert [each.headers["authorization"] for each in asked] == ["Bearer tok-1"] * 2


@asynccontextmanager
async def timed(time: Time, url: str, idp: str) -> AsyncIterator[Provider]:
    """A provider whose time passes when a test says so."""
    async with world() as it:
        spec = OpenAISpec(kind="openai", base_url=url, auth=oauth(idp))
        made = openai_provider("up", spec, it.client, time.clock)
        try:
            yield made
        finally:
            await made.close()


async def test_a_token_that_is_refused_is_fetched_anew() -> None:
    play, asked = script(said(CHATTED), said(REFUSED, 401), said(CHATTED))
    time = Time()
    async with (
        upstream(play) as up,
        endpoint({"/token": tokens(3600)}) as idp,
        timed(time, up.url("/v1"), idp.url) as made,
    ):
        assert await text(made) == "Hi."
        await time.pass_(60)
        assert await text(made) == "Hi."
    assert [each.headers["authorization"] for each in asked] == ["Bearer tok-1", "Bearer tok-1", "Bearer tok-2"]


async def test_a_token_that_expires_between_two_calls() -> None:
    play, asked = script(said(CHATTED))
    time = Time()
    async with (
        upstream(play) as up,
        endpoint({"/token": tokens(3600)}) as idp,
        timed(time, up.url("/v1"), idp.url) as made,
    ):
        assert await text(made) == "Hi."
        time.now += 4000  # as after a machine's sleep: nobody could fetch another one ahead
        time.turn()
        assert await text(made) == "Hi."
    assert [each.headers["authorization"] for each in asked] == ["Bearer tok-1", "Bearer tok-2"]


async def test_a_token_is_renewed_ahead_and_nobody_waits() -> None:
    play, asked = script(said(CHATTED))
    time = Time()
    async with (
        upstream(play) as up,
        endpoint({"/token": tokens(3600)}) as idp,
        timed(time, up.url("/v1"), idp.url) as made,
    ):
        made.start()
        assert await text(made) == "Hi."
        credential = made.faces["chat"].credential
        time.now += 3310
        time.turn()
        await until(lambda: len(idp.asked) == 2 and b"tok-2" in credential.lines)
        assert credential.settled
        assert await text(made) == "Hi."
    assert [each.headers["authorization"] for each in asked] == ["Bearer tok-1", "Bearer tok-2"]


async def test_no_token_is_a_failure_that_another_provider_may_make_good() -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, endpoint({}) as idp, world() as it:
        with pytest.raises(Failure) as caught:
            await ask(it.openai(up.url("/v1"), auth=oauth(idp.url)))
        assert (caught.value.status, caught.value.code, caught.value.retry) == (503, "upstream_credentials", True)
    assert asked == []


# ---- translation


async def test_callers_of_the_responses_api_are_translated_where_it_is_not_spoken() -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"))
        reply = await ask(made, asked=call({"input": "hello", "max_output_tokens": 9}, dialect=RESPONSES))
        assert b'"output_text"' in reply.first
    assert asked[0].target == "/v1/chat/completions"
    assert fields_of(asked[0]) == {"model": "m-1", "messages": HELLO, "max_tokens": 9}


async def test_callers_of_other_apis_speak_chat_also_where_responses_are_spoken() -> None:
    play, asked = script(streamed(*CHAT_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), responses=True)
        told, failure = await taken(
            await ask(made, asked=call({"messages": HELLO, "max_tokens": 9, "stream": True}, dialect=MESSAGES))
        )
        assert failure is None
        assert b"event: message_stop" in told
        assert b'"text":"Hi."' in told
    assert asked[0].target == "/v1/chat/completions"
    assert fields_of(asked[0])["stream_options"] == {"include_usage": True}


async def test_a_server_that_refuses_stream_options_is_not_sent_them() -> None:
    play, asked = script(streamed(*CHAT_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), stream_usage=False)
        assert await stream_text(made) == "Hi."
        await taken(await ask(made, asked=call({"messages": HELLO, "max_tokens": 9, "stream": True}, dialect=MESSAGES)))
    assert all("stream_options" not in fields_of(each) for each in asked)


# ---- configuration


def test_who_speaks_the_responses_api() -> None:
    def spec(**fields: Any) -> OpenAISpec:
        return OpenAISpec(kind="openai", api_key="k", **fields)

    assert spec().responses
    assert spec(base_url="https://api.openai.com/v1/").responses
    assert not spec(responses=False).responses
    assert not spec(base_url="http://127.0.0.1:1/v1").responses
    assert spec(base_url="http://127.0.0.1:1/v1", responses=True).responses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "api_key is missing: api.openai.com answers nobody without one"),
        ({"base_url": "https://api.openai.com/v1/"}, "api_key is missing"),
        ({"api_key": "k", "headers": {"Authorization": "a"}}, "`api_key` and the header 'Authorization' are both"),
        ({"api_key": "k", "api_keys": ["a"]}, "`api_key` and `api_keys` are both given"),
        ({"api_key": "k", "headers": {"X-Request-ID": "a"}}, "x-request-id is the gateway's own to set"),
        ({"api_key": "k", "auth": oauth("http://127.0.0.1:1")}, "`auth` and `api_key` are both credentials"),
        ({"auth": oauth("http://127.0.0.1:1"), "headers": {"authorization": "a"}}, "`auth` and the header"),
        ({"base_url": "http://127.0.0.1:1/v1?a=b"}, "a base_url has no query"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OpenAISpec(kind="openai", **fields)


def test_a_second_key_of_a_gateway_in_front_goes_with_a_token() -> None:
    OpenAISpec(
        kind="openai", base_url="http://127.0.0.1:1", auth=oauth("http://127.0.0.1:1"), headers={"x-api-key": "a"}
    )
