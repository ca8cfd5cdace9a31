"""Azure OpenAI: the v1 API and the dated one, keys and Entra identities."""

from pathlib import Path
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
from tests.unit.backends.tokens import endpoint, token
from tests.unit.net.upstreams import upstream

from tollhouse.backends.providers.azure import AzureSpec
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import EMBEDDINGS, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect

pytestmark = pytest.mark.anyio

DENIED = {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}
ENTRA = {"tenant": "tenant-1", "client_id": "app-1", "client_secret": "hush"}
RESOURCE = "https://name.openai.azure.com"


@pytest.mark.parametrize(
    ("dialect", "fields", "answer", "version", "target"),
    [
        (None, {}, CHATTED, None, "/openai/v1/chat/completions"),
        (None, {}, CHATTED, "2024-10-21", "/openai/deployments/gpt%204%2Fo/chat/completions?api-version=2024-10-21"),
        (RESPONSES, {"input": "a"}, RESPONDED, None, "/openai/v1/responses"),
        (RESPONSES, {"input": "a"}, RESPONDED, "preview", "/openai/responses?api-version=preview"),
        (EMBEDDINGS, {"input": "a"}, {"data": [], "usage": {"prompt_tokens": 1}}, "2024-10-21",
         "/openai/deployments/gpt%204%2Fo/embeddings?api-version=2024-10-21"),
    ],
)  # fmt: skip
async def test_every_api_has_its_path(
    dialect: Dialect | None, fields: dict[str, Any], answer: Any, version: str | None, target: str
) -> None:
    play, asked = script(said(answer))
    async with upstream(play) as up, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), api_key="k", api_version=version)
        await ask(made, "gpt 4/o", asked=None if dialect is None else call(fields, dialect=dialect))
    assert asked[0].target == target
    assert asked[0].headers["api-key"] == "k"
    assert "authorization" not in asked[0].headers
    assert fields_of(asked[0])["model"] == "gpt 4/o"


@pytest.mark.parametrize("model", [".", "..", "a/../b"])
async def test_a_name_that_would_be_another_path(model: str) -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), api_key="k", api_version="2024-10-21")
        with pytest.raises(Failure, match="is not a model's name") as caught:
            await ask(made, model)
        assert caught.value.status == 400
    assert asked == []


@pytest.mark.parametrize("version", [None, "2024-10-21"])
async def test_streams_and_translations(version: str | None) -> None:
    play, asked = script(streamed(*CHAT_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), api_key="k", api_version=version)
        assert await stream_text(made) == "Hi."
        messages = call({"messages": HELLO, "max_tokens": 9, "stream": True}, dialect=MESSAGES)
        told, failure = await taken(await ask(made, asked=messages))
        assert failure is None
        assert b"event: message_stop" in told
    assert fields_of(asked[0])["stream_options"] == {"include_usage": True}
    assert fields_of(asked[1])["max_completion_tokens"] == 9
    assert asked[1].target == asked[0].target


async def test_keys_in_turn() -> None:
    play, asked = script(said(DENIED, 401), said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), api_keys=["k-1", "k-2"])
        assert await text(made) == "Hi."
    assert [each.headers["api-key"] for each in asked] == ["k-1", "k-2"]


async def test_an_entra_identity() -> None:
    play, asked = script(said(CHATTED))
    answers = {"/tenant-1/oauth2/v2.0/token": token("entra-1")}
    async with upstream(play) as up, endpoint(answers) as idp, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), auth={**ENTRA, "authority": idp.url})
        assert [await text(made), await text(made)] == ["Hi.", "Hi."]
        assert idp.asked[0].form["scope"] == "https://cognitiveservices.azure.com/.default"
        assert len(idp.asked) == 1
    assert asked[0].headers["authorization"] == "Bearer entra-1"
    assert "api-key" not in asked[0].headers


async def test_a_workload_identity(tmp_path: Path) -> None:
    play, asked = script(said(CHATTED))
    (tmp_path / "token").write_text("platform-1\n")
    who = {"tenant": "tenant-1", "client_id": "app-1", "token_file": str(tmp_path / "token")}
    answers = {"/tenant-1/oauth2/v2.0/token": token("entra-1")}
    async with upstream(play) as up, endpoint(answers) as idp, world() as it:
        made = it.provider("az", kind="azure", base_url=up.url("/"), auth={**who, "authority": idp.url})
        assert await text(made) == "Hi."
        assert idp.asked[0].form["client_assertion"] == "platform-1"
    assert asked[0].headers["authorization"] == "Bearer entra-1"


@pytest.mark.parametrize(
    ("version", "line"),
    [(None, b"GET /base/openai/v1/models HTTP/1.1"), ("2024-10-21", b"GET /base/openai/models HTTP/1.1")],
)
async def test_a_probe(version: str | None, line: bytes) -> None:
    async with world() as it:
        made = it.provider("az", kind="azure", base_url="http://127.0.0.1:1/base", api_key="k", api_version=version)
        head = made.faces["chat"].probe(b"/models")
        assert head.split(b"\r\n")[0] == line
        assert b"\r\napi-key: k\r\n\r\n" in head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "credentials are missing: set api_key or `auth`"),
        ({"api_key": "k", "auth": ENTRA}, "`auth` and `api_key` are both credentials"),
        ({"auth": ENTRA, "headers": {"Api-Key": "a"}}, "`auth` and the header 'Api-Key' are both the credential"),
        ({"api_key": "k", "base_url": RESOURCE + "/openai/v1/"}, "name the resource alone, without /openai/v1"),
        ({"api_key": "k", "base_url": RESOURCE + "/openai"}, "name the resource alone, without /openai"),
        ({"api_key": "k", "api_version": "2024&a=b"}, "should match pattern"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AzureSpec(**{"kind": "azure", "base_url": RESOURCE, **fields})
