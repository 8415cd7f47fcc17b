import numpy as np
import pytest
import torch
from torch import nn

from topodet.errors import ConfigError
from topodet.models import TopoNet
from topodet.visualization import adjacency_figure, alpha_histogram, save_figures


@pytest.fixture
def model():
    model = TopoNet(nodes=(4, 5), width=2, num_classes=2, topology="residual")
    with torch.no_grad():
        model.stages[0].wiring.alpha.copy_(torch.linspace(-2, 1, model.topologies[0].num_edges))
    return model


def test_heat_map_shows_the_adjacency_matrix(model):
    drawn = [axis.images[0].get_array() for axis in adjacency_figure(model).axes if axis.images]
    assert len(drawn) == 2
    for matrix, stage in zip(drawn, model.stages):
        graph = stage.wiring.topology
        expected = graph.adjacency(stage.wiring.alpha.detach().abs().numpy())
        assert np.array_equal(np.isnan(matrix.filled(np.nan)), graph.adjacency() == 0)
        assert np.allclose(matrix.filled(0), expected)


def test_histogram_counts_every_edge(model):
    heights = [bar.get_height() for bar in alpha_histogram(model).axes[0].patches]
    assert sum(heights) == sum(graph.num_edges for graph in model.topologies)


def test_histogram_of_edges_that_have_hardly_moved(model):
    with torch.no_grad():
        for stage in model.stages:
            stage.wiring.alpha.copy_(torch.linspace(1, 1 + 2e-6, stage.wiring.alpha.numel()))
    heights = [bar.get_height() for bar in alpha_histogram(model).axes[0].patches]
    assert sum(heights) == sum(graph.num_edges for graph in model.topologies)


def test_pictures_are_written(model, tmp_path):
    paths = save_figures(model, tmp_path / "figures", "epoch-003")
    assert [path.name for path in paths] == ["adjacency_epoch-003.png", "alpha_epoch-003.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_titles_leave_out_what_all_names_begin_with(model):
    detector = nn.ModuleDict({"backbone": nn.ModuleDict({"network": model})})
    for drawn, titles in ((detector, ["stages.0", "stages.1"]), (nn.Sequential(model.stages[0]), ["0"])):
        edges = [f"{graph.num_edges} edges" for graph in model.topologies]
        found = [axis.get_title() for axis in adjacency_figure(drawn).axes if axis.images]
        assert found == [f"{title}: {count}" for title, count in zip(titles, edges)]


def test_a_model_without_wiring_is_named():
    with pytest.raises(ConfigError, match="Linear has no wiring to draw"):
        adjacency_figure(nn.Linear(2, 2))
