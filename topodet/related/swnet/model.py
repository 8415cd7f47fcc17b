"""SWNet: a CNN with retargeted kernels, as a small world (arXiv 1904.04862).

Nodes are channels of feature maps, edges are kernels. `swnet` retargets each kernel with probability p to a channel at
least two layers after the one it reads, and keeps their number.

    >>> import timm
    >>> from topodet import complexity
    >>> from topodet.related.swnet import swnet
    >>> original = timm.create_model("resnet18")
    >>> retargeted = swnet(original, p=0.3, seed=0)
    >>> complexity.parameters(retargeted) == complexity.parameters(original)
    True
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError, WeightsError
from ...models.fixed_tensors import FixedTensors
from .channels import ChannelGraph, layered

# Names of the modules in a block's shortcut, in timm and torchvision.
_SHORTCUTS = {"downsample", "shortcut"}


def swnet(model: nn.Module, *, p: float = 0.5, seed: int = 0, image_size: int = 224) -> nn.Module:
    """Return a copy of a CNN in which each kernel u -> v, with probability p, leads to two or more layers after u.

    The layers are the convolutions of `forward_features` (or of `forward`) in their order. A layer's nodes are the
    channels as the next convolution reads them: after normalization, activation, pooling and the addition of a
    shortcut.

    - The first convolution reads the image, which is not a feature map, so its kernels stay. So do those of the last
      layer, which no layer follows, and the classifier.
    - A block's shortcut, identity or projection ("downsample"), is not changed, and is not an edge.
    - A depthwise convolution works channel by channel, like normalization, and is part of the nodes that it reads. In a
      MobileNet the layers are the pointwise convolutions.
    - In a grouped convolution an edge joins channels of one group. Long-range kernels may reach any channel.
    - Convolutions over 1 x 1 maps (gates such as squeeze-and-excitation, heads) are not layers.
    - A long-range kernel has its new layer's size, stride and padding, and its input is average-pooled to that layer's
      resolution. It starts with normal weights of that layer's mean square. If all kernels have the same size, the
      number of parameters stays the same too.

    Parameters and feature maps keep their names, and with p=0 the output is exactly the same. A layer has additional
    tensors, see `RetargetedConv2d`; the weight of a moved kernel stays 0. Feature maps for later layers are stored
    during a pass, so a network runs one complete pass at a time (DistributedDataParallel, not DataParallel), without
    timm's gradient checkpointing. torch.compile and torch.export work, torch.jit.script does not.

    Args:
        model: a timm network such as a VGG, ResNet or MobileNet, also with features_only=True, or any whose
            convolutions form a sequence.
        p: probability that an edge is re-targeted.
        seed: seed of the retargeting and of the new weights.
        image_size: side of the images, in pixels, at which resolutions are compared.

    Raises:
        ConfigError: p is not between 0 and 1; the network is already retargeted, or not a sequence of convolutions,
            with the layer and the reason.
    """
    chain = _chain(model, image_size)
    return _retarget(model, chain, _layered(chain).retargeted(p, seed=seed), seed)


def channel_graph(model: nn.Module, *, image_size: int = 224) -> ChannelGraph:
    """Return the graph of a network's channels and kernels, original or retargeted; see `swnet` for the rules.

        >>> import timm
        >>> from topodet.related.swnet import channel_graph, small_world
        >>> graph = channel_graph(timm.create_model("vgg11"))
        >>> graph.widths, small_world(graph.edges, references=1, samples=64).small_worldness
        ((64, 128, 256, 256, 512, 512, 512, 512), 0.0)

    Raises:
        ConfigError: it is not a sequence of convolutions.
    """
    layers = sorted(_retargeted(model), key=lambda layer: layer.number)
    if not layers:
        return _layered(_chain(model, image_size))
    return _graph_of([(layer.in_channels, layer.groups, layer.mask, layer.long_range) for layer in layers])


def rebuild_swnet(model: nn.Module, state_dict: Mapping[str, Tensor], *, image_size: int = 224) -> nn.Module:
    """Return a copy of a CNN with the wiring and the weights of a SWNet's state dict.

    Args:
        model: the original network, with any weights.
        state_dict: state dict of a result of `swnet` for such a network.
        image_size: see `swnet`.

    Raises:
        WeightsError: the state dict is not of a SWNet of this network.
        ConfigError: see `swnet`.
    """
    chain = _chain(model, image_size)
    parts = []
    for layer in chain[1:]:
        mask, links = (state_dict.get(f"{layer.name}.{part}") for part in ("mask", "long_range"))
        if mask is None or links is None or mask.shape != layer.conv.weight.shape[:2]:
            raise WeightsError(
                f"the state dict is not of a SWNet of this {type(model).__name__}: {layer.name}.mask or "
                f"{layer.name}.long_range is missing or of another shape; give the network that was retargeted"
            )
        parts.append((layer.conv.in_channels, layer.conv.groups, mask, links))
    retargeted = _retarget(model, chain, _graph_of(parts), seed=0)
    retargeted.load_state_dict(state_dict)
    return retargeted


class FeatureMaps:
    """Inputs of layers in the current pass, by layer number, for later layers."""

    def __init__(self):
        self.held: dict[int, Tensor] = {}

    def take(self, number: int, *, last: bool) -> Tensor:
        """Return the input of layer `number`, and delete it after the last read."""
        if number not in self.held:
            raise ConfigError(
                "a retargeted layer reads a feature map that this pass has not computed: call the network as a whole, "
                "one pass at a time, and without gradient checkpointing"
            )
        return self.held.pop(number) if last else self.held[number]

    def __getstate__(self):
        return {"held": {}}  # copies and files start without feature maps


@dataclass(frozen=True)
class Read:
    """The part of an earlier feature map that a layer reads.

    Args:
        number: number of the layer whose own input it is.
        begin, end: range in `RetargetedConv2d.channels`.
        stride: pixels of the map per pixel of this layer's input.
        last: whether no later layer reads it.
    """

    number: int
    begin: int
    end: int
    stride: int
    last: bool


class RetargetedConv2d(FixedTensors, nn.Conv2d):
    """A convolution without some of its kernels and with others on channels of earlier layers.

    It has the `weight` and `bias` of the original. A state dict also contains
    - `mask`, bool [out_channels, in_channels / groups]: the kernels of `weight` that exist. The others are unused,
      have no gradient, and stay 0.
    - `long_range_weight`, float [K, kH, kW]: the long-range kernels; absent if there are none.
    - `long_range`, int64 [K, 2]: for each of these, its source node in the network's `channel_graph`, and its output
      channel. A file whose `mask` or `long_range` differs is refused.

    They are stored as a list, and turned into a dense weight for the layers' channels while the layer runs. This weight
    and the gathered channels are recomputed in the backward pass, so their memory grows with the largest layer and not
    with the square of the network.

    Args:
        conv: the original, whose parameters it uses.
        number: number of the layer; the first convolution of the network, which is not retargeted, is 0.
        mask, long_range: see above.
        reads: the earlier maps, by increasing number.
        channels: the channels read from each map, map by map, increasing; int64.
        maps: shared by all layers of the network.
        generator: random generator for the long-range weights.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        number: int,
        mask: Tensor,
        long_range: Tensor,
        reads: Sequence[Read],
        channels: Tensor,
        is_read: bool,
        maps: FeatureMaps,
        generator: torch.Generator,
    ):
        options = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False, device="meta", **options)
        self.number = number
        self.reads = tuple(reads)
        self.is_read = is_read
        self.maps = maps
        self.num_kernels = int(mask.sum()) + len(long_range)
        self.num_absent = int((~mask).sum()) * self.kernel_size[0] * self.kernel_size[1]
        self.training = conv.training
        device = conv.weight.device
        self.weight, self.bias = conv.weight, conv.bias
        self.register_parameter("long_range_weight", None)
        if len(long_range):
            drawn = torch.randn(len(long_range), *self.kernel_size, generator=generator)
            scale = self.weight.detach().square().mean().sqrt()
            self.long_range_weight = nn.Parameter(drawn.to(self.weight) * scale)
        self.register_fixed("mask", mask.to(device))
        self.register_fixed("long_range", long_range.to(device))
        self.register_fixed("channels", channels.to(device), persistent=False)
        # The place of each kernel in the dense weight [out_channels * len(channels), kH, kW].
        column = torch.unique(long_range[:, 0], return_inverse=True)[1]
        place = long_range[:, 1] * len(channels) + column
        self.register_fixed("place", place.to(device), persistent=False)
        with torch.no_grad():
            self.weight.mul_(self._mask)

    @property
    def _mask(self) -> Tensor:
        return self.mask[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer on its own input [B, in_channels, H, W] and on channels of earlier layers."""
        if self.is_read:
            self.maps.held[self.number] = x
        weight = self.weight * self._mask
        output = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if not self.reads:
            return output
        sources = [self.maps.take(read.number, last=read.last) for read in self.reads]
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return output + self._from_afar(*x.shape[-2:], *sources)  # a compiler decides itself what to keep
        options = {"use_reentrant": False, "preserve_rng_state": False}
        return output + checkpoint(self._from_afar, *x.shape[-2:], *sources, **options)

    def _from_afar(self, height: int, width: int, *sources: Tensor) -> Tensor:
        gathered = []
        for read, source in zip(self.reads, sources):
            part = source.index_select(1, self.channels[read.begin : read.end])
            if read.stride > 1:
                part = F.avg_pool2d(part, read.stride, ceil_mode=True)
            gathered.append(part[..., :height, :width])
        columns = self.reads[-1].end
        dense = self.long_range_weight.new_zeros(self.out_channels * columns, *self.kernel_size)
        dense = dense.index_copy(0, self.place, self.long_range_weight)
        weight = dense.view(self.out_channels, columns, *self.kernel_size)
        return F.conv2d(torch.cat(gathered, dim=1), weight, None, self.stride, self.padding, self.dilation)

    def multiply_adds(self, output: Tensor) -> int:
        """Return the multiply-adds of existing kernels for one image; output: [B, C, H, W]."""
        return output[0, 0].numel() * self.num_kernels * math.prod(self.kernel_size)

    def extra_repr(self) -> str:
        """Show the numbers of kept and new kernels."""
        return f"{super().extra_repr()}, kernels={self.num_kernels}, from_afar={len(self.long_range)}"

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Raised here and not collected, because frameworks that load with strict=False only log what is collected.
        for name in ("mask", "long_range"):
            theirs, ours = state_dict.get(prefix + name), getattr(self, name)
            if theirs is not None and (theirs.shape != ours.shape or not torch.equal(theirs.cpu(), ours.cpu())):
                raise WeightsError(
                    f"{prefix}{name}: the file has another wiring than the model (p, seed or network). Build the "
                    "model from the file: topodet.related.swnet.rebuild_swnet(original, state_dict)"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True)
class _Layer:
    """A convolution of the chain: its name, what it reads (on the meta device) and its resolution there."""

    name: str
    conv: nn.Conv2d
    input: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.input.shape[-2:])


def _retargeted(model: nn.Module) -> list[RetargetedConv2d]:
    return [module for module in model.modules() if isinstance(module, RetargetedConv2d)]


def _chain(model: nn.Module, image_size: int) -> list[_Layer]:
    """Return the convolutions of the chain, in their order; refuse a network that is not a chain."""
    if _retargeted(model):
        raise ConfigError(f"{type(model).__name__} is already retargeted; retarget the original with this p")
    calls = _calls(model, image_size)
    twice = [name for name, count in Counter(layer.name for layer in calls).items() if count > 1]
    if twice:
        raise ConfigError(f"cannot retarget {type(model).__name__}: {twice[0]} is called more than once in a pass")
    chain = [layer for layer in calls if _is_layer(layer)]
    if len(chain) < 3:
        raise ConfigError(
            f"cannot retarget {type(model).__name__}: it has {len(chain)} layers of ordinary convolutions, but "
            "retargeting needs at least 3"
        )
    for before, layer in zip([None, *chain], chain):
        reason = _obstacle(layer, before)
        if reason:
            raise ConfigError(f"cannot retarget {type(model).__name__}: {layer.name} {reason}")
    return chain


def _calls(model: nn.Module, image_size: int) -> list[_Layer]:
    """Return all convolutions that a pass calls, in their order."""
    twin = copy.deepcopy(model).to("meta").eval()
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not convs:
        raise ConfigError(f"cannot retarget {type(model).__name__}: it has no convolution")
    calls = []
    for name, conv in convs.items():
        twin.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name, conv=conv: calls.append(_Layer(name, conv, args[0]))
        )
    run = getattr(twin, "forward_features", twin)
    first = next(iter(convs.values()))
    image = torch.zeros(1, first.in_channels, image_size, image_size, dtype=first.weight.dtype, device="meta")
    try:
        with torch.no_grad():
            run(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{type(model).__name__} does not accept images of {list(image.shape)}, give another image_size: {error}"
        ) from error
    return calls


def _is_layer(layer: _Layer) -> bool:
    conv = layer.conv
    depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels
    return not (depthwise or layer.size == (1, 1) or _SHORTCUTS & set(layer.name.split(".")))


def _obstacle(layer: _Layer, before: _Layer | None) -> str | None:
    """Return why a layer cannot follow the one before, or cannot be retargeted."""
    conv = layer.conv
    if before is None:
        return None
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return f"is not a plain Conv2d: {type(conv).__name__}, padding_mode={conv.padding_mode!r}"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "has forward hooks, which would miss the long-range kernels; retarget first"
    if layer.input is before.input:
        return f"reads the same map as {before.name}: they are parallel, and neither is the later layer"
    if conv.in_channels != before.conv.out_channels:
        return (
            f"reads {conv.in_channels} channels where {before.name} gives {before.conv.out_channels}: maps are "
            "concatenated, split or added from parallel branches between them"
        )
    if any(now > earlier for now, earlier in zip(layer.size, before.size)):
        return f"reads a map of {layer.size} pixels after one of {before.size}: the resolution must not increase"
    return None


def _layered(chain: Sequence[_Layer]) -> ChannelGraph:
    convs = [layer.conv for layer in chain[1:]]
    widths = [conv.in_channels for conv in convs] + [convs[-1].out_channels]
    return layered(widths, groups=[conv.groups for conv in convs])


def _graph_of(layers: Sequence[tuple[int, int, Tensor, Tensor]]) -> ChannelGraph:
    """Return the graph of layers given by their input channels, groups, mask and long-range kernels."""
    widths = [in_channels for in_channels, *_ in layers] + [len(layers[-1][2])]
    whole, offset = [], 0
    for (in_channels, groups, mask, links), width in zip(layers, widths[1:]):
        out, place = mask.nonzero(as_tuple=True)
        source = out // (width // groups) * (in_channels // groups) + place
        target = torch.cat([out, links[:, 1]]) + offset + in_channels
        whole.append(torch.stack([torch.cat([source + offset, links[:, 0]]), target], dim=1))
        offset += in_channels
    return ChannelGraph(tuple(widths), torch.cat(whole).cpu().numpy())


def _retarget(model: nn.Module, chain: Sequence[_Layer], graph: ChannelGraph, seed: int) -> nn.Module:
    """Return a copy of the model with the graph's kernels."""
    model = copy.deepcopy(model)
    maps, offsets = FeatureMaps(), graph.offsets  # layer i of the graph is the input of layer i + 1 of the chain
    generator = torch.Generator().manual_seed(seed)
    spans = graph.layers_of(graph.edges)
    by_target = graph.edges[np.lexsort(graph.edges.T)]  # and by source within
    bounds = np.searchsorted(by_target[:, 1], offsets)
    last = {int(source): int(target) for source, target in np.unique(spans[np.diff(spans)[:, 0] > 1], axis=0)}
    for number, layer in enumerate(chain[1:], 1):
        edges = by_target[bounds[number] : bounds[number + 1]]
        near = edges[:, 0] >= offsets[number - 1]
        conv = model.get_submodule(layer.name)
        mask = torch.zeros(conv.weight.shape[:2], dtype=torch.bool)
        source, target = edges[near].T - offsets[number - 1 : number + 1][:, None]
        mask[target, source % mask.shape[1]] = True
        links = edges[~near] - [0, offsets[number]]
        nodes = np.unique(links[:, 0])
        reads, ends = [], np.searchsorted(nodes, offsets)
        for k in range(number - 1):
            if ends[k] < ends[k + 1]:
                stride = _stride(chain[k + 1], layer)
                reads.append(Read(k + 1, int(ends[k]), int(ends[k + 1]), stride, last[k] == number))
        channels = nodes - offsets[graph.layers_of(nodes)]
        retargeted = RetargetedConv2d(
            conv,
            number=number,
            mask=mask,
            long_range=torch.from_numpy(links),
            reads=reads,
            channels=torch.from_numpy(channels),
            is_read=number - 1 in last,
            maps=maps,
            generator=generator,
        )
        parent, _, child = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), child, retargeted)
    return model


def _stride(source: _Layer, layer: _Layer) -> int:
    """Return the stride of the pooling from the input of `source` to the resolution of `layer`."""
    strides = {round(big / small) for big, small in zip(source.size, layer.size)}
    stride = strides.pop()
    if strides or any(-(-big // stride) < small for big, small in zip(source.size, layer.size)):
        raise ConfigError(
            f"a map of {source.size} pixels, read by {source.name}, cannot be pooled to the {layer.size} of "
            f"{layer.name}; give the image_size that the network is used at"
        )
    return stride
