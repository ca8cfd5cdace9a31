"""MCP over a child's standard input and output (2025-11-25 and 2026-07-28, Transports, stdio): a message a line.

Rule: a line that is no message is logged and left out; a process that sends one too long, takes more memory or time
than it may, or exits, loses what was in flight and is started again at the next need: at once if it had answered
anything, later each time if not. What it ever started ends with it.
"""

import logging
from typing import Any

from pydantic import Field, field_validator

from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.channel import Channel
from tollhouse.backends.mcp.handshake import handshake
from tollhouse.backends.mcp.session import Owner
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.core.spec import Duration, Size
from tollhouse.net import process
from tollhouse.wire import jsonrpc

__all__ = ["StdioServerSpec", "StdioSession"]

log = logging.getLogger("tollhouse.backends.mcp")

_ERROR_LINES = 20  # of standard error a second that reach the log


class StdioServerSpec(McpServerSpec):
    """A server that the gateway starts.

    command, args: as for exec, with no shell. env: what it sees beside PATH, HOME and the like. cwd: absolute, or
    from where the gateway was started. max_children: processes at once; agents that can be asked things have one each.
    max_line: bytes of one message.
    """

    command: str = Field(min_length=1)
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    max_children: int = Field(default=16, ge=1, le=1000)
    max_line: Size = 4 << 20
    max_memory: Size | None = Field(
        default=None, description="of a child and all that it started, resident; one that takes more is ended"
    )
    max_cpu: Duration | None = Field(
        default=None, description="processor time of a child and all that it started; one that takes more is ended"
    )
    max_age: Duration | None = Field(
        default=None, description="an older child takes no new calls, and is ended when it has none"
    )

    @field_validator("command", "cwd", "args", "env")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        if "\0" in repr(value) or "\\x00" in repr(value):
            raise ValueError("NUL cannot be passed to a process")
        return value

    @property
    def watched(self) -> bool:
        """Whether somebody has to look what its children take."""
        return self.max_memory is not None or self.max_cpu is not None or self.max_age is not None


class StdioSession(Channel):
    """One child process. It listens to its lines, and to its end. keeper: ends children when this process is killed,
    where they cannot be `reaped`."""

    def __init__(self, upstream: Owner, key: Key, keeper: process.Keeper | None = None) -> None:
        super().__init__(upstream, key)
        spec = upstream.spec
        assert isinstance(spec, StdioServerSpec)
        self._spec = spec
        self._keeper = keeper
        self._child: process.Child | None = None
        self._errors = 0
        self._errors_since = 0.0

    async def open(self) -> None:
        spec = self._spec
        self._child = await process.spawn(
            (spec.command, *spec.args),
            self,
            env=process.clean_environment(spec.env),
            cwd=spec.cwd,
            max_line=spec.max_line,
            stderr=self._stderr,
            keeper=self._keeper,
            reaped=True,
        )
        await handshake(self)

    # ---- Channel
    def _usable(self) -> bool:
        return self._child is not None

    def _write(self, message: bytes, id: int) -> None:
        assert self._child is not None
        self._child.send(jsonrpc.one_line(message))

    # ---- process.Listener
    def line(self, data: bytes) -> None:
        try:
            self.received(data)
        except jsonrpc.Malformed as problem:
            self._stderr(f"a line of its output is no message ({problem.message})")
            self.noise()

    def exited(self, code: int | None, why: str) -> None:
        self._over(why)

    # ---- what it takes
    @property
    def root(self) -> int:
        """The process below which the child and all that it started are, 0 when there is none (any more)."""
        return self._child.root if self._child is not None else 0

    def weigh(self, taken: process.Taken) -> None:
        """End the child if it takes more than it may."""
        spec, child = self._spec, self._child
        if child is None or not child.running:
            return
        if spec.max_memory is not None and taken.memory > spec.max_memory:
            child.kill(f"it took {taken.memory >> 20} MiB of memory, of {spec.max_memory >> 20} allowed")
        elif spec.max_cpu is not None and taken.cpu > spec.max_cpu:
            child.kill(f"it took {taken.cpu:.0f} s of processor time, of {spec.max_cpu:g} allowed")

    def _stderr(self, text: str) -> None:
        now = self.upstream.clock.now
        if now - self._errors_since > 1.0:
            if self._errors > _ERROR_LINES:
                log.info("mcp server %s: %d more lines", self.upstream.name, self._errors - _ERROR_LINES)
            self._errors_since, self._errors = now, 0
        self._errors += 1
        if self._errors <= _ERROR_LINES:
            log.info("mcp server %s: %s", self.upstream.name, text)

    async def close(self) -> None:
        self.lost = True
        if self._child is not None:
            await self._child.close()
