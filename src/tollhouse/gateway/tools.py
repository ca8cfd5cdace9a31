"""`tollhouse tools`: what the servers of a configuration offer now, against what was approved.

Rule: the servers are asked as the gateway asks them, and judged by its own guards, so that what is approved here is
what serves there. Nothing is pinned by looking; what is approved is what was shown.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

import msgspec

from tollhouse.backends.mcp.integrity import IntegritySpec, Neighbours, narrowed
from tollhouse.backends.mcp.pins import change, read
from tollhouse.backends.mcp.servers import Servers, ServerSpec
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.net.client import Client
from tollhouse.net.egress import Egress
from tollhouse.net.timer import Timer
from tollhouse.wire.mcp.capabilities import ELICIT_FORM, ELICIT_URL, ROOTS, SAMPLING, SAMPLING_TOOLS
from tollhouse.wire.mcp.catalogue import KINDS, Entry
from tollhouse.wire.mcp.integrity import Unreadable, definition, diff, differing, examine
from tollhouse.wire.mcp.letters import visible
from tollhouse.wire.mcp.pins import BadPins, Pin, merged, without
from tollhouse.wire.mcp.scan import Finding

__all__ = ["Found", "Tool", "approve", "look"]

_TOOLS = KINDS["tools/list"]
_PATIENCE = 60.0  # seconds for a server: `npx` may be downloading
_ASKABLE = ROOTS | SAMPLING | SAMPLING_TOOLS | ELICIT_FORM | ELICIT_URL
"""Some servers have more tools for agents that can be asked things."""


class Tool(msgspec.Struct, frozen=True):
    """A tool that is served or pinned. state: approved, changed, new, gone (pinned, and not served), or unreadable.
    sha256: of what is served. findings: with their scores here; risk: of those that were not approved, together;
    alarming: it reaches the threshold. pinned, served: definitions."""

    server: str
    name: str
    state: str
    sha256: str = ""
    findings: tuple[Finding, ...] = ()
    accepted: tuple[str, ...] = ()
    risk: int = 0
    alarming: bool = False
    pinned: dict[str, object] | None = None
    served: dict[str, object] | None = None

    def diff(self) -> list[str]:
        """What is different, for people."""
        return diff(self.pinned or {}, self.served or {})

    @property
    def said(self) -> str:
        """Its state, and which members it is about."""
        members = differing(self.pinned, self.served) if self.state == "changed" and self.pinned and self.served else []
        return f"{self.state} ({', '.join(members)})" if members else self.state


class Found(msgspec.Struct):
    """tools: of all servers that answered, and what is pinned of them. failed: server -> why there is no list. files:
    server -> its pins file."""

    tools: list[Tool]
    failed: dict[str, str]
    files: dict[str, Path]


def look(config: Config, servers: Sequence[str] = ()) -> Found:
    """Ask the servers (none named: all whose tools are looked after). Raises ConfigError."""
    mcp = config.mcp
    known = mcp.servers if mcp is not None else {}
    unknown = [name for name in servers if name not in known]
    if unknown:
        raise ConfigError([Problem(f"there is no server {unknown[0]!r}", path="mcp.servers")])
    specs: dict[str, IntegritySpec] = {}
    for name, one in known.items():
        spec = narrowed(mcp.integrity if mcp is not None else None, one.integrity)
        if spec is not None and not spec.is_off:
            specs[name] = spec
    if not specs:
        raise ConfigError(
            [Problem("nothing looks after tools here: set `integrity: {}` below `mcp`", path="mcp.integrity")]
        )
    wanted = [name for name in specs if not servers or name in servers]
    lists, failed = asyncio.run(_ask({name: known[name] for name in specs}, config.egress.allow))
    neighbours = Neighbours()
    neighbours.learn({name: {entry.name: entry for entry in lists.get(name, ())} for name in specs})
    found = Found([], {name: why for name, why in failed.items() if name in wanted}, {})
    for name in wanted:
        spec = specs[name]
        pins: Mapping[str, Pin] = {}
        if spec.mode != "off":
            path = found.files[name] = Path(spec.pins)
            try:
                pins = read(path).get(name, {})
            except BadPins as error:
                raise ConfigError([Problem(f"the pins file {str(path)!r}: {error}", path="mcp.integrity")]) from None
        if name in lists:
            found.tools += _compared(name, spec, lists[name], pins, neighbours)
    return found


def approve(found: Found, tools: Iterable[Tool]) -> list[Path]:
    """Pin `tools` as they were found, and drop those that are gone: the files that were written. Raises BadPins and
    OSError."""
    files: dict[Path, list[Tool]] = {}
    for tool in tools:
        if tool.server in found.files:
            files.setdefault(found.files[tool.server], []).append(tool)
    for path, chosen in files.items():
        more: dict[str, dict[str, Pin]] = {}
        for tool in chosen:
            if tool.served is not None:
                accepts = tuple(sorted({finding.rule for finding in tool.findings}))
                more.setdefault(tool.server, {})[tool.name] = Pin(tool.sha256, tool.served, accepts)
        gone = [(tool.server, tool.name) for tool in chosen if tool.state == "gone"]
        change(path, lambda pins, more=more, gone=gone: merged(without(pins, gone), more, anew=True))  # type: ignore[misc]
    return list(files)


def _compared(
    server: str, spec: IntegritySpec, entries: Sequence[Entry], pins: Mapping[str, Pin], neighbours: Neighbours
) -> list[Tool]:
    tools = []
    for entry in entries:
        facts = examine(entry.raw)
        pin = pins.get(entry.name)
        pinned = pin is not None and pin.sha256 == facts.digest
        accepted = pin.accepts if pin is not None and pinned else ()
        findings = tuple(
            msgspec.structs.replace(finding, score=spec.score(finding))
            for finding in (*facts.findings, *neighbours.shadows(server, entry.name, facts))
            if spec.scanning != "off" and spec.score(finding)
        )
        risk = sum(finding.score for finding in findings if finding.rule not in accepted)
        try:
            served: dict[str, object] | None = definition(entry.raw)
        except Unreadable:
            served = None
        if spec.mode == "off":
            state = "not pinned"
        elif served is None:
            state = "unreadable"
        else:
            state = "approved" if pinned else "changed" if pin is not None else "new"
        tools.append(
            Tool(
                server,
                entry.name,
                state,
                facts.digest,
                findings,
                accepted,
                risk,
                risk >= spec.scan.threshold,
                pin.tool if pin is not None else None,
                served,
            )
        )
    listed = {entry.name for entry in entries}
    tools += [Tool(server, name, "gone", pinned=pin.tool) for name, pin in sorted(pins.items()) if name not in listed]
    return tools


async def _ask(specs: Mapping[str, ServerSpec], allow: Sequence[str]) -> tuple[dict[str, list[Entry]], dict[str, str]]:
    """The tools of each server, and why there are none of the others."""
    async with AsyncExitStack() as stack:
        clock = Clock()
        timer = Timer(clock)
        timer.start()
        stack.callback(timer.stop)
        client, streams = Client(clock, egress=Egress(allow)), Client(clock)
        stack.push_async_callback(client.close)
        stack.push_async_callback(streams.close)
        info = msgspec.json.encode({"name": "tollhouse", "version": version("tollhouse")})
        servers = Servers(clock, client, streams, info=info, on_change=lambda server, method: None)
        stack.push_async_callback(servers.close)
        answers = await asyncio.gather(*(_tools_of(servers, name, spec) for name, spec in specs.items()))
    lists = {name: answer for name, answer in zip(specs, answers, strict=True) if isinstance(answer, list)}
    return lists, {name: answer for name, answer in zip(specs, answers, strict=True) if isinstance(answer, str)}


async def _tools_of(servers: Servers, name: str, spec: ServerSpec) -> list[Entry] | str:
    """What agents of any kind are listed; or why that cannot be said."""
    timeout = getattr(spec, "list_timeout", None)
    if timeout is not None:
        spec = spec.model_copy(update={"list_timeout": max(_PATIENCE, timeout)})
    try:
        upstream = servers.get(name, spec)
        plain = await upstream.listing(_TOOLS, None, None, 0)
        more = await upstream.listing(_TOOLS, None, None, _ASKABLE)
    except Failure as failure:
        return visible(failure.detail or failure.message)
    return [*plain.entries, *(entry for entry in more.entries if entry.name not in plain.index)]
