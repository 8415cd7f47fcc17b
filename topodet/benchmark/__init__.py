"""How fast a TopoNet is, and how much memory it takes, beside what bounds it: `topodet benchmark`.

`settings` says what is measured, `contestants` builds what takes part, `measure` takes time and memory, `run` makes the
results of one measurement, `report` makes tables and pictures of them.
"""

from .run import benchmark
from .settings import PRESETS, Settings, make_settings

__all__ = ["PRESETS", "Settings", "benchmark", "make_settings"]
