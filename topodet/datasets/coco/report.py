"""The findings of a COCO check, as text and as JSON."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, show
from .reading import Usage

_SHOWN = 10
# Before training, problems of single boxes are warnings up to this share of the annotations.
_TOLERATED_SHARE = 0.01

TITLES = {
    "unreadable_file": "annotation file cannot be read",
    "missing_keys": "required entries missing",
    "invalid_entries": "entries of the wrong type",
    "empty": "nothing to train on",
    "nothing_left": "no box is left to train on",
    "classes_differ": "classes of the config and of the file differ",
    "image_root_missing": "image folder missing",
    "duplicate_image_ids": "image ids used more than once",
    "duplicate_annotation_ids": "annotation ids used more than once",
    "duplicate_category_ids": "category ids used more than once",
    "duplicate_category_names": "category names used more than once",
    "mixed_id_types": "ids that mix numbers and text in one list",
    "empty_category_names": "categories without a name",
    "padded_category_names": "category names that start or end with spaces",
    "invalid_image_sizes": "images without a positive size in the file",
    "file_names_outside": "file names outside the image folder, which are never opened",
    "missing_images": "images missing on disk",
    "unknown_images": "annotations of an unknown image id",
    "unknown_categories": "annotations of an unknown category id",
    "invalid_boxes": "boxes that are not four numbers",
    "empty_boxes": "boxes of zero, negative or NaN size",
    "normalized_boxes": "boxes within 0..1, instead of COCO's pixels",
    "small_boxes": "boxes of less than a pixel, which MMDetection drops",
    "boxes_outside": "boxes outside their image",
    "invalid_areas": "areas of zero (MMDetection drops these boxes), negative or not finite",
    "ignored_annotations": 'annotations with "ignore": Detectron2 stops, MMDetection drops them',
    "invalid_segmentations": "segmentations that cannot be read",
    "invalid_polygons": "polygons of fewer than three points or an odd number of coordinates, which Detectron2 drops",
    "misplaced_polygons": "polygons that do not overlap their box, or are far outside their image",
    "missing_segmentations": "annotations without segmentation, which the mask head needs",
    "rle_segmentations": "run lengths where polygons are needed: set INPUT.MASK_FORMAT bitmask, or poly2mask=True",
    "invalid_keypoints": "keypoints that cannot be read",
    "missing_keypoints": "keypoints missing, which the keypoint head needs",
    "missing_info": "no info in the file, which the installed pycocotools needs for evaluation",
    "unreadable_images": "images that cannot be opened",
    "image_size_differs": "images whose size differs from the file's",
    "deep_images": "images of more than 8 bits, which Detectron2 clips to white",
    "images_without_annotations": "images without annotations",
    "categories_without_annotations": "categories without annotations",
    "annotation_id_zero": "annotation id 0, whose match pycocotools counts as a miss",
}
NOTES = (
    "padded_category_names",
    "images_without_annotations",
    "categories_without_annotations",
    "annotation_id_zero",
)
# Kinds that only affect single boxes, which the frameworks drop or clip.
_COST_BOXES = {"empty_boxes", "small_boxes", "boxes_outside", "invalid_areas", "invalid_polygons"}


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        kind: its name, a key of `CocoReport.findings`.
        ids: ids of everything concerned (image, annotation or category ids; `images[3]` for what has no id).
        details: additional information, in the order of `ids`; empty strings if there is none.
        is_error: False for a note, which does not prevent training.
    """

    kind: str
    ids: list[Hashable]
    details: list[str]
    is_error: bool

    @property
    def count(self) -> int:
        """Number of occurrences of the problem."""
        return len(self.ids)

    @property
    def title(self) -> str:
        """Description of the problem."""
        return TITLES[self.kind]


@dataclass(frozen=True)
class CocoReport:
    """The result of `check_coco`.

    Attributes:
        findings: problems found, by kind, including notes.
        usage: how each framework uses the boxes and images; empty if the file is too damaged to tell.
    """

    annotation_file: Path
    image_root: Path
    num_images: int
    num_annotations: int
    num_categories: int
    findings: dict[str, Finding] = field(default_factory=dict)
    usage: list[Usage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors; notes are allowed."""
        return not any(finding.is_error for finding in self.findings.values())

    @property
    def trainable(self) -> bool:
        """Whether training can start: there are no errors except single boxes that the frameworks drop or clip."""
        return all(not finding.is_error or self._costs_little(finding) for finding in self.findings.values())

    def _costs_little(self, finding: Finding) -> bool:
        return finding.kind in _COST_BOXES and finding.count <= _TOLERATED_SHARE * self.num_annotations

    def text(self) -> str:
        """Return a table of the findings with the first ids of each, and how each framework uses the dataset."""
        lines = [
            f"{self.annotation_file}: {self.num_images} images, {self.num_annotations} annotations, "
            f"{self.num_categories} categories; images in {self.image_root}"
        ]
        width = max((len(finding.title) for finding in self.findings.values()), default=0)
        for finding in sorted(self.findings.values(), key=lambda finding: not finding.is_error):
            shown = [
                f"{_bounded(i)} ({_bounded(d, 500)})" if d else _bounded(i)
                for i, d in zip(finding.ids[:_SHOWN], finding.details)
            ]
            more = f", ... {finding.count - _SHOWN} more" if finding.count > _SHOWN else ""
            level = "error" if finding.is_error else "note"
            lines.append(f"  {level:5}  {finding.title:{width}}  {finding.count:7}  {', '.join(shown)}{more}")
        lines += [f"  {usage.text()}" for usage in self.usage]
        errors = [finding for finding in self.findings.values() if finding.is_error]
        lines.append(f"{len(errors)} kinds of problem, {sum(e.count for e in errors)} in all" if errors else "ok")
        return "\n".join(map(_printable, lines))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON types, with all ids."""
        findings = [
            {
                "kind": finding.kind,
                "level": "error" if finding.is_error else "note",
                "title": finding.title,
                "count": finding.count,
                "ids": finding.ids,
                "details": finding.details,
            }
            for finding in self.findings.values()
        ]
        return {
            "annotations": str(self.annotation_file),
            "images": str(self.image_root),
            "ok": self.ok,
            "trainable": self.trainable,
            "counts": {
                "images": self.num_images,
                "annotations": self.num_annotations,
                "categories": self.num_categories,
            },
            "findings": findings,
            "usage": [asdict(usage) for usage in self.usage],
        }

    def raise_if_bad(self) -> None:
        """Raise DataError with the table if there are errors."""
        if not self.ok:
            raise DataError(_refusal(self))


def _refusal(report: CocoReport) -> str:
    return f"the dataset cannot be trained on as it is; correct these entries or files:\n{report.text()}"


def _bounded(value: Hashable, length: int = 100) -> str:
    text = str(value) if not isinstance(value, int) or abs(value) < 10**18 else show(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _printable(line: str) -> str:
    """Return a line with unprintable characters escaped: names come from untrusted files."""
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
