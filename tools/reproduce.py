#!/usr/bin/env python
"""`topodet reproduce`, without installing topodet."""

import sys

from topodet.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
