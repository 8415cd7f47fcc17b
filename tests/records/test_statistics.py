"""Intervals against scipy's tests, and the fixed words of a verdict."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from topodet.records.statistics import difference, paired, verdict


def test_the_paired_interval_is_that_of_the_one_sample_test():
    differences = [0.5, 1.25, -0.25, 0.75]
    found = paired(differences)
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert (found.n, found.mean) == (4, np.mean(differences))


def test_the_interval_of_two_groups_is_welchs():
    a, b = [1.0, 2.0, 4.0], [3.0, 3.5]
    expected = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert difference(a, b) == pytest.approx((3.25 - 7 / 3, expected.low, expected.high))
    assert difference([1.0, 1.0], [2.0, 2.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("differences", "margin", "words"),
    [
        ([], 0, "not decided: not yet run"),
        ([3.0], 0, "not decided at n = 1: one seed has no interval"),
        ([1.0, 1.1, 0.9], 0, "shown at n = 3"),
        ([-1.0, -1.1, -0.9], 0, "contrary at n = 3"),
        ([-1.0, -1.1, -0.9], -2, "shown at n = 3"),  # costs at most 2
        ([1.0, 1.1, 0.9], 2, "contrary at n = 3"),
        # t(0.975, 1) = 12.706, sd = sqrt(2), n = 2
        ([1.0, -1.0], 0, "not decided at n = 2: the smallest effect that this could show is 12.7"),
    ],
)
def test_verdicts(differences, margin, words):
    assert verdict(paired(differences), margin) == words
