"""Vertex AI: two publishers, places chosen by rule, Google's tokens."""

import json
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import call, taken, world
from tests.unit.backends.providers.scripted import (
    GENERATED,
    HELLO,
    MESSAGE,
    MESSAGE_STREAM,
    SLOW,
    ask,
    fields_of,
    named_by_path,
    said,
    script,
    sse,
    stream_text,
    streamed,
    text,
)
from tests.unit.backends.test_google import service_account, user
from tests.unit.backends.tokens import Asked, Time, endpoint, token
from tests.unit.net.upstreams import upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.providers.vertex import VertexSpec, vertex_provider
from tollhouse.core.call import Principal, Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import GENERATE, MESSAGES

pytestmark = pytest.mark.anyio

BASE = "/v1/projects/p-1/locations/global/publishers"
TURN = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
CLAUDE = "claude-sonnet-4-5@20250929"


def vertex(url: str, **fields: Any) -> dict[str, Any]:
    if "auth" not in fields:
        fields.setdefault("api_key", "k")
    return {"kind": "vertex", "project": "p-1", "base_url": url, **fields}


async def test_geminis_own_api_passes_through() -> None:
    play, asked = script(said(GENERATED), streamed(sse(GENERATED)))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/base/")))
        one = named_by_path(GENERATE, TURN, "gemini")
        assert (await ask(made, "gemini-2.5-pro", asked=one)).first == msgspec.json.encode(GENERATED)
        assert one.context.usage == Usage(7, 2)
        streams = named_by_path(GENERATE, TURN, "gemini", stream=True)
        told, failure = await taken(await ask(made, "gemini-2.5-pro", asked=streams))
        assert (told, failure) == (sse(GENERATED), None)
    assert [each.target for each in asked] == [
        f"/base{BASE}/google/models/gemini-2.5-pro:generateContent",
        f"/base{BASE}/google/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
    ]
    assert asked[0].headers["x-goog-api-key"] == "k"
    assert asked[0].body == msgspec.json.encode(TURN)


async def test_a_chat_with_gemini_is_translated() -> None:
    play, asked = script(said(GENERATED), streamed(sse(GENERATED)))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/")))
        assert await text(made, "gemini-2.5-pro") == "Hi."
        assert await stream_text(made, "gemini-2.5-pro") == "Hi."
    assert fields_of(asked[0])["contents"] == TURN["contents"]
    assert "model" not in fields_of(asked[0])


async def test_a_message_to_claude_has_the_version_in_its_body() -> None:
    play, asked = script(said(MESSAGE), streamed(*MESSAGE_STREAM))
    sent = [(b"anthropic-version", b"2023-06-01"), (b"anthropic-beta", b"b-1")]
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/")))
        fields = {"messages": HELLO, "max_tokens": 9, "metadata": {"user_id": "a"}}
        reply = await ask(made, CLAUDE, asked=call(fields, dialect=MESSAGES, headers=sent))
        assert reply.first == msgspec.json.encode(MESSAGE)
        told, failure = await taken(await ask(made, CLAUDE, asked=call({**fields, "stream": True}, dialect=MESSAGES)))
        assert (told, failure) == (b"".join(MESSAGE_STREAM), None)
    assert [each.target for each in asked] == [
        f"{BASE}/anthropic/models/{CLAUDE}:rawPredict",
        f"{BASE}/anthropic/models/{CLAUDE}:streamRawPredict",
    ]
    assert fields_of(asked[0]) == {**fields, "anthropic_version": "vertex-2023-10-16"}
    assert fields_of(asked[1]) == {**fields, "anthropic_version": "vertex-2023-10-16", "stream": True}
    assert asked[0].headers["anthropic-beta"] == "b-1"
    assert "anthropic-version" not in asked[0].headers


async def test_a_chat_with_claude_is_translated() -> None:
    play, asked = script(said(MESSAGE), streamed(*MESSAGE_STREAM))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/")))
        assert await text(made, CLAUDE, max_tokens=9) == "Hi."
        assert await stream_text(made, CLAUDE, max_tokens=9) == "Hi."
    assert fields_of(asked[0]) == {"messages": HELLO, "max_tokens": 9, "anthropic_version": "vertex-2023-10-16"}


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("gemini/../../../other", None),
        ("..", None),
        ("a/b c?d#e", f"{BASE}/google/models/a%2Fb%20c%3Fd%23e:generateContent"),
        ("claude/b c?d", f"{BASE}/anthropic/models/claude%2Fb%20c%3Fd:rawPredict"),
    ],
)
async def test_no_name_leads_to_another_place(model: str, target: str | None) -> None:
    play, asked = script(said(MESSAGE if "claude" in model else GENERATED))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/")))
        if target is None:
            with pytest.raises(Failure, match="is not a model's name"):
                await text(made, model, max_tokens=9)
        else:
            await text(made, model, max_tokens=9)
    assert [each.target for each in asked] == ([] if target is None else [target])


async def test_the_first_rule_that_matches_says_the_place() -> None:
    play, asked = script(said(GENERATED))
    places = [
        {"when": 'principal.org == "emea"', "region": "europe-west1"},
        {"when": 'request.headers["x-team"] == "lab"', "project": "lab", "region": "us-east5"},
        {"when": 'llm.model.startsWith("big")', "project": "big"},
        {"when": 'principal.org == "emea"', "region": "never"},
    ]
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/"), places=places))
        for org, headers, model in (
            ("emea", [(b"x-team", b"lab")], "smart"),
            ("apac", [(b"x-team", b"lab")], "smart"),
            ("apac", [], "big-one"),
            ("apac", [], "smart"),
            (None, [], "smart"),
        ):
            asks = call({"messages": HELLO, "model": model}, headers=headers)
            asks.principal = asks.context.principal = None if org is None else Principal("u", source="key", org=org)
            assert (await ask(made, "gemini-2.5-pro", asked=asks)).status == 200
        assert len({face.pool for face in made.all_faces()}) == 1  # of one address
    where = [each.target.split("/publishers")[0].removeprefix("/v1/projects/") for each in asked]
    assert where == [
        "p-1/locations/europe-west1",
        "lab/locations/us-east5",
        "big/locations/global",
        "p-1/locations/global",
        "p-1/locations/global",
    ]


async def test_each_region_has_its_own_host() -> None:
    async with world() as it:
        places = [{"when": "true", "region": "europe-west1"}]
        spec = VertexSpec(kind="vertex", project="p-1", api_key="k", places=places)
        made = vertex_provider("g", spec, it.client, it.clock)
        hosts = sorted({face.pool.origin.authority for face in made.all_faces()})
        assert hosts == [b"aiplatform.googleapis.com", b"europe-west1-aiplatform.googleapis.com"]
        await made.close()


async def test_it_answers_what_can_be_translated() -> None:
    async with world() as it:
        made = it.provider("g", **vertex("http://127.0.0.1:1"))
        assert made.answers("chat", True)
        assert made.answers("generate", True)
        assert not made.answers("images", False)
        assert made.speaks == {"generate", "messages"}


# ---- credentials


async def test_a_service_account() -> None:
    play, asked = script(said(GENERATED))
    async with upstream(play) as up, endpoint({"/token": token("google-1")}) as idp, world() as it:
        account = json.dumps(service_account(idp.url + "/token"))
        made = it.provider("g", **vertex(up.url("/"), auth={"credentials_json": account}))
        assert [await text(made, "gemini"), await text(made, "gemini")] == ["Hi.", "Hi."]
        assert len(idp.asked) == 1
    assert asked[0].headers["authorization"] == "Bearer google-1"


async def test_the_machines_own_account_and_a_token_that_was_refused() -> None:
    play, asked = script(
        said(GENERATED), said({"error": {"code": 401, "status": "UNAUTHENTICATED"}}, 401), said(GENERATED)
    )
    count = 0

    def tokens(_: Asked) -> bytes:
        nonlocal count
        count += 1
        return token(f"google-{count}")

    time = Time()
    async with upstream(play) as up, endpoint({}) as metadata, world() as it:
        path = "/computeMetadata/v1/instance/service-accounts/default/token"
        metadata.answers[path] = lambda asks: tokens(asks).replace(b"\r\n", b"\r\nMetadata-Flavor: Google\r\n", 1)
        auth = {"metadata": True, "metadata_url": metadata.url}
        spec = VertexSpec(**vertex(up.url("/"), auth=auth))
        made = vertex_provider("g", spec, it.client, time.clock)
        backend = LLMBackend(made, "gemini", SLOW)
        assert (await backend.handle(call({"messages": HELLO}))).status == 200
        await time.pass_(60)
        assert (await backend.handle(call({"messages": HELLO}))).status == 200
        await made.close()
    assert [each.headers["authorization"] for each in asked] == [f"Bearer google-{n}" for n in (1, 1, 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "credentials are missing: set `auth`"),
        ({"api_key": "k", "auth": {"metadata": True}}, "`auth` and `api_key` are both credentials"),
        ({"auth": {"metadata": True}, "headers": {"Authorization": "a"}}, "`auth` and the header 'Authorization'"),
        ({"api_key": "k", "project": "a/b"}, "should match pattern"),
        ({"api_key": "k", "region": "a.example.com/"}, "should match pattern"),
        ({"api_key": "k", "places": [{"when": "true"}]}, "name a `project` or a `region`"),
        ({"api_key": "k", "places": [{"when": "nobody.knows", "region": "a"}]}, "nobody"),
        ({"auth": {"credentials_json": json.dumps(user()), "metadata": True}}, "name one source"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VertexSpec(**{"kind": "vertex", "project": "p-1", **fields})
