"""Agent runs: the calls that one task of an agent makes, of models and of tools, under one name.

Rule: a run belongs to whoever began it. The name that a caller gives is only good below his own, so nobody spends or
stops another's run. How long and how deep a run is stands in the state, written once by its first call, for all nodes.
What a run may use up is asked with everything else that is counted (`admission`), and never in two places.
"""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from time import monotonic, time
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, Field

from tollhouse.core.call import Call, ModelCall, ToolCall
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.policies.base import Kind, Layer, Parts, RunBegan
from tollhouse.policies.run_walls import GRACE, Walls
from tollhouse.store.base import KeyValue
from tollhouse.store.table import Table

__all__ = ["RUNS", "RunRecord", "Runs", "RunsSpec", "SameSpec", "run_refusal", "run_table", "stopped_run", "timed_out"]

_NAME = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_NO_TRACE = b"0" * 32
_REMEMBERED = 10_000  # runs, in each worker
_DEEPEST = 100
_SINCE = "runs:since"  # the value that says since when the state has known of runs
_LONG = 400 * 86400.0
_MARGIN = 3600.0  # seconds that a run is remembered beyond its life: nodes' clocks differ

FINAL: Final = (b"x-should-retry", b"false")
"""Clients of OpenAI's and Anthropic's kind make a call again after 429 unless they are told not to."""


def _field_name(value: str) -> str:
    name = value.lower()
    if re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", name) is None:
        raise ValueError(f"{value!r} is not the name of a header field")
    if name in ("authorization", "cookie", "host", "content-length", "x-api-key"):
        raise ValueError(f"the header field {value!r} has another meaning")
    return name


FieldName = Annotated[str, AfterValidator(_field_name)]


class SameSpec(Spec):
    """When calls of a run go round in a circle."""

    times: int = Field(ge=1, description="so often may the same be asked with the same arguments")
    window: Duration = Field(default=600.0, gt=0.0, le=86400.0, description="in this time")


class RunsSpec(Spec):
    """What names the run of a call, and what a run may use up."""

    header: FieldName = Field(default="x-tollhouse-run", description="the header field that names the run")
    meta: str = Field(
        default="tollhouse/run", min_length=1, max_length=128, description="the key in `_meta` of MCP requests"
    )
    parent_header: FieldName = Field(
        default="x-tollhouse-parent-run", description="the header field that names the run which began this one"
    )
    parent_meta: str = Field(
        default="tollhouse/parent-run", min_length=1, max_length=128, description="the same in `_meta`"
    )
    trace: bool = Field(
        default=False, description="the trace (W3C traceparent) names the run of a call that names none itself"
    )
    of: Literal["caller", "user", "org"] = Field(
        default="caller", description="whose a run is: calls of others under the same name are another run"
    )
    required: bool = Field(default=False, description="refuse calls of models and tools that name no run")
    life: Duration = Field(
        default=86400.0, ge=60.0, le=30 * 86400.0, description="how long a run counts, from its first call"
    )
    calls: int | None = Field(default=None, ge=1, description="calls of models")
    tools: int | None = Field(default=None, ge=1, description="calls of tools")
    tokens: int | None = Field(default=None, ge=1, description="tokens of models, in and out")
    usd: float | None = Field(default=None, gt=0, le=1_000_000, description="what its calls may cost")
    parallel: int | None = Field(default=None, ge=1, description="calls at the same time")
    wall: Duration | None = Field(
        default=None, gt=0.0, le=30 * 86400.0, description="from its first call to the end of its last one"
    )
    depth: int | None = Field(
        default=None, ge=1, le=100, description="runs that begin runs; one that nobody began has depth 1"
    )
    same: SameSpec | None = Field(default=None, description="the same call again and again")
    on_store_failure: Literal["deny", "allow"] = Field(
        default="deny",
        description="what happens while a shared `state` cannot be asked: deny answers 503, allow bounds nothing",
    )

    @property
    def is_kept(self) -> bool:
        """Whether something of a run is to be written down."""
        return self.wall is not None or self.depth is not None


class RunRecord(msgspec.Struct, array_like=True, frozen=True):
    """began: unix seconds. depth: 1 for one that nobody began. parent: full name of the run that began it, or ""."""

    began: float
    depth: int = 1
    parent: str = ""


def run_table(values: KeyValue) -> Table[RunRecord]:
    """Where runs are written down, by their full names."""
    return Table(values, "run:", RunRecord, hashed=True)


def stopped_run(name: str) -> Failure:
    """The end of a call of a run that an operator has stopped."""
    return Failure(
        403, Reason.AUTHORIZATION, f"the run {_short(name)!r} was stopped", code="run_stopped", detail=f"run {name!r}",
        headers=(FINAL,),
    )  # fmt: skip


def timed_out(name: str, wall: float) -> Failure:
    """The end of a call that is under way when its run has had its time."""
    return Failure(
        504,
        Reason.TIMEOUT,
        f"the run {_short(name)!r} has had its time, {wall:g} s",
        code="run_limit_exceeded",
        detail=f"run {name!r}",
        headers=(FINAL,),
    )


def run_refusal(name: str, what: str, *, again: bool = False) -> Failure:
    """A call that is more than its run may make. what: what is used up, and how much there was of it. again: it may be
    made later."""
    return Failure(
        429,
        Reason.BUDGET,
        f"the run {_short(name)!r} {what}",
        code="run_limit_exceeded",
        detail=f"run {name!r}",
        retry_after=1.0 if again else None,
        headers=() if again else (FINAL,),
    )


def _full(owner: str, name: str) -> str:
    """An owner may have a slash in it; the last one stands before the name, so that no two owners have the same run."""
    return f"{owner}/{name.replace('/', '%2F')}"


def _short(name: str) -> str:
    return name.rpartition("/")[2].replace("%2F", "/")


class Runs:
    """One for all chains of a configuration. stopped: whether a run was stopped, by its full name. walls: who ends what
    a run has under way when its time is over; None leaves that to deadlines. history: what the ledger knows of a run,
    for a state that was emptied; None: nothing does."""

    def __init__(
        self,
        spec: RunsSpec,
        stopped: Callable[[str], bool],
        values: KeyValue | None,
        now: Callable[[], float] = time,
        walls: Walls | None = None,
        history: RunBegan | None = None,
    ) -> None:
        self._spec = spec
        self._values = values
        self._history = history
        self._stopped = stopped
        self._now = now
        self._walls = walls
        self._header = spec.header.encode()
        self._parent_header = spec.parent_header.encode()
        self._table = run_table(values) if values is not None and spec.is_kept else None
        self._known: OrderedDict[str, RunRecord] = OrderedDict()

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure: 400 for a name that is none, or where one is missing; 403 for a run that was stopped; 429 for
        one that is over or too deep; 503 where the state cannot be asked."""
        name = self._name(call, self._header, self._spec.meta, trace=self._spec.trace)
        if not name:
            if self._spec.required and _counts(call):
                raise _invalid(f"this call names no run; send its name in the header {self._spec.header!r}")
            return next(call)
        context = call.context
        owner = self._owner(call)
        run = context.run_id = _full(owner, name)
        parent = self._name(call, self._parent_header, self._spec.parent_meta)
        if parent:
            context.parent_id = _full(owner, parent)
        if self._stopped(run):
            raise stopped_run(run)
        return next(call) if self._table is None else self._go_on(self._table, call, next)

    async def _go_on(self, table: Table[RunRecord], call: Call, next: Handler[Call, Reply]) -> Reply:
        context, spec = call.context, self._spec
        run = context.run_id
        record = self._known.get(run)
        if record is not None and record.began + spec.life + _MARGIN < self._now():
            del self._known[run]  # the state has forgotten it, too
            record = None
        if record is None:
            try:
                record = await self._written(table, run, context.parent_id)
            except Failure:
                if spec.on_store_failure != "allow":
                    raise
                return await next(call)
        if spec.depth is not None:
            # Who acts for the user is signed; who began the run is only said.
            depth = max(record.depth, len(call.principal.actors) if call.principal is not None else 0)
            if depth > spec.depth:
                raise run_refusal(run, f"is {depth} deep, and {spec.depth} is as deep as runs may be")
        if spec.wall is not None:
            left = self._left(run, record.began + spec.wall, spec.wall)
            if left <= 0.0:
                raise run_refusal(run, f"has had its time, {spec.wall:g} s")
            deadline = monotonic() + left + (GRACE if self._walls is not None else 0.0)
            if deadline < context.deadline:
                context.deadline = deadline
            if self._walls is not None:
                self._walls.begun(run, call.request.ends)
        return await next(call)

    def _left(self, run: str, ends: float, wall: float) -> float:
        """Seconds until then. ends: unix seconds."""
        now = self._now()
        if self._walls is None:
            return ends - now
        return self._walls.left(run, ends, now, wall)

    async def _written(self, table: Table[RunRecord], run: str, parent: str) -> RunRecord:
        """What its first call wrote; this one, if it is that. Raises Failure 503."""
        found = await table.get(run)
        if found is None:
            record = await self._begun(table, run, parent)
            if not await table.add(run, record, self._spec.life + _MARGIN):
                found = await table.get(run)
        if found is not None:
            record = found.value
        self._known[run] = record
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return record

    async def _begun(self, table: Table[RunRecord], run: str, parent: str) -> RunRecord:
        """Of a run that the state does not know. Raises Failure 503."""
        now = self._now()
        young = self._history is not None and await self._is_young(now)
        told = await self._told(run, now) if young else None
        if told is not None:
            now, parent = told[0], told[1] or parent
        depth, above = 1, parent
        seen = {run}
        while above and above not in seen and depth < _DEEPEST:
            found = await table.get(above)
            depth += 1 if found is None else found.value.depth
            if found is not None:
                break
            seen.add(above)
            told = await self._told(above, now) if young else None
            above = "" if told is None else told[1]
        return RunRecord(now, depth, parent)

    async def _told(self, run: str, now: float) -> tuple[float, str] | None:
        """What the ledger knows of a run that may count still."""
        return None if self._history is None else await self._history(run, now - self._spec.life)

    async def _is_young(self, now: float) -> bool:
        """Whether the state may have lost what it knew of runs that count still: it has said for less than such a run
        may be old that it is there."""
        assert self._values is not None
        told = await self._values.get(_SINCE)
        if told is None:
            await self._values.add(_SINCE, b"%d" % now, _LONG)
            return True
        return not told.isdigit() or now - int(told) < self._spec.life + _MARGIN

    # ---- names
    def _name(self, call: Call, header: bytes, meta: str, *, trace: bool = False) -> str:
        """What the caller calls it; "" where he does not. Raises Failure 400."""
        told: str | None = None
        if isinstance(call, ToolCall) and call.meta is not None and (raw := call.meta.get(meta)) is not None:
            told = _text(raw)
        if told is None:
            value = call.request.headers.get(header)
            if value is not None:
                told = value.decode("latin-1")
            elif trace:
                return _trace(call.request.headers.get(b"traceparent"))
            else:
                return ""
        if _NAME.fullmatch(told) is None:
            raise _invalid("the name of a run has 1 to 128 visible ASCII characters")
        return told

    def _owner(self, call: Call) -> str:
        principal = call.principal
        if principal is None:
            return "anonymous"
        if self._spec.of == "user" and principal.user:
            return f"user:{principal.org.replace(':', '%3A')}:{principal.user}"
        if self._spec.of == "org" and principal.org:
            return f"org:{principal.org}"
        return principal.id


def _counts(call: Call) -> bool:
    return isinstance(call, ModelCall) or (isinstance(call, ToolCall) and call.method == "tools/call")


def _trace(value: bytes | None) -> str:
    """The trace id of a traceparent, which may be anything."""
    found = _TRACEPARENT.fullmatch(value) if value is not None else None
    return found[1].decode() if found is not None and found[1] != _NO_TRACE else ""


def _text(raw: msgspec.Raw) -> str:
    try:
        told = msgspec.json.decode(raw)
    except UNREADABLE:
        told = None
    return told if isinstance(told, str) else ""


def _invalid(message: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, message, code="invalid_run")


def _never(_: str) -> bool:
    return False


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    spec: RunsSpec = layers[-1].spec
    stopped = _never if parts.revocations is None else parts.revocations.stopped
    values = None if parts.state is None else parts.state.values
    walls: Walls | None = None
    if spec.wall is not None and (end := parts.end_run) is not None:
        walls = parts.shared(("run walls",), lambda: Walls(parts.clock, end, timed_out), Walls.close)
    return parts.shared(
        ("runs", spec.fingerprint()), lambda: Runs(spec, stopped, values, walls=walls, history=parts.run_began)
    ).handle


RUNS: Kind[Call, Reply] = Kind(
    "runs", frozenset(("top",)), adds=False, build=_build, entrances=frozenset(("llm", "mcp"))
)
