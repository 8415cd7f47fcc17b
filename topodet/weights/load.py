"""Loading: a weights file fills a network completely, or is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..models import TimmTrunk
from ..models.connected import runs
from ..models.wiring import other_dtype
from .file import WeightsFile, of_detector, read


@dataclass(frozen=True)
class LoadReport:
    """The number of tensors that a file filled, and the file's card.

    Attributes:
        loaded, total: number of tensors that the file filled, and of all tensors in the network.
        left_out: modules that kept their initial values.
        card: card of the file, or one made from the options of a training checkpoint.
        prefix: prefix of a wrapper, removed from the file's names.
    """

    loaded: int
    total: int
    left_out: tuple[str, ...]
    card: dict[str, Any] = field(repr=False)
    prefix: str = ""

    def __str__(self) -> str:
        rest = f" (left at their initial values: {', '.join(self.left_out)})" if self.left_out else ""
        wrapper = f" (names without the prefix {self.prefix!r} of a wrapper)" if self.prefix else ""
        return f"{self.loaded}/{self.total} tensors{rest}{wrapper}"

    @property
    def doubt(self) -> str:
        """A sentence about missing information on the training images; "" if the file has all of it."""
        if self.card.get("mean") and self.card.get("std"):
            return ""
        return (
            "the file does not say what images it was trained on, so mean, std and channel order of the detector are "
            "not checked: publish it with `topodet publish`, or check them yourself"
        )


def load(
    model: nn.Module, source: str | os.PathLike | WeightsFile, *, head: bool = False, quiet: bool = False
) -> LoadReport:
    """Load a weights file strictly into a network and print `N/N tensors`.

    Every tensor of the backbone must be in the file with the same shape, and the file must have no other; stages that
    the model was built without are skipped. The classifier is not changed unless `head` is set. A connected network
    also accepts a file of the original, and keeps its initial edge weights. A network on the meta device gets the
    file's tensors, on the CPU.

    Args:
        model: a TopoNet, its `features_only` form, a timm network, a detector's backbone, or with `head` a detector.
        source: path, URL or hf-hub:USER/REPO, or a result of `read`.
        head: load the classifier too; it must fit.
        quiet: do not print (only the first process ever prints).

    Raises:
        WeightsError: as `read`; a missing or unexpected tensor, or one of another shape; another topology; a whole
            detector instead of a backbone.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    network = model.network if isinstance(model, TimmTrunk) else model
    own = network.state_dict()
    ignored = ignored_by(model, head)
    offered = {
        name: tensor
        for name, tensor in file.state_dict.items()
        if not ignored(name) and (name in own or not is_update_counter(name))
    }
    wanted = {name for name in own if not ignored(name) and (name in offered or not is_update_counter(name))}
    wanted -= missing_wiring_keys(network, offered)
    card = file.images_card
    problems = _differences(own, wanted, offered) + other_network(model, card)
    if problems and not head and of_detector(offered):
        raise WeightsError(
            f"{file.path} is a whole detector, not a backbone: load it with MODEL.WEIGHTS (Detectron2) or load_from "
            "(MMDetection), in the framework it was trained with, or give a backbone's file here"
        )
    known = f" ({card['architecture']})" if card.get("architecture") else ""
    misfit = f"{file.path}{known} does not fit {type(model).__name__}: {_other_architecture(model, card)}"
    if problems:
        raise WeightsError(
            f"{misfit}{'; '.join(problems)}. Choose the architecture, norm and classes that the file was trained with "
            "(for a pruned network arch='pretrained', or edges='pretrained' if it is timm's), or rebuild the network "
            "from it: topodet.weights.build"
        )
    # A network on the meta device has no values to copy into, so it gets the file's tensors themselves.
    assign = any(own[name].is_meta for name in wanted)
    if assign:
        offered = {name: tensor.to(own[name].dtype) for name, tensor in offered.items()}
    try:
        # Names were checked above; `strict` would require the classifier.
        network.load_state_dict(offered, strict=False, assign=assign)
    except WeightsError as error:  # a different topology, which the wiring reports edge by edge
        raise WeightsError(f"{misfit}{error}") from error
    if empty := [name for name, buffer in network.named_buffers() if buffer.is_meta and not ignored(name)]:
        raise WeightsError(
            f"{type(model).__name__} was created on the meta device, and {', '.join(empty[:3])} are not in the file: "
            "create it on another device, or fill them after to_empty"
        )
    left_out = tuple(sorted({name.rpartition(".")[0] for name in own.keys() - wanted if not is_update_counter(name)}))
    report = LoadReport(len(offered), len(wanted), left_out, card, file.prefix)
    if not quiet and _first_process():
        print(f"topodet: {report} loaded from {file.path}", flush=True)
    return report


def check_filled(
    backbone: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str,
    *,
    also: Collection[str] = (),
    optional: Collection[str] = (),
    remedy: str = "",
) -> tuple[int, int]:
    """Refuse a state dict that does not fill a detector's backbone completely; for its `_load_from_state_dict`.

    Called there, it applies to every loader of a framework, including those that load with strict=False and only log
    missing tensors. Wirings with different edges are not checked here: they report them edge by edge.

    Args:
        backbone: any backbone; errors name its `arch` or its class.
        state_dict, prefix: arguments of `_load_from_state_dict`.
        also: names, within the backbone, that the loader handles separately.
        optional: names, within the backbone, of tensors that may be absent.
        remedy: what to do about it, in the framework's terms.

    Returns:
        the number of the backbone's tensors that the state dict fills, and of all its tensors.

    Raises:
        WeightsError: names the tensors that are missing or have another shape or dtype.
    """
    given = {name[len(prefix) :] for name in state_dict if name.startswith(prefix)} | set(also)
    own = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        # Update counters may be missing.
        if name in given or not (is_update_counter(name) or name in optional)
    }
    for name in missing_wiring_keys(backbone, given):
        own.pop(name, None)
    filled = [name for name in own if _fits(state_dict.get(prefix + name), own[name])]
    graphs = [name for name in own if name.endswith("wiring.edges") and prefix + name in state_dict]
    if len(filled) < len(own) and all(name in filled for name in graphs):
        absent = [name for name in own if name not in filled]
        arch = getattr(backbone, "arch", type(backbone).__name__)
        raise WeightsError(
            f"the checkpoint fills {len(filled)}/{len(own)} tensors of the backbone {arch}; missing, or of "
            f"a different shape or dtype: {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}. {remedy}"
        )
    return len(filled), len(own)


def _fits(theirs: Any, ours: Tensor) -> bool:
    return isinstance(theirs, Tensor) and theirs.shape == ours.shape and not other_dtype(theirs, ours)


def other_network(model: nn.Module, card: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each reason that a card's network computes something else than the backbone."""
    differ = [
        (name, card[name], getattr(model, name))
        for name in ("rewire", "connect_nodes")
        if None not in (card.get(name), getattr(model, name, None)) and card[name] != getattr(model, name)
    ]
    if card.get("wiring") == "none":  # the original network, as which every form of `connect` starts
        differ = [item for item in differ if item[0] == "rewire"]
    return [
        f"the file has {name}={theirs}, the config asks for {name}={ours}: such a network computes something else from "
        "the same tensors and must be trained as such (`topodet pretrain`)"
        for name, theirs, ours in differ
    ]


def is_update_counter(name: str) -> bool:
    """Whether a tensor is a batch normalization's update counter, which frozen ones (Detectron2's) do not update."""
    return name.endswith(".num_batches_tracked")


def missing_wiring_keys(network: nn.Module, names: Collection[str]) -> set[str]:
    """Return the tensors of a connected network that a checkpoint of the original, with `names`, lacks.

    Empty for a rewired or pruned network, whose output differs from the original's even with initial edge weights.
    """
    pairs = []
    for name, blocks in runs(network).items():
        first = next(iter(blocks.values()))
        if first.wiring.complete and first.link.run.form != "rewired":
            pairs.append({f"{name}.alpha", f"{name}.edges"})
    return {name for pair in pairs if pair.isdisjoint(names) for name in pair}


def _differences(own: Mapping[str, Tensor], wanted: set[str], offered: Mapping[str, Tensor]) -> list[str]:
    """Describe why `offered` does not fill `wanted`: a sentence for each kind of problem, with examples."""

    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")

    missing = [name for name in own if name in wanted and name not in offered]
    unexpected = [name for name in offered if name not in wanted]
    # A graph of a different size is a different topology, which the wiring reports edge by edge.
    graphs = {name for name in offered if name.endswith("wiring.edges") and name in wanted}
    resized = {name for name in graphs if offered[name].shape != own[name].shape}
    reported = graphs | {f"{name.removesuffix('edges')}alpha" for name in resized}
    shapes = [
        f"{name} is {list(tensor.shape)} in the file and {list(own[name].shape)} in the model"
        for name, tensor in offered.items()
        if name in wanted and tensor.shape != own[name].shape and name not in reported
    ]
    dtypes = [
        f"{name} is {_word(tensor.dtype)} in the file and {_word(own[name].dtype)} in the model"
        for name, tensor in offered.items()
        if name in wanted and other_dtype(tensor, own[name])
    ]
    problems = []
    if missing:
        problems.append(f"missing in the file: {some(missing)}")
    if unexpected:
        problems.append(f"unknown to the model: {some(unexpected)}")
    if shapes:
        problems.append(some(shapes))
    if dtypes:
        problems.append(some(dtypes))
    return problems


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _other_architecture(model: nn.Module, card: Mapping[str, Any]) -> str:
    """Name both architectures if the card and a framework's backbone have different ones; otherwise ""."""
    theirs, ours = card.get("architecture"), getattr(model, "arch", None)
    if theirs and ours and theirs != ours.partition(".")[0]:
        return f"the file is {theirs}, the config asks for {ours}; "
    theirs, ours = card.get("wiring"), getattr(model, "wiring", None)
    if theirs and ours and theirs != ours and "none" in (theirs, ours):
        return f"the file has wiring={theirs!r}, the config asks for wiring={ours!r}; "
    return ""


def ignored_by(model: nn.Module, head: bool) -> Callable[[str], bool]:
    """Return the tensors that `load` does not fill: the classifier, and parts that the model was built without."""
    unbuilt = getattr(model, "ignores", lambda name: False)
    classifier = () if head else _classifier(model)
    return lambda name: name.startswith(classifier) or unbuilt(name)


def has_classifier(model: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has parts of a network's classifier; that for another number of classes does not count."""
    prefixes = _classifier(model)
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(prefixes)}
    given = {name: tensor.shape for name, tensor in state_dict.items() if name.startswith(prefixes)}
    if given.keys() != own.keys():
        return bool(given)
    return not all(given[name][1:] == own[name][1:] and given[name][:1] != own[name][:1] for name in own)


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the tensors of a timm network's classifier; empty for other modules."""
    if not hasattr(model, "get_classifier"):
        return ()
    found = model.get_classifier()
    parts = {id(part) for part in (found if isinstance(found, tuple | list) else (found,))}
    return tuple(f"{name}." for name, module in model.named_modules() if id(module) in parts)


def _first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
