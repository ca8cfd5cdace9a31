"""The runtime with real files and a builder that notes what is asked of it: swap, refuse, drain, follow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tollhouse.config.parse import Loaded, load, parse
from tollhouse.config.sources.file import FileSource
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Headers, Request, Response, finish
from tollhouse.gateway.build import Builder, Fixtures
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.runtime import Runtime, fixed
from tollhouse.net.client import Client
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

TEXT = """
server: {listen: 127.0.0.1:0, metrics: 127.0.0.1:0, public_url: "http://one.test"}
authenticate: {jwt: [{issuer: "https://i.test", audiences: [a], jwks: jwks.json}]}
telemetry: {access_log: {path: "-"}}
"""


class Part:
    closed = False

    async def close(self) -> None:
        self.closed = True


class Program:
    """A runtime that follows a file. built: the configurations, one after the other."""

    def __init__(self, where: Path) -> None:
        self.path = where / "tollhouse.yaml"
        self.path.write_text(TEXT)
        (where / "jwks.json").write_text('{"keys": []}')
        self.where = where
        self.families = Families(Metrics())
        self.built: list[Config] = []
        self.applied: list[Config] = []
        self.looks = 0
        self.parts: dict[str, Part] = {}
        self.refuses = ""
        self.runtime = Runtime(self.load(None), self.load, self.build, self.families, self.applied.append, self.look)

    def look(self) -> None:
        self.looks += 1

    def load(self, before: Loaded | None) -> Loaded:
        return load(str(self.path), {}, before)

    def build(self, config: Config, tenure: Tenure) -> Handler[Request, Response]:
        url = str(config.server.public_url)
        self.parts[url] = tenure.get(("part", url), Part, Part.close)
        tenure.get("everybody's", Part, Part.close)
        if self.refuses:
            raise ConfigError([Problem(self.refuses, path="server.public_url")])
        self.built.append(config)

        async def handler(request: Request) -> Response:
            return Response(200, [], url.encode())

        return handler

    async def answer(self) -> bytes:
        request = Request(b"GET", b"/", Headers())
        response = await self.runtime.handle(request)
        finish(request.ends, Ending(200, ""))
        return response.body

    def write(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    def updates(self, result: str) -> float:
        return self.families.config_updates.child("file", result).value


async def test_who_asks_is_told_that_nothing_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tollhouse.config")
    async with following(tmp_path) as program:
        program.runtime.reload()
        await program.until(lambda: program.updates("unchanged") == 1)
        assert caplog.messages == []
        program.runtime.reload(asked=True)
        await program.until(lambda: program.updates("unchanged") == 2)
        assert caplog.messages == ["read again: nothing has changed"]
        program.write("nonsense: [")
        await program.until(lambda: program.updates("error") == 1)
        program.write(TEXT)
        await program.until(lambda: program.updates("unchanged") == 3)
        assert caplog.messages[-1] == "what is written is what serves again"
        assert len(caplog.messages) == 3


@asynccontextmanager
async def following(where: Path) -> AsyncIterator[Program]:
    program = Program(where)
    program.runtime.start(FileSource())
    try:
        yield program
    finally:
        await program.runtime.close()


async def test_a_change_is_swapped_in_and_the_old_one_ends_with_its_last_request(tmp_path: Path) -> None:
    async with following(tmp_path) as program:
        runtime = program.runtime
        assert await program.answer() == b"http://one.test"
        running = Request(b"GET", b"/", Headers())
        answer = runtime.handle(running)
        old = runtime.current
        program.write(TEXT.replace("one.test", "two.test"))
        await program.until(lambda: runtime.current is not old)
        assert await program.answer() == b"http://two.test"
        assert [config.server.public_url for config in program.applied] == ["http://one.test", "http://two.test"]
        assert runtime.config is program.built[-1]
        assert (old.leases, program.parts["http://one.test"].closed) == (1, False)
        assert (await answer).body == b"http://one.test"
        finish(running.ends, Ending(200, ""))
        await program.until(lambda: program.parts["http://one.test"].closed)
        assert not program.parts["http://two.test"].closed
        assert program.updates("ok") == 1
        assert runtime.apply_seconds > 0
    assert program.parts["http://two.test"].closed


@pytest.mark.parametrize("text", ["server: [", TEXT + "nonsense: 1\n", TEXT.replace("jwks.json", "missing.json")])
async def test_what_cannot_be_read_changes_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    async with following(tmp_path) as program:
        before = program.runtime.current
        program.write(text)
        await program.until(lambda: program.updates("error"))
        assert program.runtime.current is before
        assert await program.answer() == b"http://one.test"
        assert "the last good one keeps serving" in caplog.text
        assert "tollhouse.yaml:" in caplog.text
        if "missing" in text:  # what was missing comes: that is a change, too
            (tmp_path / "missing.json").write_text('{"keys": []}')
        else:
            program.write(TEXT.replace("one.test", "two.test"))
        await program.until(lambda: program.updates("ok"))


async def test_what_cannot_be_built_changes_nothing_and_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(tmp_path) as program:
        program.refuses = "not like this"
        program.write(TEXT.replace("one.test", "two.test"))
        await program.until(lambda: program.updates("error"))
        assert await program.answer() == b"http://one.test"
        await program.until(lambda: program.parts["http://two.test"].closed)
        assert "tollhouse.yaml:2:65: server.public_url: not like this" in caplog.text
        program.refuses = ""
        program.runtime.reload()
        await program.until(lambda: program.updates("ok"))
        assert await program.answer() == b"http://two.test"


async def test_settings_of_the_process_are_refused_with_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(tmp_path) as program:
        changed = TEXT.replace("listen: 127.0.0.1:0", "listen: 127.0.0.1:1").replace('path: "-"', "path: x.log")
        program.write(changed.replace("one.test", "two.test") + "ledger: sqlite:x.db\n")
        await program.until(lambda: program.updates("error"))
        assert await program.answer() == b"http://one.test"
        for place, name in (("2:", "server.listen"), ("4:", "telemetry.access_log.path"), ("5:", "ledger")):
            assert f"tollhouse.yaml:{place}" in caplog.text
            assert f"{name}: cannot change while the gateway runs; restart it to apply this" in caplog.text


async def test_a_touched_file_is_no_change_but_a_file_it_names_is(tmp_path: Path) -> None:
    async with following(tmp_path) as program:
        before = program.runtime.current
        program.write("# a comment\n" + TEXT)
        await program.until(lambda: program.updates("unchanged"))
        assert program.runtime.current is before
        looks = program.looks
        (tmp_path / "jwks.new").write_text('{"keys": [ ]}')
        (tmp_path / "jwks.new").replace(tmp_path / "jwks.json")
        await program.until(lambda: program.updates("ok"))
        assert program.runtime.current.version == 2
        assert program.looks > looks


async def test_changes_meanwhile_are_one_further_change(tmp_path: Path) -> None:
    async with following(tmp_path) as program:
        for n in range(30):
            program.write(TEXT.replace("one.test", f"n{n}.test"))
            await asyncio.sleep(0)
        await program.until(lambda: program.built[-1].server.public_url == "http://n29.test")
        assert await program.answer() == b"http://n29.test"
        assert len(program.runtime._tenures) == 1


async def test_a_bug_in_the_builder_is_logged_and_the_next_change_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(tmp_path) as program:
        build = program.runtime._build

        def broken(config: Config, tenure: Tenure) -> Handler[Request, Response]:
            raise ZeroDivisionError

        program.runtime._build = broken
        program.write(TEXT.replace("one.test", "two.test"))
        await program.until(lambda: "could not be applied" in caplog.text)
        assert await program.answer() == b"http://one.test"
        program.runtime._build = build
        program.runtime.reload()
        await program.until(lambda: program.updates("ok"))


def test_what_is_fixed_depends_on_the_workers(tmp_path: Path) -> None:
    program_text = 'server: {listen: "127.0.0.1:8080", workers: %d, shutdown: {min: 1s, max: %ds}}\n'
    path = tmp_path / "a.yaml"
    for workers, expected in ((1, []), (2, ["server.shutdown.max"])):
        configs = []
        for seconds in (5, 6):
            path.write_text(program_text % (workers, seconds))
            configs.append(load(str(path), {}).config)
        assert [problem.path for problem in fixed(*configs)] == expected


@pytest.mark.parametrize(
    ("state", "problems"), [("memory", ["issuer"]), ("{url: 'redis://h', encryption_key: KEY}", [])]
)
def test_an_issuer_whose_state_has_a_file_is_there_from_the_start(
    tmp_path: Path, state: str, problems: list[str]
) -> None:
    path = tmp_path / "a.yaml"
    without = f"server: {{listen: '127.0.0.1:8080'}}\nstate: {state.replace('KEY', 'k' * 32)}\n"
    configs = []
    for text in (without, without + "issuer: {url: 'http://127.0.0.1:8080'}\n"):
        path.write_text(text)
        configs.append(load(str(path), {}).config)
    old, new = configs
    assert [problem.path for problem in fixed(old, new)] == problems
    assert fixed(new, old) == []
    assert fixed(new, new) == []


async def test_models_of_a_configuration_that_was_refused_are_not_used_again() -> None:
    """They hold providers that ended with it: a `local` one would never answer again."""
    clock = Clock()
    families = Families(Metrics())
    fixtures = Fixtures(clock, families, Client(clock), MemoryState(clock), Operations(families.metrics))
    builder = Builder(fixtures)
    keep = Keep()
    text = """
providers: {own: {kind: openai, base_url: "http://127.0.0.1:9/v1"}}
models: [{name: a, targets: [{provider: own}]}]
"""
    clash = "routes: [{name: own, exact: /status, to: http://127.0.0.1:9}]\n"
    tenure = keep.tenure()
    with pytest.raises(ConfigError):
        builder.build(parse(text + clash, "a.yaml", {}).config, tenure)
    refused = [model for _, model, *_ in builder._models.built.values()]
    tenure.end()
    builder.build(parse(text, "a.yaml", {}).config, keep.tenure())
    assert not any(model is old for _, model, *_ in builder._models.built.values() for old in refused)
    await builder.close()
    await keep.close()
