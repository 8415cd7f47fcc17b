"""`python -m topodet`: the commands of `topodet`, for use from a clone."""

import sys

from .cli import main

sys.exit(main())
