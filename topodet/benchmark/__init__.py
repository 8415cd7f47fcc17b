"""Time and memory of a TopoNet, compared with lower bounds: `topodet benchmark`.

`settings` defines a benchmark, `contestants` builds its contestants, `measure` measures time and memory, `run` returns
the results, `report` makes tables and pictures of them.
"""

from .run import benchmark
from .settings import PRESETS, Settings, make_settings

__all__ = ["PRESETS", "Settings", "benchmark", "make_settings"]
