"""A checkpoint as `topodet.pretrain` saves it."""

import torch

DATA_CONFIG = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 64, 64), "crop_pct": 1.0}


def checkpoint(path, model, **more):
    content = {
        "arch": "toponet_nano",
        "state_dict": model.state_dict(),
        "epoch": 4,
        "args": {"model": "toponet_nano", "model_kwargs": {}, "lr": 0.1},
        "data_config": DATA_CONFIG,
        "history": [{"epoch": 3, "top1": 40.0}, {"epoch": 4, "top1": 42.0}],
        **more,
    }
    torch.save(content, path)
    return path
