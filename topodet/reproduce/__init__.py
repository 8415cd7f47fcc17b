"""Studies: several arms and seeds, their comparisons, and the paper's numbers.

A study is a YAML file under configs/studies. `study` reads it, `jobs` makes one job for each arm and seed with its
commands, `runner` runs and records what is missing, `page` makes the study's page from the records.
"""

from .command import claims, command, make_page
from .study import Arm, Comparison, Scale, Study, find_study, load_study

__all__ = ["Arm", "Comparison", "Scale", "Study", "claims", "command", "find_study", "load_study", "make_page"]
