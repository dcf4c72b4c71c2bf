"""`python -m lit_guide` is the `lit-guide` command."""

import sys

from lit_guide.cli import main

if __name__ == "__main__":
    sys.exit(main())
