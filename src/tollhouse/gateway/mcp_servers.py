"""MCP servers as endpoints have them: each behind its own policies, and behind those of the endpoint.

Rule: a server is reached by one Upstream, and its tools are judged once, however many endpoints it stands behind; an
endpoint with policies of its own has chains of its own. What is asked of one tool in the place of another passes the
same endpoint's policies.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tollhouse.backends.http_tools import HttpTools, as_tool_error
from tollhouse.backends.mcp.integrity import Guard, IntegritySpec, Neighbours, narrowed
from tollhouse.backends.mcp.pins import PinsFile
from tollhouse.backends.mcp.servers import Server as Reached
from tollhouse.backends.mcp.servers import Servers
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.config.spec import McpEndpointSpec, McpServer, McpSpec, ToolSpec
from tollhouse.core.call import Call, Principal, ToolCall
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.handler import Handler, Policy
from tollhouse.core.identity import Accounts
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.connect import Connect
from tollhouse.endpoints.mcp.endpoint import Server
from tollhouse.endpoints.mcp.lists import is_hidden
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.gateway.assembly import Assembly, Scopes, call_chain
from tollhouse.gateway.exchangers import bearing, upstream_uri
from tollhouse.policies import CALL
from tollhouse.policies.alternate import Alternate, vouched
from tollhouse.policies.authenticate import ACCESS, REQUIRES, may_use, scopes_of_layers
from tollhouse.policies.authorize import AUTHORIZE, Authorize, described, permitted, unasked
from tollhouse.policies.base import Parts
from tollhouse.policies.exchange import EXCHANGE, exchange
from tollhouse.policies.guardrails.listing import descriptions
from tollhouse.policies.guardrails.outside import outside
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.guardrails.spec import GuardrailsSpec
from tollhouse.policies.identity_headers import IDENTITY
from tollhouse.policies.limits import LIMITS
from tollhouse.policies.retry import RETRY
from tollhouse.wire.mcp.catalogue import KINDS
from tollhouse.wire.mcp.names import split
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides
from tollhouse.wire.mcp.pins import BadPins

__all__ = ["McpServers", "policies_of"]

_TOOLS = KINDS["tools/list"]
_INNERMOST = CALL[CALL.index(RETRY) + 1 :]
_OF_ENDPOINTS = ("authorize", "limits", "budgets", "guardrails")


def policies_of(endpoint: McpEndpointSpec) -> bool:
    """Whether it has policies of its own on the call floor."""
    return any(getattr(endpoint, name) is not None for name in _OF_ENDPOINTS)


class _There(NamedTuple):
    """A server, whatever stands before it. last: what calls come to in the end."""

    spec: McpServer
    upstream: Reached
    guard: Guard | None
    accounts: Accounts | None
    last: Handler[Any, Reply]


class _Guards(NamedTuple):
    """What of a tool's settings holds for its tasks, too."""

    guardrails: GuardrailsSpec


class McpServers:
    """Those of one configuration, kept as they are while they stay the same. sessions: of agents."""

    def __init__(self, assembly: Assembly, parts: Parts, spec: McpSpec, kept: Servers, sessions: Sessions) -> None:
        self._assembly = assembly
        self._parts = parts
        self._spec = spec
        self._sessions = sessions
        self._there: dict[str, _There] = {}
        neighbours = Neighbours()
        for name, one in spec.servers.items():
            with assembly.finding(f"mcp.servers.{name}"):
                self._there[name] = self._reach(name, one, kept, neighbours)
        self.all: dict[str, Server] = {}
        for name, there in self._there.items():
            with assembly.finding(f"mcp.servers.{name}"):
                server = self.all[name] = self._server(name, there, assembly.top, parts)
                self._join(there, server, assembly.top)

    def before(self, endpoint: McpEndpointSpec) -> dict[str, Server]:
        """The servers of that endpoint."""
        chosen = {name: self.all[name] for name in endpoint.servers if name in self.all}
        if not policies_of(endpoint):
            return chosen
        top = self._assembly.top.below("endpoint", endpoint.path, endpoint)
        parts = self._parts
        if endpoint.guardrails is not None and parts.behind is not None:
            parts = replace(parts, behind=parts.behind.apart(endpoint.guardrails))
        made: dict[str, Server] = {}
        with self._assembly.finding("mcp.endpoints"):
            for name in chosen:
                made[name] = self._server(name, self._there[name], top, parts)
        return made

    # ---- what is reached
    def _reach(self, name: str, spec: McpServer, kept: Servers, neighbours: Neighbours) -> _There:
        starts = self._assembly.starts
        upstream = kept.get(name, spec)
        neighbours.join(name, upstream)
        if isinstance(upstream, HttpTools):
            starts.append(upstream.start)
        guard = self._guard(name, narrowed(self._spec.integrity, spec.integrity), upstream, neighbours)
        starts.append(partial(_examining, upstream, guard is not None))
        accounts = None if self._parts.accounts is None else self._parts.accounts(name)
        return _There(spec, upstream, guard, accounts, upstream.handle if guard is None else guard.handle)

    def _join(self, there: _There, server: Server, top: Scopes) -> None:
        """What a server does beside calls, when this configuration serves."""
        starts, upstream = self._assembly.starts, there.upstream
        scopes = top.below("server", server.name, there.spec)
        exchanges = exchange(scopes.layers(EXCHANGE), self._parts_for(scopes, server.name, self._parts))
        starts.append(partial(bearing, upstream, exchanges))
        if there.accounts is not None:
            starts.append(partial(_changing, there.accounts, self._sessions, upstream))
        # What goes on behind the answer of a call is put into it, behind the guards that the call had.
        starts.append(partial(_asked_again, upstream, server))

    def _guard(self, name: str, spec: IntegritySpec | None, upstream: Reached, neighbours: Neighbours) -> Guard | None:
        """What sees to it that a server's tools are those that were approved."""
        if spec is None or spec.is_off:
            return None
        families = self._assembly.families
        return Guard(
            name,
            spec,
            upstream,
            neighbours,
            self._pins(Path(spec.pins)) if spec.mode != "off" else None,
            count=lambda verdict, tools: families.integrity_tools.child(name, verdict).set(tools),
            refused=lambda verdict: families.integrity_refusals.child(name, verdict).inc(),
            found=lambda rule: families.integrity_findings.child(name, rule).inc(),
        )

    def _pins(self, path: Path) -> PinsFile:
        if not path.parent.is_dir():
            where = f"there is no directory {str(path.parent)!r} for the pins file {path.name!r}"
            raise ConfigError([Problem(where, path="mcp.integrity")])
        changed = partial(self._sessions.changed, method="notifications/tools/list_changed")
        try:
            made = partial(PinsFile, path, self._assembly.fixtures.clock, changed)
            pins = self._assembly.tenure.get(("pins", path), made, PinsFile.close)
        except BadPins as error:
            raise ConfigError([Problem(f"the pins file {str(path)!r}: {error}", path="mcp.integrity")]) from None
        self._assembly.starts.append(pins.start)
        return pins

    # ---- what stands before it
    def _server(self, name: str, there: _There, top: Scopes, parts: Parts) -> Server:
        """The server behind the policies of `top`, its own and those of its tools. Raises ConfigError."""
        one = there.spec
        scopes = top.below("server", name, one)
        policies, innermost, rules = self._floor(scopes, name, there, None, top, parts)
        end = call_chain(innermost, there.last)
        chain = call_chain(policies, end)
        tools, lasts, guards, looking, of_tasks = {}, {}, {}, {}, {}
        layers = [*scopes.layers(AUTHORIZE)]
        for tool, own in one.tools.items():
            below = scopes.below("tool", f"{name}/{tool}", own)
            more, innermost, own_rules = self._floor(below, name, there, own, top, parts)
            lasts[tool] = call_chain(innermost, there.last)
            tools[tool] = call_chain(more, lasts[tool])
            if own_rules is not None:
                guards[tool] = own_rules
            layers += below.layers(AUTHORIZE)
            looking[tool] = below.layers(GUARD_ANSWERS)
            if own.guardrails is not None:
                guarded = scopes.below("tool", f"{name}/{tool}", _Guards(own.guardrails))
                more, innermost, _ = self._floor(guarded, name, there, None, top, parts)
                of_tasks[tool] = call_chain(more, call_chain(innermost, there.last))
        return Server(
            name,
            there.upstream,
            chain,
            tools=tools,
            permitted=_visible(rules, guards, bounded=self._assembly.bounded),
            shown=rules.shown if rules is not None and rules.asks else None,
            bridged=getattr(one, "bridge", True),
            overrides=_overrides(one.tools),
            guard=there.guard,
            described=described(layers),
            last=end,
            lasts=lasts,
            of_tasks=of_tasks,
            vouches=bool(scopes.policies((IDENTITY, EXCHANGE), self._parts_for(scopes, name, parts))),
            connect=None if there.accounts is None else Connect(name, there.accounts.host),
            looked_at=descriptions(
                name, scopes.layers(GUARD_ANSWERS), looking, parts, partial(self._sessions.changed, name)
            ),
            outside=outside(name, scopes.layers(GUARD_ANSWERS), parts),
        )

    def _floor(
        self, scopes: Scopes, name: str, there: _There, own: ToolSpec | None, top: Scopes, parts: Parts
    ) -> tuple[list[Policy[Call, Reply]], list[Policy[Call, Reply]], Authorize | None]:
        """The policies of a server's chain, or of one of its tools, outermost first: those that a call passes once, and
        those that it passes as often as the server is asked. And what decides for listings."""
        policies: list[Policy[Any, Any]] = self._assembly.outermost
        if isinstance(there.upstream, HttpTools):
            policies.append(as_tool_error)
        policies += scopes.policies(CALL[: CALL.index(RETRY)], parts)
        if own is not None and own.idempotent is not None:
            policies.append(vouched(own.idempotent))
        if own is not None and own.alternate is not None:
            policies.append(self._alternate(own.alternate, top, parts).handle)
        near = self._parts_for(scopes, name, parts)
        policies += scopes.policies((RETRY,), near)
        return policies, scopes.policies(_INNERMOST, near), permitted(scopes.layers(AUTHORIZE), parts)

    def _parts_for(self, scopes: Scopes, server: str, parts: Parts) -> Parts:
        """What policies before one server are made with, as far as they are about that."""
        needed = tuple(sorted(scopes_of_layers(scopes.layers(REQUIRES))))
        return replace(parts, server=server, upstream=upstream_uri(self._spec.servers[server]), scopes=needed)

    def _alternate(self, name: str, top: Scopes, parts: Parts) -> Alternate:
        """Another server's tool, behind its own rules and limits; those of all have been asked already."""
        server, tool = split(name)
        there = self._there.get(server)
        if there is None:
            raise ConfigError([])  # it was found to be wrong itself; `config.checks` has seen to it that it is there
        scopes = top.below("server", server, there.spec)
        narrow = Scopes(("server", server, there.spec))
        own = there.spec.tools.get(tool)
        if own is not None:
            where = f"{server}/{tool}"
            scopes, narrow = scopes.below("tool", where, own), narrow.below("tool", where, own)
        approvals = unasked(scopes.layers(AUTHORIZE), parts)  # its agent waits for the first tool's answer
        near = self._parts_for(scopes, server, parts)
        policies = [
            *scopes.policies((ACCESS, REQUIRES, AUTHORIZE), parts),
            *narrow.policies((LIMITS,), parts),
            *narrow.policies((GUARD_REQUESTS,), parts),
            *((approvals,) if approvals is not None else ()),
            *scopes.policies((RETRY,), near),
        ]
        last = call_chain(scopes.policies(_INNERMOST, near), there.last)
        chain = call_chain(policies, last)
        made = partial(Alternate, server, tool, chain, last=last, new=lambda: there.upstream.new)
        layers = top.below("server", server, there.spec).layers(GUARD_ANSWERS)
        looked_at = descriptions(server, layers, {tool: scopes.layers(GUARD_ANSWERS)}, parts)
        shown = _overrides(there.spec.tools)
        if looked_at is not None:
            seen = Server(server, there.upstream, chain, overrides=shown, looked_at=looked_at)
            made = partial(made, hidden=partial(_hidden, seen))
        return made() if shown is None else made(fitted=partial(shown.fitted, tool))


async def _hidden(server: Server, call: ToolCall) -> bool:
    """Whether guards leave the tool that is called out of its server's list. Raises Failure where they cannot say."""
    return await is_hidden(server, _TOOLS, call.name, call.session, call.context, call.profile)


def _visible(
    guard: Authorize | None, tools: dict[str, Authorize], *, bounded: bool
) -> Callable[[ToolCall], bool] | None:
    """What a server's lists show: the server's rules, and for tools with rules of their own those. bounded: there are
    keys that are for some servers and tools only."""
    if bounded:
        rules = _visible(guard, tools, bounded=False)
        return may_use if rules is None else lambda probe: may_use(probe) and rules(probe)
    if not tools:
        return None if guard is None else guard.permitted

    def permitted(probe: ToolCall) -> bool:
        decides = tools.get(probe.name, guard) if probe.method == "tools/call" else guard
        return decides is None or decides.permitted(probe)

    return permitted


def _changing(accounts: Accounts, sessions: Sessions, upstream: Reached) -> None:
    """Have the agents of a user told, who has another account at a server or none any more."""

    def changed(whose: Callable[[Principal], bool]) -> None:
        if isinstance(upstream, Upstream):  # what others have is the same for everybody
            upstream.forget(whose)
            sessions.changes.changed_for(upstream.name, whose)

    if accounts.changed is None:  # those of another issuer or client, which are kept apart: nobody has any yet
        changed(lambda principal: True)
    accounts.changed = changed


def _asked_again(upstream: Reached, server: Server) -> None:
    if isinstance(upstream, Upstream):
        upstream.again = server.again


def _examining(upstream: Reached, wanted: bool) -> None:
    upstream.examines = wanted


def _overrides(tools: Mapping[str, ToolSpec]) -> Overrides | None:
    """How a server's tools are shown, None where that is as they are."""
    made = {
        name: Override(
            own.name or "",
            own.description or "",
            {
                argument: Argument(
                    one.rename or "",
                    one.description or "",
                    one.hidden,
                    msgspec.json.encode(one.default) if "default" in one.model_fields_set else b"",
                )
                for argument, one in own.arguments.items()
            },
        )
        for name, own in tools.items()
        if own.name or own.description or own.arguments
    }
    return Overrides(made) if made else None
