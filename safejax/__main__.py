"""`python -m safejax` is the command `safejax`."""

import sys

from safejax._src.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
