#!/usr/bin/env python
"""`topodet train-net`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-net", *sys.argv[1:]]))
