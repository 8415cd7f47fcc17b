#!/usr/bin/env python
"""Run the suite on every Python and with the lowest, tested and newest versions, each in its own environment.

.github/workflows/test.yml runs the same cells. A cell whose Python is not on this machine is skipped with a message;
pyenv's interpreters are found without being on PATH. An environment needs about 7 GB with torch's CUDA packages
(TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids them) and is removed after its cell.
--here runs the suite with the Python that runs this script, without a new environment.

python tools/version_matrix.py [CELL...] [--record records/versions.json] [-- PYTEST ARGUMENTS]
python tools/version_matrix.py --here detectron2 --record records/versions.json -- tests/detectron2
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Name of a cell: its Python, and the file of requirements/ that has its versions.
CELLS = {
    "lowest": ("3.10", "lowest"),
    **{f"tested-{python}": (python, "tested") for python in PYTHONS},
    "newest-3.13": ("3.13", "newest"),
    "newest-3.14": ("3.14", "newest"),
}
NAMED = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "onnx",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "detectron2",
)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"some of {', '.join(CELLS)} (default: all)")
    parser.add_argument("--environments", type=Path, help="keep the environments in this folder, and reuse them")
    parser.add_argument("--record", type=Path, help="JSON file for the results; those of other cells are kept")
    parser.add_argument("--here", metavar="NAME", help="run with this Python and its packages, as a cell of this name")
    words = sys.argv[1:] if words is None else words
    split = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:split])
    if unknown := [name for name in args.cells if name not in CELLS]:
        parser.error(f"unknown cells {', '.join(unknown)}; known: {', '.join(CELLS)}")

    failed = []
    for name in [args.here] if args.here else args.cells or CELLS:
        if args.here:
            result = run_suite(sys.executable, words[split + 1 :])
        else:
            python, versions = CELLS[name]
            interpreter = find_python(python)
            if interpreter is None:
                print(f"{name:12}  skipped: no Python {python} on this machine", flush=True)
                continue
            folder = (args.environments or Path(tempfile.mkdtemp(prefix="topodet-"))) / name
            try:
                result = run_cell(folder, interpreter, versions, words[split + 1 :])
            finally:
                if args.environments is None:
                    shutil.rmtree(folder.parent, ignore_errors=True)
        print(f"{name:12}  {summary(result)}", flush=True)
        if not result["passed"] or result["failed"] or not result["complete"]:
            failed.append(name)
        if args.record and result["passed"]:
            results = json.loads(args.record.read_text()) if args.record.is_file() else {}
            results[name] = result
            args.record.write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def find_python(version: str) -> str | None:
    """Return the path of an interpreter, from PATH or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in candidates:
        found = shutil.which(candidate)
        if (
            found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
        ):  # not a shim without an interpreter
            return found
    return None


def run_cell(folder: Path, interpreter: str, versions: str, options: list[str]) -> dict:
    """Make the environment and run the suite there; return what `run_suite` does."""
    environment = {**os.environ, "PYTHON": interpreter, "TOPODET_VENV": str(folder), "TOPODET_VERSIONS": versions}
    if subprocess.run(["bash", "tools/make_env.sh"], cwd=ROOT, env=environment).returncode:
        return {"passed": 0, "failed": 0, "skipped": 0, "complete": False, "versions": {}}
    return run_suite(str(folder / "bin" / "python"), options)


def run_suite(python: str, options: list[str]) -> dict:
    """Run pytest; return the counts, the versions and where they come from."""
    packages = json.loads(output([python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]))
    installed = {package["name"].lower(): package["version"] for package in packages}
    passed = failed = skipped = 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        status = subprocess.run([python, "-m", "pytest", f"--junitxml={report}", *options], cwd=ROOT).returncode
        suites = xml.etree.ElementTree.parse(report).getroot().findall("testsuite") if report.is_file() else []
    for suite in suites:
        tests, *bad, left_out = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
        failed += sum(bad)
        skipped += left_out
        passed += tests - sum(bad) - left_out
    return {
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "complete": status in (0, 1),  # other statuses: interrupted, or not run
        "command": shlex.join(["pytest", *options]),
        "date": datetime.date.today().isoformat(),
        "commit": output(["git", "rev-parse", "HEAD"]),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {
            "python": output([python, "-c", "import platform; print(platform.python_version())"]),
            **{name: installed[name] for name in NAMED if name in installed},
        },
    }


def output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def summary(result: dict) -> str:
    """Return a line for the terminal."""
    if not result["versions"]:
        return "the environment could not be created; see the output above"
    counts = ", ".join(f"{result[key]} {key}" for key in ("passed", "failed", "skipped"))
    counts += "" if result["complete"] else ", not complete"
    return f"{counts} ({', '.join(f'{name} {version}' for name, version in result['versions'].items())})"


if __name__ == "__main__":
    sys.exit(main())
