"""The page of abilities: every cell names a test that is there, or says why there is none."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "abilities.md"
COLUMNS = ["timm", "MMDetection", "Detectron2"]
LINK = re.compile(r"\[(test_\w+)\]\(([\w./]+)\)")


def rows():
    """Yield the ability and the cells of each row of a table with the three columns."""
    inside = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells[1:] == COLUMNS:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= {"-", " "}:
            yield cells[0], cells[1:]


@cache
def functions_in(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_cell_names_a_test_or_a_reason():
    found = list(rows())
    assert len(found) > 40
    for ability, cells in found:
        assert len(cells) == len(COLUMNS), ability
        for cell in cells:
            links = LINK.findall(cell)
            assert links or re.fullmatch(r"no: \w.{10,}", cell), f"{ability}: {cell!r}"
            assert not links or not LINK.sub("", cell).strip(" ,"), f"{ability}: {cell!r}"


@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=COLUMNS)
def test_linked_tests_exist(column):
    for ability, cells in rows():
        for name, target in LINK.findall(cells[column]):
            path = (PAGE.parent / target).resolve()
            assert path.is_file(), f"{ability}: {target}"
            assert path.is_relative_to(ROOT / "tests"), f"{ability}: {target}"
            assert name in functions_in(path), f"{ability}: {name} is not in {target}"


def test_functions_of_detectors_are_those_of_both_frameworks():
    """The names that the README promises; read from the source, so that neither framework is needed."""
    exported = []
    for framework in ("mmdet", "detectron2"):
        tree = ast.parse((ROOT / "topodet" / framework / "__init__.py").read_text())
        [names] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
        exported.append(set(names))
    shared = {"load_detector", "predict", "draw", "evaluate", "publish_detector", "export_detector", "analyze"}
    shared |= {
        "class_names",
        "coco_evaluation",
        "check_datasets",
        "check_detector",
        "AlphaLogHook",
        "SparsityHook",
        "TopoNet",
    }
    assert shared | {"ConnectedTimm"} <= exported[0] & exported[1]
