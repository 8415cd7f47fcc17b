#!/usr/bin/env python
"""Train a classifier on an image folder or any dataset of timm's: `tools/pretrain.py -c FILE --data-dir DIR`."""

import sys

from topodet.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
