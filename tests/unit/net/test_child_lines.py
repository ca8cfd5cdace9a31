"""A child's standard output: its own lines, and nobody else's."""

import subprocess
import sys

_CHILD = """
import os
from tollhouse.net.child_lines import only_ours, say
answers = only_ours()
print("printed", flush=True)
os.write(1, b"native\\n")
say(answers, a=1, b="x")
say(answers, last=True)
"""


def test_what_else_is_printed_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, check=True)
    assert done.stdout == b'{"a": 1, "b": "x"}\n{"last": true}\n'
    assert done.stderr == b"printed\nnative\n"
