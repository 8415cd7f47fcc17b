"""A report of a trained wiring: `open_subject` finds the network, `measure` computes the numbers, `page` shows them."""

from .measure import measure
from .page import page
from .subject import Subject, open_subject
from .text import text

__all__ = ["Subject", "measure", "open_subject", "page", "text"]
