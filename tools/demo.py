#!/usr/bin/env python
"""`topodet demo`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
