"""`python -m minisd` is the command line."""

import sys

from minisd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
