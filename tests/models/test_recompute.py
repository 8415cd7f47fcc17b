import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from tests.models.helpers import create, image
from topodet.models.recompute import update_statistics_once

# What recomputes: nodes of a graph, blocks of a chain, timm's blocks inside and outside of connected runs, its own.
NETWORKS = {
    "toponet": lambda: create("toponet_nano"),
    "cifar": lambda: create("resnet20_cifar"),
    "connected": lambda: create("mobilenetv2_x1_connected"),
    "timm": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
}


def statistics(model):
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_statistics_move_once_a_step(name):
    model = NETWORKS[name]().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing(True)
    update_statistics_once(recomputing)  # again, where the network did it: no difference
    for _ in range(2):
        x = image()
        for network in (model, recomputing):
            network(x).square().sum().backward()
    expected, found = statistics(model), statistics(recomputing)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-7)
    for parameter, other in zip(model.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad)
    norms = [module for module in recomputing.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == {2}
    assert [norm.momentum for norm in norms] == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    pickle.loads(pickle.dumps(recomputing))


def test_a_mean_over_all_batches_counts_each_once():
    norm = nn.BatchNorm2d(3, momentum=None)
    update_statistics_once(norm)
    batches = torch.randn(4, 2, 3, 5, 5, requires_grad=True)
    for batch in batches:
        torch.utils.checkpoint.checkpoint(norm, batch, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(norm.running_mean, batches.detach().mean(dim=(0, 1, 3, 4)))
    assert (norm.num_batches_tracked, norm.momentum) == (4, None)
