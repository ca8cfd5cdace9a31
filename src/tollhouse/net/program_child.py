"""The process of one program: `python -m tollhouse.net.program_child`, spawned by `net.program`.

Rule: it is given away. It reads one JSON line, raises the wall around itself, runs the program in an interpreter of
its own in a child of its own, and writes JSON lines: what the program asks for, and last what came of it. Whatever
the program does to the interpreter, or to this process, the gateway sees no more than lines that end.
"""

import json
import os
import sys
from typing import Any, TextIO

from tollhouse.net.child_lines import only_ours, say
from tollhouse.net.wall import raise_wall

__all__ = ["main"]

_ROOM = 768 << 20  # address space that interpreter and libraries take before the program has any
_GRACE = 0.5  # seconds that an operation which cannot be interrupted may go on after its time
_LONGEST_ERROR = 4000
_LOOKUPS = 200  # names that are not there and modules, on top of calls
_PRELUDE = """
import json as _json

def _ask(what, arguments):
    return _json.loads(_host(what, _json.dumps(arguments)))

def call_tool(*given, **more):
    if not given:
        given = (more.pop('name'), more.pop('arguments', {}))
    arguments = dict(given[1] or {}) if len(given) > 1 else {}
    arguments.update(more)
    told = _ask('call', [[given[0], arguments]])[0]
    if 'error' in told:
        raise RuntimeError(told['error'])
    return told['value']

def call_tools(calls):
    return _ask('call', [[call[0], call[1] if len(call) > 1 else {}] for call in calls])

def find_tools(query, server=None, limit=5):
    return _ask('find', [query, server, limit])

None
"""


def main() -> int:
    answers = only_ours()
    try:
        wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    except ValueError:
        return 2
    try:
        import pydantic_monty  # noqa: PLC0415  (the extra `code`)
        from pydantic_monty._binary import find_monty_binary  # noqa: PLC0415
    except ImportError as error:
        say(answers, fault=f"pydantic-monty cannot be loaded: {error}")
        return 3
    try:
        binary = os.path.realpath(find_monty_binary())
        cpu = wanted["cpu"]
        stands = raise_wall([binary], memory=_ROOM + 4 * wanted["memory"], cpu=int(cpu) + 5)
    except OSError as error:
        say(answers, fault=f"the sandbox cannot be closed: {error}")
        return 4
    say(answers, files=stands.files)
    limits = pydantic_monty.ResourceLimits(
        max_feed_duration_secs=cpu,
        max_memory=wanted["memory"],
        max_recursion_depth=200,
        max_suspensions=wanted["calls"] + _LOOKUPS,
    )
    printed = _Printed(wanted["output"])
    ended = ""
    try:
        with (
            pydantic_monty.Monty(
                binary_path=binary, min_processes=1, max_processes=1, feed_duration_limit_grace=_GRACE
            ) as pool,
            pool.checkout(limits=limits, os_policy={"sleep": "zero"}, script_name="program.py") as session,
        ):
            session.feed_run(_PRELUDE)
            # The value of a last expression is not wanted: what is printed is what comes back.
            step: Any = session.feed_start(wanted["code"] + "\nNone", print_callback=printed)
            while not isinstance(step, pydantic_monty.MontyComplete):
                step = _step(step, pydantic_monty, answers)
    except pydantic_monty.MontyCrashedError as crash:
        ended = "TimeoutError: the program was ended" if crash.timed_out else "the interpreter crashed"
    except pydantic_monty.MontyError as problem:
        ended = _shown(problem)
    except RecursionError:
        ended = "RecursionError: a value is nested too deeply"
    say(answers, output="".join(printed.parts), cut=printed.cut, error=_shortened(ended))
    # The pool's threads have nothing to finish.
    os._exit(0)


def _step(step: Any, monty: Any, answers: TextIO) -> Any:
    """What the program waits for, answered."""
    if isinstance(step, monty.NameLookupSnapshot):
        if step.object_id is None and step.variable_name == "_host":
            return step.resume(value=_host)
        return step.resume()
    if isinstance(step, monty.FutureSnapshot):
        return step.resume({})
    if step.is_os_function:
        return step.resume_not_handled()
    arguments = step.args
    if step.function_name != "_host" or len(arguments) != 2 or not all(isinstance(one, str) for one in arguments):
        return step.resume({"exception": NameError(f"there is no function {str(step.function_name)[:100]!r}")})
    say(answers, ask=arguments[0], arguments=arguments[1])
    line = sys.stdin.readline()
    if not line:
        os._exit(0)  # the gateway is gone
    told = json.loads(line)
    if "error" in told:
        return step.resume({"exception": RuntimeError(told["error"])})
    return step.resume({"return_value": told["value"]})


class _Printed:
    """What the program prints, up to so many characters. cut: there was more."""

    __slots__ = ("_room", "cut", "parts")

    def __init__(self, room: int) -> None:
        self._room = room
        self.parts: list[str] = []
        self.cut = False

    def __call__(self, _: str, text: str) -> None:
        if len(text) > self._room:
            self.cut = True
            text = text[: self._room]
        self._room -= len(text)
        if text:
            self.parts.append(text)


def _host() -> None:
    """Stands for what the program calls; it is never called here."""


def _shown(problem: Any) -> str:
    """The program's own error, with the lines of the program it went through."""
    display = getattr(problem, "display", None)
    return str(display() if display is not None else problem)


def _shortened(text: str) -> str:
    """Its beginning and its end: what is wrong stands last."""
    half = _LONGEST_ERROR // 2
    return text if len(text) <= _LONGEST_ERROR else f"{text[: half - 5]}\n...\n{text[-half:]}"


if __name__ == "__main__":
    sys.exit(main())
