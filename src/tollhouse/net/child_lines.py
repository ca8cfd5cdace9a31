"""What a child of the gateway's own says to it: JSON lines on standard output.

Rule: standard output is for these lines alone; what anything else in the child prints goes to standard error. Standard
library alone, for children that import little.
"""

import json
import os
from typing import Any, TextIO

__all__ = ["only_ours", "say"]


def only_ours() -> TextIO:
    """Standard output as it was. From here on what is printed, by native libraries too, goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def say(answers: TextIO, **fields: Any) -> None:
    """One line, at once."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()
