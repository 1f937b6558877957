"""`python -m router`: run the router of this node until SIGTERM."""

from __future__ import annotations

import os
import sys

from router.driver import main

if __name__ == "__main__":
    sys.exit(main(os.environ))
