"""``python -m edge_sdk.cli``: the same as ``edge-sdk``."""

import sys

from edge_sdk.cli import main

if __name__ == "__main__":
    sys.exit(main())
