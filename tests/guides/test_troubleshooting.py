"""The messages on the page are those of the source."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
HEADINGS = re.findall(r"^### `(.+)`(?: \(from (\w+)\))?$", PAGE, flags=re.MULTILINE)
# Where other packages raise theirs.
ELSEWHERE = {"mmengine": "registry/build_functions.py", "fvcore": "common/registry.py", "yacs": "config.py"}


@cache
def literals():
    """Each string of the package, with a NUL where a value goes; strings in a row are one, as for Python."""
    found = []
    for path in sorted((ROOT / "topodet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def pattern(message):
    parts = [re.escape(part) for part in message.split("...")]
    return re.compile(".*".join(parts), flags=re.DOTALL)


@pytest.mark.parametrize("message", [message for message, package in HEADINGS if not package])
def test_message_is_in_the_source(message):
    assert any(pattern(message).search(text) for text in literals())


@pytest.mark.parametrize(("message", "package"), [heading for heading in HEADINGS if heading[1]])
def test_message_of_another_package(message, package):
    spec = importlib.util.find_spec(package)
    if spec is None:  # Detectron2 and what it brings along are on no package index
        pytest.skip(f"{package} is not installed")
    text = Path(spec.submodule_search_locations[0], ELSEWHERE[package]).read_text()
    assert pattern(message).search(text)


def test_every_entry_is_a_message_with_words_below():
    assert len(HEADINGS) == len(re.findall("^### ", PAGE, flags=re.MULTILINE)) >= 40
    for entry in re.split("^### ", PAGE, flags=re.MULTILINE)[1:]:
        assert len(entry.partition("\n")[2].split()) >= 8, entry
