"""Freezing and data-parallel training: two processes, gloo, without `find_unused_parameters`."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from tests.mmdet.helpers import Task
from tests.processes import run_two
from topodet.connectivity import penalize

CASES = [(1, (0, 1, 2, 3)), (2, (1, 3)), (0, (1, 2))]  # frozen_stages, out_indices


def steps(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for frozen, out_indices in CASES:
        torch.manual_seed(0)
        model = Task(frozen_stages=frozen, out_indices=out_indices, norm_eval=False)
        model = MMDistributedDataParallel(model, find_unused_parameters=False).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalize(optimizer, model, "adaptive", 0.01)
        wrapper = OptimWrapper(optimizer)
        torch.manual_seed(rank)
        for _ in range(2):
            # DDP refuses the second step when a parameter got no gradient in the first.
            model.train_step({"inputs": torch.randn(2, 3, 32, 32)}, wrapper)
        alpha = model.module.backbone.stages[-1].wiring.alpha.detach()
        torch.save(alpha, results / f"frozen{frozen}_rank{rank}.pt")
        del model, optimizer, wrapper  # a group that is destroyed while they hold it may never end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    run_two(steps, tmp_path)
    for frozen, _ in CASES:
        one, two = (torch.load(tmp_path / f"frozen{frozen}_rank{rank}.pt") for rank in range(2))
        assert torch.equal(one, two)
        assert not torch.equal(one, torch.ones_like(one))
