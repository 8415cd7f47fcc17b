"""A first config for your own dataset, in either framework."""

from .schedule import Schedule, make_schedule
from .write import FRAMEWORKS, new_config

__all__ = ["FRAMEWORKS", "Schedule", "make_schedule", "new_config"]
