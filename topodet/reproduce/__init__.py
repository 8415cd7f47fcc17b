"""Studies: several arms, several seeds, what is compared with what, and what the paper says of it.

A study is a YAML file under configs/studies. `study` reads it, `jobs` makes one job of each arm and seed with the
commands that run it, `runner` runs what is missing and records it, `page` makes the study's page from the records.
"""

from .command import command, make_page
from .study import Arm, Comparison, Scale, Study, find_study, load_study

__all__ = ["Arm", "Comparison", "Scale", "Study", "command", "find_study", "load_study", "make_page"]
