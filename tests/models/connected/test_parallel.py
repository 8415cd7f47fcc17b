"""A network connected by blocks under DistributedDataParallel: this process and one more, gloo."""

import pytest
import torch
from torch import nn

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


def train_as(rank, address):
    """Train as one of two processes; return the edge weights."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = network()
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, share(rank))
    del parallel  # a group that is destroyed while it holds it may never end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return model[0].wiring.alpha.detach()


def other_process(_, address, path):
    torch.save(train_as(1, address), path)


@pytest.mark.slow  # the other process imports torch
def test_two_processes_train_as_one_with_all_images(tmp_path):
    address, path = f"file://{tmp_path}/rendezvous", tmp_path / "alpha.pt"
    other = torch.multiprocessing.spawn(other_process, (address, path), nprocs=1, join=False)
    alpha = train_as(0, address)
    while not other.join():
        pass
    whole = network()
    train(whole, torch.cat([share(0), share(1)], dim=1))
    assert torch.equal(alpha, torch.load(path))
    torch.testing.assert_close(alpha, whole[0].wiring.alpha.detach())
    assert bool((alpha != network()[0].wiring.alpha).all())
