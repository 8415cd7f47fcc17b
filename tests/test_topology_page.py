import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("topology*.md"))
BLOCKS = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_print_what_they_say(number, capsys):
    exec(compile(BLOCKS[number], f"block {number}", "exec"), {})
    expected = [line.rpartition("  # ")[2] for line in BLOCKS[number].splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == expected


def test_files_that_they_name_exist():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), link
