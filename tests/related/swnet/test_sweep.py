import pytest
from torch import nn

from topodet.errors import ConfigError
from topodet.related.swnet.channels import layered
from topodet.related.swnet.figures import small_world_figure
from topodet.related.swnet.model import channel_graph, swnet
from topodet.related.swnet.small_world import SmallWorld, small_world
from topodet.related.swnet.sweep import SmallWorldSweep, small_world_sweep


def test_a_sweep_measures_what_swnet_makes():
    model = nn.Sequential(*[nn.Conv2d(8 if k else 3, 8, 3, padding=1) for k in range(5)])
    ps = (0, 0.25, 0.5, 1)
    sweep = small_world_sweep(model, ps, references=2, seed=1)
    assert sweep.ps == ps
    for p, world in zip(ps, sweep.worlds):
        graph = channel_graph(swnet(model, p=p, seed=1))
        found = small_world(graph.edges, num_nodes=graph.num_nodes, references=2, seed=1)
        assert world.small_worldness == pytest.approx(found.small_worldness, rel=1e-12)
    first = sweep.worlds[0]
    assert (first.clustering, first.small_worldness) == (0, 0)
    assert all(world.path_length < first.path_length for world in sweep.worlds[1:])
    assert small_world_sweep(layered([8] * 5), ps, references=2, seed=1) == sweep


def world(s):
    return SmallWorld(0.1 * s, 2.0, 0.1, 2.0, 1.0, 10)


def test_the_choice_of_p():
    sweep = SmallWorldSweep((0, 0.2, 0.4, 0.6), tuple(map(world, (0, 1, 3, 3))))
    assert sweep.best == sweep.choose() == sweep.choose("max_s") == 0.4
    assert sweep.choose(0.7) == sweep.choose("0.7") == 0.7
    for wrong in ("max", "-1", 1.5, "nan"):
        with pytest.raises(ConfigError, match=f"p={wrong!r} is invalid: give 'max_s' or a number from 0 to 1"):
            sweep.choose(wrong)


def test_picture():
    sweep = SmallWorldSweep((0, 0.2, 0.4), tuple(map(world, (0, 1, 3))))
    drawn = small_world_figure(sweep, title="a network")
    left, right = drawn.axes
    curves = {line.get_label(): line for axis in (left, right) for line in axis.get_lines()}
    assert curves["S"].get_ydata() == pytest.approx([0, 1, 3])
    assert curves["C"].get_ydata() == pytest.approx([0, 0.1, 0.3])
    assert curves["L (right)"].get_ydata() == pytest.approx([2, 2, 2])
    assert list(curves["largest S: p = 0.4"].get_xdata()) == [0.4, 0.4]


def test_an_empty_sweep_is_named():
    with pytest.raises(ConfigError, match="a sweep needs at least one p"):
        small_world_sweep(layered([3, 3, 3]), [])
