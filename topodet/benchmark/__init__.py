"""Time and memory of a TopoNet, compared with lower bounds: `topodet benchmark`.

`settings` defines a benchmark (`presets` has what the help lists), `contestants` builds its contestants, `measure`
measures time and memory, `run` returns the results, `report` makes tables and pictures of them.
"""
