"""`run_program`: a program of the agent's, and every call it makes.

Rule: the program is nobody new. Each of its calls is a ToolCall of the caller that sent it, with a Context of its own,
through the called server's whole chain: the same rules, limits and records as if the agent had called the tool itself.
The agent that cancels, or leaves, ends the program and what it waits for.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.endpoints.mcp.call import begin, interrupted
from tollhouse.endpoints.mcp.carried import over
from tollhouse.endpoints.mcp.lists import Lists
from tollhouse.endpoints.mcp.request import Asking, Refused
from tollhouse.endpoints.mcp.search import FIND, Many, text_result
from tollhouse.endpoints.mcp.subscriptions import caller_of
from tollhouse.endpoints.mcp.tool import call_of, carried_out
from tollhouse.net.program import Limits, Programs
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import KINDS, LONGEST
from tollhouse.wire.mcp.messages import is_tool_error

__all__ = ["Code"]

_TOOLS = KINDS["tools/list"]
_LONGEST_CODE = 64_000
_AT_ONCE = 8
_LARGEST = 1 << 20  # bytes of one result: many together must not fill the gateway


class _Wanted(msgspec.Struct):
    code: str


class _Content(msgspec.Struct):
    type: str = ""
    text: str | None = None
    kind: str | None = msgspec.field(default=None, name="mimeType")
    uri: str | None = None


class _Result(msgspec.Struct):
    content: list[_Content] = []
    structured: msgspec.Raw = msgspec.field(default=jsonrpc.NONE, name="structuredContent")
    type: str = msgspec.field(default="complete", name="resultType")


class Code:
    """Runs the programs of one endpoint. many: of the same."""

    __slots__ = ("_limits", "_lists", "_many", "_programs")

    def __init__(self, programs: Programs, limits: Limits, lists: Lists, many: Many) -> None:
        self._programs = programs
        self._limits = limits
        self._lists = lists
        self._many = many

    async def run(self, asking: Asking) -> bytes:
        """The result of `run_program`. Raises Failure."""
        try:
            code = msgspec.json.decode(asking.fields.get("arguments", b"{}"), type=_Wanted).code
        except UNREADABLE:
            return text_result("give code: the text of a Python program", failed=True)
        if len(code) > _LONGEST_CODE:
            return text_result(f"the program has {len(code)} characters: at most {_LONGEST_CODE}", failed=True)
        in_flight = begin(asking)
        try:
            run = _Run(self, asking, self._limits.calls)
            context = asking.request.context
            caller = caller_of(context.principal, context.client or asking.request.peer)
            outcome = await self._programs.run(code, self._limits, run.answer, caller)
        except asyncio.CancelledError:
            if not interrupted(asking, in_flight):
                raise
            raise Failure(499, Reason.CLIENT_GONE, "the request was cancelled") from None
        finally:
            over(asking, in_flight)
        said = outcome.output
        if outcome.cut:
            said += f"\n[cut: a program may print {self._limits.output} characters]"
        if outcome.error:
            said = f"{said}\n{outcome.error}" if said else outcome.error
        return text_result(said, failed=bool(outcome.error))

    async def find(self, asking: Asking, query: str, server: str | None, limit: int) -> bytes:
        return await self._many.search(asking, query, server, limit)

    async def call(self, asking: Asking, name: str, arguments: msgspec.Raw) -> bytes:
        """What the program gets: JSON of {"value": ...} or {"error": text}."""
        try:
            told = await self._call(asking, name, arguments)
            if len(told) <= _LARGEST:
                return told
            return _error(f"the result of {name} has {len(told)} bytes: a program gets at most {_LARGEST}")
        except Failure as failure:
            return _error(failure.message)
        except Refused as refused:
            return _error(refused.message)
        except jsonrpc.Malformed as problem:
            return _error(problem.message)

    async def _call(self, asking: Asking, name: str, arguments: msgspec.Raw) -> bytes:
        request, session = asking.request, asking.session
        context = msgspec.structs.replace(
            request.context,
            arguments=None,
            upstream_began=0.0,
            upstream_ended=0.0,
            first_event=0.0,
            attempts=0,
            mcp_outcome="",
            error="",
            rule="",
            decision="",
            approver="",
            shadow="",
        )
        found = await self._lists.owner(_TOOLS, name, session, context, asking.lists)
        if found is None:
            return _error(f"Unknown tool: {name}; {FIND} knows which there are")
        server, original, ours = found
        profile = asking.lists
        call, _ = call_of(server, original, arguments, request, context, session=session, profile=profile, ours=ours)
        message = await carried_out(server, call)
        if len(message.error):
            return _error(jsonrpc.error_fields(message.error).message)
        return _told(message.result)


class _Run:
    """One program's questions."""

    __slots__ = ("_asking", "_code", "_left")

    def __init__(self, code: Code, asking: Asking, calls: int) -> None:
        self._code = code
        self._asking = asking
        self._left = calls

    async def answer(self, what: str, arguments: bytes) -> bytes:
        """`net.program.Host`."""
        try:
            if what == "find":
                query, server, limit = msgspec.json.decode(arguments, type=tuple[str, str | None, int])
                self._spend(1)
                return await self._code.find(self._asking, query, server, limit)
            calls = msgspec.json.decode(arguments, type=list[tuple[str, msgspec.Raw]])
        except UNREADABLE:
            raise ValueError("a call is a name and an object of arguments") from None
        except Failure as failure:
            raise ValueError(failure.message) from None
        self._spend(len(calls))
        for name, given in calls:
            if len(name) > LONGEST[_TOOLS.key] or bytes(given)[:1] != b"{":
                raise ValueError("a call is a name and an object of arguments")
        return b"[%b]" % b",".join(await self._all(calls))

    def _spend(self, calls: int) -> None:
        self._left -= calls
        if self._left < 0:
            raise ValueError("the program may make no more calls")

    async def _all(self, calls: Sequence[tuple[str, msgspec.Raw]]) -> list[bytes]:
        if len(calls) == 1:
            return [await self._code.call(self._asking, *calls[0])]
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str, arguments: msgspec.Raw) -> bytes:
            async with turns:
                return await self._code.call(self._asking, name, arguments)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*call)) for call in calls]
        return [task.result() for task in tasks]


def _error(text: str) -> bytes:
    return b'{"error":%b}' % msgspec.json.encode(text)


def _told(raw: msgspec.Raw) -> bytes:
    """A tool's result as the program has it: its structured content; else its text, decoded where that is JSON."""
    try:
        result = msgspec.json.decode(raw, type=_Result)
    except (msgspec.DecodeError, RecursionError):
        return _error("the server's result cannot be read")
    if result.type != "complete":
        return _error("the tool asks for input or goes on by itself: call it without a program")
    text = "\n".join(_as_text(one) for one in result.content)
    if is_tool_error(raw):
        return _error(text or "the tool failed")
    if len(result.structured) and bytes(result.structured) != b"null":
        return b'{"value":%b}' % bytes(result.structured)
    if text[:1] in ("{", "["):
        try:
            msgspec.json.decode(text)
            return b'{"value":%b}' % text.encode()
        except (msgspec.DecodeError, RecursionError):
            pass
    return b'{"value":%b}' % msgspec.json.encode(text)


def _as_text(one: _Content) -> str:
    if one.text is not None:
        return one.text
    about = " ".join(filter(None, (one.type, one.kind, one.uri)))
    return f"[{about}: programs get text only]"
