"""Imports run one way: a lower floor of the package never imports a higher one. Read from the source, line by line."""

import ast
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "topodet"

# From low to high. A module belongs to the entry with the longest matching name.
FLOORS = [
    ("errors", "files", "frameworks", "mmcv_ops", "options", "parse"),
    ("topology", "ops", "datasets"),
    ("models",),
    ("connectivity",),
    ("weights", "visualization", "complexity", "connected_backbone", "costs", "detections", "exported"),
    ("pretrain", "related"),
    ("records",),
    ("analysis", "benchmark", "new_config", "reproduce"),
    ("mmdet", "detectron2"),
    ("commands",),
    ("cli",),
    ("__main__",),
]
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
# Packages of others that only one part may import.
ONLY = {"mmengine": "mmdet", "mmcv": "mmdet", "mmdet": "mmdet", "detectron2": "detectron2", "fvcore": "detectron2"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(ROOT).with_suffix("").parts


def imports(path, parts):
    """Yield (line, dotted name) of everything that a file imports, relative names made absolute."""
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def part_of(name):
    """Return the part of topodet that a dotted name lies in, "" for the package itself and for others' packages."""
    words = name.split(".")
    return words[1] if words[0] == "topodet" and len(words) > 1 and words[1] in FLOOR else ""


def broken(rule):
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, parts in modules()
        for line, name in imports(path, parts)
        if rule(parts, name)
    ]


def test_every_module_has_a_floor():
    unknown = {parts[1] for _, parts in modules() if len(parts) > 1} - FLOOR.keys() - {"__init__"}
    assert not unknown


def test_no_floor_imports_a_higher_one():
    def upward(parts, name):
        own, other = parts[1], part_of(name)
        return own in FLOOR and other and FLOOR[other] > FLOOR[own]

    assert not broken(upward)


@pytest.mark.parametrize("part", ["pretrain", "mmdet", "detectron2", "analysis", "benchmark", "reproduce"])
def test_parts_of_one_floor_do_not_know_each_other(part):
    beside = next(names for names in FLOORS if part in names)
    assert not broken(lambda parts, name: parts[1] == part and part_of(name) in set(beside) - {part})


def test_the_core_imports_nothing_of_related():
    core = {name for names in FLOORS[:5] for name in names} | {"pretrain", "records", "mmdet", "detectron2"}
    assert not broken(lambda parts, name: parts[1] in core and part_of(name) == "related")


def test_frameworks_are_imported_in_their_own_part():
    assert not broken(lambda parts, name: ONLY.get(name.split(".")[0], parts[1]) != parts[1])


def test_neighbors_do_not_import_each_other():
    def other_neighbor(parts, name):
        words = name.split(".")
        return parts[1] == "related" and len(parts) > 3 and words[1:2] == ["related"] and words[2] != parts[2]

    assert not broken(other_neighbor)


def test_a_wrong_import_is_found(tmp_path):
    """The reader of imports sees what it has to: relative ones, several names, ones within functions."""
    path = tmp_path / "a.py"
    path.write_text(
        "from .. import weights, errors\ndef f():\n    from ..related.swnet import swnet\nimport mmdet.apis\n"
    )
    found = list(imports(path, ("topodet", "models", "a")))
    assert found == [
        (1, "topodet.weights"),
        (1, "topodet.errors"),
        (4, "mmdet.apis"),
        (3, "topodet.related.swnet.swnet"),
    ]
    assert [part_of(name) for _, name in found] == ["weights", "errors", "", "related"]


@pytest.mark.slow
def test_what_an_import_loads():
    """One process, each import after the ones below it: what one must not load is not there after the next either."""
    unwanted = {
        "topodet.topology": ("torch", "timm"),
        "topodet": ("torch", "timm"),
        "topodet.ops": ("timm", "topodet.models"),
        "topodet.models": ("topodet.related", "topodet.pretrain", "topodet.weights"),
    }
    unwanted |= {
        f"topodet.{framework}": ("topodet.related", "topodet.pretrain", "topodet.analysis", "topodet.records")
        for framework in ("mmdet", "detectron2")
        if find_spec(framework)
    }
    script = f"""
        import importlib, sys

        for module, names in {unwanted!r}.items():
            importlib.import_module(module)
            found = [name for name in names if name in sys.modules]
            assert not found, (module, found)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT)


def test_each_neighbor_hands_out_its_main_function():
    from topodet.related.nn_mass import nn_mass
    from topodet.related.nnstd import nnstd
    from topodet.related.swnet import swnet

    assert all(callable(function) for function in (nn_mass, nnstd, swnet))


def test_helpers_stand_in_modules_that_are_no_tests():
    borrowed = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in imports(path, path.relative_to(ROOT).with_suffix("").parts)
        if name.startswith("tests.") and any(word.startswith("test_") for word in name.split("."))
    ]
    assert not borrowed
