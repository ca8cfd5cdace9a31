"""Anthropic: its paths, its key, its header fields."""

from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import call, taken, world
from tests.unit.backends.providers.scripted import (
    HELLO,
    MESSAGE,
    MESSAGE_STREAM,
    ask,
    fields_of,
    said,
    script,
    stream_text,
    streamed,
    text,
)
from tests.unit.backends.tokens import endpoint, token
from tests.unit.net.upstreams import upstream

from tollhouse.backends.providers.anthropic import AnthropicSpec
from tollhouse.wire.llm import COUNT_TOKENS, MESSAGES

pytestmark = pytest.mark.anyio

OVERLOADED = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}


async def test_a_message_passes_through() -> None:
    play, asked = script(said(MESSAGE))
    sent = [(b"anthropic-beta", b"b-1"), (b"anthropic-beta", b"b-2"), (b"x-api-key", b"theirs")]
    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url("/base/"), api_key="sk-ant-1")
        fields = {"messages": HELLO, "max_tokens": 9, "thinking": {"type": "disabled"}}
        reply = await ask(made, "claude", asked=call(fields, dialect=MESSAGES, headers=sent))
        assert reply.first == msgspec.json.encode(MESSAGE)
    assert asked[0].target == "/base/v1/messages"
    assert asked[0].headers["x-api-key"] == "sk-ant-1"
    assert asked[0].headers["anthropic-version"] == "2023-06-01"
    assert fields_of(asked[0]) == {**fields, "model": "claude"}


@pytest.mark.parametrize(
    ("configured", "sent", "lines"),
    [
        ({}, [], [b"anthropic-version: 2023-06-01"]),
        ({}, [(b"anthropic-version", b"2030-01-01")], [b"anthropic-version: 2030-01-01"]),
        ({}, [(b"anthropic-beta", b"a")], [b"anthropic-beta: a", b"anthropic-version: 2023-06-01"]),
        ({"Anthropic-Version": "v"}, [(b"anthropic-version", b"2030-01-01")], [b"anthropic-version: v"]),
        (
            {"anthropic-beta": "x"},
            [(b"anthropic-beta", b"a")],
            [b"anthropic-beta: x", b"anthropic-version: 2023-06-01"],
        ),
    ],
)
async def test_the_versions_said(
    configured: dict[str, str], sent: list[tuple[bytes, bytes]], lines: list[bytes]
) -> None:
    async with world() as it:
        made = it.provider("a", kind="anthropic", base_url="http://127.0.0.1:1", headers=configured)
        head = made.faces["messages"].head(call({"messages": HELLO}, dialect=MESSAGES, headers=sent), "m", b"{}")
        assert sorted(each for each in head.lower().split(b"\r\n") if each.startswith(b"anthropic-")) == lines


async def test_tokens_are_counted_there() -> None:
    play, asked = script(said({"input_tokens": 12}))
    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url("/"), api_key="k")
        reply = await ask(made, "claude", asked=call({"messages": HELLO}, dialect=COUNT_TOKENS))
        assert reply.first == b'{"input_tokens":12}'
    assert asked[0].target == "/v1/messages/count_tokens"


async def test_a_chat_is_translated() -> None:
    play, asked = script(said(MESSAGE), streamed(*MESSAGE_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url("/"), api_key="k")
        assert await text(made, "claude") == "Hi."
        assert await stream_text(made, "claude", max_completion_tokens=9) == "Hi."
    assert fields_of(asked[0]) == {"model": "claude", "max_tokens": 4096, "messages": HELLO}
    assert fields_of(asked[1]) == {"model": "claude", "max_tokens": 9, "stream": True, "messages": HELLO}


async def test_a_stream_passes_through() -> None:
    play, _ = script(streamed(*MESSAGE_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url("/"), api_key="k")
        fields = {"messages": HELLO, "max_tokens": 9, "stream": True}
        told, failure = await taken(await ask(made, asked=call(fields, dialect=MESSAGES)))
        assert (told, failure) == (b"".join(MESSAGE_STREAM), None)


async def test_keys_in_turn() -> None:
    play, asked = script(said(OVERLOADED, 401), said(OVERLOADED, 403), said(MESSAGE))
    async with upstream(play) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url("/"), api_keys=["k-1", "k-2", "k-3"])
        assert await text(made) == "Hi."
    assert [each.headers["x-api-key"] for each in asked] == ["k-1", "k-2", "k-3"]


async def test_an_access_token_stands_in_its_own_field() -> None:
    play, asked = script(said(MESSAGE))
    async with upstream(play) as up, endpoint({"/token": token("tok-1")}) as idp, world() as it:
        auth = {"token_url": idp.url + "/token", "client_id": "gw", "client_secret": "hush"}
        assert await text(it.provider("a", kind="anthropic", base_url=up.url("/"), auth=auth)) == "Hi."
    assert asked[0].headers["authorization"] == "Bearer tok-1"
    assert "x-api-key" not in asked[0].headers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "api_key is missing: api.anthropic.com"),
        ({"base_url": "https://api.anthropic.com/v1"}, "leave /v1 out"),
        ({"base_url": "https://api.anthropic.com/v1/"}, "leave /v1 out"),
        ({"api_key": "k", "headers": {"X-Api-Key": "a"}}, "`api_key` and the header 'X-Api-Key' are both"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnthropicSpec(kind="anthropic", **fields)
