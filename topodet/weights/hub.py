"""Publishing on the Hugging Face hub, in timm's layout: `timm.create_model("hf-hub:NAME/REPO")` reads it back."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
from huggingface_hub import HfApi
from timm.models import push_to_hf_hub
from torch import nn

from .. import connectivity, weights
from ..errors import WeightsError
from ..models import ARCHITECTURES
from . import PublishedFiles, WeightsFile

# Interpolation and crop are not always known; timm has defaults for them.
_DATA_KEYS = ("mean", "std", "input_size", "interpolation", "crop_pct")
_ARGUMENTS = ("nodes", "width", "topology", "edge_weights", "norm_layer", "output_stride")


def timm_model(file: WeightsFile) -> tuple[nn.Module, dict[str, Any]]:
    """Return a published backbone as a timm model, and its `create_model` arguments (empty for an unchanged named one).

    Raises:
        WeightsError: the file's architecture is not a registered network, or is a connected one, which timm cannot
            create.
    """
    name = file.card.get("architecture")
    wiring = file.card.get("wiring")
    if name not in ARCHITECTURES and wiring is None:
        raise WeightsError(f"{file.path}: architecture {name!r} is not registered in timm, so the hub cannot serve it")
    arguments: dict[str, Any] = dict(file.card.get("options") or {})
    if name in ARCHITECTURES:
        rebuilt = weights.build(file)
        named = timm.create_model(name, num_classes=0)
        if str(named) != str(rebuilt) or named.topologies != rebuilt.topologies:
            arguments = {key: file.card[key] for key in _ARGUMENTS if key in file.card}
    make = partial(timm.create_model, name, num_classes=0, **arguments)
    try:
        weights.check_size(file, make)
        model = make()
    except WeightsError:
        raise
    except Exception as error:  # timm can raise anything for the arguments of a card
        raise WeightsError(f"{file.path}: timm cannot create its network: {error}") from error
    if wiring not in (None, "none") and not connectivity.wirings(model):
        raise WeightsError(f"{file.path}: timm does not connect {name}, so the hub cannot serve it; publish the files")
    weights.load(model, file, quiet=True)
    model.pretrained_cfg.update({key: file.card[key] for key in _DATA_KEYS if file.card.get(key) is not None})
    return model, arguments


def push(files: PublishedFiles, repo: str, *, private: bool = False) -> str:
    """Upload a published backbone for timm, and its three files; return the repository's address.

    Needs a token of the hub: `hf auth login`, or the environment variable HF_TOKEN.

    Raises:
        WeightsError: the file's architecture is not a registered network.
        OSError: the hub cannot be reached or refuses the upload.
    """
    file = weights.read(files.pth)
    model, arguments = timm_model(file)
    try:
        _upload(files, repo, model, arguments, licence=file.card["licence"], private=private)
    except Exception as error:  # huggingface_hub also raises errors of its HTTP library
        raise OSError(f"upload to the hub ({repo}) failed: {error}. The published files are kept") from error
    return f"https://huggingface.co/{repo}"


def _upload(
    files: PublishedFiles, repo: str, model: nn.Module, arguments: dict[str, Any], *, licence: str, private: bool
) -> None:
    card = {"license": licence.lower(), "details": {"Paper": "https://arxiv.org/abs/2008.08261"}}
    push_to_hf_hub(
        model,
        repo,
        private=private,
        model_card=card,
        model_args=arguments,
        task_name="image-feature-extraction",
        safe_serialization=True,
    )
    api = HfApi()
    for path in (files.pth, files.safetensors, files.card):
        api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repo)
