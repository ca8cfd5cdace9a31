"""Bedrock: signed requests, its own API keys, binary streams."""

import time
from calendar import timegm
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import taken, world
from tests.unit.backends.providers.scripted import (
    CONVERSE_STREAM,
    CONVERSED,
    EVENT_STREAM,
    ask,
    fields_of,
    named_by_path,
    said,
    script,
    stream_text,
    streamed,
    text,
)
from tests.unit.backends.test_aws import document, machine
from tests.unit.backends.tokens import Asked, Time, endpoint
from tests.unit.net.upstreams import upstream

from tollhouse.backends.providers.bedrock import BedrockSpec, bedrock_provider
from tollhouse.backends.sigv4 import AWSCredentials, Signer
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CONVERSE

pytestmark = pytest.mark.anyio

ACCESS, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEYS = {"access_key_id": ACCESS, "secret_access_key": SECRET}
MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
ESCAPED = "anthropic.claude-sonnet-4-5-20250929-v1%3A0"
ARN = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc"
TURN = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
EXPIRED = {"message": "The security token included in the request is expired"}


def bedrock(url: str, **fields: Any) -> dict[str, Any]:
    fields.setdefault("auth", KEYS)
    return {"kind": "bedrock", "region": "eu-central-1", "base_url": url, **fields}


def is_signed(asked: Asked, keys: AWSCredentials) -> bool:
    """Whether the signature is of these keys, and of the request as it came."""
    moment = timegm(time.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    lines = Signer("eu-central-1", "bedrock").lines(
        keys,
        moment,
        method=b"POST",
        path=asked.target.encode(),
        headers=((b"host", asked.headers["host"].encode()), (b"content-type", asked.headers["content-type"].encode())),
        body=asked.body,
    )
    token = asked.headers.get("x-amz-security-token", "")
    return token == keys.token and b"authorization: %b\r\n" % asked.headers["authorization"].encode() in lines


async def test_a_request_passes_through_signed() -> None:
    play, asked = script(said(CONVERSED))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/base/")))
        call = named_by_path(CONVERSE, TURN, "claude")
        reply = await ask(made, ARN, asked=call)
        assert reply.first == msgspec.json.encode(CONVERSED)
        assert call.context.usage == Usage(7, 2)
    assert asked[0].target == f"/base/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/converse"
    assert asked[0].body == msgspec.json.encode(TURN)
    assert is_signed(asked[0], AWSCredentials(ACCESS, SECRET))
    assert not is_signed(asked[0], AWSCredentials(ACCESS, "another"))


async def test_a_chat_is_translated() -> None:
    play, asked = script(said(CONVERSED), streamed(*CONVERSE_STREAM, kind=EVENT_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/")))
        assert await text(made, MODEL) == "Hi."
        assert await stream_text(made, MODEL, max_tokens=9) == "Hi."
    assert asked[0].target == f"/model/{ESCAPED}/converse"
    assert fields_of(asked[0])["messages"] == TURN["messages"]
    assert asked[1].target == f"/model/{ESCAPED}/converse-stream"
    assert fields_of(asked[1])["inferenceConfig"] == {"maxTokens": 9}
    assert "model" not in fields_of(asked[1])
    assert all(is_signed(each, AWSCredentials(ACCESS, SECRET)) for each in asked)


async def test_a_stream_passes_through() -> None:
    play, asked = script(streamed(*CONVERSE_STREAM, kind=EVENT_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/")))
        call = named_by_path(CONVERSE, TURN, "claude", stream=True)
        told, failure = await taken(await ask(made, MODEL, asked=call))
        assert (told, failure) == (b"".join(CONVERSE_STREAM), None)
        assert call.context.usage == Usage(7, 2)
    assert asked[0].target.endswith("/converse-stream")


async def test_an_api_key_is_not_a_signature() -> None:
    play, asked = script(said({"message": "no"}, 403), said(CONVERSED))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/"), auth=None, api_keys=["k-1", "k-2"]))
        assert await text(made, MODEL) == "Hi."
    assert [each.headers["authorization"] for each in asked] == ["Bearer k-1", "Bearer k-2"]
    assert "x-amz-date" not in asked[0].headers


async def test_a_header_of_the_configuration_is_not_signed_over() -> None:
    play, asked = script(said(CONVERSED))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/"), auth=None, headers={"Authorization": "Bearer own"}))
        assert await text(made, MODEL) == "Hi."
    assert asked[0].headers["authorization"] == "Bearer own"
    assert "x-amz-date" not in asked[0].headers


async def test_keys_of_a_session_that_are_refused_are_fetched_anew() -> None:
    play, asked = script(said(EXPIRED, 403), said(EXPIRED, 403), said(CONVERSED))
    count = 0

    def keys(_: Asked) -> bytes:
        nonlocal count
        count += 1
        return document(str(count))

    now = Time()
    async with upstream(play) as up, endpoint(machine(b"")) as metadata, world() as it:
        metadata.answers["/latest/meta-data/iam/security-credentials/the-role"] = keys
        auth = {"source": "instance", "metadata_url": metadata.url}
        made = bedrock_provider("aws", BedrockSpec(**bedrock(up.url("/"), auth=auth)), it.client, now.clock)
        with pytest.raises(Failure) as caught:  # they were fetched a moment ago: no others are to be had
            await text(made, MODEL)
        assert (caught.value.status, caught.value.code) == (502, "upstream_credentials")
        await now.pass_(60)
        assert await text(made, MODEL) == "Hi."
        await made.close()
    assert [is_signed(each, AWSCredentials("ASIA1", "secret1", "token1")) for each in asked] == [True, True, False]
    assert is_signed(asked[2], AWSCredentials("ASIA2", "secret2", "token2"))


async def test_no_keys_at_all() -> None:
    play, asked = script(said(CONVERSED))
    async with upstream(play) as up, endpoint({}) as metadata, world() as it:
        auth = {"source": "instance", "metadata_url": metadata.url}
        with pytest.raises(Failure) as caught:
            await text(it.provider("aws", **bedrock(up.url("/"), auth=auth)), MODEL)
        assert (caught.value.status, caught.value.retry) == (503, True)
    assert asked == []


def test_the_places() -> None:
    assert (
        BedrockSpec(kind="bedrock", region="eu-central-1").url == "https://bedrock-runtime.eu-central-1.amazonaws.com"
    )
    assert BedrockSpec(kind="bedrock", region="us-gov-west-1").url.endswith(".us-gov-west-1.amazonaws.com")
    assert BedrockSpec(kind="bedrock", region="cn-north-1").url.endswith(".cn-north-1.amazonaws.com.cn")
    assert BedrockSpec(kind="bedrock", region="cn-north-1", base_url="http://127.0.0.1:1/").url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"region": "here"}, "should match pattern"),
        ({"api_key": "k", "auth": KEYS}, "`auth` and `api_key` are both credentials"),
        ({"auth": KEYS, "headers": {"Authorization": "a"}}, "`auth` and the header 'Authorization' are both"),
        ({"headers": {"X-Amz-Date": "a"}}, "'X-Amz-Date' belongs to a signature"),
        ({"auth": {"access_key_id": ACCESS}}, "`access_key_id` and `secret_access_key` go together"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BedrockSpec(**{"kind": "bedrock", "region": "eu-central-1", **fields})
