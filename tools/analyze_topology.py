#!/usr/bin/env python
"""`topodet analyze`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
