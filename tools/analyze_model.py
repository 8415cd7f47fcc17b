#!/usr/bin/env python
"""`topodet analyze-model`, from a clone."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["analyze-model", *sys.argv[1:]]))
