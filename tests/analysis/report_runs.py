"""Networks whose edge weights differ, and folders as `topodet pretrain` leaves them, without the training."""

import torch

from topodet import connectivity, weights
from topodet.files import atomic_csv
from topodet.models import TopoNet
from topodet.pretrain import build
from topodet.pretrain.command_line import parse
from topodet.pretrain.group import Group


def scattered(model, seed=0):
    """Draw the edge weights apart, some of them below 0."""
    generator = torch.Generator().manual_seed(seed)
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.data.normal_(generator=generator).pow_(3)
    return model


def toponet(seed=0, nodes=(4, 6, 5), **kwargs):
    return scattered(TopoNet(nodes=nodes, width=4, num_classes=3, **kwargs), seed)


def write_run(folder, *options, epochs=(0, 2, 3), last=True):
    """Write checkpoints of these epochs, and a summary.csv of all epochs up to the last of them."""
    args = parse(options or ("--model", "toponet_nano", "--sparsity", "adaptive"))
    model = build.create_model(args, 3, 3, Group(rank=0, world_size=1, device=torch.device("cpu")))
    history = []
    for epoch in range(max(epochs) + 1):
        scattered(model, seed=epoch)
        history.append({"epoch": epoch, "train_loss": 1.0 / (1 + epoch), "eval_top1": 10.0 * epoch, "penalty": 0.5})
        state = {
            "arch": args.model.model,
            "args": args.flat(),
            "num_classes": 3,
            "state_dict": model.state_dict(),
            "epoch": epoch,
            "history": history,
            "data_config": {"input_size": (3, 32, 32)},
        }
        if epoch in epochs:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(weights.with_digests(state), folder / f"checkpoint-{epoch}.pth.tar")
    if last:
        torch.save(weights.with_digests(state), folder / "last.pth.tar")
    atomic_csv(folder / "summary.csv", history)
    return model
