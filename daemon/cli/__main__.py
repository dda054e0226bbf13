"""`python -m daemon.cli`: the same as `mfmd`, for children that must run under this very interpreter."""

import sys

from daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
