"""The contestants of a benchmark, and their steps."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from ..connectivity import wirings
from ..errors import ConfigError, unknown_name
from ..frameworks import PACKAGES, require_framework
from ..models import FusedStage, TopoNet, TopoStage, architecture_arguments, fuse_for_inference, init_weights
from ..models.calibrate import calibrate_batchnorm
from ..topology import Topology, make_topology
from .peer import build_peer
from .pruned import keep_edges
from .settings import Settings
from .stages import Chain, PlainLoop, rebuilt

NUM_CLASSES = 1000
MODES = ("train", "eval")
# The floor, by memory format.
CHAINS = {"chain": torch.contiguous_format, "chain_channels_last": torch.channels_last}
_BACKBONES = ("toponet50", "r50")


@dataclass(frozen=True)
class Contestant:
    """A module with the two timed steps; None for a step that it lacks.

    Attributes:
        module: module with the parameters and the training mode.
        loss: computes a scalar from the module's output.
        predict: computes the module's output.
        inputs: tensors with a gradient of their own.
    """

    module: nn.Module
    loss: Callable[[], Tensor] | None
    predict: Callable[[], Any] | None
    inputs: Sequence[Tensor] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of `MODES` that it has a step for."""
        return tuple(mode for mode, step in zip(MODES, (self.loss, self.predict)) if step)

    @property
    def edges(self) -> int | None:
        """Number of edges in the sums, None for a network without a wiring."""
        fused = sum(len(stage.edges) for stage in self.module.modules() if isinstance(stage, FusedStage))
        return fused or sum(wiring.topology.num_edges for wiring in wirings(self.module).values()) or None

    def step(self, mode: str) -> None:
        """Run the timed step: drop the gradients, forward and backward ("train"), or forward only ("eval").

        The module must be in that mode.
        """
        if mode == "eval":
            with torch.inference_mode():
                self.predict()
        else:
            self.drop_gradients()
            self.loss().backward()

    def drop_gradients(self) -> None:
        """Set every gradient to None."""
        self.module.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None


def names(settings: Settings) -> tuple[str, ...]:
    """Return the names of those that take part.

    Raises:
        ConfigError: `settings.contestants` has an unknown name, or a framework is not installed.
    """
    if settings.what == "detector":
        known = [f"{framework}_{backbone}" for framework in _frameworks(settings) for backbone in _BACKBONES]
    else:
        known = ["model", "plain", *CHAINS]
        known += ["resnet50"] if settings.what == "network" else []
        known += ["fused"]
        known += ["pruned", "fused_pruned"] if settings.keep < 1 else []
        known += ["module"] if settings.module else []
    for name in settings.contestants:
        if name not in known:
            raise ConfigError(unknown_name("--contestants", name, known))
    return tuple(name for name in known if not settings.contestants or name in settings.contestants)


def build(settings: Settings, name: str) -> Contestant:
    """Build a contestant on its device; all start from the same seed, so that the same nodes have the same weights.

    Raises:
        ConfigError: a module or choice of edges that cannot be built, or an output of another shape.
    """
    torch.manual_seed(settings.seed)
    if settings.what == "detector":
        framework, _, backbone = name.rpartition("_")
        return Contestant(*detectors(framework).training_step(backbone, settings), predict=None)
    fused = name.startswith("fused")
    module = _module(settings, {"fused": "model", "fused_pruned": "pruned"}.get(name, name))
    with torch.no_grad():
        for wiring in wirings(module).values():
            wiring.alpha.uniform_(0.5, 1.0)  # no two alike, as in a trained network
    return _on_device(module, settings, name, fused=fused)


def detectors(framework: str) -> Any:
    """Import the module that builds a framework's detectors; by name, because that module imports this package."""
    return importlib.import_module(f"{PACKAGES[framework][1]}.benchmark")


def topologies(settings: Settings) -> list[Topology]:
    """Return the graph of each stage of the model."""
    if settings.what == "stage":
        return [make_topology(settings.topology, settings.nodes, seed=settings.seed)]
    with torch.device("meta"):
        return list(TopoNet(**architecture_arguments(settings.arch)).topologies)


def _frameworks(settings: Settings) -> Sequence[str]:
    for framework in settings.frameworks:
        require_framework(PACKAGES[framework][0])
    found = [name for name in PACKAGES if importlib.util.find_spec(PACKAGES[name][0])]
    if not found:
        require_framework("mmdet")
    return settings.frameworks or found


def _module(settings: Settings, name: str) -> nn.Module:
    if name == "resnet50":
        return resnet50(num_classes=NUM_CLASSES)
    graphs = topologies(settings)
    if name == "module":
        return build_peer(settings.module, peer_arguments(settings))
    if name == "pruned":
        graphs = [keep_edges(graph, settings.keep, seed=settings.seed) for graph in graphs]
    if settings.what == "stage":
        model = TopoStage(settings.in_chs, settings.out_chs, graphs[0])
        init_weights(model)
    else:
        model = TopoNet(**architecture_arguments(settings.arch, topology=graphs), num_classes=NUM_CLASSES)
    kind = Chain if name in CHAINS else PlainLoop if name == "plain" else None
    return rebuilt(model, kind) if kind else model


def peer_arguments(settings: Settings) -> dict[str, Any]:
    """Return what the function of `--module` is called with."""
    if settings.what == "network":
        return {"num_classes": NUM_CLASSES}
    [graph] = topologies(settings)
    return {"in_chs": settings.in_chs, "out_chs": settings.out_chs, "nodes": graph.num_nodes, "edges": graph.edges}


def _on_device(module: nn.Module, settings: Settings, name: str, *, fused: bool) -> Contestant:
    layout = CHAINS.get(name, settings.layout)
    module = module.to(settings.device, memory_format=layout)
    stage = settings.what == "stage"
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(settings.batch, settings.in_chs if stage else 3, settings.size, settings.size, generator=generator)
    # A stage follows others, which need the gradient of its input; an image needs none.
    x = x.to(settings.device, memory_format=layout).requires_grad_(stage)

    def forward(called: nn.Module) -> Tensor:
        with torch.autocast(x.device.type, settings.precision, enabled=settings.dtype != "float32"):
            return called(x)

    output = calibrate_batchnorm(module.eval(), forward, module)
    if fused:  # after calibration: fusing merges the statistics
        module = fuse_for_inference(module).to(settings.device, memory_format=layout)
    # Shapes never change, and a graph for dynamic shapes would be slower.
    called = torch.compile(module, dynamic=False) if settings.compile else module
    _check_output(output, settings, name)
    # The plain sum or mean of a normalized output has almost no gradient: rounding errors and denormal numbers, which
    # are slow on a CPU. Therefore each element has a random weight in the loss.
    weights = torch.randn_like(output, dtype=torch.float32)
    inputs = (x,) if stage else ()
    loss = None if fused else lambda: (forward(called).float() * weights).sum()
    return Contestant(module, loss, lambda: forward(called), inputs)


def _check_output(output: Any, settings: Settings, name: str) -> None:
    half = -(-settings.size // 2)
    stage = (settings.batch, settings.out_chs, half, half)
    expected = stage if settings.what == "stage" else (settings.batch, NUM_CLASSES)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        raise ConfigError(f"{name}: its output is {found}, but must be a tensor of {expected} to do the same work")
