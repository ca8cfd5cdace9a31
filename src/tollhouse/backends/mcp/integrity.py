"""Tools that are what was approved: what of a server's list is shown, and which calls reach it.

Rule: a tool is judged when a list is read, never when it is called; a call looks its verdict up. Nobody may call what
lists withhold, and a tool that no list was read of is looked at before its first call. Agents only ever saw what a
list showed them, so the last list that was read decides.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from tollhouse.backends.mcp.pins import PinsFile
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Reading, Spec
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.catalogue import KINDS, Entry, Kind, Listing
from tollhouse.wire.mcp.integrity import Facts, Unreadable, definition, differing, examine
from tollhouse.wire.mcp.letters import lookalike, simple, visible
from tollhouse.wire.mcp.names import exposed
from tollhouse.wire.mcp.pins import Pin
from tollhouse.wire.mcp.scan import RULES, THRESHOLD, Finding

__all__ = ["Guard", "IntegritySpec", "Neighbours", "ScanSpec", "Verdict", "narrowed"]

log = logging.getLogger("tollhouse.backends.mcp")

_TOOLS = KINDS["tools/list"]
_LOOK = 1.0  # seconds between two looks at what the other servers have
_LINES = 20  # of the log, for one list
_REPORTED = 10_000

Mode = Literal["off", "warn", "quarantine"]


def _beside(value: str, info: ValidationInfo) -> str:
    """Relative to the configuration file: it is read and kept with it. It need not be there yet."""
    return str(Path(info.context.directory, value).absolute()) if isinstance(info.context, Reading) else value


class ScanSpec(Spec):
    """What is looked for in tools."""

    mode: Mode | None = Field(
        default=None,
        description="what happens to a tool whose findings reach the threshold; not set: warn, and off where "
        "the `mode` of `integrity` is",
    )
    threshold: int = Field(default=THRESHOLD, ge=1, description="the sum of scores from which on a scan acts")
    scores: dict[str, Annotated[int, Field(ge=0, le=1000)]] = Field(
        default={}, description="of single rules, in the place of their own; 0 switches a rule off"
    )

    @field_validator("scores")
    @classmethod
    def _rules(cls, value: dict[str, int]) -> dict[str, int]:
        unknown = [rule for rule in value if rule not in RULES]
        if unknown:
            raise ValueError(f"there is no rule `{unknown[0]}`; there are: {', '.join(RULES)}")
        return value

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.mode == "off" and len(self.model_fields_set) > 1:
            raise ValueError("`threshold` and `scores` have no effect with `mode: off`")
        return self


class IntegritySpec(Spec):
    """Whether tools must be what was approved."""

    mode: Mode = Field(
        default="quarantine",
        description="what happens to a tool that is not what was approved. quarantine: it is not listed, and calls of "
        "it are refused; warn: the log, metrics and a header say so",
    )
    pins: Annotated[str, Field(min_length=1), AfterValidator(_beside)] = Field(
        default="tools.lock",
        validate_default=True,
        description="the file of what was approved, relative to this one; made when it is not there",
    )
    new: Literal["allow", "quarantine"] = Field(
        default="allow", description="a tool that has no pin. allow: it is used, and gets one"
    )
    scan: ScanSpec = Field(default=ScanSpec(), description="what is looked for in names, descriptions and schemas")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.mode == "off" and self.model_fields_set & {"pins", "new"}:
            raise ValueError("`pins` and `new` have no effect with `mode: off`")
        return self

    @property
    def scanning(self) -> Mode:
        """What happens to what a scan finds."""
        return self.scan.mode or ("off" if self.mode == "off" else "warn")

    @property
    def is_off(self) -> bool:
        return self.mode == "off" and self.scanning == "off"

    def score(self, finding: Finding) -> int:
        return self.scan.scores.get(finding.rule, finding.score)


def narrowed(wide: IntegritySpec | None, narrow: IntegritySpec | None) -> IntegritySpec | None:
    """What holds for a server: its own settings, and for the others those of all. None: nothing is set anywhere."""
    if wide is None or narrow is None:
        return narrow or wide
    update = {name: getattr(narrow, name) for name in narrow.model_fields_set}
    if "scan" in update:
        own = narrow.scan
        update["scan"] = wide.scan.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
    return wide.model_copy(update=update)


class Upstream(Protocol):
    """What a guard needs of its server (`backends.mcp.upstream.Upstream`)."""

    async def handle(self, call: ToolCall) -> Reply: ...

    async def listing(
        self, kind: Kind, agent: Any, principal: Principal | None, profile: int | None = None
    ) -> Listing: ...

    def known(
        self, kind: Kind, agent: Any, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None: ...


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with a tool. cause: changed, new or scan. quarantined: it is withheld. why: in words, for
    everybody. findings: where they reach the threshold."""

    cause: Literal["changed", "new", "scan"]
    quarantined: bool
    why: str
    findings: tuple[Finding, ...] = ()


# ---- other servers' names
class Neighbours:
    """The names of all servers' tools, by which one server's can be taken for another's. They join in the order of the
    configuration: of two with one name the first one's is the tool that is meant."""

    def __init__(self) -> None:
        self.version = 0
        self._servers: dict[str, Upstream] = {}
        self._order: dict[str, int] = {}
        self._seen: dict[str, Listing] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._looks: dict[str, list[tuple[str, str]]] = {}  # what a name looks like -> (server, name)
        self._meant: dict[str, list[tuple[str, str]]] = {}  # what a text may call it -> (server, name)
        self._next = 0.0

    def join(self, name: str, server: Upstream) -> None:
        self._servers[name] = server
        self._order.setdefault(name, len(self._order))

    def look(self) -> None:
        """Read again what is known of the servers, if that was some time ago."""
        now = monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK
        changed = False
        for server, upstream in self._servers.items():
            listing = upstream.known(_TOOLS, None)
            if listing is not None and self._seen.get(server) is not listing:
                self._seen[server] = listing
                changed |= self.says(server, listing.index)
        if changed:
            self._index()

    def says(self, server: str, names: Mapping[str, Any]) -> bool:
        """These are the server's tools; whether they are others than before."""
        fresh = frozenset(names)
        if self._names.get(server) == fresh:
            return False
        self._names[server] = fresh
        self._order.setdefault(server, len(self._order))
        return True

    def _index(self) -> None:
        self.version += 1
        self._looks.clear()
        self._meant.clear()
        for server, names in self._names.items():
            for name in names:
                self._looks.setdefault(lookalike(name), []).append((server, name))
                for word in (simple(name), simple(exposed(server, name))):
                    self._meant.setdefault(word, []).append((server, name))

    def learn(self, names: Mapping[str, Mapping[str, Any]]) -> None:
        """`says` for several servers at once."""
        for server, tools in names.items():
            self.says(server, tools)
        self._index()

    def shadows(self, server: str, name: str, facts: Facts) -> list[Finding]:
        """How a server's tool stands in another's light."""
        found: dict[str, Finding] = {}
        place = self._order.get(server, 0)

        def note(rule: str, where: str, other: tuple[str, str]) -> None:
            found.setdefault(rule, Finding(rule, where, visible("/".join(other)), RULES[rule][0]))

        for other in self._looks.get(lookalike(name), ()):
            if other[0] != server and self._order.get(other[0], 0) < place:
                note("same-name" if simple(other[1]) == simple(name) else "confusable-name", "/name", other)
        for mention in facts.mentions:
            owners = self._meant.get(mention.name, ())
            if owners and not any(owner[0] == server for owner in owners):
                note("names-other-tool", mention.place, owners[0])
        return list(found.values())


# ---- the guard
class _Judged(msgspec.Struct):
    """The verdicts on a list, as of these versions. open: what is wrong but is used all the same."""

    guard: "Guard"
    pins: int
    names: int
    withheld: dict[str, Verdict]
    open: dict[str, Verdict]


class Guard:
    """Stands before one server; `handle` is the end of its call chain, `withheld` is asked by lists.

    pins: None where `mode` is off. count: told (verdict, tools) when a list was judged; refused: told why a call was;
    found: told of each rule, once for a tool.
    """

    def __init__(
        self,
        server: str,
        spec: IntegritySpec,
        upstream: Upstream,
        neighbours: Neighbours,
        pins: PinsFile | None,
        *,
        count: Callable[[str, int], None] = lambda verdict, tools: None,
        refused: Callable[[str], None] = lambda verdict: None,
        found: Callable[[str], None] = lambda rule: None,
    ) -> None:
        self.server = server
        self.spec = spec
        self._upstream = upstream
        self._next = upstream.handle
        self._neighbours = neighbours
        self._pins = pins if spec.mode != "off" else None
        self._closed = self._pins is not None and spec.new == "quarantine"
        self._strict = self._closed or "quarantine" in (spec.mode, spec.scanning)
        self._count = count
        self._refused = refused
        self._found = found
        self._reported: dict[str, str] = {}

    # ---- calls
    def handle(self, call: ToolCall) -> Awaitable[Reply]:
        """Raises Failure for a tool in quarantine."""
        if call.method != "tools/call":
            return self._next(call)
        listing = self._upstream.known(_TOOLS, call.session, call.profile & ~TASKS, call.principal)
        if listing is None or (call.name not in listing.index and listing.until <= monotonic()):
            return self._look(call) if self._strict else self._next(call)
        self._admit(call, listing)
        return self._next(call)

    async def _look(self, call: ToolCall) -> Reply:
        """Nothing is known of the tool: ask for the list first."""
        context = call.context
        context.upstream_began = context.upstream_began or monotonic()
        profile = call.profile & ~TASKS
        self._admit(call, await self._upstream.listing(_TOOLS, call.session, call.principal, profile))
        return await self._next(call)

    def _admit(self, call: ToolCall, listing: Listing) -> None:
        judged = self._judged(listing)
        verdict = judged.withheld.get(call.name)
        if verdict is None:
            if judged.open and call.name in judged.open:
                call.context.integrity = judged.open[call.name].cause
            elif self._closed and call.name not in listing.index:
                raise self._refusal(call, "new", "its server does not list it")
            return
        raise self._refusal(call, verdict.cause, verdict.why)

    def _refusal(self, call: ToolCall, cause: str, why: str) -> Failure:
        call.context.integrity = cause
        call.context.rule = f"integrity: {cause}"
        self._refused(cause)
        what = f"the tool {call.name[:200]!r} of {self.server} is in quarantine: {why}"
        return Failure(403, Reason.GUARDRAIL, what, code="tool_quarantined")

    # ---- lists
    def withheld(self, listing: Listing) -> Mapping[str, Verdict]:
        """The tools of the list, by the server's own names, that agents are not shown."""
        self._neighbours.look()
        return self._judged(listing).withheld

    def verdicts(self, listing: Listing) -> Mapping[str, Verdict]:
        """All that is wrong with its tools."""
        judged = self._judged(listing)
        return {**judged.open, **judged.withheld}

    def _judged(self, listing: Listing) -> _Judged:
        known = listing.judged
        pins = self._pins.version if self._pins is not None else 0
        if (
            type(known) is _Judged
            and known.guard is self
            and known.pins == pins
            and known.names == self._neighbours.version
        ):
            return known
        judged = _Judged(self, pins, self._neighbours.version, {}, {})
        for entry in listing.entries:
            verdict = self._judge(entry)
            if verdict is not None:
                (judged.withheld if verdict.quarantined else judged.open).setdefault(entry.name, verdict)
        listing.judged = judged
        self._report(judged)
        return judged

    def _judge(self, entry: Entry) -> Verdict | None:
        facts = entry.facts
        if facts is None:
            facts = entry.facts = examine(entry.raw)
        spec = self.spec
        pin = self._pins.of(self.server).get(entry.name) if self._pins is not None else None
        pinned = pin is not None and pin.sha256 == facts.digest
        scanning = spec.scanning
        findings: tuple[Finding, ...] = ()
        alarming = False
        if scanning != "off":
            accepted = pin.accepts if pin is not None and pinned else ()
            shadows = self._neighbours.shadows(self.server, entry.name, facts)
            findings = tuple(
                finding
                for finding in (*facts.findings, *shadows)
                if finding.rule not in accepted and spec.score(finding)
            )
            alarming = sum(map(spec.score, findings)) >= spec.scan.threshold
        told = findings if alarming else ()
        scanned = None
        if alarming:
            why = f"its definition is suspicious ({', '.join(finding.rule for finding in findings)})"
            scanned = Verdict("scan", scanning == "quarantine", why, told)
        verdict = None
        if self._pins is None or pinned:
            pass
        elif pin is not None:
            why = f"it is not what was approved ({_changed(pin, entry)})"
            verdict = Verdict("changed", spec.mode == "quarantine", why, told)
        elif self._closed:
            verdict = Verdict("new", True, "nobody has approved it", told)
        elif scanned is None or not scanned.quarantined:
            why = self._pin(entry, facts)
            verdict = Verdict("new", spec.mode == "quarantine", why, told) if why else None
        if verdict is None or (scanned is not None and scanned.quarantined and not verdict.quarantined):
            return scanned
        return verdict

    def _pin(self, entry: Entry, facts: Facts) -> str:
        """The first sight of a tool is what it is from now on; why not, where it cannot be."""
        assert self._pins is not None
        try:
            pin = Pin(facts.digest, definition(entry.raw))
        except Unreadable as error:
            return f"it cannot be pinned: {error}"
        return "" if self._pins.add(self.server, entry.name, pin) else "its server has too many tools"

    def _report(self, judged: _Judged) -> None:
        """Say what was not said before, and count."""
        both = {**judged.open, **judged.withheld}
        causes = [verdict.cause for verdict in both.values()]
        for cause in ("changed", "new", "scan"):
            self._count(cause, causes.count(cause))
        for name in [name for name in self._reported if name not in both]:
            del self._reported[name]
        fresh = [(name, verdict) for name, verdict in both.items() if self._reported.get(name) != verdict.cause]
        for name, verdict in fresh[:_REPORTED]:
            self._reported[name] = verdict.cause
            for finding in verdict.findings:
                self._found(finding.rule)
        for name, verdict in fresh[:_LINES]:
            done = "in quarantine" if verdict.quarantined else "used all the same"
            log.warning(
                "mcp server %s: tool %s: %s; %s. See `tollhouse tools diff --server %s --tool %s`",
                self.server, visible(name[:128]), verdict.why, done, self.server, visible(name[:128]),
            )  # fmt: skip
            for finding in verdict.findings:
                log.warning(
                    "mcp server %s: tool %s: %s at %s (score %d): %s",
                    self.server, visible(name[:128]), finding.rule, visible(finding.place[:200]) or "/",
                    self.spec.score(finding), finding.what,
                )  # fmt: skip
        if len(fresh) > _LINES:
            log.warning("mcp server %s: the same of %d more tools", self.server, len(fresh) - _LINES)


def _changed(pin: Pin, entry: Entry) -> str:
    try:
        return ", ".join(differing(pin.tool, definition(entry.raw))) or "its form"
    except Unreadable as error:
        return str(error)
