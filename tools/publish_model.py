#!/usr/bin/env python
"""`topodet publish`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
