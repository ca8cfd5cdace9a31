"""`python -m tollhouse.cli`."""

import sys

from tollhouse.cli import main

if __name__ == "__main__":
    sys.exit(main())
