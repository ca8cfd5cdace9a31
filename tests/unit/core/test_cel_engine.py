"""core.cel_engine: the engine is there, and the shell of its package is not."""

import subprocess
import sys

from tollhouse.core.cel_engine import cel

_SHELL = ("cel.cli", "typer", "rich", "prompt_toolkit")


def test_it_computes() -> None:
    assert cel.compile("n + 1 == 3").execute({"n": 2}) is True


def test_a_worker_holds_nothing_of_the_shell() -> None:
    program = f"import sys, tollhouse.cli; print([name for name in {_SHELL} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


def test_the_package_may_be_imported_as_well_before_and_after() -> None:
    after = "from tollhouse.core.cel_engine import cel as engine; import cel"
    before = "import cel; from tollhouse.core.cel_engine import cel as engine"
    for program in (after, before):
        program += "; assert cel.compile is engine.compile"
        subprocess.run([sys.executable, "-c", program], check=True)
