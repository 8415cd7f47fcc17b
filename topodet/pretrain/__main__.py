"""`python -m topodet.pretrain`."""

import sys

from topodet.pretrain import main

sys.exit(main())
