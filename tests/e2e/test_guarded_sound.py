"""Sound has no texts that guards could look at: where one stands, sessions and recordings are refused, or counted."""

from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import AsyncOpenAI
from tests.e2e.test_operations import SOUND, Up
from tests.fixtures.gateway import serving
from tests.fixtures.realtime import realtime_provider
from tests.unit.net.upstreams import upstream
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio

LOOKS = [{"secrets": True}]


def config(url: str, **guardrails: Any) -> str:
    """Models that speak and hear. guardrails: of which model, or of all (`top`)."""
    models = [
        {"name": "voice", "targets": [{"provider": "p", "model": "gpt-realtime"}]},
        {"name": "ears", "targets": [{"provider": "p", "model": "gpt-4o-transcribe"}]},
    ]
    for model in models:
        if model["name"] in guardrails:
            model["guardrails"] = guardrails[str(model["name"])]
    top = {"guardrails": guardrails["top"]} if "top" in guardrails else {}
    return yaml.safe_dump(
        {
            "server": {"listen": "127.0.0.1:0", "metrics": "127.0.0.1:0"},
            "telemetry": {"access_log": {"path": "access.log"}},
            "providers": {"p": {"kind": "openai", "base_url": f"{url}/v1", "api_key": "k"}},
            "models": models,
            **top,
        }
    )


@pytest.mark.parametrize("phase", ["request", "response"])
async def test_recordings(tmp_path: Path, phase: str) -> None:
    for unsupported, where in (("reject", tmp_path / "a"), ("pass", tmp_path / "b")):
        where.mkdir()
        up = Up()
        rules = {phase: LOOKS, "unsupported": unsupported}
        async with (
            upstream(up.play) as server,
            serving(config(server.url(""), top=rules), where) as gateway,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as client,
        ):
            if unsupported == "reject":
                with pytest.raises(openai.PermissionDeniedError, match="guardrail"):
                    await client.audio.transcriptions.create(model="ears", file=("a.wav", SOUND))
                assert up.path == b""
            else:
                heard = await client.audio.transcriptions.create(model="ears", file=("a.wav", SOUND))
                assert heard.text == "hallo"
            action = "Reject" if unsupported == "reject" else "FailOpen"
            assert f'phase="{phase.capitalize()}",action="{action}"}} 1' in gateway.metrics()


@pytest.mark.parametrize("phase", ["request", "response"])
async def test_sessions(tmp_path: Path, phase: str) -> None:
    async with realtime_provider() as provider:
        for unsupported, where in (("reject", tmp_path / "a"), ("pass", tmp_path / "b")):
            where.mkdir()
            text = config(provider.url, voice={phase: LOOKS, "unsupported": unsupported})
            async with (
                serving(text, where) as gateway,
                AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as client,
            ):
                if unsupported == "reject":
                    with pytest.raises(InvalidStatus) as refused:
                        async with client.realtime.connect(model="voice"):
                            pass
                    assert refused.value.response.status_code == 403
                    assert not provider.heads
                    action = "Reject"
                else:
                    async with client.realtime.connect(model="voice") as connection:
                        assert (await connection.recv()).type == "session.created"
                    action = "FailOpen"
                assert f'phase="{phase.capitalize()}",action="{action}"}} 1' in gateway.metrics()


@pytest.mark.parametrize("unsupported", ["reject", "pass"])
async def test_a_session_hears_with_no_model_that_is_guarded(tmp_path: Path, unsupported: str) -> None:
    """The guards of the model that a session has its sound written down by stand before that session, too."""
    async with (
        realtime_provider() as provider,
        serving(config(provider.url, ears={"request": LOOKS, "unsupported": unsupported}), tmp_path) as gateway,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as client,
        client.realtime.connect(model="voice") as connection,
    ):
        await connection.recv()
        heard: Any = {"type": "realtime", "audio": {"input": {"transcription": {"model": "ears"}}}}
        await connection.session.update(session=heard)
        last: Any = await connection.recv()
        if unsupported == "pass":
            assert last.type == "session.updated"
            return
        assert last.type == "error"
        with pytest.raises(ConnectionClosed):
            await connection.recv()
