"""The proxies that are measured: how each one is started in front of an upstream.

Rule: a candidate is started afresh for each round, with a directory of its own, one worker, and nothing on that
its name does not say.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import install
from machine import PROXY_CORE, Program, free_port

BENCH = Path(__file__).resolve().parent
CLIENT_KEY = "sk-bench-7Qm2Zt9XcV4bN8kL1pR6sW3y"
MODELS = 5000

Traffic = Literal["unary", "stream", "translate", "mcp"]


@dataclass(frozen=True)
class Place:
    """Where a candidate runs: its files, its port, the port of what it calls, and what will come."""

    directory: Path
    port: int
    upstream: int
    traffic: Traffic
    files: int = 4096  # the most connections it must bear

    def render(self, template: str) -> Path:
        """A copy of configs/`template` in the directory, its @WORDS@ replaced."""
        text = (BENCH / "configs" / template).read_text()
        words = {
            "CLIENT_KEY": CLIENT_KEY,
            "DIRECTORY": self.directory,
            "PORT": self.port,
            "UPSTREAM": self.upstream,
            "FILES": self.files,
            "BUFFERING": "off" if self.traffic == "stream" else "on",
        }
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        file = self.directory / template
        file.write_text(text)
        return file

    def run(self, *command: str | Path, **env: str) -> Program:
        """Start `command` as the proxy."""
        name = Path(command[0]).name
        return Program(command, core=PROXY_CORE, log=self.directory / f"{name}.log", env=env)


@dataclass(frozen=True)
class Candidate:
    """name: in tables. start: starts it. headers: what its callers must send beside the usual."""

    name: str
    start: Callable[[Place], Program]
    handles: tuple[Traffic, ...] = ("unary", "stream", "translate", "mcp")
    headers: Callable[[Place], dict[str, str]] = lambda place: {}


def nginx() -> Candidate:
    return Candidate("nginx", lambda place: place.run("nginx", "-p", place.directory, "-c", place.render("nginx.conf")))


def envoy() -> Candidate:
    program = install.envoy()

    def start(place: Place) -> Program:
        config = place.render("envoy.yaml")
        return place.run(program, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error")

    return Candidate("envoy", start, handles=("unary", "stream", "mcp"))


def model(number: int) -> str:
    """The line of one more model."""
    name = f"{{name: model-{number:04}, targets: [{{provider: upstream, model: served-{number:04}}}]}}"
    return f"  - {name}\n"


def write_config(place: Place, kind: str, models: int = 1, served: str = "models.yaml") -> Path:
    """The gateway's configuration: configs/`kind`.yaml and what it serves."""
    parts = [f"{kind}.yaml", "mcp.yaml" if place.traffic == "mcp" else served]
    text = "".join((BENCH / "configs" / part).read_text() for part in parts)
    file = place.directory / "tollhouse.yaml"
    file.write_text(text + "".join(model(number) for number in range(1, models)))
    return file


def environment(place: Place) -> dict[str, str]:
    """What the gateway's configuration asks the environment for."""
    return {
        "CLIENT_KEY": CLIENT_KEY,
        "DIRECTORY": str(place.directory),
        "METRICS_PORT": str(free_port()),
        "PORT": str(place.port),
        "UPSTREAM": str(place.upstream),
    }


def tollhouse(kind: str, models: int = 1, python: Path | None = None) -> Candidate:
    """kind: bare or full, one of configs/. python: the interpreter, where it is not ours."""
    program = install.tollhouse(python) / "tollhouse"

    def start(place: Place) -> Program:
        config = write_config(place, kind, models)
        return place.run(program, "serve", config, "--log-level", "warning", **environment(place))

    name = f"tollhouse {kind}" + (f", {models:,} models" if models > 1 else "")
    plain: tuple[Traffic, ...] = ("unary", "stream")
    return Candidate(name, start, handles=plain if models > 1 else (*plain, "translate", "mcp"))


def translating(kind: str, python: Path | None = None) -> Candidate:
    """The same in front of a provider that speaks Anthropic's API."""
    program = install.tollhouse(python) / "tollhouse"

    def start(place: Place) -> Program:
        config = write_config(place, kind, served="translate.yaml")
        return place.run(program, "serve", config, "--log-level", "warning", **environment(place))

    return Candidate(f"tollhouse {kind}, translating", start, handles=("translate",))


def litellm() -> Candidate:
    program = install.litellm()

    def start(place: Place) -> Program:
        config = place.render("litellm.yaml")
        return place.run(
            program,
            *("--config", config, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"),
            LITELLM_LOCAL_MODEL_COST_MAP="True",
            LITELLM_MODE="PRODUCTION",
            PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        )

    return Candidate("litellm", start, handles=("unary", "stream"))


def portkey() -> Candidate:
    node, program = install.portkey()
    return Candidate(
        "portkey",
        lambda place: place.run(
            node, program, f"--port={place.port}", "--headless", NODE_ENV="production", TRUSTED_CUSTOM_HOSTS="127.0.0.1"
        ),
        handles=("unary",),  # streams end in its own error 500 (`TypeError: immutable`) on Node.js 20 and 22
        headers=lambda place: {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{place.upstream}/v1",
        },
    )


def versions(candidates: list[Candidate]) -> dict[str, str]:
    """What was measured, by its own word."""
    names = {candidate.name.split()[0] for candidate in candidates}
    found = {
        "tollhouse": install.version([install.tollhouse() / "tollhouse", "version"]),
        "nginx": install.version(["nginx", "-v"]),
        "wrk": install.version(["wrk", "-v"]),
    }
    if "envoy" in names:
        found["envoy"] = install.version([install.envoy(), "--version"], r"(?<=/)\d+\.\d+\.\d+")
    if "litellm" in names:
        found["litellm"] = install.LITELLM.split("==")[1]
    if "portkey" in names:
        found["portkey"] = install.PORTKEY.rsplit("@", 1)[1]
    return found
