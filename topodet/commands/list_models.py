"""List the TopoNets that timm can create."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from topodet.commands import make_parser


def parser() -> argparse.ArgumentParser:
    return make_parser(__name__, __doc__)


def main(words: Sequence[str]) -> None:
    parser().parse_args(words)
    import timm
    import torch

    from topodet.models import ARCHITECTURES

    print(f"{'name':22} {'nodes':14} {'width':>5} {'edges':>6}  {'weights':8} {'parameters':>12}  topology")
    for name in timm.list_models("toponet*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        nodes = ",".join(str(len(stage.nodes)) for stage in model.stages)
        edges = sum(stage.wiring.topology.num_edges for stage in model.stages)
        weights = "learned" if model.stages[0].wiring.learned else "fixed"
        parameters = sum(parameter.numel() for parameter in model.parameters())
        spec = ARCHITECTURES[name].get("topology", "complete")
        if not isinstance(spec, str):
            arguments = [f"{key}={value}" for key, value in spec.items() if key != "name"]
            spec = " ".join([spec["name"], *arguments])
        width = model.stem.conv.out_channels
        print(f"{name:22} {nodes:14} {width:5} {edges:6}  {weights:8} {parameters:12,}  {spec}")
