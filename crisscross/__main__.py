"""`python -m crisscross` is the `crisscross` command."""

import sys

from crisscross.cli import main

if __name__ == "__main__":
    sys.exit(main())
