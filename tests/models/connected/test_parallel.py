"""A network connected by blocks under DistributedDataParallel: two processes, gloo."""

import pytest
import torch
from torch import nn

from tests.processes import run_two
from topodet import connectivity
from topodet.models.connected import connect


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.linear(x)) + 0.5


def network():
    torch.manual_seed(0)
    return connect(nn.Sequential(Block(), Block(), Block()), nodes="blocks", sample=torch.ones(2, 4))


def train(model, images):
    """Two steps, with the penalty, on [2, N, 4]; DDP refuses the second when a parameter got no gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x in images:
        optimizer.zero_grad()
        (model(x).square().mean() + 0.01 * connectivity.penalty(getattr(model, "module", model), "adaptive")).backward()
        optimizer.step()


def share(rank):
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))[:, rank::2]


def train_as_one_of_two(rank, address, results):
    """Save the edge weights that process `rank` has in the end."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, share(rank))
    torch.save(model[0].wiring.alpha.detach(), results / f"{rank}.pt")
    del model, parallel  # a group that is destroyed while they hold it may never end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # the processes import torch
def test_two_processes_train_as_one_with_all_images(tmp_path):
    run_two(train_as_one_of_two, tmp_path)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = network()
    train(whole, torch.cat([share(0), share(1)], dim=1))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, whole[0].wiring.alpha.detach())
    assert bool((one != network()[0].wiring.alpha).all())
