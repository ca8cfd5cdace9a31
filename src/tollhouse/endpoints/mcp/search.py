"""Many tools: what an endpoint shows in the place of a long list, and answers itself.

Rule: nothing here can do more than the caller could by itself. What is found is what the list would show this caller;
`call_tool` becomes the call that it names before anything judges it, and goes the way of every other call. What is
shown does not change while the servers stay the same, so that a prompt that begins with it stays in its cache.
"""

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, Literal

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.core.http import Request
from tollhouse.endpoints.mcp.lists import Lists
from tollhouse.endpoints.mcp.request import Asking
from tollhouse.endpoints.mcp.server import Server
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import KINDS, Entry, Listing
from tollhouse.wire.mcp.names import exposed
from tollhouse.wire.mcp.search import Found, Indexes, fuse, nearest, rank

__all__ = ["CALL", "FIND", "RUN", "Embed", "Many", "Search", "Vectors", "text_result"]

log = logging.getLogger("tollhouse.endpoints.mcp")

FIND, CALL, RUN = "find_tools", "call_tool", "run_program"

_TOOLS = KINDS["tools/list"]
_USUAL, _MOST = 5, 20
_CANDIDATES = 40  # of each order that is fused
_LONGEST_ANSWER = 64 << 10  # bytes of schemas in one answer
_MOST_NAMES = 300
_LISTED = 40  # servers named in a description
_BYTES_A_TOKEN = 4  # of JSON, about
_SHOWN = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")

_BATCH = 64
_VECTORS = 20_000
_PATIENCE = 2.0  # seconds that a search waits for its own vector
_AGAIN = 30.0  # seconds until vectors are asked for again after that failed

Embed = Callable[[Request, Sequence[str]], Awaitable[list[list[float]]]]
"""Vectors of texts, asked for on behalf of the caller of a request. Raises Failure."""

Parts = Sequence[tuple[Server, Listing]]


class Search(msgspec.Struct, frozen=True):
    """When the list is replaced. tools, tokens: `auto` does above so many of either; None: whatever there is."""

    mode: Literal["auto", "on", "off"] = "off"
    tools: int | None = None
    tokens: int | None = None


class Many:
    """Of one endpoint. programs: it answers `run_program` too. wrap: names carry their server. vectors: None searches
    by words alone."""

    __slots__ = ("_indexes", "_lists", "_programs", "_search", "_vectors", "_wrap", "names")

    def __init__(
        self,
        lists: Lists,
        search: Search,
        *,
        programs: bool,
        wrap: bool,
        indexes: Indexes,
        vectors: "Vectors | None" = None,
    ) -> None:
        self._lists = lists
        self._search = search
        self._programs = programs
        self._wrap = wrap
        self._indexes = indexes
        self._vectors = vectors
        self.names = frozenset(
            ({FIND, CALL} if search.mode != "off" else {FIND}) | ({RUN} if programs else set())
        )  # what it may answer
        lists.own = self.shown

    # ---- what is shown
    def shown(self, parts: Parts, visible: Sequence[bytes]) -> tuple[bytes, bool]:
        """The tools of our own that this caller's list has, JSON without brackets; and whether the servers' follow."""
        whole = not self._replaces(parts, visible)
        tools = []
        if not whole:
            servers = [server.name for (server, _), seen in zip(parts, visible, strict=True) if any(seen)]
            tools.append(_find_tool(servers if self._wrap else []))
            if self._search.mode != "off":
                tools.append(_CALL_TOOL)
        if self._programs:
            tools.append(_RUN_TOOL)
        return b",".join(tools), whole

    def _replaces(self, parts: Parts, visible: Sequence[bytes]) -> bool:
        search = self._search
        if search.mode != "auto":
            return search.mode == "on" or self._programs
        if search.tools is not None and sum(map(sum, visible)) > search.tools:
            return True
        if search.tokens is None:
            return False
        size = 0
        for (_, listing), seen in zip(parts, visible, strict=True):
            size += sum(len(entry.raw) for entry, shown in zip(listing.entries, seen, strict=True) if shown)
        return size > search.tokens * _BYTES_A_TOKEN

    async def answers(self, name: str, asking: Asking) -> bool:
        """Whether a name of `names` is ours for this caller, or a server's tool that its list shows."""
        if self._wrap:
            return True  # servers' names have another form
        parts, visible, _ = await self._lists.usable(asking.request, asking.session, asking.lists)
        if self._replaces(parts, visible):
            return True
        return not any(name in listing.index for _, listing in parts)

    # ---- call_tool
    def unwrap(self, asking: Asking) -> None:
        """Make `call_tool` the call that it names. Raises Malformed."""
        given = jsonrpc.decode_fields(asking.fields.get("arguments", b"{}"))
        arguments = given.get("arguments", msgspec.Raw(b"{}"))
        if bytes(arguments)[:1] == b'"':  # models write an object as its text, now and then
            arguments = msgspec.Raw((jsonrpc.decode_string(arguments) or "").encode())
        jsonrpc.decode_fields(arguments)
        asking.fields["name"] = given.get("name", msgspec.Raw(b"null"))
        asking.fields["arguments"] = arguments

    # ---- find_tools
    async def find(self, asking: Asking) -> bytes:
        """The result of `find_tools`. Raises Failure."""
        given = _query(asking.fields.get("arguments", b"{}"))
        if given is None:
            wanted = f"give query: what the tool should do; and server (its name), limit (1 to {_MOST}) if you like"
            return text_result(wanted, failed=True)
        return text_result((await self.search(asking, given.query, given.server, given.limit)).decode())

    async def search(self, asking: Asking, query: str, server: str | None, limit: int) -> bytes:
        """JSON of what fits best, with whole schemas; of an empty query the names there are. Raises Failure."""
        parts, visible, unavailable = await self._lists.usable(asking.request, asking.session, asking.lists)
        if server:
            chosen = [n for n, (one, _) in enumerate(parts) if one.name == server]
            parts, visible = [parts[n] for n in chosen], [visible[n] for n in chosen]
        answer: dict[str, Any] = {}
        if unavailable:
            answer["unavailable_servers"] = unavailable
        if not query.strip():
            names = [self._name(one, entry) for one, entry in _entries(parts, visible)]
            answer["names"] = names[:_MOST_NAMES]
            if len(names) > _MOST_NAMES:
                answer["more"] = len(names) - _MOST_NAMES
            return msgspec.json.encode(answer)
        found = await self._rank(asking.request, query, parts, visible, min(max(limit, 1), _MOST))
        tools: list[Any] = []
        size = 0
        for at, number in found:
            one, listing = parts[at]
            entry = listing.entries[number]
            if not self._wrap and any(entry.name in earlier.index for _, earlier in parts[:at]):
                continue  # the name is that one's
            tool = self._tool(one, entry, new=asking.new)
            size += len(tool)
            if size > _LONGEST_ANSWER and tools:
                answer["more"] = len(found) - len(tools)
                break
            tools.append(msgspec.Raw(tool))
        answer["tools"] = tools
        if not tools:
            answer["hint"] = "nothing fits: use other words, or an empty query for the names there are"
        return msgspec.json.encode(answer)

    async def _rank(
        self, request: Request, query: str, parts: Parts, visible: Sequence[bytes], limit: int
    ) -> list[Found]:
        indexes = [self._indexes.of(server.name, listing) for server, listing in parts]
        by_words = rank(query, list(zip(indexes, visible, strict=True)), max(limit, _CANDIDATES))
        if self._vectors is None:
            return by_words[:limit]
        texts = {
            Found(at, number): text
            for at, (index, seen) in enumerate(zip(indexes, visible, strict=True))
            for number, (text, shown) in enumerate(zip(index.texts, seen, strict=True))
            if shown
        }
        by_sense = await self._vectors.nearest(request, query, texts, _CANDIDATES)
        return fuse(by_words, by_sense, limit)

    def _name(self, server: Server, entry: Entry) -> str:
        return exposed(server.name, entry.name) if self._wrap else entry.name

    def _tool(self, server: Server, entry: Entry, *, new: bool) -> bytes:
        form = entry if new or entry.old is None else entry.old
        fields = jsonrpc.decode_fields(form.exposed(_TOOLS, server.name) if self._wrap else form.raw)
        return jsonrpc.encode_fields({key: fields[key] for key in _SHOWN if key in fields})


def _entries(parts: Parts, visible: Sequence[bytes]) -> Iterator[tuple[Server, Entry]]:
    for (server, listing), seen in zip(parts, visible, strict=True):
        for entry, shown in zip(listing.entries, seen, strict=True):
            if shown:
                yield server, entry


class _Query(msgspec.Struct):
    query: str
    server: str | None = None
    limit: int = _USUAL


def _query(raw: msgspec.Raw | bytes) -> _Query | None:
    try:
        return msgspec.json.decode(raw, type=_Query, strict=False)
    except UNREADABLE:
        return None


def text_result(text: str, *, failed: bool = False) -> bytes:
    """A tool's result of one text."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}]}
    if failed:
        result["isError"] = True
    return msgspec.json.encode(result)


def _find_tool(servers: Sequence[str]) -> bytes:
    said = ""
    if servers:
        more = f" and {len(servers) - _LISTED} more" if len(servers) > _LISTED else ""
        said = f" Servers: {', '.join(servers[:_LISTED])}{more}."
    return msgspec.json.encode(
        {
            "name": FIND,
            "description": "Search the tools that can be called. Returns those that fit best, with their whole "
            f"input schemas; an empty query lists names.{said}",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what the tool should do, in a few words"},
                    "server": {"type": "string", "description": "only tools of this server"},
                    "limit": {"type": "integer", "minimum": 1, "maximum": _MOST, "default": _USUAL},
                },
                "required": ["query"],
            },
            "annotations": {"readOnlyHint": True},
        }
    )


_CALL_TOOL = msgspec.json.encode(
    {
        "name": CALL,
        "description": f"Call a tool that {FIND} has found.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": f"as {FIND} gives it"},
                "arguments": {"type": "object", "description": "as the tool's inputSchema has them"},
            },
            "required": ["name"],
        },
    }
)
_RUN_TOOL = msgspec.json.encode(
    {
        "name": RUN,
        "description": "Run a short Python program that calls tools. Only what it prints comes back: print the answer, "
        "not the data. call_tool(name, {arguments}) gives the result (decoded where it is JSON, else text) and "
        "raises RuntimeError when the tool fails; call_tools([(name, {arguments}), ...]) makes calls at the same time "
        "and gives [{'value': ...} or {'error': ...}]; find_tools(query, server=None, limit=5) gives {'tools': [...]} "
        "with schemas. There are json, re, math and datetime, and no files, no network, no other modules.",
        "inputSchema": {
            "type": "object",
            "properties": {"code": {"type": "string"}},
            "required": ["code"],
        },
    }
)


class Vectors:
    """What tools mean, as a model of ours has it: asked for once for each text, in the background, and kept. A search
    is never refused or long delayed for want of them: then it goes by words alone."""

    __slots__ = ("_embed", "_known", "_not_before", "_task")

    def __init__(self) -> None:
        self._embed: Embed | None = None
        self._known: dict[str, array[float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0

    def use(self, embed: Embed) -> None:
        """Who makes them from now on."""
        self._embed = embed

    async def nearest(self, request: Request, query: str, texts: Mapping[Found, str], limit: int) -> list[Found]:
        """texts: of the tools that may be found. [] while there are no vectors."""
        embed, loop = self._embed, asyncio.get_running_loop()
        if embed is None or loop.time() < self._not_before:
            return []
        missing = list(dict.fromkeys(text for text in texts.values() if text not in self._known))
        if missing and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._learn(embed, request, missing[:_VECTORS]), name="tool vectors")
        known = [(key, self._known[text]) for key, text in texts.items() if text in self._known]
        if not known:
            return []
        try:
            async with asyncio.timeout(_PATIENCE):
                wanted = _unit((await embed(request, [query]))[0])
        except (TimeoutError, Failure) as problem:
            self._failed(problem)
            return []
        return await asyncio.to_thread(nearest, wanted, known, limit)

    async def _learn(self, embed: Embed, request: Request, texts: Sequence[str]) -> None:
        try:
            for at in range(0, len(texts), _BATCH):
                part = texts[at : at + _BATCH]
                for text, vector in zip(part, await embed(request, part), strict=True):
                    while len(self._known) >= _VECTORS:
                        del self._known[next(iter(self._known))]
                    self._known[text] = _unit(vector)
        except Failure as problem:
            self._failed(problem)
        except Exception:  # the root of a task that nobody waits for
            log.exception("mcp: vectors of tools")

    def _failed(self, problem: Exception) -> None:
        if isinstance(problem, Failure) and problem.status in (401, 402, 403, 429):
            return  # about that caller alone
        self._not_before = asyncio.get_running_loop().time() + _AGAIN
        why = str(problem) or "too late"
        log.warning("mcp: tools are searched by words alone for %g s: no vectors: %s", _AGAIN, why)

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


def _unit(vector: Sequence[float]) -> "array[float]":
    """Of length 1."""
    length = sqrt(sum(value * value for value in vector)) or 1.0
    return array("f", [value / length for value in vector])
