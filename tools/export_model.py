#!/usr/bin/env python
"""`topodet export`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
