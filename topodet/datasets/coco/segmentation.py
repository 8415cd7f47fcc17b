"""Check the segmentations and keypoints of COCO annotations, whole columns at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import chain
from typing import Any

import numpy as np

from ...errors import show

# Characters of run lengths decoded at once: a million need about 100 MB of memory.
_CHARACTERS = 1_000_000
# Most characters of one compressed run length: each has five bits, and no image has 2**35 pixels.
_LONGEST_RUN = 7


class Segmentation(IntEnum):
    """Kinds of segmentations."""

    NONE = 0  # missing, null or empty
    POLYGONS = 1  # at least one of three points and more
    NO_POLYGON = 2  # polygons, but each has fewer than three points or an odd number of coordinates
    RLE = 3  # run lengths of the image's size
    MALFORMED = 4


def classify(
    values: Sequence[Any], sizes: np.ndarray, *, truth_values: bool = True
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the kinds of segmentations.

    Args:
        values: N values of the annotations; None if missing.
        sizes: width and height of each annotation's image, float [N, 2]; NaN if unknown.
        truth_values: whether `values` may contain booleans; without them the check takes half the time.

    Returns:
        `Segmentation` as int8 [N], and the problems of those that are MALFORMED or NO_POLYGON, by row.
    """
    kinds = np.full(len(values), Segmentation.MALFORMED, dtype=np.int8)
    problems: dict[int, str] = {}
    lists, runs = [], []
    for row, value in enumerate(values):
        if type(value) is list and value:
            lists.append(row)
        elif value is None or value == [] or value == {}:
            kinds[row] = Segmentation.NONE
        elif type(value) is dict:
            runs.append(row)
        else:
            problems[row] = f"a {type(value).__name__}, not polygons or run lengths"
    _classify_polygons(values, lists, kinds, problems, truth_values)
    _classify_runs(values, runs, sizes, kinds, problems)
    return kinds, problems


def polygon_extents(values: Sequence[Any], kinds: np.ndarray) -> np.ndarray:
    """Return the minimum and maximum x and y of polygons.

    Args:
        values, kinds: N segmentations, and their kinds from `classify`.

    Returns:
        x and y of the upper left, x and y of the lower right corner, float64 [N, 4]; NaN without polygons.
    """
    found = np.full((len(values), 4), np.nan)
    rows = np.flatnonzero(kinds == Segmentation.POLYGONS)
    if not len(rows):
        return found
    polygons = [[p for p in values[row] if len(p) >= 6 and len(p) % 2 == 0] for row in rows.tolist()]
    counts = np.array([sum(map(len, parts)) for parts in polygons], dtype=np.int64)
    numbers = chain.from_iterable(chain.from_iterable(polygons))
    points = np.fromiter(numbers, dtype=np.float64, count=counts.sum()).reshape(-1, 2)
    starts = (np.cumsum(counts) - counts) // 2
    found[rows] = np.hstack([np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)])
    return found


def keypoint_problems(values: Sequence[Any], lengths: Sequence[int | None]) -> dict[int, str]:
    """Return the problems of keypoints.

    Args:
        values: N values of the annotations; None if missing.
        lengths: expected number of points in each; None for any number.

    Returns:
        The problems by row. Missing keypoints are not a problem.
    """
    rows = [row for row, value in enumerate(values) if value is not None and value != []]
    if all(type(values[row]) is list for row in rows):
        known = all(len(values[row]) == 3 * lengths[row] for row in rows if lengths[row] is not None)
        if known and all(len(values[row]) % 3 == 0 for row in rows) and _are_numbers(values[row] for row in rows):
            return {}
    problems = {}
    for row in rows:
        value, points = values[row], lengths[row]
        if type(value) is not list:
            problems[row] = f"a {type(value).__name__}, not a list"
        elif not _are_numbers([value]):
            problems[row] = "not all finite numbers"
        elif len(value) % 3 or (points is not None and len(value) != 3 * points):
            expected = "x, y and visibility of each point" if points is None else f"three for each of {points} points"
            problems[row] = f"{len(value)} numbers, not {expected}"
    return problems


def visible_keypoints(values: Sequence[Any]) -> np.ndarray:
    """Return how many points of each annotation are marked as visible or hidden but labeled, int64 [N]."""
    counts = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if value:
            counts[row] = sum(v > 0 for v in value[2::3])
    return counts


def _are_numbers(lists: Iterable[list[Any]], *, truth_values: bool = True) -> bool:
    """Return whether lists contain only finite numbers."""
    lists = list(lists)
    if truth_values and bool in set(map(type, chain.from_iterable(lists))):
        return False
    try:
        # One call for millions of numbers: a sum is only finite if all of them are.
        return math.isfinite(sum(chain.from_iterable(lists), 0.0))
    except (TypeError, OverflowError):  # not a number, or an integer beyond the range of floats
        return False


def _classify_polygons(
    values: Sequence[Any], rows: list[int], kinds: np.ndarray, problems: dict[int, str], truth_values: bool
) -> None:
    if not rows:
        return
    polygons = list(chain.from_iterable([values[row] for row in rows]))
    if set(map(type, polygons)) - {list} or not _are_numbers(polygons, truth_values=truth_values):
        sound = []
        for row in rows:
            if not all(type(polygon) is list for polygon in values[row]):
                problems[row] = "polygons that are not lists: [[x, y, ...], ...] is expected"
            elif not _are_numbers(values[row]):
                problems[row] = "coordinates that are not all finite numbers"
            else:
                sound.append(row)
        rows = sound
        polygons = list(chain.from_iterable(values[row] for row in rows))
        if not rows:
            return
    lengths = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    counts = np.array([len(values[row]) for row in rows], dtype=np.int64)
    usable = (lengths >= 6) & (lengths % 2 == 0)
    any_usable = np.logical_or.reduceat(usable, np.cumsum(counts) - counts)
    kinds[rows] = np.where(any_usable, Segmentation.POLYGONS, Segmentation.NO_POLYGON)
    for k in np.flatnonzero(~any_usable):
        problems[rows[k]] = f"polygons of {', '.join(str(len(p)) for p in values[rows[k]][:5])} coordinates"


def _classify_runs(
    values: Sequence[Any], rows: list[int], sizes: np.ndarray, kinds: np.ndarray, problems: dict[int, str]
) -> None:
    compressed = []
    for row in rows:
        size, counts = values[row].get("size"), values[row].get("counts")
        if not (type(size) is list and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
            problems[row] = f"run lengths of size {show(size)}, not [height, width]"
            continue
        width, height = sizes[row]
        if not np.isnan(width) and size != [height, width]:
            problems[row] = f"run lengths of size {show(size)} in an image of [{height:.0f}, {width:.0f}]"
        elif type(counts) is str:
            compressed.append(row)
        elif type(counts) is not list or not set(map(type, counts)) <= {int}:
            problems[row] = f"run lengths whose counts are not text or a list of integers, but {show(counts)}"
        elif min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
            problems[row] = f"run lengths that do not cover the {size[0] * size[1]} pixels"
        else:
            kinds[row] = Segmentation.RLE
    texts = [values[row]["counts"] for row in compressed]
    for row, covered in zip(compressed, _pixels_covered(texts)):
        size = values[row]["size"]
        if covered == size[0] * size[1]:
            kinds[row] = Segmentation.RLE
        else:
            problems[row] = f"compressed run lengths that do not cover the {size[0] * size[1]} pixels"


def _pixels_covered(texts: list[str]) -> np.ndarray:
    """Return how many pixels compressed run lengths cover, int64 [N]; -1 for invalid text."""
    covered = np.full(len(texts), -1, dtype=np.int64)
    rows = [row for row, text in enumerate(texts) if text and text.isascii()]
    begin = 0
    while begin < len(rows):
        end, characters = begin, 0
        while end < len(rows) and (end == begin or characters + len(texts[rows[end]]) <= _CHARACTERS):
            characters += len(texts[rows[end]])
            end += 1
        chunk = rows[begin:end]
        covered[chunk] = _pixels_of_chunk([texts[row] for row in chunk])
        begin = end
    return covered


def _pixels_of_chunk(texts: list[str]) -> np.ndarray:
    # The format of pycocotools: characters from "0" with five bits each, the lowest first. Bit 5 is set if another
    # character follows, and bit 4 of the last one is the sign. From the fourth run on, the difference to the run before
    # the previous one is stored.
    covered = np.full(len(texts), -1, dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    starts = np.cumsum(lengths) - lengths
    follows = (codes & 32) > 0
    sound = np.logical_and.reduceat((codes >= 0) & (codes < 64), starts) & ~follows[starts + lengths - 1]
    if not sound.all():
        if sound.any():
            covered[sound] = _pixels_of_chunk([text for text, good in zip(texts, sound) if good])
        return covered
    text_of = np.repeat(np.arange(len(texts)), lengths)
    first = np.concatenate([[True], ~follows[:-1]])  # of each number; every text ends one
    run_starts = np.flatnonzero(first)
    place = np.arange(len(codes)) - run_starts[np.cumsum(first) - 1]
    too_long = np.zeros(len(texts), dtype=bool)
    too_long[text_of[place >= _LONGEST_RUN]] = True
    shift = 5 * np.minimum(place, _LONGEST_RUN - 1)
    runs = np.add.reduceat((codes & 31) << shift, run_starts)
    last = np.append(run_starts[1:], len(codes)) - 1
    runs -= np.where(codes[last] & 16, np.int64(1) << (shift[last] + 5), 0)
    text_of = text_of[run_starts]
    runs_before = np.searchsorted(text_of, np.arange(len(texts)))
    number = np.arange(len(runs)) - runs_before[text_of]
    # Undo the differences: the first run is separate; of the others, every second one belongs to one sum.
    series = np.where(number == 0, 0, 1 + number % 2)
    order = np.lexsort((number, series, text_of))
    sums = np.cumsum(runs[order])
    begins = np.concatenate([[True], np.diff(3 * text_of[order] + series[order]) != 0])
    before = np.where(begins, sums - runs[order], 0)
    runs[order] = sums - before[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    covered = np.add.reduceat(runs, runs_before)
    covered[np.minimum.reduceat(runs, runs_before) < 0] = -1
    covered[too_long] = -1
    return covered
