"""Differences between groups of runs, with 95 % intervals and verdicts on a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t, ttest_ind

SHOWN, CONTRARY, UNDECIDED = "shown", "contrary", "not decided"


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return mean(b) - mean(a) and its 95% interval by Welch's t, of two or more numbers each."""
    low = high = mean(b) - mean(a)
    if stdev(a) or stdev(b):  # the test is undefined if all numbers in each group are equal
        low, high = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    return mean(b) - mean(a), float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Differences of two groups over the seeds that both have.

    Attributes:
        n: number of seeds.
        mean: mean of the differences.
        half: half the width of their 95 % interval by Student's t; None of fewer than two seeds.
    """

    n: int
    mean: float
    half: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None of fewer than two seeds."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


def paired(differences: Sequence[float]) -> Paired | None:
    """Return mean and interval of differences, one per seed; None without any."""
    n = len(differences)
    if not n:
        return None
    half = float(t.ppf(0.975, n - 1)) * stdev(differences) / sqrt(n) if n > 1 else None
    return Paired(n, mean(differences), half)


def verdict(found: Paired | None, margin: float = 0.0) -> str:
    """Return a verdict, in fixed words, on the claim that a difference is above `margin`.

    "shown": the whole interval is above it; "contrary": the whole interval is below; otherwise "not decided", with the
    smallest effect that this number of seeds with this spread can show, half the interval's width.
    """
    if found is None:
        return f"{UNDECIDED}: not yet run"
    if found.interval is None:
        return f"{UNDECIDED} at n = 1: one seed has no interval"
    low, high = found.interval
    if low > margin:
        return f"{SHOWN} at n = {found.n}"
    if high < margin:
        return f"{CONTRARY} at n = {found.n}"
    return f"{UNDECIDED} at n = {found.n}: the smallest effect that this could show is {found.half:.3g}"
