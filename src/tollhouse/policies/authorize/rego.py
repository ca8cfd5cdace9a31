"""Policies in Rego, decided in this process by rego-cpp (the package `regopy`, extra `rego`).

Rule: it is compiled once, and whatever does not end in a clear yes is a no. The engine takes texts as they stand inside
JSON's quotes: they are escaped here, or a caller's quote or NUL would end them early and make one name of another.

A decision is a few dozen microseconds and is made where it is asked for. A policy that takes long can have a thread of
its own (`in_thread`); the engine works for one caller at a time.
"""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import Future
from ctypes import create_string_buffer
from importlib.util import find_spec
from json.encoder import encode_basestring as quoted
from math import isfinite
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Any

import msgspec

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.authorize.document import reads
from tollhouse.policies.authorize.spec import RegoSpec

__all__ = ["BadPolicy", "Decision", "InThread", "Rego", "compiled", "said", "unavailable"]

log = logging.getLogger("tollhouse.policies.authorize")

_SLOW = 0.02  # seconds of a decision, during which nothing else is served
_QUIET = 60.0
_LONGEST = 10.0  # seconds that a call waits for a decision in a thread
_LONGEST_REASON = 200
_INT = 1 << 63
_LARGEST = 4 << 20  # bytes of an answer
_OK = 0
_PACKAGE = re.compile(r"^\s*package\s+([A-Za-z_][\w.]*)", re.MULTILINE)


class BadPolicy(Exception):
    """A policy that cannot be used. where: the file, "" for none; why: what is wrong."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}" if where else why)


class _Broken(ValueError):
    """The policy fails whatever it is asked."""


class Decision(msgspec.Struct):
    """What a policy may answer in place of true or false. reason: why not."""

    allow: bool = False
    reason: str = ""


class _Answer(msgspec.Struct):
    expressions: list[bool | Decision] = []


_answer = msgspec.json.Decoder(_Answer)

_Decided = Future[bool | Decision | None]
_Question = tuple[Mapping[str, Any], _Decided]


def said(value: bool | Decision | None, what: str) -> str:
    """Why a policy's answer refuses, "" where it is a yes. what: was asked."""
    if value is True:
        return ""
    if isinstance(value, Decision):
        if value.allow:
            return ""
        return f"{what}: {value.reason[:_LONGEST_REASON]}" if value.reason else what
    return what if value is False else f"{what} (undefined)"


class Rego:
    """A compiled policy: an Engine (`rules`). modules: its text by file; documents: JSON of `data` by file. Raises
    BadPolicy."""

    def __init__(
        self, modules: Mapping[str, str], documents: Mapping[str, str], query: str, *, shadow: bool = False
    ) -> None:
        # RE2's own library must be there before regopy's, which has one of its own inside: loaded behind it, its first
        # longer pattern aborts the process.
        if find_spec("re2") is not None:
            import re2  # noqa: PLC0415, F401 - the extra `guard`
        import regopy  # type: ignore[import-untyped]  # noqa: PLC0415 - the extra `rego`
        from regopy import rego_shared  # noqa: PLC0415

        self.name = "rego"
        self.shadow = shadow
        self.query = query
        self.reads = reads(list(modules.values()))
        self.names_only = self.reads.names_only
        self._lib = rego_shared.rego
        self._lock = Lock()
        self._told = -_QUIET
        self._engine = regopy.Interpreter()
        self._engine.log_level = regopy.LogLevel.NONE
        entry = query.removeprefix("data.").replace(".", "/")
        _must_exist(modules, query)
        for name, source in modules.items():
            try:
                self._engine.add_module(name, source)
            except regopy.RegoError as error:
                raise BadPolicy(name, _first(str(error))) from None
        for name, text in documents.items():
            try:
                self._engine.add_data_json(json.dumps(_object(name, text), ensure_ascii=False))
            except regopy.RegoError as error:
                raise BadPolicy(name, _first(str(error))) from None
        try:
            self._bundle = self._engine.build(None, [entry])
        except regopy.RegoError as error:
            raise BadPolicy("", _first(str(error))) from None
        if not rego_shared.rego_bundle_ok(self._bundle._impl):
            raise BadPolicy("", "it cannot be compiled")
        self._entry = entry.encode()
        try:  # some of what is wrong shows only then
            self.decide({})
        except _Broken as error:
            raise BadPolicy("", str(error)) from None
        except ValueError:
            pass  # nothing was said of anybody

    def refusal(self, call: Call, listing: bool = False) -> str:
        """`Engine.refusal`."""
        if listing and not self.reads.lists:
            return ""  # it depends on more than a list knows: decided when it is called
        began = monotonic()
        try:
            return said(self.decide(self.reads.document(call, listing=listing)), self.query)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            log.warning("rego: %s cannot be decided, which refuses the call: %s", self.query, error)
            return f"{self.query} (in doubt)"
        finally:
            took = monotonic() - began
            if took > _SLOW and began - self._told > _QUIET:
                self._told = began
                hint = "`in_thread: true` lets others go on"
                log.warning("rego: a decision of %s took %.0f ms: %s", self.query, took * 1e3, hint)

    def decide(self, document: Mapping[str, Any]) -> bool | Decision | None:
        """What the policy says of an input, None for nothing. Raises ValueError where it fails, or says something else;
        TypeError for an input that is no JSON."""
        lib = self._lib
        with self._lock:
            value = lib.regoNewInput()
            try:
                _add(lib, value, document)
                if lib.regoSetInput(self._engine._impl, value) != _OK:
                    raise ValueError("the input was not taken")
            finally:
                lib.regoFreeInput(value)
            output = lib.regoBundleQueryEntrypoint(self._engine._impl, self._bundle._impl, self._entry)
            if not output:
                raise ValueError("the policy failed")
            try:
                return self._read(output)
            finally:
                lib.regoFreeOutput(output)

    def _read(self, output: Any) -> bool | Decision | None:
        lib = self._lib
        if not lib.regoOutputOk(output):
            raise ValueError("the policy failed: do two of its rules contradict each other?")
        size = lib.regoOutputJSONSize(output)
        if size > _LARGEST:
            raise ValueError("the answer is too large")
        text = create_string_buffer(size)
        if lib.regoOutputJSON(output, text, size) != _OK:
            raise ValueError("the answer cannot be read")
        if text.value == b"undefined":
            return None
        if text.value.startswith(b"(error"):  # a tree, as those of the compiler
            raise _Broken(_first(text.value.decode("utf-8", "replace")))
        try:
            found = _answer.decode(text.value).expressions
        except msgspec.DecodeError:
            raise ValueError("the answer is neither true or false nor {allow, reason}") from None
        if len(found) != 1:
            raise ValueError("the answer is not one value")
        return found[0]


def _add(lib: Any, input: Any, value: Any) -> None:
    """Push `value` on the stack of the engine's input. Raises ValueError and TypeError."""
    kind = type(value)
    if kind is str:
        done = lib.regoInputString(input, quoted(value)[1:-1].encode())
    elif kind is bool:
        done = lib.regoInputBoolean(input, value)
    elif kind is int:
        if not -_INT <= value < _INT:
            raise ValueError("a number has more than 64 bits")
        done = lib.regoInputInt(input, value)
    elif kind is float:
        if not isfinite(value):
            raise ValueError("a number is not finite")
        done = lib.regoInputFloat(input, value)
    elif value is None:
        done = lib.regoInputNull(input)
    elif kind is dict:
        for name, member in value.items():
            if type(name) is not str:
                raise TypeError("a key is no text")
            _add(lib, input, name)
            _add(lib, input, member)
            if lib.regoInputObjectItem(input) != _OK:
                raise ValueError("the input was not taken")
        done = lib.regoInputObject(input, len(value))
    elif kind is list or kind is tuple:
        for member in value:
            _add(lib, input, member)
        done = lib.regoInputArray(input, len(value))
    else:
        raise TypeError(f"a {kind.__name__} is no JSON")
    if done != _OK:
        raise ValueError("the input was not taken")


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadPolicy(name, "not JSON") from None
    if not isinstance(value, dict):
        raise BadPolicy(name, "not a JSON object, whose members become those of `data`")
    return value


def _must_exist(modules: Mapping[str, str], query: str) -> None:
    """A query that is misspelt would be undefined, and refuse everything."""
    package, _, rule = query.removeprefix("data.").rpartition(".")
    mine = [text for text in modules.values() if package in _PACKAGE.findall(text)]
    if not mine:
        have = sorted({name for text in modules.values() for name in _PACKAGE.findall(text)})
        raise BadPolicy("", f"no file has `package {package}`; there are: {', '.join(have) or 'none'}")
    if not any(re.search(rf"^\s*(?:default\s+)?{re.escape(rule)}\b", text, re.MULTILINE) for text in mine):
        raise BadPolicy("", f"`package {package}` has no rule `{rule}`")


_MESSAGE = re.compile(r"\(errormsg \d+:(.*?)\)\n?", re.DOTALL)
_WHERE = re.compile(r"\(error(?:msg)? \d+:[^|()]*\|(\d+)\|")


def _first(text: str) -> str:
    """The cause in the engine's account of an error, which is a tree."""
    found = _MESSAGE.search(text)
    return found[1].strip()[:300] if found else "not a policy that Rego understands"


class InThread:
    """A policy that is asked in a thread of its own: for calls. Lists ask it where they are made.

    lists: the same once more, for lists, so that they do not wait until the thread is done with `rego`. longest:
    seconds that a call waits for its decision. A decision that takes longer than that cannot be ended, and until it
    ends by itself every call is refused at once, so that nothing piles up behind it.
    """

    def __init__(self, rego: Rego, lists: Rego | None = None, longest: float = _LONGEST) -> None:
        self.name = rego.name
        self.shadow = rego.shadow
        self.rego = rego
        self.lists = lists if lists is not None else rego
        self._longest = longest
        self._asked: SimpleQueue[_Question | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._now: _Decided | None = None
        self._endless: _Decided | None = None

    async def refusal(self, call: Call) -> str:
        """As that of `Rego`. The document is made here: a call belongs to the loop. Raises Failure 503."""
        rego = self.rego
        try:
            document = rego.reads.document(call)
            if self._endless is None or self._endless.done():
                decided = self._ask(document)
                try:
                    if (await asyncio.wait((decided,), timeout=self._longest))[0]:
                        return said(decided.result(), rego.query)
                    self._endless = self._now
                finally:
                    decided.cancel()
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            log.warning("rego: %s cannot be decided, which refuses the call: %s", rego.query, error)
            return f"{rego.query} (in doubt)"
        if self.shadow:
            return f"{rego.query} (not decided)"
        raise unavailable(f"{rego.query} (not decided)", f"rego: no decision within {self._longest:g} seconds", call)

    def _ask(self, document: Mapping[str, Any]) -> "asyncio.Future[bool | Decision | None]":
        if self._thread is None:
            # At the end nobody waits for it: its decision may have none.
            self._thread = Thread(target=self._decide, name="rego", daemon=True)
            self._thread.start()
        decided = _Decided()
        self._asked.put((document, decided))
        return asyncio.wrap_future(decided)

    def _decide(self) -> None:
        """The thread."""
        while (question := self._asked.get()) is not None:
            document, decided = question
            if not decided.set_running_or_notify_cancel():
                continue  # who asked has left
            self._now = decided
            try:
                decided.set_result(self.rego.decide(document))
            except Exception as error:  # noqa: BLE001 - the thread's root: it is raised to who asked
                decided.set_exception(error)
            self._now = None

    async def close(self) -> None:
        self._asked.put(None)


def unavailable(rule: str, detail: str, call: Call) -> Failure:
    """Nobody can say whether the call is permitted, and so it is not. rule: whose answer is missing."""
    call.context.rule, call.context.decision = rule, "deny"
    return Failure(
        503,
        Reason.AUTHORIZATION,
        "whether this is permitted cannot be decided at the moment; try again in a second",
        code="authorization_unavailable",
        detail=detail,
        retry_after=1.0,
    )


def compiled(spec: RegoSpec, *, shadow: bool = False) -> Rego:
    """The policy that the configuration names. Raises BadPolicy."""
    return Rego(spec.modules, spec.documents, spec.query, shadow=shadow or spec.shadow)
