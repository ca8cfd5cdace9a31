"""Realtime sessions (OpenAI's events over WebSocket) through a running gateway, with the official SDK's client."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.realtime import RealtimeProvider, realtime_provider
from tests.fixtures.service import frame, read_frame
from tests.fixtures.wire import Wire
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio

CALLER = "caller-secret-0123"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 500ms}}}}
ledger: sqlite:tollhouse.db
telemetry: {{access_log: {{path: access.log}}}}
authenticate: {{keys: [{{name: ci, key: {caller}, user: ci-bot}}, {{name: other, key: other-secret-0123}}]}}
authorize:
  rules:
    - {{deny: 'key.name == "other" && llm.model == "voice"'}}
    - {{deny: 'llm.model in ["secret-ears", "configured-ears"]'}}
providers:
  first: {{kind: openai, base_url: "{url}/v1", api_keys: [first-key-0, first-key-1]}}
  second: {{kind: openai, base_url: "{url}/v1", api_key: second-key}}
  azure: {{kind: azure, base_url: "{url}", api_key: azure-key}}
  dated: {{kind: azure, base_url: "{url}", api_key: azure-key, api_version: 2025-04-01-preview}}
prices:
  - {{model: gpt-realtime, input: 4, cache_read: 0.4, output: 16, audio_input: 32, audio_output: 64}}
  - {{model: gpt-4o-transcribe, input: 2.5, output: 10, audio_input: 6}}
models:
  - {{name: voice, aliases: [speak], targets: [{{provider: first, model: gpt-realtime}}]}}
  - {{name: pair, targets: [{{provider: first, model: gpt-realtime}}], fallback: [{{provider: second, model: backup}}]}}
  - {{name: azure, targets: [{{provider: azure, model: my-deployment}}]}}
  - {{name: dated, targets: [{{provider: dated, model: my-deployment}}]}}
  - {{name: quiet, targets: [{{provider: first, model: gpt-realtime}}], timeout: {{tunnel: 400ms}}}}
  - {{name: short, targets: [{{provider: first, model: gpt-realtime}}], timeout: {{session: 700ms}}}}
  - {{name: gpt-4o-transcribe, targets: [{{provider: first}}]}}
  - {{name: configured-ears, targets: [{{provider: first}}]}}
  - name: tight
    targets: [{{provider: first, model: gpt-realtime}}]
    limits: [{{per: user, tokens: 1600, window: 1h}}]
"""
# 100 input tokens of which 60 are sound, 50 from the cache, 80 output of which 60 are sound; in nano-dollars.
COST = 40 * 4000 + 60 * 32_000 + 50 * 400 + 20 * 16_000 + 60 * 64_000
HEARD = 4 * 2500 + 36 * 6000 + 10 * 10_000


@asynccontextmanager
async def running(where: Path, config: str = CONFIG) -> AsyncIterator[tuple[Gateway, RealtimeProvider]]:
    async with (
        realtime_provider() as provider,
        serving(config.format(url=provider.url, caller=CALLER), where) as gateway,
    ):
        yield gateway, provider
        assert "Traceback" not in gateway.text(), gateway.text()[-4000:]


@asynccontextmanager
async def session(
    gateway: Gateway, model: str = "voice", key: str = CALLER, **more: Any
) -> AsyncIterator[AsyncRealtimeConnection]:
    client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
    async with client, client.realtime.connect(model=model, **more) as connection, asyncio.timeout(20):
        yield connection


async def ask(connection: AsyncRealtimeConnection, what: str, until: tuple[str, ...] = ("response.done",)) -> list[Any]:
    """Say it, and collect events up to one of those, or the end of the session."""
    item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": what}]}
    await connection.conversation.item.create(item=item)
    await connection.response.create()
    events = []
    async for event in connection:
        events.append(event)
        if event.type in until:
            break
    return events


async def recorded(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The ledger's records: answers and transcriptions, then sessions."""
    rows = await asyncio.to_thread(gateway.records, count)
    assert len(rows) == count, rows
    return sorted(rows, key=lambda row: (row["operation"] == "realtime", row["ended_at"]))


def tokens(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[n] or 0 for n in ("input", "cache_read", "output", "audio_input", "audio_output"))


async def test_a_session_is_passed_through_and_each_of_its_answers_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        async with session(gateway, "speak") as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.session.update(session={"type": "realtime", "instructions": "be brief"})
            assert (await connection.recv()).type == "session.updated"
            events = await ask(connection, "text")
            assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello there"
            # What was due is there while the session goes on.
            rows = await recorded(gateway, 1)
            assert (rows[0]["operation"], tokens(rows[0])) == ("realtime.response", (100, 50, 80, 60, 60))
            events = await ask(connection, "audio")
            sound = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
            assert len(sound) == 48_000
            events = await ask(connection, "tool")
            assert [e.item.name for e in events if e.type == "response.output_item.done"] == ["weather"]
            events = await ask(connection, "error")
            assert [e.error.code for e in events if e.type == "error"] == ["bad_thing"]
        path, query = provider.asked()
        assert (path, query) == ("/v1/realtime", {"model": ["gpt-realtime"]})
        head = provider.heads[-1].headers
        assert head["authorization"] == "Bearer first-key-0"
        assert "sec-websocket-extensions" not in head
        assert CALLER not in str(head)
        rows = await recorded(gateway, 5)
        for row in rows[:4]:
            assert (row["cost_nano"], row["outcome"], row["estimated"], row["stream"]) == (COST, "ok", 0, 1)
            assert (row["model_asked"], row["model_answered"], row["user"]) == ("voice", "gpt-realtime", "ci-bot")
        # Four turns of the SDK end in a close handshake.
        assert (rows[4]["operation"], rows[4]["outcome"], rows[4]["status"]) == ("realtime", "ok", 101)
        assert (tokens(rows[4]), rows[4]["cost_nano"]) == ((0, 0, 0, 0, 0), None)
        assert {row["request_id"] for row in rows} == {rows[0]["request_id"]}
        await until(gateway.lines)
        line = gateway.lines()[0]
        assert (line["status"], line["tokens_in"], line["tokens_out"]) == (101, 400, 320)
        assert line["cost_usd"] == pytest.approx(4 * COST / 1e9)
        assert line["error"] == "bad_thing: that was bad"
        await until(lambda: provider.closed)
        assert provider.closed[0][0] == 1000
        assert "gen_ai_client_token_usage" in gateway.metrics()


async def test_what_was_heard_is_paid_at_the_price_of_its_own_model(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, _):
        async with session(gateway) as connection:
            await connection.recv()
            heard: Any = {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
            heard["type"] = "realtime"
            await connection.session.update(session=heard)
            await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(9600)).decode())
            await connection.input_audio_buffer.commit()
            async for event in connection:
                if event.type.endswith("transcription.completed"):
                    break
            await ask(connection, "seconds")
            await connection.input_audio_buffer.commit()
            async for event in connection:
                if event.type.endswith("transcription.completed"):
                    break
        rows = await recorded(gateway, 4)
        assert [row["operation"] for row in rows] == [
            "realtime.transcription", "realtime.response", "realtime.transcription", "realtime",
        ]  # fmt: skip
        assert (rows[0]["model_answered"], tokens(rows[0]), rows[0]["cost_nano"]) == (
            "gpt-4o-transcribe", (40, 0, 10, 36, 0), HEARD,
        )  # fmt: skip
        assert rows[1]["cost_nano"] == COST
        assert (tokens(rows[2]), rows[2]["cost_nano"]) == ((0, 0, 0, 0, 0), None)  # seconds, which have no known price
        await until(gateway.lines)
        assert gateway.lines()[0]["cost_usd"] == pytest.approx((COST + HEARD) / 1e9)


@pytest.mark.parametrize("model", ["secret-ears", "configured-ears"])
async def test_a_model_that_listens_is_asked_for_by_its_name(tmp_path: Path, model: str) -> None:
    """A caller who may speak to one model may not therefore have any other transcribe, configured here or not."""
    async with running(tmp_path) as (gateway, _), session(gateway) as connection:
        await connection.recv()
        heard: Any = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
        await connection.session.update(session=heard)
        assert (await connection.recv()).type == "session.updated"
        heard["audio"]["input"]["transcription"]["model"] = model
        await connection.session.update(session=heard)
        last: Any = await connection.recv()
        assert (last.type, last.error.code) == ("error", "model_not_permitted")
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_answers_that_do_not_end_are_counted_as_far_as_they_were_seen(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        # The provider is lost.
        async with session(gateway) as connection:
            await ask(connection, "text")
            with pytest.raises(ConnectionClosed) as lost:
                await ask(connection, "cut")
            assert lost.value.rcvd is not None
            assert lost.value.rcvd.code == 1014
        rows = await recorded(gateway, 3)
        assert (rows[1]["outcome"], rows[1]["estimated"], rows[1]["output"]) == ("cut", 1, 3)  # "Hello there"
        assert rows[1]["input"] > 230  # the conversation up to then, and the new question
        assert rows[1]["cost_nano"] > 0
        assert (rows[2]["operation"], rows[2]["outcome"]) == ("realtime", "cut")
        # The provider closes in good order, with its own code.
        async with session(gateway) as connection:
            with pytest.raises(ConnectionClosed) as closed:
                await ask(connection, "bye")
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "enough")
        rows = (await asyncio.to_thread(gateway.records, 5))[3:]
        assert sorted((row["operation"], row["estimated"]) for row in rows) == [
            ("realtime", 0), ("realtime.response", 1),
        ]  # fmt: skip
        # The client leaves without a word.
        left = len(provider.closed)
        async with Wire(gateway.url) as wire:
            await opened(wire)
            await say(wire, "hang")
            await until_said(wire, "there")
        await until(lambda: len(provider.closed) > left)
        assert provider.closed[left][0] == 1001
        rows = (await asyncio.to_thread(gateway.records, 7))[5:]
        outcomes = sorted((row["operation"], row["outcome"], row["estimated"]) for row in rows)
        assert outcomes == [("realtime", "client_gone", 0), ("realtime.response", "client_gone", 1)]
        await until(lambda: len(gateway.lines()) == 3)
        assert [line["status"] for line in gateway.lines()] == [101, 101, 499]


async def test_failed_and_parallel_and_enormous_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, _):
        async with session(gateway) as connection:
            await ask(connection, "fail")
            await ask(connection, "long")
            item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "many"}]}
            await connection.conversation.item.create(item=item)
            await connection.response.create()
            done = 0
            while done < 3:
                done += (await connection.recv()).type == "response.done"
        rows = await recorded(gateway, 6)
        assert [(row["outcome"], row["estimated"], row["output"]) for row in rows[:5]] == [
            ("cut", 0, 0), ("ok", 1, 3), ("ok", 0, 80), ("ok", 0, 80), ("ok", 0, 80),
        ]  # fmt: skip


async def test_a_page_shows_its_key_as_a_subprotocol(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        url = gateway.url.replace("http", "ws") + "/v1/realtime?model=voice"
        secret = f"openai-insecure-api-key.{CALLER}"
        own = ["realtime", secret, "openai-organization.org-1"]
        async with connect(url, subprotocols=own, origin="https://page.example") as socket:  # type: ignore[arg-type]
            assert socket.subprotocol == "realtime"
            assert json.loads(await socket.recv())["type"] == "session.created"
        head = provider.heads[-1].headers
        assert head["sec-websocket-protocol"] == "realtime"
        assert CALLER not in str(head)
        assert "origin" not in head
        for wrong in ([], ["realtime", "openai-insecure-api-key.wrong"], ["openai-insecure-api-key."]):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, subprotocols=wrong)  # type: ignore[arg-type]
            assert refused.value.response.status_code == 401
        assert CALLER not in (gateway.where / "access.log").read_text() + gateway.text()


async def test_sessions_that_are_not_opened(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        key = {"authorization": f"Bearer {CALLER}"}

        async def refused(target: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
            url = gateway.url.replace("http", "ws") + target
            with pytest.raises(InvalidStatus) as error:
                await connect(url, additional_headers=key | (headers or {}))
            response = error.value.response
            return response.status_code, json.loads(response.body or b"{}")["error"]

        status, error = await refused("/v1/realtime?model=voise")
        assert (status, error["code"]) == (404, "model_not_found")
        assert (await refused("/v1/realtime"))[1]["code"] == "model_required"
        assert (await refused("/v1/realtime?model=voice&call_id=rtc_1"))[0] == 400
        assert (await refused("/v1/realtime?model=voice", {"authorization": "Bearer other-secret-0123"}))[0] == 403
        assert not provider.heads
        # Upstream refuses: the caller's to read where it is about the request.
        provider.refusals = [400]
        assert (await refused("/v1/realtime?model=voice"))[1]["message"] == "refused with 400"
        provider.refusals = [500]
        assert (await refused("/v1/realtime?model=voice"))[0] == 502
        # One key is refused, and the other one is not; one provider is, and the next one is asked.
        provider.refusals = [401]
        async with session(gateway) as connection:
            await ask(connection, "text")
        assert [head.headers["authorization"] for head in provider.heads[-2:]] == [
            "Bearer first-key-0", "Bearer first-key-1",
        ]  # fmt: skip
        provider.refusals = [503]
        async with session(gateway, "pair") as connection:
            await ask(connection, "text")
        assert provider.heads[-1].headers["authorization"] == "Bearer second-key"
        assert provider.asked()[1]["model"] == ["backup"]
        # What is no handshake.
        async with Wire(gateway.url) as wire:
            answer = await wire.ask("GET", "/v1/realtime?model=voice", headers=key)
            assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")
        async with Wire(gateway.url) as wire:
            answer = await wire.ask("POST", "/v1/realtime?model=voice", b"{}", key)
            assert answer.status == 405
        rows = await asyncio.to_thread(gateway.records, 6)
        failed = [row for row in rows if row["outcome"] != "ok"]
        assert {row["operation"] for row in failed} == {"realtime"}
        assert sorted(row["outcome"] for row in failed) == ["denied", "invalid", "upstream_error"]


async def test_azure_both_ways(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        asked = {"azure": ("/openai/v1/realtime", "model"), "dated": ("/openai/realtime", "deployment")}
        base = gateway.url.replace("http", "ws") + "/openai"
        for model, (path, parameter) in asked.items():
            client = AsyncAzureOpenAI(
                azure_endpoint=gateway.url, api_key=CALLER, api_version="2025-04-01-preview", websocket_base_url=base
            )
            async with client, client.realtime.connect(model=model) as connection:
                await ask(connection, "text")
            query = {parameter: ["my-deployment"]}
            if model == "dated":
                query["api-version"] = ["2025-04-01-preview"]
            assert provider.asked() == (path, query)
            assert provider.heads[-1].headers["api-key"] == "azure-key"
        plain = AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=CALLER)
        async with plain, plain.realtime.connect(model="azure") as connection:
            await ask(connection, "text")
        rows = await recorded(gateway, 6)
        assert {row["provider"] for row in rows} == {"azure"}


async def test_a_transcription_stays_with_its_model(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        for model in ("gpt-4o-transcribe", "whisper-1"):
            heard: Any = {"type": "transcription", "audio": {"input": {"transcription": {"model": model}}}}
            async with session(gateway, "gpt-4o-transcribe", extra_query={"intent": "transcription"}) as connection:
                assert (await connection.recv()).type == "session.created"
                await connection.session.update(session=heard)
                event: Any = await connection.recv()
                if model == "whisper-1":
                    assert (event.type, event.error.code) == ("error", "model_changed")
                    with pytest.raises(ConnectionClosed) as closed:
                        await connection.recv()
                    assert closed.value.rcvd is not None
                    assert closed.value.rcvd.code == 1008
                else:
                    await connection.input_audio_buffer.commit()
                    assert (await connection.recv()).type.endswith("completed")
            assert provider.asked()[1] == {"intent": ["transcription"]}
        async with session(gateway) as connection:
            await connection.recv()
            await connection.session.update(session={"type": "realtime", "model": "dearer"})
            last: Any = await connection.recv()
            assert (last.type, last.error.code) == ("error", "model_changed")


async def test_limits_hold_within_a_session(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        async with session(gateway, "tight") as connection:
            events = []
            # 1,024 are taken at the beginning of an answer, and corrected at its end: 230 each.
            for _ in range(4):
                events = await ask(connection, "text", ("response.done", "error"))
                if events[-1].type != "response.done":
                    break
            assert [e.error.code for e in events if e.type == "error"] == ["rate_limit_exceeded"]
            assert "1600 tokens in 1 h" in events[-1].error.message
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        rows = await recorded(gateway, 4)
        assert [row["outcome"] for row in rows] == ["ok", "ok", "denied", "denied"]
        assert (rows[2]["estimated"], rows[2]["operation"]) == (1, "realtime.response")
        await until(lambda: provider.closed)
        async with session(gateway, "tight") as connection:  # another session of the same user goes on with the rest
            await ask(connection, "text", ("response.done", "error"))
            events = await ask(connection, "text", ("response.done", "error"))
            assert [e.error.code for e in events if e.type == "error"] == ["rate_limit_exceeded"]


async def test_who_goes_on_speaking_reads_why_it_was_ended(tmp_path: Path) -> None:
    config = CONFIG.replace("tokens: 1600", "tokens: 900")
    async with running(tmp_path, config) as (gateway, _), Wire(gateway.url) as wire:
        await opened(wire, "tight")
        await say(wire, "text")
        sound = {"type": "input_audio_buffer.append", "audio": "A" * 2000}
        for _ in range(100):
            await wire.send(frame(1, json.dumps(sound).encode(), os.urandom(4)))
            await asyncio.sleep(0.001)
        assert b"rate_limit_exceeded" in await wire.closed()


async def test_times_and_the_end_of_the_gateway(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, provider):
        for model in ("quiet", "short"):
            async with session(gateway, model) as connection:
                await connection.recv()
                with pytest.raises(ConnectionClosed) as closed:
                    await connection.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
        left = len(provider.closed)
        async with session(gateway) as connection:
            task = asyncio.ensure_future(ask(connection, "hang"))
            await until(lambda: any(e["type"] == "response.create" for e in provider.got))
            os.kill(gateway.pid, signal.SIGTERM)
            await task
            socket = connection._connection
            assert (socket.close_code, socket.close_reason) == (1001, "the gateway is stopping")
        await until(lambda: len(provider.closed) > left)
        assert await gateway.ended(5) == 0
        rows = await asyncio.to_thread(gateway.records, 4)
        assert len(rows) == 4


async def test_frames_that_are_none_and_back_pressure(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, _):
        # From the client: a frame without a mask.
        async with Wire(gateway.url) as wire:
            await opened(wire)
            await wire.send(frame(1, b"{}"))
            async with asyncio.timeout(5):
                while (got := await read_frame(wire.reader))[0] != 8:
                    pass
            assert int.from_bytes(got[1][:2]) == 1002
            assert await wire.closed() == b""
        # From the provider.
        async with session(gateway) as connection:
            with pytest.raises(ConnectionClosed):
                await ask(connection, "garbage")
        # A message of many frames, cut anywhere, arrives whole; so do large ones, though the reader is slow.
        async with Wire(gateway.url) as wire:
            await opened(wire)
            text = json.dumps({"type": "session.update", "session": {"instructions": "x" * 3_000_000}}).encode()
            mask = os.urandom(4)
            first, rest = frame(1, text[:70_000], mask), frame(0, text[70_000:], mask)
            data = bytes((first[0] & 0x7F,)) + first[1:] + frame(9, b"ping", mask) + rest
            for at in range(0, len(data), 100_003):
                await wire.send(data[at : at + 100_003])
            async with asyncio.timeout(10):
                while (got := await read_frame(wire.reader))[0] != 1 or b"session.updated" not in got[1][:100]:
                    assert got[0] in (1, 10)
            assert len(got[1]) > 3_000_000


# ---- a client that is no library


async def opened(wire: Wire, model: str = "voice") -> None:
    await wire.send(
        f"GET /v1/realtime?model={model} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {CALLER}\r\n"
        "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "sec-websocket-extensions: permessage-deflate\r\n\r\n".encode()
    )
    answer = await wire.head()
    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


async def say(wire: Wire, what: str) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": what}]}
    for event in ({"type": "conversation.item.create", "item": item}, {"type": "response.create"}):
        await wire.send(frame(1, json.dumps(event).encode(), os.urandom(4)))


async def until_said(wire: Wire, what: str) -> None:
    async with asyncio.timeout(5):
        while what.encode() not in (await read_frame(wire.reader))[1]:
            pass
