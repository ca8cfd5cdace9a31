"""Presets: where each server is, and where it differs from OpenAI's API."""

import pytest
from pydantic import ValidationError
from tests.unit.backends.calls import call, world
from tests.unit.backends.providers.scripted import CHATTED, HELLO, ask, fields_of, said, script
from tests.unit.net.upstreams import upstream

from tollhouse.backends.providers.openai import OpenAISpec, openai_provider
from tollhouse.backends.providers.presets import PRESETS, PresetName
from tollhouse.net.client import Origin
from tollhouse.wire.llm import MESSAGES

pytestmark = pytest.mark.anyio


def test_every_name_is_a_preset() -> None:
    assert set(PresetName.__args__) == set(PRESETS)  # type: ignore[attr-defined]
    assert list(PRESETS) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
async def test_what_a_preset_fills_in(name: str) -> None:
    preset = PRESETS[name]
    spec = OpenAISpec(kind="openai", preset=name, api_key="k")
    assert (spec.base_url, spec.stream_usage) == (preset.base_url, preset.stream_usage)
    assert spec.responses is preset.responses
    origin, base = Origin.of(preset.base_url)
    async with world() as it:
        made = openai_provider(name, spec, it.client, it.clock)
        assert made.kind == "openai"
        head = made.faces["chat"].head(call({"messages": HELLO}), "m", b"{}")
        assert head.startswith(
            b"POST %b/chat/completions HTTP/1.1\r\nhost: %b\r\n" % (base.rstrip(b"/"), origin.authority)
        )
        reranked = made.faces["rerank"].head(call({"messages": HELLO}), "m", b"{}").split(b" ")[1]
        assert reranked == (preset.rerank or base.rstrip(b"/") + b"/rerank")
        assert ("responses" in made.faces) is preset.responses
        await made.close()


@pytest.mark.parametrize("name", PRESETS)
async def test_the_bound_on_output_is_said_in_its_own_field(name: str) -> None:
    play, asked = script(said(CHATTED))
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"), preset=name, api_key="k")
        await ask(made, asked=call({"messages": HELLO, "max_tokens": 9}, dialect=MESSAGES))
    assert fields_of(asked[0]) == {"model": "m-1", "messages": HELLO, PRESETS[name].bound: 9}


@pytest.mark.parametrize("name", PRESETS)
def test_a_key_is_needed_where_nobody_is_answered_without_one(name: str) -> None:
    if not PRESETS[name].keyed:
        OpenAISpec(kind="openai", preset=name)
        return
    host = PRESETS[name].base_url.split("/")[2]
    with pytest.raises(ValidationError, match=f"api_key is missing: {host} answers nobody without one"):
        OpenAISpec(kind="openai", preset=name)
    OpenAISpec(kind="openai", preset=name, headers={"Authorization": "Bearer a"})
    OpenAISpec(kind="openai", preset=name, base_url="http://127.0.0.1:1/v1")


def test_what_is_written_counts_more() -> None:
    spec = OpenAISpec(kind="openai", preset="mistral", api_key="k", stream_usage=True, responses=True)
    assert (spec.stream_usage, spec.responses) == (True, True)
    assert (
        OpenAISpec(kind="openai", preset="vllm", base_url="http://127.0.0.1:1/v1/").base_url == "http://127.0.0.1:1/v1"
    )


def test_an_unknown_preset() -> None:
    with pytest.raises(ValidationError, match="Input should be 'cerebras'"):
        OpenAISpec(kind="openai", preset="nobody")
