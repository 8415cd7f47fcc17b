import json

import pytest
import timm
from scipy.stats import t

from tools import update_model_zoo
from topodet.errors import DataError
from topodet.records import pages
from topodet.records.markdown import END, START

PAPER = {"resnet20_cifar": {"original": 69.01, "connected": 69.91}}
PAGE = f"# Experiments\n\n{START}\nold\n{END}\nafter\n"


def run(architecture, top1, seed, *, sparsity="none", epochs=10, of_epochs=10, data="CIFAR-100"):
    return {
        "kind": "pretraining",
        "name": f"{architecture}_{sparsity}_seed{seed}",
        "architecture": architecture,
        "sparsity": sparsity,
        "data": data,
        "seed": seed,
        "epochs": epochs,
        "of_epochs": of_epochs,
        "history": [{"eval_top1": top1 + done + 1 - epochs} for done in range(epochs)],
        "machine": "a machine",
        "command": f"train {seed}",
    }


def test_without_runs():
    page = pages.update_page(PAGE, PAPER, [])
    assert page.startswith("# Experiments\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert page.count("not yet run") == 4
    assert "69.01" in page
    assert "69.91" in page


def test_seeds_are_one_cell_and_lengths_are_tables_of_their_own():
    runs = [run("resnet20_cifar", score, seed) for seed, score in enumerate((40.0, 41.0))]
    runs += [run("resnet20_cifar_connected", score, seed) for seed, score in enumerate((43.0, 44.0))]
    runs.append(run("resnet20_cifar_connected", 60.0, 0, sparsity="adaptive", epochs=200, of_epochs=200))
    runs.append(run("resnet20_cifar", 1.0, 8, data="other images"))
    page = pages.update_page(PAGE, PAPER, runs)
    assert page.index("200 epochs; the paper's 200.") < page.index("10 epochs; the paper's 200.")
    assert "40.50 ± 0.71, 2 seeds" in page
    assert "43.50 ± 0.71, 2 seeds" in page
    assert "60.00, 1 seed" in page
    # Two samples of equal spread: s^2 = 0.5 each, standard error sqrt(0.5/2 + 0.5/2), 2 degrees of freedom.
    half = t.ppf(0.975, 2) * 0.5**0.5
    assert f"connected less original: +3.00 points, 95% interval {3 - half:+.2f} to {3 + half:+.2f}: within" in page
    assert "train 1" in page
    assert "other images" not in page


def test_runs_that_were_stopped_are_compared_where_all_still_ran():
    runs = [run("resnet20_cifar", 40.0, 0, epochs=8), run("resnet20_cifar_connected", 44.0, 0, epochs=7)]
    page = pages.update_page(PAGE, PAPER, runs)
    assert "After 7 of 10 epochs, where a run was stopped; the paper's 200." in page
    assert "39.00, 1 seed" in page
    assert "connected less original: +5.00 points, of one seed." in page


def test_one_seed_has_no_interval():
    runs = [run("resnet20_cifar", 40.0, 0), run("resnet20_cifar_connected", 39.0, 0, sparsity="uniform")]
    page = pages.update_page(PAGE, PAPER, runs)
    assert "uniform less original: -1.00 points, of one seed." in page


def test_a_page_without_its_markers():
    with pytest.raises(DataError, match=r"docs/experiments.md: the lines"):
        pages.update_page("# Experiments\n", PAPER, [])


def test_the_papers_numbers_are_those_of_registered_networks():
    paper = json.loads((update_model_zoo.ROOT / "records" / "paper.json").read_text())["cifar100"]
    assert all(timm.is_model(name) and timm.is_model(f"{name}_connected") for name in paper)
