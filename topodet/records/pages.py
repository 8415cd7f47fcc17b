"""docs/experiments.md: the paper's Table 1 beside recorded trainings on CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import ttest_ind

from .markdown import replace_measured, table

Record = dict[str, Any]

# The columns of the table, by the ending of the network's name and the penalty of its training.
FORMS = {
    "original": ("", "none"),
    "connected": ("_connected", "none"),
    "uniform": ("_connected", "uniform"),
    "adaptive": ("_connected", "adaptive"),
}


def update_page(page: str, paper: Mapping[str, Mapping[str, Any]], records: Sequence[Record]) -> str:
    """Return docs/experiments.md with its tables made anew.

    Args:
        page: the text as it is.
        paper: Table 1, the top-1 of each network by name, `original` and `connected`.
        records: all that there are; those on CIFAR-100 count.
    """
    runs = [r for r in records if r["kind"] == "pretraining" and r["data"].startswith("CIFAR-100")]
    return replace_measured(page, "\n\n".join(_blocks(paper, runs)), path="docs/experiments.md")


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return mean(b) - mean(a) and its 95% interval by Welch's t, of two or more numbers each."""
    low = high = mean(b) - mean(a)
    if stdev(a) or stdev(b):  # where no number differs from another the test has nothing to work with
        low, high = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    return mean(b) - mean(a), float(low), float(high)


def _blocks(paper: Mapping[str, Mapping[str, Any]], runs: Sequence[Record]) -> list[str]:
    lengths = sorted({run["of_epochs"] for run in runs}, reverse=True)
    head = ("network", "original (paper)", "optimised (paper)", *(f"{form} (measured)" for form in FORMS))
    blocks = []
    for epochs in lengths or [200]:
        alike = [run for run in runs if run["of_epochs"] == epochs]
        done = min((run["epochs"] for run in alike), default=epochs)  # what was stopped is compared where all still ran
        rows, gains = [], []
        for name, printed in paper.items():
            scores = {form: _scores(alike, name + ending, kind, done) for form, (ending, kind) in FORMS.items()}
            cells = [f"{printed[key]:.2f}" for key in ("original", "connected")]
            rows.append((f"`{name}`", *cells, *map(_cell, scores.values())))
            gains += [_gain(name, form, scores) for form in list(FORMS)[1:] if scores[form] and scores["original"]]
        length = f"{epochs} epochs" if done == epochs else f"After {done} of {epochs} epochs, where a run was stopped"
        blocks += [f"{length}; the paper's 200.", table(head, rows), *gains]
    commands = [f"{run['name']}, {run['machine']}:\n\n```bash\n{run['command']}\n```" for run in runs]
    return [*blocks, *commands]


def _scores(runs: Sequence[Record], network: str, sparsity: str, epochs: int) -> list[float]:
    """Return the top-1 in percent of each run after so many epochs, by seed."""
    found = [r for r in runs if (r["architecture"], r["sparsity"]) == (network, sparsity)]
    return [r["history"][epochs - 1]["eval_top1"] for r in sorted(found, key=lambda r: r["seed"])]


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return "not yet run"
    if len(scores) == 1:
        return f"{scores[0]:.2f}, 1 seed"
    return f"{mean(scores):.2f} ± {stdev(scores):.2f}, {len(scores)} seeds"


def _gain(name: str, form: str, scores: Mapping[str, Sequence[float]]) -> str:
    text = f"`{name}`, {form} less original: "
    if min(len(scores["original"]), len(scores[form])) < 2:
        return f"{text}{mean(scores[form]) - mean(scores['original']):+.2f} points, of one seed."
    gain, low, high = difference(scores["original"], scores[form])
    verdict = "within" if low <= 0 <= high else "larger than"
    return f"{text}{gain:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}: {verdict} what seeds make."
