"""Sphinx builds docs/ as a site: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from topodet import __version__
from topodet.commands import COMMANDS, load_command
from topodet.errors import ConfigError

project = "topodet"
author = "The topodet developers"
copyright = author
release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # equations without the network
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebooks are executed by tests, and stored with their outputs
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "topodet"
html_static_path: list[str] = []
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["detectron2"]
nitpicky = True
# Other projects' pages would have to be fetched for links into them.
nitpick_ignore_regex = [("py:.*", r"(?!topodet\.).*"), ("py:.*", r"topodet\..*\.[A-Z]\w*")]
# Pages link to files of the repository outside of docs/, which the site shows as the files themselves.
suppress_warnings = ["myst.xref_missing", "myst.header", "misc.highlighting_failure"]


def setup(app: Sphinx) -> None:
    """Write the page of the commands before the pages are read."""
    app.connect("builder-inited", write_commands)
    app.connect("autodoc-process-docstring", escape)


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn `words` of docstrings into literals, and keep what reStructuredText would read as its own."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: f"``{' '.join(match[1].split())}``", "\n".join(lines))
    # The plural of a name: to reStructuredText no literal ends before a letter.
    text = re.sub(r"``(?=\w)([^`]+)``(?=\w)", r"``\1``\\ ", text)
    parts = text.split("``")
    parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")


def write_commands(app: Sphinx) -> None:
    """Write docs/_generated/cli.md: each command's help."""
    parts = []
    for name in sorted(COMMANDS):
        try:
            text = load_command(name).parser().format_help()
        except ConfigError as error:  # a framework that is not installed
            text = str(error)
        parts.append(f"## topodet {name}\n\n```text\n{text.rstrip()}\n```\n")
    path = Path(app.srcdir) / "_generated" / "cli.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(parts))
