import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tools import version_matrix

ROOT = Path(__file__).resolve().parents[2]


def test_the_workflow_has_the_same_cells():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    cells = {cell["cell"]: cell["python"] for cell in jobs["matrix"]["strategy"]["matrix"]["include"]}
    assert cells == {name: python for name, (python, _) in version_matrix.CELLS.items()}
    assert all((ROOT / "requirements" / f"{versions}.txt").is_file() for _, versions in version_matrix.CELLS.values())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_lower_bounds_are_the_versions_of_the_lowest_cell():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [row for name in ("mmdet", "export", "test") for row in project["optional-dependencies"][name]]
    bounds = {}
    for requirement in map(Requirement, project["dependencies"] + extras):
        for part in requirement.specifier:
            if part.operator == ">=":
                bounds[requirement.name] = part.version
    pins = dict(re.findall("^([a-z0-9-]+)==(.+)$", (ROOT / "requirements" / "lowest.txt").read_text(), re.MULTILINE))
    assert bounds == pins
