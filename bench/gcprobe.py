"""The gateway in a process whose garbage collector is off, and that says on demand what a collection would find.

    python gcprobe.py CONFIG CONTROL REPORT

CONTROL and REPORT are named pipes: for each line that comes through the first, one collection is made and the number of
objects it found goes out through the second. What it finds was kept alive by a reference cycle alone.
"""

import gc
import sys
import threading
from pathlib import Path

from tollhouse.cli import main


def answer(control: Path, report: Path) -> None:
    with control.open() as asked, report.open("w") as answers:
        for _ in asked:
            gc.set_debug(gc.DEBUG_SAVEALL)
            found = gc.collect()
            kinds = sorted({type(thing).__qualname__ for thing in gc.garbage})
            gc.garbage.clear()
            gc.set_debug(0)
            gc.collect()  # what was kept to be looked at goes now
            answers.write(f"{found} {', '.join(kinds)}\n")
            answers.flush()


if __name__ == "__main__":
    gc.disable()
    threading.Thread(target=answer, args=(Path(sys.argv[2]), Path(sys.argv[3])), daemon=True).start()
    sys.exit(main(["serve", sys.argv[1], "--log-level", "warning"]))
