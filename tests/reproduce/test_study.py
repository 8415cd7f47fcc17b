"""Study files: those of the repository, and what is wrong with others."""

import json

import pytest

from topodet.errors import ConfigError
from topodet.reproduce import find_study, load_study
from topodet.reproduce.study import paper_number

from .helpers import ROOT, TINY

STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.yaml"))
PAPER = json.loads((ROOT / "records" / "paper.json").read_text())


def test_there_is_one_for_each_claim():
    tables = {"table1", "table2", "table4", "table5", "fig3", "fig4", "fig5"}
    assert set(STUDIES) == tables | {
        "nnstd",
        "swnet",
        "nn_mass",
        "connected_imagenet",
        "connected_cifar100",
        "connected_bccd",
    }


@pytest.mark.parametrize("name", STUDIES)
def test_numbers_of_the_paper_are_there(name):
    for scale in find_study(name, ROOT).scales.values():
        for each in (*scale.arms.values(), *scale.comparisons):
            assert not each.paper or paper_number(PAPER, each.paper)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", r"tiny.yaml: unknown key 'titel'. Did you mean 'title'"),
        ("title: A tiny study", "title: 3", r"tiny.yaml.title must be text, but is 3"),
        ("small:", "medium:", r"scales: unknown key 'medium'"),
        ("seeds: 2", "seeds: none", r"scales.small.seeds must be a number of at least 0, not 'none'"),
        ("seeds: 2", "seeds: 0", r"scales.small.seeds must be at least 1, not 0"),
        ("hours: 0.5", "hour: 0.5", r"unknown key 'hour'. Did you mean 'hours'"),
        ("fixed: {pretrain", "Fixed-1: {pretrain", r"'Fixed-1' is not a valid name"),
        ("fixed: {pretrain", "fixed: {pretrian", r"arms.fixed must have one of pretrain, "),
        ("measure: top1", "measure: top", r"arms.fixed: unknown measure 'top'. Did you mean 'top1'"),
        ("than: fixed", "than: fixd", r"comparisons\[0\].than: unknown arm 'fixd'. Did you mean 'fixed'"),
        ("fixed: {pretrain: configs/pretrain/toponet_nano_wiring.yaml", "fixed: {tool: rm", r"unknown experiment 'rm'"),
        ("edges: [learned]", "edges: [lerned]", r"small.edges: unknown arm 'lerned'. Did you mean 'learned'"),
        ("arms:", "arms: [", r"cannot be read as YAML"),
    ],
)
def test_wrong_files(tmp_path, old, new, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_study(path)


def test_unknown_names(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown study 'table3'. Did you mean 'table"):
        find_study("table3", ROOT)
    with pytest.raises(ConfigError, match=r"has no studies: run this in a checkout"):
        find_study("table1", tmp_path)
    with pytest.raises(ConfigError, match=r"study nnstd: unknown scale 'paper'. Known: small"):
        find_study("nnstd", ROOT).scale("paper")
    with pytest.raises(ConfigError, match=r"records/paper.json has no 'cifar100/resnet21'"):
        paper_number(PAPER, "cifar100/resnet21")
    with pytest.raises(ConfigError, match=r"is not a number"):
        paper_number(PAPER, "cifar100/resnet20_cifar")
