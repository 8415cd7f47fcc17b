#!/usr/bin/env python
"""`topodet damage`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["damage", *sys.argv[1:]]))
